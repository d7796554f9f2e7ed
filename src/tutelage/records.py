"""What crosses the border between stages: plain records with a JSON form, nothing else.

A row of the user's data becomes one `Example`; every model's answer to it one `Prediction`; every model's loss on it
one `SampleLoss`. They are written as JSON lines into the run folder and read back by the stages that come after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

SPLITS = ("train", "validation", "test")
BASE_MODELS = ("teacher", "student", "anchor")
"""Models that every run scores besides its distilled students: teacher, untrained student, fine-tuned student."""

TEXT_BASELINE = "tfidf"
"""What tables call TF-IDF with logistic regression. It is none of the models of a run: nothing ranks or compares it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, rendered: what the model reads and what it should write."""

    id: str
    """The user's own, or a hash of the row's content. Unique in its run."""
    split: str
    """`train`, `validation` or `test`."""
    prompt: str | list[dict[str, str]]
    """Text, or chat messages (`role`, `content`) that the tokenizer's chat template will render."""
    answer: str
    """The gold text to learn, without the answer prefix and without end-of-sequence. Empty only where none is known."""
    answers: list[str]
    """Every accepted answer, `answer` first (span question answering); otherwise `[answer]`."""
    labels: list[str] | None = None
    """The answers allowed on this row (closed label sets); None where the answer is free text."""
    language: str | None = None
    """ISO 639-1 code, if known; scores for zh, ja and ko count characters instead of words."""
    subdomain: str | None = None
    """The user's own slice of the domain, if any."""
    content: str | None = None
    """Hash of what is asked, whatever the language of the template and the order of choices; None where that is the
    prompt itself, and in rows that versions before it prepared."""


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """Loss of one model on one row."""

    id: str
    split: str
    nll: float
    """Mean negative log-likelihood of the gold answer in nats a token, end-of-sequence included."""
    tokens: int
    """Number of answer tokens, end-of-sequence included."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer of one model on one row, with its score."""

    id: str
    model: str
    """`teacher`, `student`, `anchor`, or `METHOD/seed-K`."""
    split: str
    gold: Any
    """What the task expects: a label, a list of `[type, surface]`, or a list of accepted answers."""
    raw: str
    """What the model wrote, decoded, special tokens removed."""
    prediction: Any
    """`raw` as parsed by the task; None if it could not be parsed."""
    score: float
    """The row's own score in [0, 1]."""
    nll: float | None
    """Nats per gold answer token, as in `SampleLoss`."""
    confidence: float | None = None
    """Probability in [0, 1] that the model gave the whole of its own answer, end-of-sequence included; None if not
    recorded."""


class Interval(NamedTuple):
    """A score with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float

    def as_record(self) -> IntervalRecord:
        """In the form of the JSON files."""
        return {"value": self.value, "low": self.low, "high": self.high}


class IntervalRecord(TypedDict):
    """An `Interval` in a JSON file."""

    value: float
    low: float
    high: float
