"""The cells of a comparison, one method with one seed on one run folder, and results.jsonl, which records them.

results.jsonl has a line for every cell and metric. All lines of a cell are appended in one piece and each says how many
there are, so a cell is recorded as a whole or not at all. If a cell is run again, the lines of the last attempt count.
Each line has a checksum of its own content; lines of older versions have none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from tutelage.method.methods import find_method
from tutelage.utils.checksums import checksum, seal
from tutelage.utils.integrity import damaged, reading

RESULTS = "results.jsonl"
RUN = ".."
"""In results.jsonl, the run folder that holds the comparison; with `-teacher-1` and so on, those beside it."""


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
    checksum: str
    """Of the line's other content."""
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
        self.path, self._run = path, path.parent.parent
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with reading(path):
                content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)

    def append(self, cell: Cell, inputs: str, rows: Sequence[ResultRow]) -> None:
        """Write the lines of a cell in one piece. inputs: fingerprint of what it was made from."""
        last = self._last_attempts().get(cell)
        attempt = last.rows[0]["attempt"] + 1 if last else 1
        shared = {**asdict(cell), "run": self._relative(cell.run), "inputs": inputs}
        shared |= {"attempt": attempt, "of": len(rows)}
        lines = [json.dumps(seal({**shared, **row}), ensure_ascii=False) for row in rows]
        with self.path.open("ab") as file:
            file.write(("\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> dict[Cell, CellRecord]:
        """The last attempt at every cell, if it is complete, in the order in which the cells were first recorded."""
        return {cell: record for cell, record in self._last_attempts().items() if record.complete}

    def _last_attempts(self) -> dict[Cell, CellRecord]:
        records: dict[Cell, CellRecord] = {}
        lines = list(self._read())
        roots = {_root(row["run"]) for row in lines} - {RUN}
        for row in lines:
            fields = {name: row[name] for name in Cell.__dataclass_fields__ if name in row}
            cell = Cell(**fields | {"run": self._resolved(row["run"], roots)})
            rows = records.setdefault(cell, CellRecord([])).rows
            if rows and rows[0]["attempt"] != row["attempt"]:
                rows.clear()
            rows.append(row)
        return records

    def _relative(self, run: str) -> str:
        """A run folder as it is recorded: relative to a comparison inside it, so that both can be moved."""
        return RUN + run.removeprefix(str(self._run)) if _root(run) == str(self._run) else run

    def _resolved(self, recorded: str, roots: Collection[str]) -> str:
        """The run folder of a line. roots: of the lines with whole paths, which older versions wrote; if there is one,
        it is where the run that holds this comparison was then."""
        if _root(recorded) == RUN:
            return str(self._run) + recorded.removeprefix(RUN)
        elsewhere = len(roots) == 1 and Path(*roots).resolve() != self._run.resolve()
        is_moved = elsewhere and (self._run / "prepare").is_dir()
        return str(self._run) + recorded.removeprefix(_root(recorded)) if is_moved else recorded

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with reading(self.path), self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place, again = f"{self.path}, line {number}", "Remove the line, and its cell is run again"
                try:
                    row = json.loads(line)
                    recorded = row.pop("checksum", None)
                except (ValueError, AttributeError) as error:
                    raise damaged(place, error, again=again) from error
                if recorded is not None and recorded != checksum(row):
                    raise damaged(place, "other content", f"content with the checksum {recorded}", again)
                yield row


def _root(run: str) -> str:
    """The recipe's own run folder; those of further teacher seeds lie beside it."""
    return re.sub(r"-teacher-\d+$", "", run)


def has_teacher(method: str) -> bool:
    """Whether a method's students depend on the teacher; assumed for a method that is not installed."""
    try:
        parts = find_method(method)
    except KeyError:
        return True
    return parts.schedule != "none" or parts.answers != "gold"
