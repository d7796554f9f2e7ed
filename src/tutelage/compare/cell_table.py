"""The state of every cell of a comparison. What is run, refused, counted and listed as stale is read from here.

A state follows from what results.jsonl records of the cell, and from the fingerprint of the inputs that the cell would
be made from now, its *expected* fingerprint:

    nothing recorded                                   missing
    recorded with another fingerprint than expected    stale
    recorded as failed                                 failed
    recorded as done, but its predictions are gone     missing
    otherwise                                          done

Nothing is expected of cells whose recipe is not part of the command: what is recorded of them is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tutelage.compare.cells import Cell, CellRecord
from tutelage.errors import UserError, problems


class CellState(Enum):
    """What is known of a cell's result."""

    DONE = "done"
    FAILED = "failed"
    STALE = "stale"
    """Made from other inputs than it would be made from now."""
    MISSING = "missing"


class Unchecked(Enum):
    """In place of an expected fingerprint, for cells that the recipes of a command say nothing about."""

    UNCHECKED = "unchecked"


UNCHECKED = Unchecked.UNCHECKED
Expected = str | None | Unchecked
"""Fingerprint of the inputs that a cell would be made from now; None if no inputs of today give this cell."""


@dataclass(frozen=True, slots=True)
class CellEntry:
    """A line of the table."""

    cell: Cell
    planned: bool
    """Whether the command asks for it."""
    expected: Expected
    record: CellRecord | None
    """None if nothing is recorded."""
    state: CellState


def decide_state(expected: Expected, record: CellRecord | None, *, has_predictions: bool = True) -> CellState:
    """By the rules at the top of this module. has_predictions: whether the files of a done cell's scores exist."""
    if record is None:
        return CellState.MISSING
    if expected is not UNCHECKED and record.inputs != expected:
        return CellState.STALE
    if record.failed:
        return CellState.FAILED
    return CellState.DONE if has_predictions else CellState.MISSING


class ExpectedFingerprints:
    """The expected fingerprint of any cell, planned or recorded."""

    def __init__(self, planned: Mapping[Cell, str], others: Mapping[Cell, str | None] | None = None) -> None:
        """planned: of the cells that the command asks for. others: of recorded cells that it does not ask for, but
        whose recipe it has; None if what such a cell needs does not exist."""
        self.planned, self.others = planned, others or {}
        self._runs = {(cell.recipe, cell.teacher_seed): cell.run for cell in planned}
        self._options = {_method_of(cell): cell.options for cell in planned}

    def of(self, cell: Cell) -> Expected:
        """By the first rule that applies: a planned cell has its own; a cell in another run folder than the planned one
        of its recipe and teacher seed is not wanted (None), nor is one with other options than planned for its method;
        then `others` decides."""
        if cell in self.planned:
            return self.planned[cell]
        if self._runs.get((cell.recipe, cell.teacher_seed), cell.run) != cell.run:
            return None
        if self._options.get(_method_of(cell), cell.options) != cell.options:
            return None
        return self.others.get(cell, UNCHECKED)


def _method_of(cell: Cell) -> Cell:
    """The cell without seed and options."""
    return replace(cell, seed=0, options="")


class CellTable:
    """Every planned or recorded cell with its state: planned ones in the order of the plan, then others as recorded."""

    def __init__(
        self,
        records: Mapping[Cell, CellRecord],
        planned: Mapping[Cell, str] | None = None,
        others: Mapping[Cell, str | None] | None = None,
        has_predictions: Callable[[Cell], bool] = lambda cell: True,
    ) -> None:
        """planned, others: as in `ExpectedFingerprints`. has_predictions: asked of cells recorded as done."""
        self._planned = dict(planned or {})
        fingerprints = ExpectedFingerprints(self._planned, others)
        self.entries: list[CellEntry] = []
        for cell in dict.fromkeys([*self._planned, *records]):
            expected, record = fingerprints.of(cell), records.get(cell)
            done = record is not None and not record.failed
            state = decide_state(expected, record, has_predictions=not done or has_predictions(cell))
            self.entries.append(CellEntry(cell, cell in self._planned, expected, record, state))

    def planned(self) -> list[CellEntry]:
        """The cells that the command asks for."""
        return [entry for entry in self.entries if entry.planned]

    def to_run(self) -> list[Cell]:
        """Planned cells without a result from the expected inputs."""
        return [entry.cell for entry in self.planned() if entry.state is not CellState.DONE]

    def in_state(self, *states: CellState) -> list[CellEntry]:
        """Entries in these states by recipe, method, teacher seed and seed.

        Recipes and methods are in the order of the plan, then others alphabetically: the order in which cells ended
        differs from one comparison to the next.
        """
        recipes, methods = ([getattr(cell, field) for cell in self._planned] for field in ("recipe", "method"))

        def position(name: str, names: list[str]) -> tuple[int, str]:
            return names.index(name) if name in names else len(names), name

        def order(entry: CellEntry) -> tuple[Any, ...]:
            cell = entry.cell
            names = position(cell.recipe, recipes), position(cell.method, methods)
            return (*names, cell.teacher_seed, cell.seed, cell.run, cell.options)

        return sorted((entry for entry in self.entries if entry.state in states), key=order)

    def counted(self) -> list[CellEntry]:
        """Entries that the summary counts, done or failed, ordered as in `in_state`.

        Raises UserError if one recipe and teacher has two run folders, or one student two sets of options: their
        numbers would be averaged under one name.
        """
        entries = self.in_state(CellState.DONE, CellState.FAILED)
        if ambiguous := _ambiguous(entries):
            title = "results.jsonl has two results under one name, which would be averaged:"
            raise UserError(
                f"{problems(title, ambiguous)}\nGive each recipe a `name` of its own, or name another folder with"
                " --output; or remove the lines of one of the two."
            )
        return entries


def _ambiguous(entries: Iterable[CellEntry]) -> list[str]:
    """Names that stand for several run folders or sets of options, with these."""
    folders: dict[str, dict[str, None]] = {}
    options: dict[str, dict[str, None]] = {}
    for cell in (entry.cell for entry in entries):
        folders.setdefault(f"recipe {cell.recipe}, teacher seed {cell.teacher_seed}: run folders", {})[cell.run] = None
        options.setdefault(f"{replace(cell, options='')}: options", {})[repr(cell.options)] = None
    names = [*folders.items(), *options.items()]
    return [f"{name} {' and '.join(values)}" for name, values in names if len(values) > 1]
