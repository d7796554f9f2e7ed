"""Which column of a raw row is which: our names, the recipe's mapping, common other names, and the row format.

A row format belongs to all tasks or to one (`NATIVE`). Our own name for a column wins over other names, and the mapping
of the recipe over both. Where two columns could be meant and none is mapped, the row is refused: columns are never
guessed.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tutelage.data.files.exports import way_out
from tutelage.data.files.printed import looks_printed, opened
from tutelage.data.files.problems import Row
from tutelage.errors import DataError, Kind, Problem
from tutelage.recipe.schema import Data, Task

ROW_FORMATS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "output"),
    "choice": ("question", "choices", "answer"),
    "span": ("question", "context", "answers"),
    "entities": ("text", "entities"),
    "tokens": ("tokens", "tags"),
    "label": ("text", "label"),
}
"""Row format by the columns it needs; the first that fits is taken. The last column is the answer, which rows to
predict do not have."""
NATIVE = {"classification": ("label",), "ner": ("entities", "tokens"), "qa": ("choice", "span")}
"""Row formats that belong to one task; the others serve every task."""
BEFORE = ("system", "history")
"""Columns of turns that stand in front of a prompt, in the row formats that serve every task."""
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "completion": ("response",),
    "text": ("sentence", "content", "review", "input"),
    "label": ("label_text", "class", "category", "target", "sentiment", "intent"),
    "tokens": ("words",),
    "tags": ("ner_tags",),
    "entities": ("spans",),
    "answer": ("answerKey",),
    "answers": ("answer", "answer_text"),
}
"""Common names of our columns in public data, read where ours is missing and exactly one of these is there."""
_PAIRED = {"input": ("question", "instruction"), "answer": ("choices", "A")}
"""Columns next to which another name means something else: `input` of Alpaca is half a prompt, and the `answer` to
choices is one of them."""
_BY_TEMPLATE = ("text", "context")
"""Columns that a row format does not need if `data.template` does not use them."""
_FORMAT_COLUMNS = frozenset(name for names in ROW_FORMATS.values() for name in names)


@dataclass
class MappedRow:
    """A row whose columns are known."""

    row_format: str | None
    """None only for a row to predict whose `data.template` takes whatever columns it has."""
    row: Row
    """By our names, without columns that the recipe maps to something else."""
    template_values: Row
    """What a template may use: every column under the file's name and under ours."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Our name to the file's, for columns of the row format that are not mapped and go by another name."""
    gold: frozenset[str] = frozenset()
    """Every name of the column that holds the gold answer."""


def read_columns(row: Row, task: Task, data: Data, *, need_answer: bool = True) -> MappedRow:
    """Row format and columns of a raw row.

    Raises DataError where no row format of the task fits, or two columns could be the same one.
    """
    ours, template_values = map_columns(row, data)
    fitting: list[tuple[int, str, dict[str, str]]] = []
    ambiguous: list[Problem] = []
    for row_format, needed in _formats_of(task.type, data.template, need_answer, need_answer or _plain_tokens(ours)):
        candidates = {name: _candidates(name, ours, data) for name in needed}
        if not all(candidates.values()):
            continue
        ambiguous += [_ambiguous(name, others) for name, others in candidates.items() if len(others) > 1]
        if all(len(others) == 1 for others in candidates.values()):
            mapped = sum(name in data.columns for name in ROW_FORMATS[row_format])
            fitting.append((-mapped, row_format, {name: others[0] for name, others in candidates.items()}))
            if not data.columns:
                break
    if not fitting:
        if ambiguous:
            raise DataError(ambiguous[0])
        if data.template and not need_answer:
            return MappedRow(None, ours, template_values)
        raise DataError(_unrecognised(row, ours, task, data, need_answer))
    _, row_format, columns = min(fitting, key=lambda entry: entry[0])  # the most mapped columns; of equals, the first
    return _mapped_row(row_format, columns, ours, template_values, data)


def _mapped_row(row_format: str, columns: dict[str, str], ours: Row, template_values: Row, data: Data) -> MappedRow:
    """columns: our name of each column of the row format to the name it has in `ours`."""
    renamed = {name: theirs for name, theirs in columns.items() if theirs != name}
    values = {
        name: _options(ours) if theirs == "A" and name == "choices" else ours[theirs]
        for name, theirs in renamed.items()
    }
    gold: set[str] = set()
    if len(ROW_FORMATS[row_format]) > 1:
        answer = ROW_FORMATS[row_format][-1]
        gold = {answer, renamed.get(answer, answer), data.columns.get(answer, answer)}
        gold.discard("labels")  # in a template, that is the label set
    return MappedRow(row_format, ours | values, template_values | values, renamed, frozenset(gold))


def map_columns(row: Row, data: Data) -> tuple[Row, Row]:
    """The row by our names as `data.columns` says, and all values that a template may use. NaN becomes None.

    A column that is mapped to one of a row format is not read under its own name as well.
    """
    row = {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
    mapped = {ours: theirs for ours, theirs in data.columns.items() if theirs in row}
    hidden = {theirs for ours, theirs in mapped.items() if ours in _FORMAT_COLUMNS} - set(mapped)
    values = {ours: row[theirs] for ours, theirs in mapped.items()}
    return {key: value for key, value in row.items() if key not in hidden} | values, row | values


def own_id(row: Row, data: Data) -> str | None:
    """The user's id of a raw row, as text; None if it has none."""
    value = map_columns(row, data)[0].get("id")
    return None if value in (None, "") else str(value)


