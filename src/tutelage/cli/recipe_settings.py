"""Guesses models and settings of a first recipe from its rows: language, models, lengths, batch, epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage.cli.guess_columns import Guess
from tutelage.data.contents.languages import language_fractions, main_language
from tutelage.data.contents.sameness import prompt_text
from tutelage.data.dataset import Rows, load_rows
from tutelage.data.readers import Row
from tutelage.errors import DataError, Kind, UserError
from tutelage.recipe.schema import Recipe
from tutelage.records import SPLITS, Example
from tutelage.run.live_reader import is_pruned, layer_sizes, parameters
from tutelage.tasks import template_for
from tutelage.tasks.verbalizers import LongLabels, long_labels
from tutelage.utils.console import rough_duration
from tutelage.utils.format import parameter_count

if TYPE_CHECKING:
    from tutelage.data.encode import Encoder

MANY_LABELS = 20
"""Labels above which neither recipe nor prompt lists them."""
LONGEST = 4096
"""Tokens above which long prompts are cut instead."""
BATCH_TOKENS = 2048
"""Tokens of a training batch that fits a small machine."""
BATCH, SMALL_BATCH = 16, 4
"""Rows of an optimizer step; the small batch is for few training rows, which give few steps."""
FEW_ROWS = 200
"""Training rows below which the batch is small."""
LARGE_TEACHER = 1e9
"""Weights above which a teacher is trained with adapters."""
LEARNING_RATES = ((30e6, 3e-3), (60e6, 1e-3), (200e6, 2e-4), (700e6, 1e-4), (2e9, 5e-5))
"""Weights up to which a student gets the rate, when all of them are trained. The first two are the best of those tried
on validation (benchmarks/RESULTS.md): models from scratch, and SmolLM2-135M with six of its layers. The others continue
the fall and are not measured."""
LARGE_LEARNING_RATE, ADAPTER_LEARNING_RATE, PRUNED_FACTOR = 2e-5, 2e-4, 2.5
"""Rates of larger models and of adapters, and what a student with layers removed gets more, above 60 million weights:
5e-4 was the best of three for half of SmolLM2-135M (benchmarks/RESULTS.md)."""
LARGEST_TEACHER_RATE = 1e-4
"""Of a teacher that is fine-tuned whole; smaller models than 700 million weights get it as well."""
ENGLISH = ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")
MULTILINGUAL = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct")
FAMILIES = (
    ("HuggingFaceTB/SmolLM2-", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("Qwen/Qwen2.5-", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("meta-llama/Llama-3.1-", "meta-llama/Llama-3.2-1B-Instruct"),
    ("meta-llama/Llama-3.2-", "meta-llama/Llama-3.2-1B-Instruct"),
)
"""Prefixes of Hub names, and the smallest model with the same tokenizer."""


@dataclass
class Lengths:
    """Tokens of the rows."""

    longest: int
    typical: int
    """Nine rows in ten have at most so many."""
    counted: bool
    """False if there is no tokenizer here: then half of the UTF-8 bytes are taken."""


@dataclass
class Settings:
    """What the recipe sets besides the task."""

    data: dict[str, Any]
    """The `data` section."""
    teacher: str
    student: str
    adapters: bool
    """Whether the teacher is trained with adapters."""
    language: str | None
    languages: dict[str, float]
    """Fraction of the texts in each language."""
    labels: list[str] = field(default_factory=list)
    lengths: Lengths | None = None
    """None if the rows cannot be read."""
    over_bytes: bool = False
    """Whether the two models have different vocabularies, as far as their tokenizers are on this machine."""
    long_labels: LongLabels | None = None
    """Labels that are worth a short form; None if there is no tokenizer here."""
    batch: int = 8
    """Rows of a forward pass; without lengths, those that fit with 256 tokens each."""
    step_rows: int = BATCH
    """Rows of an optimizer step."""
    epochs_per_stage: float = 2.0
    learning_rate: float = 2e-4
    """Of the student."""
    teacher_learning_rate: float = LARGEST_TEACHER_RATE
    checkpoints: str | None = None
    """The user's own, of the teacher; then it is not fine-tuned."""


