"""One problem as data: what is wrong, where, and the values its text is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tutelage.errors.kinds import Kind


class Place(NamedTuple):
    """A line of a file or a row of a table, written `FILE:LINE` or `FILE:row N`."""

    source: str
    """File, `DATASET/SPLIT` of the Hub, or `override`."""
    number: int | None = None
    """Counts from 1; None for the source as a whole."""
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        """`FILE:LINE`, `FILE:row N` or `FILE`."""
        if self.number is None:
            return self.source
        return f"{self.source}:{self.number}" if self.unit == "line" else f"{self.source}:row {self.number}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a user has to mend."""

    kind: Kind
    split: str | None = None
    """`train`, `validation` or `test`, for rows."""
    place: Place | None = None
    row: str | None = None
    """Id of the row."""
    key: str | None = None
    """Dotted key of the recipe that is wrong, or that decides what is wrong."""
    change: str | None = None
    """The line of the recipe that mends it, `section.key=value`; None where none surely does."""
    values: dict[str, Any] = field(default_factory=dict)
    """Names, counts and values found; what the text is made from. `text` holds one that the raiser wrote itself."""


def by_kind(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Problems of one kind and of the same pair of splits together, in the order of first appearance."""
    groups: dict[tuple[Any, ...], list[Problem]] = {}
    for problem in problems:
        pair = (problem.split, problem.values["other_split"]) if "other_split" in problem.values else ()
        groups.setdefault((problem.kind, *pair), []).append(problem)
    return list(groups.values())
