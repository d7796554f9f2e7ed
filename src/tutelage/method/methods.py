"""METHODS: what each distillation method is made of.

    method = schedule x divergence x weighting

schedule: which teacher checkpoint a stage follows. divergence: the distance between the student's and the teacher's
distributions. weighting: how much of an example's loss follows the teacher; the rest is cross-entropy on gold. Rows,
steps, stages, stage resets and seeds are the same for all methods.

A new method is one line in METHODS. A schedule, divergence or weighting may be a function instead of a name, and a
package may bring methods by entry points of the group `tutelage.methods` (docs/your-own-method.md).

A method's name may carry settings of the recipe's `distill` section: `scd+schedule.advance=true` is `scd` with
`distill.schedule.advance=true`. Such variants are further students of the same run; they share its teacher, anchor and
cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

GROUP = "tutelage.methods"
"""Entry-point group of methods in other packages."""

_SETTING = re.compile(r"\+(?=[a-z_.]+=)")
"""The plus in front of a setting of a variant; the plus of 1e+3 does not match."""


class Method(NamedTuple):
    """One way to train the student."""

    schedule: Literal["none", "best", "interpolated", "in_order", "nearest", "random"] | Callable[..., str]
    """`none`: no teacher. `best`: T* in every stage. `interpolated`: a target between student and T* (TAID).
    `in_order`: oldest to newest checkpoint. `nearest`: SCD's choice. `random`: a seeded random checkpoint. A function:
    (candidates, *, stage, num_stages, best, previous) -> checkpoint name, called as `schedule.nearest` is."""
    divergence: Literal["none", "forward_kl", "reverse_kl", "jsd", "skew_kl", "akl"] | Callable[..., Any]
    """A name in `divergences.DIVERGENCES`. A function: (student logits, teacher logits, temperature) -> [positions] in
    nats."""
    weighting: Literal["none", "constant", "adaptive", "adaptive_cross_fit"] | Callable[..., Any]
    """`none`: gold only. `constant`: `kd_ratio`. `adaptive`: AW, from the losses of anchor and checkpoint on their own
    training rows. `adaptive_cross_fit`: AW from out-of-fold losses. A function: (anchor losses, checkpoint losses),
    both [rows] in nats, -> [rows] weights in [0, 1]."""
    source: str
    """Publication or description of the method."""
    answers: Literal["gold", "teacher"] = "gold"
    """Target of the cross-entropy; `teacher`: T*'s own greedy answers."""
    settings: tuple[str, ...] = ()
    """Settings of the `distill` section that belong to the method, `key=value`. Those in a variant's name override
    them."""

    @property
    def compares_student(self) -> bool:
        """Whether the schedule needs the distances of all checkpoints to the student at the start of a stage."""
        return self.schedule == "nearest" or callable(self.schedule)

    @property
    def needs_anchor(self) -> bool:
        """Whether the weights are computed from the anchor's losses on its training rows."""
        return self.weighting == "adaptive" or callable(self.weighting)

    @property
    def needs_cross_fit(self) -> bool:
        """Whether the weights are computed from out-of-fold losses."""
        return self.weighting == "adaptive_cross_fit"

    @property
    def needs_distributions(self) -> bool:
        """Whether it needs the teacher's full distributions. Otherwise the top k are enough, at temperature 1."""
        if self.schedule == "none":
            return False
        return self.compares_student or self.schedule == "interpolated" or self.divergence != "forward_kl"

    def reads(self, setting: str) -> bool:
        """Whether a setting of the `distill` section, given by its dotted name, has an effect on this method."""
        follows_teacher = self.schedule != "none"
        conditions = {
            "kd_ratio": follows_teacher and self.weighting == "constant",
            "temperature": follows_teacher,
            "schedule.advance": self.schedule == "nearest",
            "schedule.student_kl": self.compares_student,
            "probe_rows": self.compares_student,
        }
        return next((holds for name, holds in conditions.items() if f"{setting}.".startswith(f"{name}.")), True)

    def mistakes(self) -> list[str]:
        """Why these components cannot form a method; empty for a valid method."""
        problems = []
        annotations = get_type_hints(Method)
        for component in ("schedule", "divergence", "weighting", "answers"):
            value = getattr(self, component)
            allowed = _literals(annotations[component])
            if not callable(value) and value not in allowed:
                problems.append(f"its {component} is {value!r}; allowed are {', '.join(allowed)}")
            elif value == "none" and self.schedule != "none":
                problems.append(f"it follows a teacher, but its {component} is none")
        if self.schedule != "none" and self.answers == "teacher":
            problems.append(
                "it follows the teacher's distributions on gold answers but trains on the teacher's answers; choose one"
            )
        return problems


