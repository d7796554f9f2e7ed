"""Texts of what stops a run between two stages (`wording.py` has the other texts)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors.kinds import Kind

Values = Mapping[str, Any]


def _nothing_learned(v: Values) -> str:
    guess = {"majority": "the most common answer of the training rows", "chance": "a random answer"}[v["source"]]
    return (
        f"the teacher has learned nothing: {v['metric']} {_span(v['score'])} on {v['rows']:,} validation rows;"
        f" {guess} has {v['baseline']:.3f}. No student can learn from it.\n{_causes(v)}"
    )


def _nothing_to_gain(v: Values) -> str:
    return (
        f"there is nothing to gain: on {v['rows']:,} validation rows the teacher has {v['metric']} {v['teacher']:.3f}"
        f" and plain fine-tuning {v['anchor']:.3f} (difference {_span(v['score'], '+')}; lead in loss"
        f" {_span(v['loss'], '+')} nats). Distillation can add little.\n"
        f"  plain fine-tuning may be all you need: its student is {v['folder']}\n{_causes(v)}"
    )


def _causes(v: Values) -> str:
    training = f"teach.trainer.learning_rate is {v['learning_rate']:g}, for {v['epochs']:g} epochs"
    unreadable = f"; {v['unreadable']:.0%} of the teacher's answers cannot be read" if v["unreadable"] else ""
    return (
        "  likely causes, if the teacher should be better:\n"
        "  - the prompt template: a prompt that lacks what the answer depends on, or that the model does not know the"
        f" form of; data.template is {v['template']!r}\n"
        f"  - the learning rate: {'your own checkpoints were trained too little' if v['own'] else training}; the loss"
        " in teach/log.jsonl should fall steadily\n"
        f"  - the tokens per answer: up to {v['longest']:,} in gold, and up to {v['generated']:,} are"
        f" generated{unreadable}; short labels are learned sooner\n"
        "  after a change of the recipe:  tutelage run RECIPE --force\n"
        "  go on all the same:            add --anyway to this command"
    )


def _span(interval: tuple[float, float, float], sign: str = "") -> str:
    value, low, high = (f"{end + 0.0:{sign}.3f}" for end in interval)
    return f"{value} [{low}, {high}]"


TEXTS: dict[Kind, str | Callable[[Values], str]] = {
    Kind.TEACHER_LEARNED_NOTHING: _nothing_learned,
    Kind.NOTHING_TO_GAIN: _nothing_to_gain,
    Kind.STUDENT_NOT_USABLE: ("{student} is not uploaded: {doubt}. To upload it all the same, add --anyway"),
}
"""By kind, as in `wording.TEXTS`."""
