"""Classification: one label of a closed set.

    prompt  "Name the intent of this request.\\nRequest: Wake me at 7\\nIntent:"    answer  "set alarm"

Metrics: accuracy; macro_f1, the mean F1 over the labels that occur in gold; invalid_rate, the fraction of rows whose
answer is not an allowed label. An invalid answer counts as wrong in the other two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np

from tutelage.recipe.schema import METRICS
from tutelage.records import Example
from tutelage.tasks.base import BaseTask
from tutelage.tasks.metrics import fold, macro_f1
from tutelage.utils.bootstrap import Statistic

TEMPLATES: dict[str, str] = {
    "en": "Choose the label that fits the text: {labels}.\nText: {text}\nLabel:",
    "ja": "文章に合うラベルを選んでください: {labels}。\n文章: {text}\nラベル:",
    "ko": "글에 맞는 레이블을 고르세요: {labels}.\n글: {text}\n레이블:",
    "zh": "请选择符合文本的标签：{labels}。\n文本：{text}\n标签：",
    "de": "Wähle die Klasse, die zum Text passt: {labels}.\nText: {text}\nKlasse:",
}
"""Default prompts by language; `{labels}` is the label set joined by ", "."""


class Classification(BaseTask):
    """One label of the task's label set, or of the row's own `labels` where it has them."""

    name = "classification"
    choosable_metrics: ClassVar[tuple[str, ...]] = METRICS["classification"]
    closed = True

    def allowed(self, example: Example) -> list[str] | None:
        """The labels allowed on a row: its own, else those of the task; None if neither is known."""
        return example.labels or self.labels

    def gold(self, example: Example) -> str:
        """The gold label as the label set spells it; as written if the set does not have it."""
        written = example.answer.strip()
        return _canonical(written, self.allowed(example)) or written

    def parse(self, raw: str, example: Example) -> str | None:
        """The label on the first line: an exact match, else the only one that differs in case or width alone; None if
        the line is not in the set. A label of several lines is compared with as many.

        Without a label set, the line itself, or None if it is empty.
        """
        labels, lines = self.allowed(example), raw.strip().split("\n")
        for count in sorted({1, *(label.strip().count("\n") + 1 for label in labels or ())}, reverse=True):
            if label := _canonical("\n".join(lines[:count]).strip(), labels):
                return label
        return None

    def learned(
        self, raw: str, example: Example, *, ended: bool = True, written: Callable[[str], str] = str
    ) -> str | None:
        """The label, as its set spells it; of an answer that was cut off, unless another label may begin like it."""
        label = self.parse(raw, example)
        if label is None:
            return None
        if not ended and raw.strip().count("\n") == label.strip().count("\n"):
            start, others = fold(written(label).strip()), self.allowed(example)
            if others is None or any(
                fold(written(other).strip()).startswith(start) for other in others if other != label
            ):
                return None
        return label.strip()

    def score(self, prediction: str | None, example: Example) -> float:
        """1.0 for the right label, else 0.0."""
        return float(prediction == self.gold(example))

    def table(self, predictions: Sequence[str | None], examples: Sequence[Example]) -> tuple[np.ndarray, Statistic]:
        """accuracy, macro_f1 and invalid_rate (None among the predictions), as defined at the top of this module."""
        gold = [self.gold(example) for example in examples]
        index_of = {label: index for index, label in enumerate(sorted(set(gold)))}
        only_predicted, invalid = len(index_of), -1
        pairs = [
            (index_of[truth], invalid if guess is None else index_of.get(guess, only_predicted))
            for truth, guess in zip(gold, predictions, strict=True)
        ]

        def statistic(draws: np.ndarray, patterns: np.ndarray) -> dict[str, np.ndarray]:
            indices, rows = np.arange(len(index_of)), draws.sum(1)
            truth, guess = patterns[:, :1] == indices, patterns[:, 1:] == indices
            matched = draws @ (truth & guess)
            return {
                "accuracy": matched.sum(1) / rows,
                "macro_f1": macro_f1(matched, draws @ guess, draws @ truth),
                "invalid_rate": draws @ (patterns[:, 1] == invalid) / rows,
            }

        return np.array(pairs), statistic

    def chance(self, examples: Sequence[Example]) -> float:
        """accuracy: a random allowed label on every row; macro_f1: labels drawn as often as they occur in gold, which
        no other way to draw exceeds."""
        if self.metric == "macro_f1":
            return 1 / len({self.gold(example) for example in examples})
        allowed = [self.allowed(example) for example in examples]
        return sum(1 / len(labels) for labels in allowed if labels) / len(examples)


def _canonical(text: str, labels: Sequence[str] | None) -> str | None:
    if labels is None:
        return text or None
    exact, folded = _lookup(tuple(labels))
    return exact.get(text) or folded.get(fold(text))


@lru_cache(maxsize=256)
def _lookup(labels: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Stripped label to label; folded label to label, without spellings that two labels share ("US", "us")."""
    spellings = [fold(label.strip()) for label in labels]
    folded = {key: label for key, label in zip(spellings, labels, strict=True) if spellings.count(key) == 1}
    return {label.strip(): label for label in labels}, folded
