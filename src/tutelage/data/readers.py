"""Files and hub data sets as raw rows, each with where it came from, so that every later message can name file and
line.

Reading is left to the `datasets` library (CSV, TSV, Parquet, hub) and to `json`; CoNLL is read here. Nothing is
guessed: CSV cells stay text, an unknown ending is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, problems

Row = dict[str, Any]
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".bio", ".txt")
TAG = re.compile("O|[BIESLU]-.+")
"""A tag of the BIO family."""
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
LIST_COLUMNS = (
    *("prompt", "completion", "messages", "conversations", "answers", "choices", "entities", "spans", "tokens"),
    *("paragraphs", "qas"),
)
"""Columns of one row that may hold a list of objects; under any other name, such a list is a table of rows."""


def find_files(folder: Path, names: dict[str, tuple[str, ...]] | None = None) -> dict[str, list[str]]:
    """Files of each split in a folder, or in its folder `data`: NAME.ENDING, or all pieces NAME-00000-of-00002.ENDING.

    names: what a split's files may be called, default `SPLIT_NAMES`; case does not matter. The first name, then the
    first of
    `ENDINGS`, wins. Raises DataError where a piece is missing.
    """
    found: dict[str, list[str]] = {}
    for place in (folder, folder / "data"):
        files = sorted(path for path in place.glob("*") if path.is_file())
        for split, stems in (names or SPLIT_NAMES).items():
            paths = next((p for stem in stems for ending in ENDINGS if (p := _named_files(files, stem, ending))), [])
            if paths and split not in found:
                found[split] = [str(path) for path in paths]
    return found


def _named_files(files: list[Path], stem: str, ending: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(stem)}(-(\d+)-of-(\d+))?{re.escape(ending)}", re.IGNORECASE)
    matches = [(path, match) for path in files if (match := pattern.fullmatch(path.name))]
    whole = [path for path, match in matches if not match[1]]
    if whole or not matches:
        return whole[:1]
    if len(matches) != int(matches[0][1][3]):
        raise DataError(
            f"{matches[0][0].parent} holds {len(matches)} of {int(matches[0][1][3])} pieces {stem}-*{ending}: add the missing"
            f" ones, or name the files to use, data.{{split}}=[FILE, FILE]".replace("{split}", stem)
        )
    return [path for path, _ in matches]


def read_rows(files: list[str]) -> list[tuple[Row, str]]:
    """All rows of the files, in order, each with `file:line` (or `file:row N`). Raises DataError with every problem
    found."""
    wrong = [_missing(Path(name)) for name in files if not Path(name).is_file()]
    if wrong:
        raise DataError(problems("data files that are not there:", wrong))
    rows = []
    for name in files:
        path = Path(name)
        if path.suffix.lower() not in _READERS:
            raise DataError(
                f"{path}: files end in {', '.join(_READERS)}; rename or convert it (a spreadsheet: save as CSV UTF-8)"
            )
        try:
            found = list(_READERS[path.suffix.lower()](path))
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(path, error.reason)) from None
        if not found:
            raise DataError(f"{path} is empty: there is no row in it")
        rows += found
    return rows


def _not_utf8(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    if wide:
        return f"{path}: UTF-16 text (Excel's Unicode Text); save it as CSV UTF-8, or convert it with iconv -f UTF-16 -t UTF-8"
    return (
        f"{path}: not UTF-8 text ({reason}); save it as UTF-8, or convert it with iconv -f CP949 -t UTF-8 (CP949 for"
        " Korean Excel files, SHIFT_JIS for Japanese, CP1252 for Western European)"
    )


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> list[tuple[Row, str]]:
    """Rows of one split of a hub data set; label numbers become their names."""
    from datasets import ClassLabel, load_dataset

    try:
        table = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises many kinds, from network trouble to a split that is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"there is no folder {name!r} here{_like_folder(name)}, and as a hub data set (split {split!r}) it could not be read:"
            f" {reason}. Is the name right, and is there a network? A local folder works too: data.dataset=FOLDER, or"
            " data.train=FILE"
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


def _like_folder(name: str) -> str:
    path = Path(name)
    near = [p.name for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, near, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder: name a file in it, or give the folder as data.dataset"
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
        raise DataError(
            f"{where}: not readable as JSON ({error.msg}, column {error.colno}); one object a line is wanted"
        ) from None
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
        lists = {key: value for key, value in table.items() if key not in LIST_COLUMNS and _is_table(value)}
        if len(lists) > 1:
            raise DataError(f"{path}: several lists of rows, {', '.join(lists)}; save each in a file of its own")
        table = next(iter(lists.values()), [table])
    if not isinstance(table, list):
        raise DataError(f"{path}: a list of rows is wanted, found {type(table).__name__}")
    for number, row in enumerate(_flat(table), start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}:row {number}: a row must be a JSON object, found {type(row).__name__}")
        yield row, f"{path}:row {number}"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _flat(table: list[Any]) -> Iterator[Any]:
    """Rows of a table; SQuAD's documents (paragraphs, each with its questions) become one row a question."""
    for entry in table:
        inner = next(
            (key for key in ("paragraphs", "qas") if isinstance(entry, dict) and _is_table(entry.get(key))), None
        )
        if inner is None:
            yield entry
            continue
        about = {key: value for key, value in entry.items() if key != inner}
        yield from _flat([about | part if isinstance(part, dict) else part for part in entry[inner]])


