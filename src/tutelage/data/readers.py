"""Files and Hub data sets as raw rows, each with its place, so that every later message can name file and line.

CSV and TSV are read by `csv`, JSON by `json`, Parquet by `pyarrow`, the Hub by `datasets`; CoNLL is read here. Nothing
is guessed: CSV cells stay text, and a file with an unknown ending is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.errors.wording import first_line

Row = dict[str, Any]
"""Column name to value, as the file has them."""
PlacedRow = tuple[Row, Place]
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".bio", ".txt")
TAG = re.compile("O|[BIESLU]-.+")
"""A tag of the BIO family."""
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
LIST_COLUMNS = (
    *("prompt", "completion", "messages", "conversations", "answers", "choices", "entities", "spans", "tokens"),
    *("paragraphs", "qas"),
)
"""Columns of one row that may hold a list of objects; a list of objects under any other name is a table of rows."""


# --- which files ---


def find_files(folder: Path, names: dict[str, tuple[str, ...]] | None = None) -> dict[str, list[str]]:
    """Files of each split in a folder, or in its folder `data`: NAME.ENDING, or all parts NAME-00000-of-00002.ENDING.

    names: what the files of a split may be called, in any case; default `SPLIT_NAMES`. The first name wins, then the
    first of `ENDINGS`. Raises DataError where a part is missing.
    """
    by_split: dict[str, list[str]] = {}
    for parent in (folder, folder / "data"):
        files = sorted(path for path in parent.glob("*") if path.is_file())
        for split, stems in (names or SPLIT_NAMES).items():
            paths = next((p for stem in stems for ending in ENDINGS if (p := _named_files(files, stem, ending))), [])
            if paths and split not in by_split:
                by_split[split] = [str(path) for path in paths]
    return by_split


def _named_files(files: list[Path], stem: str, ending: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(stem)}(-(\d+)-of-(\d+))?{re.escape(ending)}", re.IGNORECASE)
    matches = [(path, match) for path in files if (match := pattern.fullmatch(path.name))]
    whole = [path for path, match in matches if not match[1]]
    if whole or not matches:
        return whole[:1]
    expected = int(matches[0][1][3])
    if len(matches) != expected:
        values = {"folder": str(matches[0][0].parent), "found": len(matches), "expected": expected, "stem": stem}
        change = f"data.{stem}=[FILE, FILE]"
        raise DataError(Problem(Kind.FILE_PARTS_MISSING, change=change, values=values | {"name": f"{stem}-*{ending}"}))
    return [path for path, _ in matches]


def check_files(files: list[str]) -> None:
    """Raises DataError with every file that is missing."""
    missing = [_missing(Path(name)) for name in files if not Path(name).is_file()]
    if missing:
        raise DataError(*missing, subject=None if len(missing) == 1 else "the data")


def _missing(path: Path) -> Problem:
    if path.is_dir():
        return Problem(Kind.FILE_IS_FOLDER, values={"path": str(path)})
    near = [neighbour.name for neighbour in path.parent.glob("*")] if path.parent.is_dir() else []
    return Problem(Kind.FILE_MISSING, values={"path": str(path), "near": _closest(path, near)})


def _closest(path: Path, names: list[str]) -> str | None:
    close = get_close_matches(path.name, names, n=1)
    return str(path.parent / close[0]) if close else None


# --- reading ---


def read_rows(files: list[str]) -> list[PlacedRow]:
    """All rows of the files, in order, each with its place. Raises DataError."""
    check_files(files)
    return [row for name in files for row in _read_file(Path(name))]


def _read_file(path: Path) -> list[PlacedRow]:
    if path.suffix.lower() not in _READERS:
        raise _unreadable(Kind.FILE_TYPE_UNKNOWN, path, endings=tuple(_READERS))
    try:
        rows = list(_READERS[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        with path.open("rb") as file:
            utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        raise _unreadable(Kind.ENCODING_NOT_UTF8, path, utf16=utf16, reason=error.reason) from None
    if not rows:
        raise _unreadable(Kind.FILE_EMPTY, path)
    return rows


def _unreadable(kind: Kind, path: Path, number: int | None = None, **values: Any) -> DataError:
    """The error for a file, or for a line of it."""
    return DataError(Problem(kind, place=Place(str(path), number), values=values))


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> list[PlacedRow]:
    """Rows of one split of a Hub data set; label numbers become their names. Raises DataError."""
    from datasets import ClassLabel, load_dataset

    try:
        table = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises many types, for network failures as for an unknown split
        path = Path(name)
        folders = [p.name for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
        values = {"name": name, "hub_split": split, "near": _closest(path, folders), "reason": first_line(error)}
        raise DataError(Problem(Kind.DATASET_UNREADABLE, change="data.dataset=FOLDER", values=values)) from error
    source = f"{name}/{split}"
    return [
        ({key: _named(value, table.features[key], ClassLabel) for key, value in row.items()}, Place(source, n, "row"))
        for n, row in enumerate(table, start=1)
    ]


def _named(value: Any, feature: Any, label: type) -> Any:
    """A value with label numbers, at any depth, replaced by their names; -1 stands for no label on the Hub."""
    if isinstance(feature, label):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(entry, feature[key], label) for key, entry in value.items()}
    inner = getattr(feature, "feature", None)
    return [_named(entry, inner, label) for entry in value] if isinstance(value, list) and inner is not None else value


# --- JSON ---


def _read_jsonl(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = Place(str(path), number)
                yield parse_object(line, place), place


def parse_object(text: str, place: Place) -> Row:
    """One JSON object. Raises DataError for anything else."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        values = {"reason": error.msg, "column": error.colno}
        raise DataError(Problem(Kind.JSON_INVALID, place=place, values=values)) from None
    return _object(row, place)


