"""JSON and JSON lines as raw rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.data.files.problems import PlacedRow, Row, checked_row, may_hold_halves, unreadable
from tutelage.errors import DataError, Kind, Place, Problem

LIST_COLUMNS = (
    *("prompt", "completion", "messages", "conversations", "answers", "choices", "entities", "spans", "tokens"),
    *("paragraphs", "qas"),
)
"""Columns of one row that may hold a list of objects; a list of objects under any other name is a table of rows."""


def read_jsonl(path: Path, encoding: str) -> Iterator[PlacedRow]:
    """A row a line; blank lines are skipped. Raises DataError."""
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = Place(str(path), number)
                yield parse_object(line, place), place


def parse_object(text: str, place: Place) -> Row:
    """One JSON object. Raises DataError for anything else."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(Problem(Kind.JSON_INVALID, place=place, values=_reason(error))) from None
    return checked_row(row, place, may_hold_halves(text))


def _reason(error: ValueError | RecursionError) -> dict[str, Any]:
    if isinstance(error, json.JSONDecodeError):
        return {"reason": error.msg, "column": error.colno}
    return {"reason": "nested too deeply" if isinstance(error, RecursionError) else str(error), "column": 1}


def read_json(path: Path, encoding: str) -> Iterator[PlacedRow]:
    """A list of rows, an object that holds one list of rows, one row, or JSON lines. Raises DataError."""
    text = path.read_text(encoding=encoding)
    if not text.strip():
        return
    start = len(text) - len(text.lstrip())
    try:
        table, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise unreadable(Kind.JSON_INVALID, path, getattr(error, "lineno", 1), **_reason(error)) from None
    if text[end:].strip():  # JSON lines under another ending
        yield from read_jsonl(path, encoding)
        return
    if isinstance(table, dict):
        tables = {key: value for key, value in table.items() if key not in LIST_COLUMNS and _is_table(value)}
        if len(tables) > 1:
            raise unreadable(Kind.JSON_SEVERAL_TABLES, path, tables=", ".join(tables))
        table = next(iter(tables.values()), [table])
    if not isinstance(table, list):
        raise unreadable(Kind.JSON_NOT_A_LIST, path, found=type(table).__name__)
    halves = may_hold_halves(text)
    for number, row in enumerate(_flat(table), start=1):
        place = Place(str(path), number, "row")
        yield checked_row(row, place, halves), place


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _flat(table: list[Any]) -> Iterator[Any]:
    """Rows of a table; the documents of SQuAD (paragraphs, each with its questions) become one row per question."""
    for entry in table:
        inner = next(
            (key for key in ("paragraphs", "qas") if isinstance(entry, dict) and _is_table(entry.get(key))), None
        )
        if inner is None:
            yield entry
            continue
        about = {key: value for key, value in entry.items() if key != inner}
        yield from _flat([about | part if isinstance(part, dict) else part for part in entry[inner]])
