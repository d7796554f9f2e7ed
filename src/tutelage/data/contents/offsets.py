"""How the offsets of entities count: characters, UTF-16 units or UTF-8 bytes; the end excluded or included.

Decided by where entities begin and end. A wrong count cuts words ("buprofen "), the right one does not; where the
surface is given, the text at the offsets must be it. Scripts without spaces between words show less, and a Korean
particle follows its word, so what they do not show counts for neither side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, get_args

from tutelage.data.columns import MappedRow
from tutelage.data.contents.entities import offsets_in, parts_of_entities
from tutelage.data.contents.words import begins_inside, cuts_words, is_whole
from tutelage.data.files.problems import BAD_CELL
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import Offsets

CUT, SURE = 0.2, 4
"""Fraction of the entities that must cut words before another count is considered, and how many times fewer may then
do so."""
MISTAKEN = 0.02
"""Fraction of the entities that may be outside their text however offsets count: mistakes in the rows."""
MOST = 20_000
"""Entities that are looked at, spread over all rows."""
MOSTLY = 0.5
"""Fraction of the entities that begin inside words from which on offsets cannot be right, though no count is better."""
NAMES = {"characters": "characters", "utf16": "UTF-16 units", "bytes": "UTF-8 bytes"}
READINGS = get_args(Offsets)
"""Values of `data.offsets`; the first is the default."""


class _Located(NamedTuple):
    """An entity with offsets."""

    text: str
    start: Any
    end: Any
    surface: str | None


@dataclass
class _Reading:
    """What a count makes of all entities."""

    name: str
    spans: list[tuple[int, int] | None]
    """In characters; None for offsets that are outside the text or hold another surface than is given."""
    cut: list[bool]
    """Whether an entity begins or ends inside a word or with a space; True for None."""
    whole: list[bool]
    """Whether an entity is known to begin and end where words do."""


def decide_offsets(rows: Iterable[tuple[str, MappedRow, Place]]) -> tuple[str, str] | None:
    """(value of `data.offsets`, reason), or None for the default. Raises DataError where it is unclear and matters.

    rows: may be read twice.
    """
    located, first = _spread(rows)
    if not located:
        return None
    default, *others = (_reading(name, located) for name in READINGS)
    others = [other for other in others if other.spans != default.spans]
    others = [other for other in others if other.spans.count(None) <= MISTAKEN * len(located)]
    best = min(others, key=lambda other: sum(other.cut), default=default)
    verdict = _compared(default, best) if best is not default else "default"
    rivals = [other for other in others if sum(other.cut) == sum(best.cut) and other.spans != best.spans]
    rivals = [other for other in rivals if other.name.endswith("-inclusive") == best.name.endswith("-inclusive")]
    if verdict == "unclear" or (verdict == "other" and rivals):
        raise _unclear(located, first, default, best)
    if verdict == "default":
        # A compound may hold an entity at its start; few words hold one at their end.
        pairs = [(span, entity) for span, entity in zip(default.spans, located, strict=True) if span]
        inside = sum(entity.surface is None and begins_inside(entity.text, span[0]) for span, entity in pairs)
        if inside >= MOSTLY * len(located):
            raise _unclear(located, first, default)
        return None
    differ = [index for index, span in enumerate(best.spans) if span != default.spans[index]]
    unit, _, inclusive = best.name.partition("-")
    end = ", the last one included" if inclusive else ""
    cut = f"{sum(default.cut[index] for index in differ):,} of {len(located):,} entities would cut words otherwise"
    return best.name, f"offsets are read as {NAMES[unit]}{end}: {cut}"


def _spread(rows: Iterable[tuple[str, MappedRow, Place]]) -> tuple[list[_Located], tuple[str, Place] | None]:
    """At most `MOST` entities with offsets, spread over all rows; split and place of the first row that has some.

    The rows are read again where there are more.
    """
    taken: list[_Located] = []
    count, first = 0, None
    for split, place, found in _located_in(rows):
        first = first or (split, place)
        count += len(found)
        taken += found if count <= MOST else []
    step = count // MOST + 1
    if step > 1:
        every = (entity for _, _, found in _located_in(rows) for entity in found)
        taken = list(islice(every, 0, None, step))
    return taken, first


def _located_in(rows: Iterable[tuple[str, MappedRow, Place]]) -> Iterator[tuple[str, Place, list[_Located]]]:
    """Split, place and entities of each row that has entities with offsets."""
    for split, mapped, place in rows:
        if mapped.row_format == "entities" and (found := _located(mapped.row)):
            yield split, place, found


def _unclear(
    located: Sequence[_Located], first: tuple[str, Place] | None, default: _Reading, other: _Reading | None = None
) -> DataError:
    """The error with the first entity that two counts read differently, or that the default cuts where none is better.

    first: split and place of the first row with offsets.
    """
    split, place = first or (None, None)
    readings = [default, other] if other else [default]
    index = default.cut.index(True) if other is None else 0
    while other and other.spans[index] == default.spans[index]:
        index += 1
    text, start, end, _ = located[index]
    spans = [reading.spans[index] or (0, 0) for reading in readings]
    values = {
        "offsets": [start, end],
        "readings": [reading.name for reading in readings],
        "surfaces": [text[begins:ends] for begins, ends in spans],
        "cut": sum(default.cut),
        "entities": len(located),
    }
    change = f"data.offsets={readings[-1].name}"
    return DataError(Problem(Kind.OFFSETS_UNCLEAR, split, place, key="data.offsets", change=change, values=values))


def _compared(default: _Reading, other: _Reading) -> str:
    """`default`, `other` or `unclear`, by the entities that the two read differently."""
    differ = [index for index, span in enumerate(other.spans) if span != default.spans[index]]
    cut = [index for index in differ if default.cut[index]]
    mended = sum(not other.cut[index] for index in cut)
    if len(cut) < CUT * len(differ) or 2 * mended < len(cut):
        # Without spaces between words nothing is cut: does at least one entity show that the default is right? Other
        # counts than UTF-16 (of JavaScript) are too rare to ask for.
        silent = not cut and not any(default.whole[index] or other.cut[index] for index in differ)
        return "unclear" if silent and other.name == "utf16" else "default"
    return "other" if SURE * sum(other.cut[index] for index in differ) <= mended else "unclear"


def _located(row: dict[str, Any]) -> list[_Located]:
    try:
        parts = parts_of_entities(row.get("entities"))
    except BAD_CELL:
        return []  # reported when the row is rendered
    text = str(row.get("text") or "")
    return [_Located(text, start, end, surface) for _, start, end, surface in parts or () if start is not None]


def _reading(name: str, located: Sequence[_Located]) -> _Reading:
    reading = _Reading(name, [], [], [])
    for text, start, end, surface in located:
        span = offsets_in(text, start, end, name)
        if span and surface is not None and text[span[0] : span[1]] != surface:
            span = None
        reading.spans.append(span)
        reading.cut.append(span is None or cuts_words(text, *span))
        reading.whole.append(span is not None and (surface is not None or is_whole(text, *span)))
    return reading
