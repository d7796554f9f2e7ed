"""Named-entity recognition as text: one entity a line in reading order, or the single word `none`.

    prompt  "List the slots ...\\nRequest: play Purple Rain by Prince\\nSlots:"
    answer  "song: Purple Rain\\nartist: Prince"

A line is split at its first ": " (or full-width "："), so a surface may hold colons. Metrics: entity_f1, precision and
recall over (type, surface) pairs, a multiset per row, summed over rows; f1/TYPE for each type that occurs in gold;
unparsable_rate, the fraction of rows whose text is not `none` and has no readable line. Such a row predicts no entity.
Unreadable lines next to readable ones are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

import numpy as np

from tutelage.errors import DataError, Kind, Problem
from tutelage.recipe.schema import METRICS
from tutelage.records import Example
from tutelage.tasks.base import BaseTask
from tutelage.tasks.metrics import entity_counts, ratio
from tutelage.utils.bootstrap import Statistic

NO_ENTITIES = "none"
"""The whole answer for a text without entities."""

SEPARATORS = (": ", "：")

TEMPLATES: dict[str, str] = {
    "en": "List the entities in the text, one per line as 'type: text'. Types: {labels}. Write none if there are none."
    "\nText: {text}\nEntities:",
    "ja": "文中の固有表現を1行に1つずつ「種類: 表現」の形で書き出してください。種類: {labels}。なければ none。\n"
    "文: {text}\n固有表現:",
    "ko": "문장에서 개체명을 찾아 한 줄에 하나씩 '유형: 표현'으로 쓰세요. 유형: {labels}. 없으면 none.\n"
    "문장: {text}\n개체명:",
    "zh": "请找出文本中的实体，每行一个，写成“类型: 实体”。类型：{labels}。没有则写 none。\n文本：{text}\n实体：",
    "de": "Nenne die Entitäten im Text, eine je Zeile als 'Typ: Text'. Typen: {labels}. Gibt es keine, schreibe none.\n"
    "Text: {text}\nEntitäten:",
}
"""Default prompts by language; `{labels}` is the entity types joined by ", "."""


def answer_from_entities(entities: Sequence[tuple[str, str]]) -> str:
    """The answer text of (type, surface) pairs in reading order. A line break inside a surface becomes a space.

    Raises DataError for a pair that cannot be read back.
    """
    lines = []
    for kind, surface in entities:
        kind, surface = _one_line(kind), _one_line(surface)
        line = f"{kind}: {surface}"
        if not kind or not surface or _split(line, None) != (kind, surface):
            raise DataError(Problem(Kind.ENTITY_NOT_WRITABLE, values={"type": kind, "surface": surface}))
        lines.append(line)
    return "\n".join(lines) or NO_ENTITIES


def entities_from_answer(text: str, types: Collection[str] | None = None) -> list[tuple[str, str]] | None:
    """The (type, surface) pairs of the readable lines; [] for `none` in any case; None if no line can be read.

    types: if given, a line of another type cannot be read.
    """
    if text.strip().casefold() == NO_ENTITIES:
        return []
    pairs = [_split(line, types) for line in text.splitlines()]
    return [pair for pair in pairs if pair] or None


class EntityRecognition(BaseTask):
    """Typed entities, counted as a multiset of (type, surface) per row; `labels` are the types."""

    name = "ner"
    choosable_metrics: ClassVar[tuple[str, ...]] = METRICS["ner"]
    closed = False

    def gold(self, example: Example) -> list[list[str]]:
        """Pairs [type, surface] of the gold answer. Raises DataError if one of its lines cannot be read."""
        pairs = entities_from_answer(example.answer)
        lines = sum(bool(line.strip()) for line in example.answer.splitlines())
        if pairs is None or (pairs and len(pairs) != lines):
            values = {"answer": example.answer}
            raise DataError(Problem(Kind.ENTITIES_UNREADABLE, example.split, row=example.id, values=values))
        return [list(pair) for pair in pairs]

    def parse(self, raw: str, example: Example) -> list[list[str]] | None:
        """Pairs [type, surface] of the readable lines, [] for `none`; None if no line can be read."""
        pairs = entities_from_answer(raw, self.labels)
        return None if pairs is None else [list(pair) for pair in pairs]

    def learned(
        self, raw: str, example: Example, *, ended: bool = True, written: Callable[[str], str] = str
    ) -> str | None:
        """The readable lines, without the others. None for an answer that was cut off: entities may be missing."""
        pairs = self.parse(raw, example) if ended else None
        return None if pairs is None else "\n".join(f"{kind}: {surface}" for kind, surface in pairs) or NO_ENTITIES

    def score(self, prediction: Sequence[Sequence[str]] | None, example: Example) -> float:
        """F1 of the entities of the row, whatever the metric; 1.0 if gold and prediction have none; 0.0 for None."""
        if prediction is None:
            return 0.0
        matched, predicted, gold = _total(entity_counts(prediction, self.gold(example)))
        return 2 * matched / (predicted + gold) if predicted + gold else 1.0

    def table(
        self, predictions: Sequence[Sequence[Sequence[str]] | None], examples: Sequence[Example]
    ) -> tuple[np.ndarray, Statistic]:
        """entity_f1, precision, recall, unparsable_rate and f1/TYPE, as defined at the top of this module.

        If neither gold nor predictions hold any entity and every row was readable, the first three are 1.0.
        """
        pairs = list(zip(predictions, examples, strict=True))
        counts = [entity_counts(prediction or [], self.gold(example)) for prediction, example in pairs]
        in_gold = {kind for row in counts for kind, (_, _, gold) in row.items() if gold}
        types = [kind for kind in self.labels or [] if kind in in_gold]
        types += sorted(in_gold.difference(types))
        rows = [
            [prediction is None, *_total(row), *(number for kind in types for number in row.get(kind, (0, 0, 0)))]
            for (prediction, _), row in zip(pairs, counts, strict=True)
        ]

        def statistic(draws: np.ndarray, patterns: np.ndarray) -> dict[str, np.ndarray]:
            unparsable, *sums = (draws @ patterns).T
            matched, predicted, gold = sums[:3]
            nothing = np.where(predicted + gold + unparsable > 0, 0.0, 1.0)
            by_type = zip(types, sums[3::3], sums[4::3], sums[5::3], strict=True)
            return {
                "entity_f1": ratio(2 * matched, predicted + gold, nothing),
                "precision": ratio(matched, predicted, nothing),
                "recall": ratio(matched, gold, nothing),
                "unparsable_rate": unparsable / draws.sum(1),
                **{f"f1/{kind}": ratio(2 * right, guessed + true, np.nan) for kind, right, guessed, true in by_type},
            }

        return np.array(rows, dtype=np.int64), statistic

    def rows_of(self, metric: str, examples: Sequence[Example]) -> int:
        """Of f1/TYPE the rows with gold entities of the type."""
        _, by_type, kind = metric.partition("/")
        return sum(not by_type or any(kind == other for other, _ in self.gold(example)) for example in examples)


def _split(line: str, types: Collection[str] | None) -> tuple[str, str] | None:
    """Type and surface of a line, split at the first separator that leaves a known type; None without one."""
    line = line.strip()
    positions = sorted((line.find(separator), separator) for separator in SEPARATORS if separator in line)
    for _, separator in positions:
        kind, _, surface = (part.strip() for part in line.partition(separator))
        if kind and surface and (types is None or kind in types):
            return kind, surface
    return None


def _one_line(text: str) -> str:
    # Other white space stays, so that the surface still occurs in the text: Japanese names are written with U+3000.
    return " ".join(part.strip() for part in text.splitlines()).strip()


def _total(counts: dict[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    """(matched, predicted, gold) over all types of a row."""
    matched, predicted, gold = (sum(column) for column in zip((0, 0, 0), *counts.values(), strict=True))
    return matched, predicted, gold
