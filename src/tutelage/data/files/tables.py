"""CSV and TSV as raw rows; every cell stays text."""

from __future__ import annotations

import csv
import io
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.data.files.problems import LARGEST_CELL, PlacedRow, unreadable
from tutelage.errors import Kind, Place

SEPARATORS = (",", ";", "\t", "|")
SAMPLE_CHARACTERS = 100_000


def read_table(path: Path, encoding: str) -> Iterator[PlacedRow]:
    """Rows of a CSV or TSV file. Raises DataError.

    A TSV whose quotation marks do not enclose cells is read without quoting; so it is read twice.
    """
    csv.field_size_limit(LARGEST_CELL)  # the default refuses texts of more than 131,072 characters
    tabs = path.suffix.lower() == ".tsv"
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if tabs else (csv.QUOTE_MINIMAL,):
        try:
            if tabs:
                deque(_rows(path, encoding, quoting, tabs), maxlen=0)
            yield from _rows(path, encoding, quoting, tabs)
            return
        except csv.Error as error:
            reason, line = error.args
    if "field limit" in reason:
        raise unreadable(Kind.CELL_TOO_LARGE, path, line, most=LARGEST_CELL)
    raise unreadable(Kind.TABLE_INVALID, path, line, format=path.suffix[1:].upper(), reason=reason)


def _rows(path: Path, encoding: str, quoting: Any, tabs: bool) -> Iterator[PlacedRow]:
    """Raises `csv.Error` with the reason and the line."""
    with path.open(encoding=encoding, newline="") as file:
        sample = file.read(SAMPLE_CHARACTERS)
        file.seek(0)
        told = _told_separator(sample)
        skipped = 1 if told and file.readline() else 0
        separator = told or _separator(sample, tabs, quoting)
        reader = csv.DictReader(file, delimiter=separator, strict=True, quoting=quoting)
        try:
            repeated = [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]
            if repeated:
                raise unreadable(Kind.COLUMN_REPEATED, path, 1 + skipped, column=repeated[0])
            for row in reader:
                line = reader.line_num + skipped
                if None in row or None in row.values():
                    counts = {"cells": _cells(row), "columns": len(reader.fieldnames or [])}
                    raise unreadable(Kind.TABLE_ROW_UNEVEN, path, line, **counts)
                yield {key: value if value != "" else None for key, value in row.items()}, Place(str(path), line)
        except csv.Error as error:
            raise csv.Error(str(error), reader.reader.line_num + skipped) from None


def _told_separator(sample: str) -> str | None:
    """The separator that Excel's first line `sep=;` tells."""
    first = sample.partition("\n")[0].rstrip("\r").strip('"')
    return first[4] if len(first) == 5 and first.startswith("sep=") else None


def _separator(sample: str, tabs: bool, quoting: Any) -> str:
    """What separates the cells: the first separator that gives the header several cells and the next rows as many."""
    order = ("\t", *SEPARATORS) if tabs else SEPARATORS
    widths = {separator: _widths(sample, separator, quoting) for separator in order}
    several = [separator for separator in order if widths[separator][:1] > [1]]
    even = [separator for separator in several if len(set(widths[separator])) == 1]
    return (even or several or order)[0]


def _widths(sample: str, separator: str, quoting: Any) -> list[int]:
    """Cells of the header and the rows after it."""
    try:
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, quoting=quoting)
        return [len(row) for row in islice((row for row in rows if row), 4)]
    except csv.Error:
        return []


def _cells(row: dict[Any, Any]) -> int:
    return sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or [])
