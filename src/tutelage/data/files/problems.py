"""What all readers share: placed rows, the limits of a row, and the errors of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tutelage.data.files.exports import way_out
from tutelage.data.files.printed import too_deep
from tutelage.errors import DataError, Kind, Place, Problem

Row = dict[str, Any]
"""Column name to value, as the file has them."""
PlacedRow = tuple[Row, Place]
BAD_CELL = (DataError, KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError)
"""What reading a cell of the wrong type raises."""
LARGEST_CELL = 10_000_000
"""Characters of one cell, of all texts in it together: no model reads so many, but one forgotten quotation mark makes
a file one cell."""
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def unreadable(kind: Kind, path: Path, number: int | None = None, **values: Any) -> DataError:
    """The error for a file, or for a line of it."""
    return DataError(Problem(kind, place=Place(str(path), number), values=values))


def may_hold_halves(text: str) -> bool:
    """Whether JSON has an escape that may be half a character."""
    return bool(_ESCAPED_HALF.search(text))


def checked_row(row: Any, place: Place, halves: bool) -> Row:
    """A parsed row. Raises DataError for what is no object, is nested too deeply, or holds half a character.

    halves: whether to look for the last.
    """
    if not isinstance(row, dict):
        values = {"found": type(row).__name__, "way_out": (way_out(row) or (None,))[0]}
        raise DataError(Problem(Kind.JSON_NOT_AN_OBJECT, place=place, values=values))
    if too_deep(row):
        raise DataError(Problem(Kind.JSON_INVALID, place=place, values={"reason": "nested too deeply", "column": 1}))
    if halves:
        for column, value in row.items():
            if half := half_character([column, value]):
                values = {"column": column, "character": f"\\u{ord(half):04x}"}
                raise DataError(Problem(Kind.HALF_CHARACTER, place=place, values=values))
    return row


def check_size(values: Iterable[Any], place: Place | None = None) -> None:
    """Raises DataError where one of the values holds more than `LARGEST_CELL` characters."""
    if any(_characters(value) > LARGEST_CELL for value in values):
        raise DataError(Problem(Kind.CELL_TOO_LARGE, place=place, values={"most": LARGEST_CELL}))


def _characters(value: Any) -> int:
    """Characters of the texts in a value, nested ones included."""
    count, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
    return count


def half_character(value: Any) -> str | None:
    """The first surrogate without its other half in the texts of a value, nested ones included; None without any."""
    if isinstance(value, str):
        match = None if value.isascii() else _HALF.search(value)
        return match[0] if match else None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((half for entry in value if (half := half_character(entry))), None)
    return None