def template_fields(template: str | None) -> list[str]:
    """Names of the fields of a template; none for a template that cannot be read (rendering reports it)."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template or "") if name is not None]
    except ValueError:
        return []


@lru_cache(maxsize=64)
def _formats_of(task: str, template: str | None, need_answer: bool, tokens: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Row formats that a task takes, in the order in which they are tried, with the columns that each needs.

    tokens: whether a row to predict may be read as tokens.
    """
    natives = {name for names in NATIVE.values() for name in names}
    names = [name for name in ROW_FORMATS if name in NATIVE[task] or name not in natives]
    fields = template_fields(template)

    def needed(name: str) -> tuple[str, ...]:
        # The surfaces of entities are looked up in the text, whatever the prompt shows of it.
        dispensable = set(_BY_TEMPLATE).difference(fields) if template and name not in NATIVE["ner"] else ()
        return tuple(column for column in ROW_FORMATS[name] if column not in dispensable)

    full = [(name, needed(name)) for name in names]
    if need_answer:
        return full
    # Tokens are what was learned where there were tags: a text next to them may have other spaces.
    order = sorted(full, key=lambda entry: entry[0] == "entities")
    inputs = [
        (name, columns[:-1] if len(ROW_FORMATS[name]) > 1 else columns)
        for name, columns in order
        if tokens or name != "tokens"
    ]
    # A row to predict may come with its gold answer: then it is read as in training.
    return full + inputs


def _candidates(name: str, row: Row, data: Data) -> list[str]:
    """The columns that could be one of ours; `A` stands for choices in columns of their own."""
    if name == "label" and name not in data.columns and _is_number(row.get(name)) and row.get("label_text") is not None:
        return ["label_text"]
    if name in row:
        return [name]
    if name == "choices" and "A" in row and "B" in row:
        return ["A"]
    others = [other for other in OTHER_NAMES.get(name, ()) if other in row]
    return [other for other in others if not any(neighbour in row for neighbour in _PAIRED.get(other, ()))]


def _ambiguous(name: str, candidates: list[str]) -> Problem:
    change = f"data.columns={{{name}: {candidates[0]}}}"
    return Problem(Kind.COLUMNS_AMBIGUOUS, change=change, values={"column": name, "candidates": candidates})


def _options(row: Row) -> list[Any]:
    """Choices in columns A, B, C, ...: up to the first letter without a column, without empty ones at the end."""
    letters = string.ascii_uppercase
    count = next((index for index, letter in enumerate(letters) if letter not in row), len(letters))
    texts = [row[letter] for letter in letters[:count]]
    while texts and texts[-1] in (None, ""):
        texts.pop()
    return texts


def _plain_tokens(row: Row) -> bool:
    tokens = opened(row.get("tokens", row.get("words")))
    return isinstance(tokens, str) or (
        isinstance(tokens, list) and not any(isinstance(token, dict) for token in tokens)
    )


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.strip().isdigit()
    )


