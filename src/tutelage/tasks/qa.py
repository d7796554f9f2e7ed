"""Question answering: a span of text, or one of several choices.

    span    "... Question: Where was Suo Jing from?\\nAnswer:"                        answer  "Dunhuang"
    choice  "What holds a letter?\\nA. car\\nB. envelope\\nC. roof\\nAnswer:"         answer  "B"

Span metrics: exact_match and token_f1 after the normalisation of SQuAD, the best over the accepted answers of a row, by
character for zh, ja and ko (see `metrics.answer_tokens`); empty_rate, the fraction of rows without any answer, which
score 0. Choice metrics are those of classification; the answers are letters, or another closed set that the rows name
("yes", "no", "maybe").
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from tutelage.errors import DataError, Kind, Problem
from tutelage.recipe.schema import METRICS
from tutelage.records import Example
from tutelage.tasks.base import BaseTask, first_line, goes_on
from tutelage.tasks.classification import Classification
from tutelage.tasks.metrics import exact_match, token_f1
from tutelage.utils.bootstrap import Statistic

SPAN_TEMPLATES: dict[str, str] = {
    "en": "Answer the question with words from the text.\nText: {context}\nQuestion: {question}\nAnswer:",
    "ja": "文章中の言葉を使って質問に答えてください。\n文章: {context}\n質問: {question}\n答え:",
    "ko": "글에 나온 말로 질문에 답하세요.\n글: {context}\n질문: {question}\n답:",
    "zh": "请用原文中的词语回答问题。\n原文：{context}\n问题：{question}\n答案：",
    "de": "Beantworte die Frage mit Worten aus dem Text.\nText: {context}\nFrage: {question}\nAntwort:",
}
"""Default prompts by language for an answer from a text."""

CHOICE_TEMPLATES: dict[str, str] = {
    "en": "Answer with the letter of the right choice.\nQuestion: {question}\n{choices}\nAnswer:",
    "ja": "正しい選択肢の記号で答えてください。\n質問: {question}\n{choices}\n答え:",
    "ko": "알맞은 선택지의 기호로 답하세요.\n질문: {question}\n{choices}\n답:",
    "zh": "请用正确选项的字母回答。\n问题：{question}\n{choices}\n答案：",
    "de": "Antworte mit dem Buchstaben der richtigen Wahl.\nFrage: {question}\n{choices}\nAntwort:",
}
"""Default prompts by language for one of several choices; `{choices}` is `render_choices`."""


def choice_letters(count: int) -> list[str]:
    """`A`, `B`, `C`, ...: the answers to a question with that many choices. Raises DataError above 26."""
    if not 1 <= count <= 26:
        raise DataError(Problem(Kind.CHOICES_COUNT, values={"count": count}))
    return list(string.ascii_uppercase[:count])


def render_choices(choices: Sequence[str]) -> str:
    """The choices as prompt lines: `A. text`, `B. text`, ..."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(choice_letters(len(choices)), choices, strict=True))


def one_line(answer: str) -> str:
    """A free answer as it is learned and compared: lines joined by spaces."""
    return " ".join(line.strip() for line in answer.splitlines() if line.strip())


class ChoiceQA(Classification):
    """One of several choices, scored as a label."""

    name = "qa"


class SpanQA(BaseTask):
    """A free answer, compared with every accepted answer.

    An answer is one line, because a model may go on with another question after it. Gold answers with line breaks, such
    as spans of wrapped text, are put on one line (`one_line`) before they are learned.
    """

    name = "qa"
    choosable_metrics: ClassVar[tuple[str, ...]] = METRICS["span_qa"]
    closed = False

    def gold(self, example: Example) -> list[str]:
        """Every accepted answer, each on one line."""
        return [one_line(answer) for answer in example.answers or [example.answer]]

    def parse(self, raw: str, example: Example) -> str | None:
        """The first line that is not blank, stripped; None if all are blank."""
        return first_line(raw) or None

    def learned(
        self, raw: str, example: Example, *, ended: bool = True, written: Callable[[str], str] = str
    ) -> str | None:
        """The first line; of an answer that was cut off, if another one follows."""
        return self.parse(raw, example) if ended or goes_on(raw) else None

    def score(self, prediction: str | None, example: Example) -> float:
        """exact_match of the row (0 or 1), or its token_f1 if that is the metric of the task."""
        compare = token_f1 if self.metric == "token_f1" else exact_match
        return 0.0 if prediction is None else compare(prediction, self.gold(example), self.language_of(example))

    def table(self, predictions: Sequence[str | None], examples: Sequence[Example]) -> tuple[np.ndarray, Statistic]:
        """exact_match, token_f1 and empty_rate, as defined at the top of this module."""
        rows = []
        for prediction, example in zip(predictions, examples, strict=True):
            if prediction is None:
                rows.append((0.0, 0.0, 1.0))
                continue
            answers, language = self.gold(example), self.language_of(example)
            rows.append((exact_match(prediction, answers, language), token_f1(prediction, answers, language), 0.0))

        def statistic(draws: np.ndarray, patterns: np.ndarray) -> dict[str, np.ndarray]:
            means = draws @ patterns / draws.sum(1, keepdims=True)
            return dict(zip(("exact_match", "token_f1", "empty_rate"), means.T, strict=True))

        return np.array(rows), statistic


class FreeText(SpanQA):
    """A free answer of any number of lines, as `SCDTrainer` learns it."""

    def parse(self, raw: str, example: Example) -> str | None:
        """The whole text, stripped; None if it is blank."""
        return raw.strip() or None

    def learned(
        self, raw: str, example: Example, *, ended: bool = True, written: Callable[[str], str] = str
    ) -> str | None:
        """The whole text; None if it was cut off."""
        return self.parse(raw, example) if ended else None
