"""Files and Hub data sets as raw rows, each with its place, so that every later message can name file and line.

`files/` has a module for each kind of text file; Parquet is read by `pyarrow`, the Hub by `datasets`. Nothing is
guessed: CSV cells stay text, and a file with an unknown ending is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.data.files.conll import read_conll
from tutelage.data.files.exports import FILE_TYPES
from tutelage.data.files.json_files import parse_object, read_json, read_jsonl
from tutelage.data.files.problems import PlacedRow, Row, check_size, unreadable
from tutelage.data.files.tables import read_table
from tutelage.data.files.text import read_text
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.errors.wording import first_line
from tutelage.utils.spool import Mapped, Spool

__all__ = ["PlacedRow", "Row", "check_files", "find_files", "parse_object", "read_hub", "read_rows", "spool_rows"]

SPLIT_NAMES = {
    "train": ("train", "train-v1.1", "train-v2.0"),  # the latter: SQuAD's own
    "validation": ("validation", "valid", "val", "dev", "dev-v1.1", "dev-v2.0"),
    "test": ("test",),
}
CONLL_2003 = {".train": "train", ".testa": "validation", ".testb": "test"}
"""Endings of CoNLL-2003's own files (`eng.train`) and the splits they hold."""
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".conllu", ".bio", ".txt", *CONLL_2003)
PARQUET_ROWS = 256
"""Rows of a Parquet file that are in memory at a time."""
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


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
        for path in files:
            split = CONLL_2003.get(path.suffix.lower())
            if split and (names or SPLIT_NAMES)[split] == SPLIT_NAMES[split]:  # the user gave no name
                by_split.setdefault(split, [str(path)])
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


def read_rows(files: list[str], encoding: str | None = None, *, need_answers: bool = True) -> list[PlacedRow]:
    """All rows of the files, in order, each with its place, for files of any size as `spool_rows`.

    encoding: `data.encoding`, for files that are not UTF-8. need_answers: whether rows without answers are refused
    where the file format shows them (CoNLL). Raises DataError.
    """
    return list(spool_rows(files, encoding, need_answers=need_answers))


def spool_rows(
    files: list[str], encoding: str | None = None, folder: Path | None = None, *, need_answers: bool = True
) -> Spool[PlacedRow]:
    """All rows of the files on disk, in order, each with its place; a few are in memory at a time.

    JSON that is not JSON lines is one value, and read as a whole. folder: as for `Spool`. Other arguments and errors as
    for `read_rows`.
    """
    check_files(files)
    rows = _row_spool(folder)
    for name in files:
        _read_file(Path(name), encoding, rows, need_answers)
    return rows


def _row_spool(folder: Path | None) -> Spool[PlacedRow]:
    return Spool(folder, pack=_packed_row, unpack=_unpacked_row)


def _packed_row(placed: PlacedRow) -> tuple[Any, ...]:
    row, place = placed
    return row, place.source, place.number, place.unit


def _unpacked_row(packed: tuple[Any, ...]) -> PlacedRow:
    row, *place = packed
    return row, Place(*place)


def _read_file(path: Path, encoding: str | None, rows: Spool[PlacedRow], need_answers: bool) -> None:
    """Add the rows of a file."""
    before, ending = len(rows), path.suffix.lower()
    reader = _READERS.get(ending)
    if reader is read_conll:
        reader = partial(read_conll, need_tags=need_answers)

    def read(name: str) -> None:
        rows.truncate(before)  # of a reading in another encoding
        rows.extend(_measured(reader(path, name)))

    if ending == ".parquet":
        rows.extend(_measured(_read_parquet(path)))
    elif reader:
        read_text(path, encoding, read)
    else:
        raise unreadable(Kind.FILE_TYPE_UNKNOWN, path, endings=ENDINGS, way_out=FILE_TYPES.get(ending))
    if len(rows) == before:
        raise unreadable(Kind.FILE_EMPTY, path)


def _measured(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows. Raises DataError for one with a huge cell, before it is looked at letter by letter."""
    for row, place in rows:
        check_size(row.values(), place)
        yield row, place


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> Sequence[PlacedRow]:
    """Rows of one split of a Hub data set, which `datasets` keeps on disk; label numbers become their names.

    Raises DataError.
    """
    from datasets import ClassLabel, load_dataset

    try:
        table = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises many types, for network failures as for an unknown split
        path = Path(name)
        folders = [p.name for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
        values = {"name": name, "hub_split": split, "near": _closest(path, folders), "reason": first_line(error)}
        raise DataError(Problem(Kind.DATASET_UNREADABLE, change="data.dataset=FOLDER", values=values)) from error
    source = f"{name}/{split}"

    def placed(index: int, row: Row) -> PlacedRow:
        named = {key: _named(value, table.features[key], ClassLabel) for key, value in row.items()}
        return named, Place(source, index + 1, "row")

    return Mapped(table, placed)


def _named(value: Any, feature: Any, label: type) -> Any:
    """A value with label numbers, at any depth, replaced by their names; -1 stands for no label on the Hub."""
    if isinstance(feature, label):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(entry, feature[key], label) for key, entry in value.items()}
    inner = getattr(feature, "feature", None)
    return [_named(entry, inner, label) for entry in value] if isinstance(value, list) and inner is not None else value


# --- Parquet ---


def _read_parquet(path: Path) -> Iterator[PlacedRow]:
    number = 0
    for named, batch in _parquet_batches(path):
        for row in batch:
            number += 1
            yield named(row), Place(str(path), number, "row")


def _parquet_batches(path: Path) -> Iterator[tuple[Callable[[Row], Row], list[Row]]]:
    """(what replaces label numbers by their names, some rows). Raises DataError."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            named = _label_names(file.schema_arrow)
            for batch in file.iter_batches(PARQUET_ROWS):
                yield named, _with_texts(batch)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(Kind.PARQUET_INVALID, path, reason=first_line(error)) from None


def _with_texts(batch: Any) -> list[Row]:
    """The rows of a batch, with texts in place of bytes. Bytes that are no UTF-8, such as an image, are left: they are
    refused where a text is needed."""
    import pyarrow

    others = []
    for index, column in enumerate(batch.schema):
        if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
            try:
                batch = batch.set_column(index, column.name, batch.column(index).cast(pyarrow.large_string()))
            except pyarrow.ArrowInvalid:
                others.append(column.name)
    rows: list[Row] = batch.to_pylist()
    for row in rows if others else ():
        row |= {name: _text_or_bytes(row[name]) for name in others}
    return rows


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _label_names(schema: Any) -> Callable[[Row], Row]:
    """Replaces label numbers by their names, in a file that `datasets` wrote with its features."""
    if b"huggingface" not in (schema.metadata or {}):
        return lambda row: row
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return lambda row: _named(row, features, ClassLabel)


_READERS: dict[str, Callable[[Path, str], Iterable[PlacedRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_table,
    ".tsv": read_table,
    ".conll": read_conll,
    ".conllu": read_conll,
    ".bio": read_conll,
    ".txt": read_conll,
    **dict.fromkeys(CONLL_2003, read_conll),
}
