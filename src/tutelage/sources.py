"""Files and hub data sets as raw rows, each with where it came from, so that every later message can name file and line.

Reading is left to the `datasets` library (CSV, TSV, Parquet, hub) and to `json`; CoNLL is read here. Nothing is guessed: CSV
cells stay text, an unknown ending is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, problems

Row = dict[str, Any]
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".bio", ".txt")


def find_files(folder: Path) -> dict[str, list[str]]:
    """Files of each split in a folder: NAME.ENDING with NAME train, validation (valid, val, dev) or test."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        paths = [p for name in names for ending in ENDINGS if (p := folder / f"{name}{ending}").is_file()]
        if paths:
            found[split] = [str(paths[0])]
    return found


def read_rows(files: list[str]) -> list[tuple[Row, str]]:
    """All rows of the files, in order, each with `file:line` (or `file:row N`). Raises DataError with every problem found."""
    wrong = [_missing(Path(name)) for name in files if not Path(name).is_file()]
    if wrong:
        raise DataError(problems("data files that are not there:", wrong))
    rows = []
    for name in files:
        path = Path(name)
        if path.suffix not in _READERS:
            raise DataError(f"{path}: files end in {', '.join(_READERS)}; rename or convert it")
        try:
            found = list(_READERS[path.suffix](path))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8, or convert it with iconv -f CP949 -t UTF-8 (CP949 for"
                " Korean Excel files, SHIFT_JIS for Japanese, CP1252 for Western European)"
            ) from None
        if not found:
            raise DataError(f"{path} is empty: there is no row in it")
        rows += found
    return rows


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> list[tuple[Row, str]]:
    """Rows of one split of a hub data set; label numbers become their names."""
    from datasets import ClassLabel, load_dataset

    try:
        table = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises many kinds, from network trouble to a split that is not there
        raise DataError(
            f"the data set {name!r} (split {split!r}) could not be read: {str(error).splitlines()[0]}. Is the name right, and is"
            " there a network? A local folder works too: data.dataset=FOLDER, or data.train=FILE"
        ) from error
    rows = []
    for number, row in enumerate(table, start=1):
        named = {key: _named(value, table.features[key], ClassLabel) for key, value in row.items()}
        rows.append((named, f"{name}/{split}:row {number}"))
    return rows


def _named(value: Any, feature: Any, label: type) -> Any:
    """A value with label numbers, at any depth, replaced by their names; -1 is the hub's way to say there is none."""
    if isinstance(feature, label):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(entry, feature[key], label) for key, entry in value.items()}
    inner = getattr(feature, "feature", None)
    return [_named(entry, inner, label) for entry in value] if isinstance(value, list) and inner is not None else value


def _missing(path: Path) -> str:
    near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    close = get_close_matches(path.name, near, n=1)
    return f"{path}" + (f" (did you mean {path.parent / close[0]}?)" if close else "")


def _read_jsonl(path: Path) -> Iterator[tuple[Row, str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_object(line, f"{path}:{number}"), f"{path}:{number}"


def parse_object(text: str, where: str) -> Row:
    """One JSON object. Raises DataError with `where` for anything else."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not readable as JSON ({error.msg}, column {error.colno}); one object a line is wanted") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    return row


def _read_json(path: Path) -> Iterator[tuple[Row, str]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under another ending
            yield from _read_jsonl(path)
            return
        raise DataError(f"{path}:{error.lineno}: not readable as JSON ({error.msg}, column {error.colno})") from None
    if isinstance(table, dict):
        lists = [value for value in table.values() if isinstance(value, list)]
        table = lists[0] if len(lists) == 1 else [table]
    if not isinstance(table, list):
        raise DataError(f"{path}: a list of rows is wanted, found {type(table).__name__}")
    for number, row in enumerate(table, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}:row {number}: a row must be a JSON object, found {type(row).__name__}")
        yield row, f"{path}:row {number}"


def _read_table(path: Path) -> Iterator[tuple[Row, str]]:
    """CSV and TSV. The standard library's reader keeps line numbers and leaves every cell as text."""
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]
            if twice:
                raise DataError(f"{path}:1: the column {twice[0]!r} is there twice; rename one")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: {_cells(row)} cells, the header has {len(reader.fieldnames or [])} columns")
                yield {key: value if value != "" else None for key, value in row.items()}, where
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not readable as {path.suffix[1:].upper()} ({error})") from None


def _cells(row: dict[Any, Any]) -> int:
    return sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or [])


def _read_parquet(path: Path) -> Iterator[tuple[Row, str]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from None
    features = _features(table.schema)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield features(row), f"{path}:row {number}"


def _features(schema: Any) -> Callable[[Row], Row]:
    """Names for label numbers, where `datasets` wrote the file and left its features in it."""
    if b"huggingface" not in (schema.metadata or {}):
        return lambda row: row
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return lambda row: _named(row, features, ClassLabel)


def _read_conll(path: Path) -> Iterator[tuple[Row, str]]:
    """Token in the first column, tag in the last, a blank line between sentences."""
    tokens, tags, start = [], [], 1
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, "\n"], start=1):
            parts = line.split()
            if parts and parts[0] == "-DOCSTART-":
                continue
            if not parts:
                if tokens:
                    yield {"tokens": tokens, "tags": tags}, f"{path}:{start}"
                tokens, tags, start = [], [], number + 1
            elif len(parts) < 2:
                raise DataError(f"{path}:{number}: {parts[0]!r} has no tag; a line is a token and a tag such as B-PER or O")
            else:
                tokens.append(parts[0])
                tags.append(parts[-1])


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
