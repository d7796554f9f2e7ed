"""The interface of a task: from a model's raw text to a parsed answer, the score of a row, and metrics over rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from tutelage.records import Example, Interval
from tutelage.utils.bootstrap import Statistic, bootstrap, widened


class Baseline(NamedTuple):
    """The score, in the task's metric, of answers that no prompt was read for."""

    score: float
    source: Literal["majority", "chance"]
    """`majority`: the most common answer of the training rows, on every row. `chance`: a random allowed answer."""


class BaseTask(ABC):
    """One kind of question and how its answers are scored. Knows nothing of models and tokens."""

    name: ClassVar[str]
    """`classification`, `ner` or `qa`, as in the recipe."""
    choosable_metrics: ClassVar[tuple[str, ...]]
    """Metrics (higher is better) that checkpoints and students can be selected by; the first is the default."""
    closed: ClassVar[bool]
    """Whether the answer of every row comes from a known set, as `decoding: labels` needs."""

    def __init__(self, metric: str | None = None, labels: Sequence[str] | None = None, language: str | None = None):
        """metric: one of `choosable_metrics`. labels: label set, entity types or choices. language: of rows that have
        none of their own."""
        self.metric = metric or self.choosable_metrics[0]
        self.labels = list(dict.fromkeys(labels)) if labels else None
        self.language = language

    def language_of(self, example: Example) -> str | None:
        """The language of the row, else that of the recipe."""
        return example.language or self.language

    @abstractmethod
    def gold(self, example: Example) -> Any:
        """The expected answer, ready for JSON: a label, a list of [type, surface], or a list of accepted answers."""

    @abstractmethod
    def parse(self, raw: str, example: Example) -> Any | None:
        """The answer in a model's text, in the form that `score` takes; None if no answer can be read."""

    @abstractmethod
    def learned(
        self, raw: str, example: Example, *, ended: bool = True, written: Callable[[str], str] = str
    ) -> str | None:
        """The text that another model learns of a model's answer: what `parse` reads of it, written as gold answers
        are. None if no answer can be read, or if it may have been cut off.

        ended: whether the model has ended its answer. written: what models write for a label.
        """

    @abstractmethod
    def score(self, prediction: Any | None, example: Example) -> float:
        """Score of one row in [0, 1]; 0 for None."""

    @abstractmethod
    def table(self, predictions: Sequence[Any | None], examples: Sequence[Example]) -> tuple[np.ndarray, Statistic]:
        """[n, k] numbers that hold all that the metrics need of a row, and the metrics as a function of draws of such
        rows (see `metrics.bootstrap`)."""

    def metrics(
        self, predictions: Sequence[Any | None], examples: Sequence[Example], *, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Interval]:
        """Every metric of the task on parsed predictions, in the order of `examples`; needs at least one row.

        The value is over all rows, the interval a seeded 95 % percentile bootstrap interval over rows; where the
        metric is 0 or 1 on every row, Wilson's interval.
        """
        intervals = bootstrap(*self.table(predictions, examples), resamples, seed)
        return {name: widened(value, self.rows_of(name, examples)) for name, value in intervals.items()}

    def rows_of(self, metric: str, examples: Sequence[Example]) -> int:
        """Number of rows that a metric is about."""
        return len(examples)

    def baseline(self, training: Iterable[str], examples: Sequence[Example]) -> Baseline:
        """The score on `examples` of a model that reads no prompt: what a model that has learned something exceeds.

        training: the answers of the training rows, at least one.
        """
        commonest = Counter(training).most_common(1)[0][0]
        guesses = [self.parse(commonest, example) for example in examples]
        majority = bootstrap(*self.table(guesses, examples), resamples=1)[self.metric].value
        chance = self.chance(examples)
        return Baseline(chance, "chance") if chance > majority else Baseline(majority, "majority")

    def chance(self, examples: Sequence[Example]) -> float:
        """Expected score of random answers; 0 for answers that cannot be guessed."""
        return 0.0


def goes_on(raw: str) -> bool:
    """Whether another line follows the first one, which is complete then, though the answer may not be."""
    return "\n" in raw.strip()


def first_line(raw: str) -> str:
    """The first line that is not blank, stripped; empty if all are blank."""
    return raw.strip().split("\n", 1)[0].strip()
