"""What an annotator of Prodigy said of a row, in its column `answer`: only what was accepted is gold."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tutelage.data.columns import read_columns, template_fields
from tutelage.data.files.problems import PlacedRow
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import Data, Task
from tutelage.utils.spool import Picked

ACCEPTED = "accept"
LEFT_OUT = ("reject", "ignore")
EMPTY = "empty"
"""What a cell without a verdict is counted as; rows of files without the column are gold."""

Raw = Mapping[str, Sequence[PlacedRow]]
"""Raw rows by split."""


def without_rejected(raw: dict[str, Sequence[PlacedRow]], task: Task, data: Data) -> tuple[list[str], list[Problem]]:
    """Leave out the rows that an annotator did not accept: (a line about how many, what is unclear).

    So are rows whose verdict is empty, where others were rejected or ignored: nobody has accepted them.
    """
    counts, other = _counted(raw)
    verdicts = sum(counts[verdict] for verdict in (ACCEPTED, *LEFT_OUT))
    if verdicts <= counts[None] or _is_read(raw, task, data):
        return [], []
    if other:
        split, place, value = other
        values = {"value": value, "verdicts": verdicts}
        change = "data.columns={note: answer}"
        return [], [Problem(Kind.VERDICT_UNKNOWN, split, place, key="data.columns", change=change, values=values)]
    if not any(counts[verdict] for verdict in LEFT_OUT):
        return [], []
    for split, rows in raw.items():
        accepted = array("q", (i for i, (row, _) in enumerate(rows) if _verdict(row) == ACCEPTED))
        if len(accepted) < len(rows):
            raw[split] = Picked(rows, np.array(accepted))
    left_out = {verdict: counts[verdict] for verdict in (EMPTY, *sorted(LEFT_OUT)) if counts[verdict]}
    listed = ", ".join(f"{count:,} {verdict}" for verdict, count in left_out.items())
    return [f"{sum(left_out.values()):,} rows that an annotator did not accept are left out (answer: {listed})"], []


def _counted(raw: Raw) -> tuple[Counter[str | None], tuple[str, Place, Any] | None]:
    """(verdicts of the rows that have a column for it; split, place and value of the first that is none)."""
    counts: Counter[str | None] = Counter()
    first = None
    for split, rows in raw.items():
        for row, place in rows:
            if "answer" in row:
                verdict = _verdict(row)
                counts[verdict] += 1
                if verdict is None and first is None:
                    first = split, place, row["answer"]
    return counts, first


def _verdict(row: Mapping[str, Any]) -> str | None:
    """The verdict on a row, `EMPTY` for a cell without one, None for a cell of something else."""
    value = row.get("answer", ACCEPTED)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return EMPTY
    word = value.strip().casefold() if isinstance(value, str) else None
    return word if word == ACCEPTED or word in LEFT_OUT else None


def _is_read(raw: Raw, task: Task, data: Data) -> bool:
    """Whether `answer` is a column that the recipe names, or the gold answer of some row: then it is no verdict."""
    if "answer" in data.columns.values() or "answer" in template_fields(data.template):
        return True
    if task.type != "qa":
        return False
    for rows in raw.values():
        for row, _ in rows:
            with suppress(DataError):  # reported when the row is rendered
                if "answer" in row and "answer" in read_columns(row, task, data).gold:
                    return True
    return False