def guess_settings(
    data: dict[str, Any],
    guess: Guess,
    teacher: str | None,
    student: str | None,
    raw: Sequence[Row],
    recipe: Path,
    missing: list[str],
) -> Settings:
    """data: the `data` section so far, completed here. recipe: the file that will be written. missing: gets what the
    user has still to do, a line each."""
    if guess.chat:
        data["chat_template"] = True
    texts = ["\n".join(str(value) for key, value in row.items() if key not in guess.not_input) for row in raw[:500]]
    languages, language = language_fractions(texts), main_language(texts)
    models = _models(teacher, student, language == "en" or not languages, recipe, missing)
    large = _weights(models.teacher) > LARGE_TEACHER
    settings = Settings(data, models.teacher, models.student, large, language, languages)
    weights = _weights(models.student) or (0.5 * _weights(models.teacher) if models.pruned else 0.0)
    settings.learning_rate = learning_rate(weights, pruned=models.pruned)
    whole = min(LARGEST_TEACHER_RATE, learning_rate(_weights(models.teacher)))
    settings.teacher_learning_rate = ADAPTER_LEARNING_RATE if large else whole
    rows = _read(settings, guess, missing)
    if rows:
        _set_by_rows(settings, rows, guess, missing)
    return settings


def learning_rate(weights: float, *, pruned: bool = False) -> float:
    """Peak learning rate to start from for a model with so many weights, all of them trained. pruned: the model is
    another one with layers removed. 0 weights: not known; then the rate of SmolLM2-135M."""
    weights = weights or 135e6
    rate = next((rate for most, rate in LEARNING_RATES if weights <= most), LARGE_LEARNING_RATE)
    return rate * PRUNED_FACTOR if pruned and weights > LEARNING_RATES[1][0] else rate


# --- models ---


class _ModelPair(NamedTuple):
    teacher: str
    student: str
    pruned: bool
    """Whether the student is the teacher with layers removed, or is still to be made so."""


def _models(teacher: str | None, student: str | None, english: bool, recipe: Path, missing: list[str]) -> _ModelPair:
    """The models given; else a small pair for the language, or a student of the teacher's family."""
    if teacher is None:
        pair = ENGLISH if english else MULTILINGUAL
        return _ModelPair(pair[0], student or pair[1], False)
    if student is None:
        student = next((small for start, small in FAMILIES if teacher.startswith(start) and teacher != small), None)
    if student is None:
        student = f"models/{Path(teacher).name}-small"
        if not Path(student).is_dir():
            missing.append(_shrink_proposal(teacher, student, recipe))
            return _ModelPair(teacher, student, True)
    return _ModelPair(teacher, student, is_pruned(Path(teacher), Path(student)))


