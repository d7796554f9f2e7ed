"""The YAML of a first recipe, with a comment on every guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tutelage.cli.guess_columns import Guess
from tutelage.cli.recipe_settings import LONGEST, MANY_LABELS, Settings
from tutelage.recipe.yaml_text import Dumper

BYTES = "its tokenizer is not the teacher's: they are compared by the next byte, a step takes about 1.1 times as long"
"""What different tokenizers mean. The time is that of `benchmarks.step --case cross` (RESULTS.md)."""


def recipe_text(path: Path, guess: Guess, settings: Settings) -> str:
    """The recipe. path: where it will be written, for the commands in its first comment."""
    head = [
        "# Guessed by `tutelage init`. Next:",
        "#",
        f"#   tutelage doctor {path}       # preflight checks",
        f"#   tutelage run {path}",
    ]
    sections = [head, _task(guess, settings), _data(settings), _models(settings), _training(path, settings)]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _task(guess: Guess, settings: Settings) -> list[str]:
    lines = ["task:", f"  type: {guess.task}{_comment(guess.why)}"]
    if settings.language:
        lines.append(f"  language: {_value(settings.language)}  # selects the prompt and how answers are compared")
    elif len(settings.languages) > 1:
        listed = ", ".join(f"{code} {fraction:.0%}" for code, fraction in list(settings.languages.items())[:4])
        lines.append(f"  # language: the texts look like {listed}; a column `language` can give that of each row")
    labels = settings.labels
    if labels and len(labels) <= MANY_LABELS:
        lines.append(f"  labels: {_value(labels)}")
    elif labels:
        lines.append(f"  # labels: the {len(labels)} of the training rows; a list here would be the allowed set")
    return [*lines, *_verbalizers(settings)]


def _verbalizers(settings: Settings) -> list[str]:
    """Short forms to switch on where labels take many tokens."""
    found = settings.long_labels
    if not found or not found.tokens:
        return []
    tokens = f"{min(found.tokens.values())} to {max(found.tokens.values())} tokens"
    forms = _value(found.forms) if len(found.forms) <= MANY_LABELS else "{LABEL: SHORT, ...}"
    return [
        f"  # {len(found.tokens)} labels take {tokens}: models can write short forms, and outputs have the labels",
        f"  # verbalizers: {forms}",
    ]


def _data(settings: Settings) -> list[str]:
    comments = {
        "columns": "our name: the name in the file",
        "overlap": "some prompts are in two splits; they are left out of the earlier one",
        "test_split": "there is no test split: this is used, and validation rows are held out of training",
        "chat_template": "the rows are conversations",
        "validation_fraction": "there are no validation rows: this fraction of the training rows is held out",
        "template": f"the default prompt would list all {len(settings.labels)} labels",
    }
    lines = ["data:"]
    lines += [f"  {key}: {_value(value)}{_comment(comments.get(key, ''))}" for key, value in settings.data.items()]
    lines.append("  # unlabelled: FILE  # rows without labels: the teacher answers them, the student learns them")
    if not settings.lengths:
        return lines
    longest, about = settings.lengths.longest, "" if settings.lengths.counted else "about "
    wanted = max(64, -(-int(1.1 * longest) // 32) * 32)
    if longest > LONGEST:
        lines.append("  too_long: truncate_prompt  # cuts the start of longer prompts, never an answer")
    comment = f"the longest row has {about}{longest:,} tokens; batches are padded to their own longest row"
    lines.append(f"  max_length: {min(wanted, LONGEST)}{_comment(comment)}")
    return lines


def _models(settings: Settings) -> list[str]:
    lines = ["teacher:", f"  model_name_or_path: {_value(settings.teacher)}"]
    if settings.adapters:
        lines.append("  lora: {}  # this teacher is large: adapters are trained instead of all weights")
    comment = BYTES if settings.over_bytes else ""
    return [*lines, "", f"student:{_comment(comment)}", f"  model_name_or_path: {_value(settings.student)}"]


def _training(path: Path, settings: Settings) -> list[str]:
    lengths, batch = settings.lengths, settings.batch
    typical = f"nine rows in ten have at most {lengths.typical:,} tokens" if lengths else ""
    steps = settings.step_rows // batch
    accumulation = [f"  gradient_accumulation_steps: {steps}  # {settings.step_rows} rows per optimizer step"]
    return [
        "trainer:",
        f"  per_device_train_batch_size: {batch}{_comment(typical)}",
        *(accumulation if steps > 1 else []),
        "",
        *_teach(settings),
        "",
        "distill:",
        "  methods: [scd-aw]  # `tutelage compare` compares it with others",
        "  select: auto  # also trains td and sft, and validation picks the student; null: scd-aw alone",
        "  num_stages: 4",
        f"  epochs_per_stage: {settings.epochs_per_stage}  # passes over the training rows in each stage",
        f"  trainer: {{learning_rate: {_rate(settings.learning_rate)}}}  # by the student's size; `tutelage compare"
        f" {path} --tune` tries others",
    ]


def _teach(settings: Settings) -> list[str]:
    if settings.checkpoints:
        return ["teach:", f"  checkpoints: {_value(settings.checkpoints)}  # yours; the student follows these"]
    rate = _rate(settings.teacher_learning_rate)
    return [
        "teach:",
        "  num_checkpoints: 4  # the student follows these",
        f"  trainer: {{num_train_epochs: 3, learning_rate: {rate}}}",
    ]


def _rate(value: float) -> str:
    """A learning rate as YAML reads a number: 2.0e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    style = '"' if "\n" in str(value) else None
    text = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, default_style=style, allow_unicode=True, width=1_000_000
    )
    return text.removesuffix("\n").removesuffix("\n...")