def _object(row: Any, place: Place) -> Row:
    if not isinstance(row, dict):
        raise DataError(Problem(Kind.JSON_NOT_AN_OBJECT, place=place, values={"found": type(row).__name__}))
    return row


def _read_json(path: Path) -> Iterator[PlacedRow]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    decoder = json.JSONDecoder()
    start = len(text) - len(text.lstrip())
    try:
        table, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _unreadable(Kind.JSON_INVALID, path, error.lineno, reason=error.msg, column=error.colno) from None
    if text[end:].strip():  # JSON lines under another ending
        yield from _read_jsonl(path)
        return
    if isinstance(table, dict):
        tables = {key: value for key, value in table.items() if key not in LIST_COLUMNS and _is_table(value)}
        if len(tables) > 1:
            raise _unreadable(Kind.JSON_SEVERAL_TABLES, path, tables=", ".join(tables))
        table = next(iter(tables.values()), [table])
    if not isinstance(table, list):
        raise _unreadable(Kind.JSON_NOT_A_LIST, path, found=type(table).__name__)
    for number, row in enumerate(_flat(table), start=1):
        place = Place(str(path), number, "row")
        yield _object(row, place), place


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


# --- tables ---


def _read_table(path: Path) -> Iterator[PlacedRow]:
    """Rows of a CSV or TSV file; every cell stays text.

    A TSV whose quotation marks do not enclose cells is read without quoting. A CSV whose header has semicolons and no
    comma is separated by semicolons: spreadsheets save it so where the comma is the decimal sign.
    """
    import csv

    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
    tabs = path.suffix.lower() == ".tsv"
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if tabs else (csv.QUOTE_MINIMAL,):
        try:
            return iter(list(_table_rows(path, quoting, tabs)))
        except csv.Error as error:
            reason, line = error.args
    raise _unreadable(Kind.TABLE_INVALID, path, line, format=path.suffix[1:].upper(), reason=reason)


def _table_rows(path: Path, quoting: Any, tabs: bool) -> Iterator[PlacedRow]:
    """Raises `csv.Error` with the reason and the line."""
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = "\t" if tabs else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(file, delimiter=delimiter, strict=True, quoting=quoting)
        try:
            repeated = [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]
            if repeated:
                raise _unreadable(Kind.COLUMN_REPEATED, path, 1, column=repeated[0])
            for row in reader:
                if None in row or None in row.values():
                    counts = {"cells": _cells(row), "columns": len(reader.fieldnames or [])}
                    raise _unreadable(Kind.TABLE_ROW_UNEVEN, path, reader.line_num, **counts)
                cells = {key: value if value != "" else None for key, value in row.items()}
                yield cells, Place(str(path), reader.line_num)
        except csv.Error as error:
            raise csv.Error(str(error), reader.reader.line_num) from None


def _cells(row: dict[Any, Any]) -> int:
    return sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or [])


def _read_parquet(path: Path) -> Iterator[PlacedRow]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise _unreadable(Kind.PARQUET_INVALID, path, reason=first_line(error)) from None
    named = _label_names(table.schema)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield named(row), Place(str(path), number, "row")


def _label_names(schema: Any) -> Callable[[Row], Row]:
    """Replaces label numbers by their names, in a file that `datasets` wrote with its features."""
    if b"huggingface" not in (schema.metadata or {}):
        return lambda row: row
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return lambda row: _named(row, features, ClassLabel)


# --- CoNLL ---


def _read_conll(path: Path) -> Iterator[PlacedRow]:
    """The token in the first column, its tag in the last, a blank line between sentences; separated by tabs or spaces.

    A line in front of a sentence that begins with # is a comment if it is `# key = value` or does not end in a tag.
    """
    tokens, tags, start = [], [], 1
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, "\n"], start=1):
            # A token may hold spaces where tabs separate columns, and other white space (U+3000) where spaces do.
            line = line.strip("\r\n") if "\t" in line else line.strip(" \r\n")
            cells = [cell.strip(" ") for cell in line.split("\t" if "\t" in line else " ") if cell.strip(" ")]
            if cells and cells[0] == "-DOCSTART-":
                continue
            if not line.strip():
                if tokens:
                    yield {"tokens": tokens, "tags": tags}, Place(str(path), start)
                tokens, tags, start = [], [], number + 1
            elif not tokens and line.startswith("#") and (re.match(r"# ?\S+ = ", line) or not TAG.fullmatch(cells[-1])):
                start = number + 1
            elif len(cells) < 2:
                raise _unreadable(Kind.TAG_MISSING, path, number, token=cells[0])
            else:
                tokens.append(cells[0])
                tags.append(cells[-1])


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".bio": _read_conll,
    ".txt": _read_conll,
}