def _shrink_proposal(teacher: str, student: str, recipe: Path) -> str:
    """How to make a student with half of the teacher's layers: the command, sizes and time if the teacher is here."""
    start, end = "there is no student yet: make one with", "or name one in student.model_name_or_path"
    sizes = layer_sizes(Path(teacher))
    if sizes is None or sizes[0] < 3:
        command = f"`tutelage shrink {teacher} {student} --layers N`"
        return f"{start} {command} (start with half of its layers), {end}"
    from tutelage.shrink.estimate import healing_seconds
    from tutelage.shrink.plan import HealingPlan

    layers, inside = sizes
    kept, whole, tokens = max(2, layers // 2), parameters(Path(teacher)), HealingPlan.tokens
    small = whole - inside * (layers - kept) // layers
    time = rough_duration(healing_seconds(whole, small, tokens))
    return (
        f"{start} `tutelage shrink {teacher} {student} --layers {kept}` ({kept} of {layers} layers,"
        f" {parameter_count(small)} of {parameter_count(whole)} parameters; seconds), {end}. With `--heal --text"
        f" {recipe}` it is first distilled on your prompts: about {time} here for {tokens:,} tokens"
    )


def _weights(model: str) -> float:
    """Number of weights of a local model, or as its name says (`-135M`, `-1.5B`); 0 if neither shows it."""
    if Path(model).is_dir():
        return parameters(Path(model))
    size = re.search(r"(\d+(?:\.\d+)?)([BM])\b", model)
    return float(size[1]) * {"B": 1e9, "M": 1e6}[size[2]] if size else 0.0


# --- rows ---


def _recipe(settings: Settings, guess: Guess) -> Recipe:
    task = {"type": guess.task, "language": settings.language}
    models = {role: {"model_name_or_path": getattr(settings, role)} for role in ("teacher", "student")}
    return Recipe(name="-", output_dir="-", task=task, data=settings.data, **models)


def _read(settings: Settings, guess: Guess, missing: list[str]) -> Rows | None:
    """All rows, without those of two splits. None, with what is wrong in `missing`, if they cannot be read."""
    try:
        return load_rows(_recipe(settings, guess))
    except DataError as error:
        refused = error
    if any(problem.kind == Kind.ROW_IN_TWO_SPLITS for problem in refused.problems):
        settings.data["overlap"] = "drop"
        try:
            return load_rows(_recipe(settings, guess))
        except DataError as error:
            refused = error
    missing += refused.lines()
    return None


def _set_by_rows(settings: Settings, rows: Rows, guess: Guess, missing: list[str]) -> None:
    settings.labels = [] if rows.choice else sorted(rows.labels or [])
    if guess.task == "classification" and guess.native and len(settings.labels) > MANY_LABELS:
        settings.data["template"] = template_for("classification", settings.language).split("\n", 1)[1]
        rows = _read(settings, guess, missing) or rows
    if guess.task == "classification" and len(settings.labels) == 1:
        missing.append(
            f"all rows have the one label {settings.labels[0]!r}, so there is nothing to learn; is another column the"
            " label? data.columns={label: ...} says which"
        )
    examples = [example for split in SPLITS for example in rows.examples[split]]
    encoders = _encoders(_recipe(settings, guess))
    settings.over_bytes = len(encoders) > 1
    lengths, counted = _token_counts(encoders, examples)
    if encoders and rows.labels and guess.task != "ner":
        settings.long_labels = long_labels({label: _most_tokens(encoders, label) for label in rows.labels})
    typical = sorted(lengths)[int(0.9 * (len(lengths) - 1))]
    settings.lengths = Lengths(max(lengths), typical, counted)
    train = len(rows.examples["train"])
    settings.step_rows = SMALL_BATCH if train < FEW_ROWS else BATCH
    fitting = (size for size in (16, 8, 4, 2) if size <= settings.step_rows and size * typical <= BATCH_TOKENS)
    settings.batch = next(fitting, 1)
    settings.epochs_per_stage = 0.5 if train > 20_000 else 1.0 if train > 5_000 else 2.0


def _encoders(recipe: Recipe) -> list[Encoder]:
    """Those of teacher and student, as far as they are on this machine; one if they have the same vocabulary."""
    from tutelage.data.encode import make_encoder
    from tutelage.models.load import load_tokenizer, same_vocabularies

    encoders: list[Encoder] = []
    for model in (recipe.teacher, recipe.student):
        if not Path(model.model_name_or_path).is_dir():
            continue
        with suppress(UserError, ValueError):  # doctor says what is wrong with the tokenizer
            tokenizer = load_tokenizer(model)
            if not any(same_vocabularies(encoder.tokenizer, tokenizer) for encoder in encoders):
                encoders.append(make_encoder(recipe.data, tokenizer, recipe.task))
    return encoders


def _token_counts(encoders: Sequence[Encoder], examples: Sequence[Example]) -> tuple[list[int], bool]:
    """Tokens of every row by the tokenizer that needs more, and whether they were counted."""
    counts = []
    for encoder in encoders:
        with suppress(UserError, ValueError):  # a chat template that refuses a row, which doctor reports
            counts.append([len(encoder.prompt(e)) + len(encoder.answer(e.answer)) for e in examples])
    if counts:
        return [max(lengths) for lengths in zip(*counts, strict=True)], True
    return [-(-len(f"{prompt_text(e.prompt)} {e.answer}".encode()) // 2) + 2 for e in examples], False


def _most_tokens(encoders: Sequence[Encoder], label: str) -> int:
    return max(len(encoder.answer(label)) - 1 for encoder in encoders)