def _read_table(path: Path) -> Iterator[tuple[Row, str]]:
    """CSV and TSV. The standard library's reader keeps line numbers and leaves every cell as text.

    A TSV whose quotation marks cannot be those around cells is read as one that has none. A CSV whose header has
    semicolons and no comma is what spreadsheets save where the comma is a decimal sign: its cells are apart by
    semicolons.
    """
    import csv

    csv.field_size_limit(2**31 - 1)  # the library's own limit refuses texts of more than 131,072 characters
    tabs = path.suffix.lower() == ".tsv"
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if tabs else (csv.QUOTE_MINIMAL,):
        try:
            return iter(list(_table_rows(path, quoting, tabs)))
        except csv.Error as error:
            reason, line = error.args
    hint = (
        "a cell with a comma, a line break or a quotation mark stands in quotation marks, and one inside it is doubled"
    )
    raise DataError(f"{path}:{line}: not readable as {path.suffix[1:].upper()} ({reason}); {hint}")


def _table_rows(path: Path, quoting: Any, tabs: bool) -> Iterator[tuple[Row, str]]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = "\t" if tabs else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(file, delimiter=delimiter, strict=True, quoting=quoting)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]
            if twice:
                raise DataError(f"{path}:1: the column {twice[0]!r} is there twice; rename one")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{where}: {_cells(row)} cells, the header has {len(reader.fieldnames or [])} columns"
                    )
                yield {key: value if value != "" else None for key, value in row.items()}, where
        except csv.Error as error:
            raise csv.Error(str(error), reader.reader.line_num) from None


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
    """Token in the first column, tag in the last, a blank line between sentences; columns are apart by tabs, else by
    spaces.

    In front of a sentence, a line that begins with # is a comment if it is `# key = value` or ends in no tag.
    """
    tokens, tags, start = [], [], 1
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, "\n"], start=1):
            # Tokens may hold spaces where tabs part the columns, and be other white space (U+3000) where spaces do.
            line = line.strip("\r\n") if "\t" in line else line.strip(" \r\n")
            parts = [part.strip(" ") for part in line.split("\t" if "\t" in line else " ") if part.strip(" ")]
            if parts and parts[0] == "-DOCSTART-":
                continue
            if not line.strip():
                if tokens:
                    yield {"tokens": tokens, "tags": tags}, f"{path}:{start}"
                tokens, tags, start = [], [], number + 1
            elif not tokens and line.startswith("#") and (re.match(r"# ?\S+ = ", line) or not TAG.fullmatch(parts[-1])):
                start = number + 1
            elif len(parts) < 2:
                raise DataError(
                    f"{path}:{number}: {parts[0]!r} has no tag; a line is a token and a tag such as B-PER or O"
                )
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
