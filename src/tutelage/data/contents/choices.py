"""What the answers of choice questions name a choice by: its label, letter or text, or its index from 0 or 1.

Decided from all rows, because `1` among the choices 2, 1, 0, 3 may be any of the last three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, get_args

from tutelage.data.columns import MappedRow, list_in, listed_objects, text_of
from tutelage.data.files.problems import BAD_CELL, Row
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import ChoiceAnswer

READINGS = get_args(ChoiceAnswer)
"""Values of `data.choice_answer`."""
_MEANING = {"label": "the choices' own labels", "letter": "letters", "text": "their text"}
_MEANING |= {"index": "their index from 0", "index-from-1": "their index from 1"}


def choices_in(row: Row) -> tuple[list[str], list[str]]:
    """(texts, labels of their own, if they have any) of the choices of a row. Raises DataError."""
    choices = listed_objects(list_in(row["choices"], "choices"))
    if isinstance(choices, dict):
        choices = [{"label": label, "text": text} for label, text in choices.items()]
    if not isinstance(choices, list):
        raise DataError(Problem(Kind.CHOICES_NOT_A_LIST, values={"found": choices}))
    names = [str(choice["label"]) for choice in choices if isinstance(choice, dict) and choice.get("label") is not None]
    texts = [text_of(choice["text"] if isinstance(choice, dict) else choice) for choice in choices]
    empty = next((number for number, text in enumerate(texts, start=1) if not text or not text.strip()), None)
    if empty:
        raise DataError(Problem(Kind.CHOICE_EMPTY, values={"number": empty, "count": len(texts)}))
    return [text for text in texts if text], names


def choice_of(answer: Any, texts: Sequence[str], names: Sequence[str], reading: str | None) -> int:
    """Position of the choice that an answer names. Raises DataError if it names none.

    reading: `data.choice_answer`; see `_usual` for None.
    """
    position = choice_by(reading, answer, texts, names) if reading else _usual(answer, texts, names)
    if position is None:
        values = {"answer": answer, "choices": list(texts), "is_number": _is_number(answer), "reading": reading}
        raise DataError(Problem(Kind.CHOICE_UNKNOWN, values=values))
    return position


def _usual(answer: Any, texts: Sequence[str], names: Sequence[str]) -> int | None:
    """The choice by the row's own labels, else by letter, text, or index from 0; a number is never taken for a text."""
    ways = ["label", "letter", "text", "index"] if str(answer).isupper() else ["label", "text", "letter", "index"]
    positions = (choice_by(way, answer, texts, names) for way in (["label", "index"] if _is_number(answer) else ways))
    return next((position for position in positions if position is not None), None)


def _is_number(answer: Any) -> bool:
    return isinstance(answer, int | float) and not isinstance(answer, bool)


def choice_by(reading: str, answer: Any, texts: Sequence[str], names: Sequence[str]) -> int | None:
    """Position of the choice that an answer names, read in one way; None if it names none.

    names: labels that the row has for its choices, if any.
    """
    written = _written(answer)
    if reading == "letter":
        letters = [chr(ord("a") + index) for index in range(len(texts))]
        return letters.index(written.lower()) if written.lower() in letters else None
    if reading in ("label", "text"):
        spellings = list(names if reading == "label" else (text.strip() for text in texts))
        return spellings.index(written) if written in spellings else None
    index = int(written) - (reading == "index-from-1") if written.isascii() and written.isdigit() else -1
    return index if 0 <= index < len(texts) else None


def _written(answer: Any) -> str:
    """An answer as text; a whole number without its decimals, which pandas adds to a column with empty cells."""
    written = str(answer).strip()
    whole, dot, decimals = written.partition(".")
    return whole if dot and whole.isdigit() and not decimals.strip("0") else written


def decide_choice_answer(rows: Iterable[tuple[str, MappedRow, Place]]) -> tuple[str, str] | None:
    """(value of `data.choice_answer`, reason); None where no row can be read in two ways.

    Raises DataError where no way fits all rows, or two do and name different choices.
    """
    count, missing, differing = 0, set(), set()  # readings that some row lacks; pairs that name different choices
    first = None
    for split, mapped, place in rows:
        answer = mapped.row.get("answer")
        if mapped.row_format != "choice" or answer in (None, ""):
            continue
        try:
            texts, names = choices_in(mapped.row)
        except BAD_CELL:
            continue  # reported when the row is rendered
        positions = {reading: choice_by(reading, answer, texts, names) for reading in READINGS}
        positions = {reading: position for reading, position in positions.items() if position is not None}
        if not positions:
            continue
        count += 1
        missing.update(set(READINGS) - positions.keys())
        differing.update(pair for pair in combinations(positions, 2) if positions[pair[0]] != positions[pair[1]])
        if first is None and {_usual(answer, texts, names)} != set(positions.values()):
            first = split, place, answer, texts
    if first is None:
        return None
    fitting = [reading for reading in READINGS if reading not in missing]
    split, place, answer, texts = first
    different = any((fitting[0], reading) in differing for reading in fitting[1:])
    if fitting and (not different or fitting[0] == "label"):
        return fitting[0], f"answers name choices by {_MEANING[fitting[0]]}, in all {count:,} rows"
    values = {"answer": answer, "choices": texts, "readings": fitting or READINGS, "fits": bool(fitting)}
    change = f"data.choice_answer={next((name for name in fitting if name == 'index'), (fitting or READINGS)[-1])}"
    key = "data.choice_answer"
    raise DataError(Problem(Kind.CHOICE_UNCLEAR, split, place, key=key, change=change, values=values))
