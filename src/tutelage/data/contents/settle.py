"""What the rows leave open, decided once from all rows of all splits, or refused: never row by row.

How offsets count (`data.offsets`), what names a choice (`data.choice_answer`), and whether tokens are words or
characters (`data.join_tokens`). A key that the recipe sets is never decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tutelage.data.columns import MappedRow, read_columns
from tutelage.data.contents.choices import decide_choice_answer
from tutelage.data.contents.offsets import decide_offsets
from tutelage.data.contents.tokens import decide_join_tokens
from tutelage.data.files.problems import PlacedRow
from tutelage.errors import DataError, Place, Problem
from tutelage.recipe.schema import Data, Task

DECIDE: dict[str, dict[str, Callable[..., tuple[str, str] | None]]] = {
    "ner": {"offsets": decide_offsets, "join_tokens": decide_join_tokens},
    "qa": {"choice_answer": decide_choice_answer},
}
"""By task, the keys of `data` and what decides each."""


@dataclass
class Conventions:
    """The data section with nothing left open, and what was decided."""

    data: Data
    decided: dict[str, Any] = field(default_factory=dict)
    """Keys of `data` that the rows decided, with their values."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """What may be read in two ways that matter, with the line of the recipe that says which."""


def settle(raw: Mapping[str, Sequence[PlacedRow]], task: Task, data: Data) -> Conventions:
    """What the rows of all splits say about what the recipe leaves open."""
    settled = Conventions(data)
    for key, decide in DECIDE.get(task.type, {}).items():
        try:
            decision = decide(_MappedRows(raw, task, data)) if getattr(data, key) is None else None
        except DataError as error:
            settled.problems += error.problems
            continue
        if decision:
            settled.decided[key], why = decision
            settled.notes.append(f"{why}; data.{key} can change that")
    settled.data = data.model_copy(update=settled.decided)
    return settled


@dataclass(frozen=True)
class _MappedRows:
    """The rows of all splits with their columns, each with split and place; read as often as they are asked for."""

    raw: Mapping[str, Sequence[PlacedRow]]
    task: Task
    data: Data

    def __iter__(self) -> Iterator[tuple[str, MappedRow, Place]]:
        for split, rows in self.raw.items():
            for row, place in rows:
                with suppress(DataError):  # reported when the row is rendered
                    yield split, read_columns(row, self.task, self.data), place
