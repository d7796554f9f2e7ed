"""Exports of annotation tools that are no rows of ours, and the way from each to rows that are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage.data.files.printed import opened


def way_out(row: Any) -> tuple[str, str | None] | None:
    """(what the row is and how to use it, the line of the recipe if one is enough); None for no known export."""
    return next((way for recognise in _EXPORTS if (way := recognise(row))), None)


def _label_studio(row: Any) -> tuple[str, str | None] | None:
    if not isinstance(row, dict) or not isinstance(opened(row.get("data")), dict):
        return None
    if not row.keys() & {"annotations", "completions", "predictions"}:
        return None
    return (
        "This is a Label Studio export (JSON): export JSON-MIN instead, whose entities are read with"
        " data.columns={entities: label}, and whose choices with data.columns={label: NAME_OF_THE_CHOICES}.",
        None,
    )


def _doccano(row: Any) -> tuple[str, str | None] | None:
    if not isinstance(row, dict):
        return None
    text = next((name for name in ("text", "data") if isinstance(row.get(name), str)), None)
    labels = next((name for name in ("label", "labels") if _are_triples(opened(row.get(name)))), None)
    if text is None or labels is None:
        return None
    columns = "" if text == "text" else f"text: {text}, "
    change = f"data.columns={{{columns}entities: {labels}}}"
    return f"The column {labels!r} holds [start, end, type] as doccano exports them: write {change}.", change


def _are_triples(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] for entry in value
    )


def _prodigy_choice(row: Any) -> tuple[str, str | None] | None:
    if not isinstance(row, dict) or "accept" not in row or "options" not in row:
        return None
    change = "data.columns={label: accept}"
    return f"The column 'accept' holds what was chosen in Prodigy: write {change}.", change


def _word_a_row(row: Any) -> tuple[str, str | None] | None:
    names = {name.casefold() for name in row} if isinstance(row, dict) else set()
    if not ("word" in names or "token" in names) or not ("tag" in names or "label" in names):
        return None
    return (
        "This is a table with one word a row: write it as CoNLL, a word and its tag on each line and a blank line"
        " between sentences, in a file .conll.",
        None,
    )


def _spacy(row: Any) -> tuple[str, str | None] | None:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], dict):
        return None
    return (
        "This is spaCy's [text, {entities}]; make rows of a list in train.json:"
        """ python -c "import json; [print(json.dumps({'text': t, **a})) for t, a in json.load(open('train.json'))]" """
        "> train.jsonl",
        None,
    )


_EXPORTS: tuple[Callable[[Any], tuple[str, str | None] | None], ...] = (
    *(_label_studio, _doccano, _prodigy_choice, _word_a_row, _spacy),
)

BRAT = (
    "BRAT: make a row of each .txt with its .ann:"
    """ python -c "import json, pathlib; [print(json.dumps({'text': p.with_suffix('.txt').read_text(),"""
    """ 'entities': [[int(b), int(e), t] for l in p.open() if l[0] == 'T' and ';' not in l"""
    """ for t, b, e in [l.split(chr(9))[1].split()]]})) for p in pathlib.Path('.').glob('*.ann')]" > train.jsonl"""
)
"""For files .ann: entities by type and offsets, beside the text; those in several pieces are left out."""
FILE_TYPES: dict[str, str] = {
    ".ann": BRAT,
    ".spacy": "spaCy's binary format: write rows {text, entities: [[start, end, type]]} with DocBin().get_docs(vocab)",
    ".arrow": "a data set of the datasets library: load_from_disk(FOLDER).to_parquet('train.parquet')",
    ".xlsx": "a spreadsheet: save it as CSV UTF-8",
    ".xls": "a spreadsheet: save it as CSV UTF-8",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
}
"""What to do with files that have these endings."""
