"""The cells of a comparison: one method with one seed on one run folder, and the file that keeps what came of each.

`results.jsonl` has a line for every cell and metric. All lines of a cell are written at once, and each says how many
they are, so a cell is there as a whole or not at all; of a cell that was made again the last lines count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import DataError


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
    """Settings that the method got by tuning, as in the name of a variant: `trainer.learning_rate=0.001`."""

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


class ResultsFile:
    """results.jsonl of a comparison."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file. A line that a killed process left unfinished is cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                os.truncate(path, end)

    def append(self, cell: Cell, inputs: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write the lines of a cell in one piece. inputs: fingerprint of what it was made from."""
        before = self._attempts().get(cell)
        attempt = before[0]["attempt"] + 1 if before else 1
        fixed = {**asdict(cell), "inputs": inputs, "attempt": attempt, "of": len(rows)}
        lines = [json.dumps({**fixed, **row}, ensure_ascii=False) for row in rows]
        with self.path.open("ab") as file:
            file.write(("\n".join(lines) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> dict[Cell, list[dict[str, Any]]]:
        """The lines that count of every cell that is there as a whole, in the order in which cells first came."""
        return {cell: rows for cell, rows in self._attempts().items() if len(rows) == rows[0].get("of", len(rows))}

    def done(self) -> dict[Cell, str]:
        """Cells that came to a good end, with the fingerprint of what they were made from."""
        return {cell: rows[0]["inputs"] for cell, rows in self.lines().items() if rows[0]["status"] == "done"}

    def _attempts(self) -> dict[Cell, list[dict[str, Any]]]:
        """The lines of the last attempt at every cell, all of them or not."""
        found: dict[Cell, list[dict[str, Any]]] = {}
        for row in self._read():
            cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__ if name in row})
            known = found.setdefault(cell, [])
            if known and known[0]["attempt"] != row["attempt"]:
                known.clear()
            known.append(row)
        return found

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    way_out = "remove it, and its cell is made again"
                    raise DataError(f"{self.path}, line {number} is not JSON ({error}): {way_out}") from error