def _unrecognised(row: Row, ours: Row, task: Task, data: Data, need_answer: bool) -> Problem:
    names = NATIVE[task.type][::-1] if task.type == "qa" else NATIVE[task.type]
    needed = {name: ROW_FORMATS[name] if need_answer else ROW_FORMATS[name][:-1] for name in (*names, "prompt")}
    columns = needed[names[0]]
    only_labels = need_answer and "label" not in ours and "labels" in ours and task.type == "classification"
    other_task = next(
        (
            other
            for other in NATIVE
            if other != task.type and any(set(ROW_FORMATS[name]) <= set(ours) for name in NATIVE[other])
        ),
        None,
    )
    template_would_do = (
        need_answer
        and not data.template
        and any(_candidates(ROW_FORMATS[name][-1], ours, data) for name in ("label", "span") if name in names)
    )
    text, change = way_out(row) or (None, None)
    values = {
        "columns": sorted(map(str, row)),
        "task": task.type,
        "wanted": [" + ".join(needed[name]) for name in needed],
        "map_example": (columns[0], columns[-1]) if need_answer else columns,
        "sent_example": [data.columns.get(name, name) for name in columns if name not in ours],
        "not_there": next((theirs for theirs in data.columns.values() if theirs not in row), None),
        "only_labels": only_labels,
        "only_tokens": task.type != "ner" and set(row) <= {"tokens", "tags", "inner_tags"},
        "other_task": other_task,
        "template_would_do": template_would_do,
        "way_out": text,
    }
    change = change or (f"task.type={other_task}" if other_task else None)
    change = change or ("data.columns={label: labels}" if only_labels else None)
    return Problem(Kind.COLUMNS_UNRECOGNISED, change=change, values=values)


# --- cells ---


def list_in(value: Any, column: str) -> Any:
    """A list or object, unchanged or from a text cell; None stays None. Raises DataError for any other text."""
    value = opened(value)
    if isinstance(value, str):
        raise DataError(Problem(Kind.CELL_NOT_A_LIST, values={"column": column, "found": value}))
    return value


def words(value: Any) -> list[str]:
    """A list of texts: as it is, as JSON or printed in a cell, or separated by spaces. Raises DataError."""
    value = _readable(value, "tokens or tags")
    return value.split() if isinstance(value, str) else [str(entry) for entry in value]


def accepted_answers(value: Any) -> list[str]:
    """The texts in a text, a list of texts or of {text}, or {text: [...]} of SQuAD; each may be in a text cell.

    Raises DataError for what cannot be read, and TypeError for an answer that is no text.
    """
    entries = _readable(value, "answers")
    numbers = isinstance(entries, list) and not any(isinstance(entry, str | dict | list) for entry in entries)
    if isinstance(value, str) and numbers:
        entries = value  # the answer "[3]" is a text
    if isinstance(entries, dict):
        entries = entries["text"]
    entries = entries if isinstance(entries, list) else [] if entries is None else [entries]
    texts = [entry["text"] if isinstance(entry, dict) else entry for entry in entries]
    return [text.strip() for text in map(text_of, texts) if text and text.strip()]


def text_of(value: Any) -> str | None:
    """A cell as text; None stays None. Raises TypeError for a list or object, which no cell of text holds."""
    if isinstance(value, list | tuple | dict | bytes):
        raise TypeError(f"{type(value).__name__} instead of text: {str(value)[:80]}")
    return None if value is None else str(value)


def _readable(value: Any, column: str) -> Any:
    """As `opened`. Raises DataError for what looks like a printed list or object and is none, such as a long list of
    which only the ends were printed."""
    found = opened(value)
    if isinstance(found, str) and looks_printed(found):
        raise DataError(Problem(Kind.CELL_NOT_A_LIST, values={"column": column, "found": found}))
    return found


def listed_objects(value: Any) -> Any:
    """An object of equally long lists, as some libraries store a list of objects, as that list of objects."""
    if not isinstance(value, dict) or not value or not all(isinstance(entries, list) for entries in value.values()):
        return value
    return [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
