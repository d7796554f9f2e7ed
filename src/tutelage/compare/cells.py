"""The cells of a comparison, one method with one seed on one run folder, and results.jsonl, which records them.

results.jsonl has a line for every cell and metric. All lines of a cell are appended in one piece and each says how many
there are, so a cell is recorded as a whole or not at all. If a cell is run again, the lines of the last attempt count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

from tutelage.errors import DataError
from tutelage.method.methods import find_method

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Cell:
    """One student to train and score."""

    recipe: str
    """Name of the recipe."""
    run: str
    """Run folder that holds teacher, anchor and cache."""
    method: str
    seed: int
    teacher_seed: int
    options: str = ""
    """Settings that tuning chose for this method, as in the name of a variant: `trainer.learning_rate=0.001`."""

    @property
    def name(self) -> str:
        """The method with its settings."""
        return f"{self.method}+{self.options}" if self.options else self.method

    @property
    def student(self) -> str:
        """Its folder below `distill` and `evaluate` of the run folder."""
        return f"{self.name}/seed-{self.seed}"

    def __str__(self) -> str:
        """For messages and the names of logs."""
        return f"{self.recipe} teacher-{self.teacher_seed} {self.name} seed-{self.seed}"


class CellFields(TypedDict):
    """The fields of a `Cell` in a JSON file."""

    recipe: str
    run: str
    method: str
    seed: int
    teacher_seed: int
    options: str


class ResultRow(TypedDict, total=False):
    """One line of results.jsonl, without the fields of its cell. A failed cell has one line, with an `error`."""

    inputs: str
    """Fingerprint of what the cell was made from."""
    attempt: int
    """From 1."""
    of: int
    """Number of lines of this attempt."""
    status: Literal["done", "failed"]
    seconds: float
    """Of training; of a failed cell, of the attempt."""
    error: str
    split: Literal["validation", "test"]
    metric: str
    value: float
    low: float
    """End of the 95 % interval over rows; test only, as `high`."""
    high: float


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What results.jsonl says about a cell: the lines of its last attempt, at least one."""

    rows: list[ResultRow]

    @property
    def inputs(self) -> str:
        """Fingerprint of what the cell was made from."""
        return self.rows[0]["inputs"]

    @property
    def failed(self) -> bool:
        """Whether the attempt ended with an error."""
        return self.rows[0]["status"] != "done"

    @property
    def error(self) -> str:
        """Of a failed cell."""
        return self.rows[0]["error"]

    @property
    def seconds(self) -> float:
        """Of training; of a failed cell, of the attempt."""
        return self.rows[0]["seconds"]

    @property
    def complete(self) -> bool:
        """False if the file was cut off within the lines of this attempt."""
        return len(self.rows) == self.rows[0].get("of", len(self.rows))

    def of_split(self, split: Literal["validation", "test"]) -> list[ResultRow]:
        """The rows of a split, one for each metric."""
        return [row for row in self.rows if row.get("split") == split]


class ResultsFile:
    """results.jsonl of a comparison, or its tune.jsonl."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. A last line that a killed process left unfinished is cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)

    def append(self, cell: Cell, inputs: str, rows: Sequence[ResultRow]) -> None:
        """Write the lines of a cell in one piece. inputs: fingerprint of what it was made from."""
        last = self._last_attempts().get(cell)
        attempt = last.rows[0]["attempt"] + 1 if last else 1
        shared = {**asdict(cell), "inputs": inputs, "attempt": attempt, "of": len(rows)}
        lines = [json.dumps({**shared, **row}, ensure_ascii=False) for row in rows]
        with self.path.open("ab") as file:
            file.write(("\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> dict[Cell, CellRecord]:
        """The last attempt at every cell, if it is complete, in the order in which the cells were first recorded."""
        return {cell: record for cell, record in self._last_attempts().items() if record.complete}

    def _last_attempts(self) -> dict[Cell, CellRecord]:
        records: dict[Cell, CellRecord] = {}
        for row in self._read():
            cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__ if name in row})
            rows = records.setdefault(cell, CellRecord([])).rows
            if rows and rows[0]["attempt"] != row["attempt"]:
                rows.clear()
            rows.append(row)
        return records

    def _read(self) -> Iterator[ResultRow]:
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{self.path}, line {number} is not JSON ({error}): remove it, and its cell is run again"
                    ) from error


def has_teacher(method: str) -> bool:
    """Whether a method's students depend on the teacher; assumed for a method that is not installed."""
    try:
        parts = find_method(method)
    except KeyError:
        return True
    return parts.schedule != "none" or parts.answers != "gold"