def _literals(annotation: Any) -> list[str]:
    """The strings of a Literal, or of the Literal in a union."""
    choices: list[str] = []
    for part in get_args(annotation):
        choices += [part] if isinstance(part, str) else [value for value in get_args(part) if isinstance(value, str)]
    return choices


METHODS: dict[str, Method] = {
    "sft": Method("none", "none", "none", "plain fine-tuning on gold, by the rules of the other methods"),
    "td": Method("best", "forward_kl", "constant", "Hinton et al. 2015, arXiv 1503.02531"),
    "td-aw": Method("best", "forward_kl", "adaptive", "the weighting of arXiv 2601.10114 without its schedule"),
    "cd": Method("in_order", "forward_kl", "constant", "arXiv 2601.10114, baseline: checkpoints in fixed order"),
    "cd-aw": Method("in_order", "forward_kl", "adaptive", "checkpoints in fixed order with adaptive weighting"),
    "scd": Method("nearest", "forward_kl", "constant", "arXiv 2601.10114, without adaptive weighting"),
    "scd-aw": Method("nearest", "forward_kl", "adaptive", "arXiv 2601.10114, the full method"),
    "td-aw-cf": Method("best", "forward_kl", "adaptive_cross_fit", "td-aw with out-of-fold losses (cross-fitted)"),
    "cd-aw-cf": Method("in_order", "forward_kl", "adaptive_cross_fit", "cd-aw with out-of-fold losses (cross-fitted)"),
    "scd-aw-cf": Method("nearest", "forward_kl", "adaptive_cross_fit", "scd-aw with out-of-fold losses (cross-fitted)"),
    "ccd": Method(
        "in_order",
        "forward_kl",
        "constant",
        "cd as one training run without stage resets",
        settings=("stage_reset=false",),
    ),
    "ccd-aw": Method(
        "in_order",
        "forward_kl",
        "adaptive_cross_fit",
        "cd-aw-cf as one training run without stage resets",
        settings=("stage_reset=false",),
    ),
    "random": Method("random", "forward_kl", "constant", "ablation of the schedule: a random checkpoint in each stage"),
    "rkl": Method("best", "reverse_kl", "constant", "reverse KL as in MiniLLM, arXiv 2306.08543, on gold answers"),
    "jsd": Method("best", "jsd", "constant", "generalised JSD at 0.5 as in GKD, arXiv 2306.13649, on gold answers"),
    "seqkd": Method("none", "none", "none", "fine-tuning on the teacher's own answers, arXiv 1606.07947", "teacher"),
    "akl": Method("best", "akl", "constant", "adaptive mixture of forward and reverse KL, arXiv 2404.02657"),
    "taid": Method(
        "interpolated", "forward_kl", "constant", "a target that moves from student to teacher, arXiv 2501.16937"
    ),
    "skew": Method("best", "skew_kl", "constant", "skewed KL at 0.1 as in DistiLLM, arXiv 2402.03898"),
}


@cache
def _entry_points() -> dict[str, Any]:
    """Entry points of installed packages, by the name of their method."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def method_names() -> list[str]:
    """All available methods: those of the table and those of installed packages."""
    return list(dict.fromkeys([*METHODS, *_entry_points()]))


def split_variant(name: str) -> tuple[str, list[str]]:
    """Method and settings: `scd+schedule.advance=true` is ("scd", ["schedule.advance=true"])."""
    base, *settings = _SETTING.split(name)
    return base, settings


def find_method(name: str) -> Method:
    """A method by name; of a variant, the method without the settings in its name.

    Raises KeyError for an unknown name, TypeError for an entry point whose value is not a `Method`.
    """
    name, _ = split_variant(name)
    if name not in METHODS:
        method = _entry_points()[name].load()
        if not isinstance(method, Method):
            raise TypeError(f"entry point {name!r} of {GROUP} must be a tutelage.Method; found {method!r}")
        METHODS[name] = method
    return METHODS[name]
