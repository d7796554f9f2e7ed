"""Which column of a raw row is which: our names, the recipe's mapping, usual other names, and the shape that follows.

A shape serves every task, or one (`NATIVE`). Our own name for a column wins over other names, the recipe's mapping over
both. Where two other names could be meant and nothing is mapped, the row is refused: no column is ever picked by luck.
"""

from __future__ import annotations

import ast
import json
import string
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tutelage.errors import DataError
from tutelage.recipe.schema import Data, Task

Row = dict[str, Any]
SHAPES: dict[str, tuple[str, ...]] = {
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
"""Shape by the columns it needs; the first that fits is taken. The last column is the answer, absent in rows to
predict."""
NATIVE = {"classification": ("label",), "ner": ("entities", "tokens"), "qa": ("choice", "span")}
"""Shapes that belong to one task; the others serve every task."""
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
"""Usual names of our columns in other people's data, read where ours is not there and exactly one of these is."""
_PAIRED = {"input": ("question", "instruction"), "answer": ("choices", "A")}
"""Columns beside which another name says something else: Alpaca's `input` is half a prompt, the answer to choices one
of them."""
_BY_TEMPLATE = ("text", "context")
"""Columns that a row of its shape can lack where `data.template` does not ask for them."""
_OF_SHAPES = frozenset(name for names in SHAPES.values() for name in names)


@dataclass
class Reading:
    """A row, read by its columns."""

    shape: str | None
    """None only for a row to predict whose `data.template` takes whatever columns it has."""
    row: Row
    """Under our names, without columns that the recipe maps to something else."""
    places: Row
    """What a template may name: every column under the file's name and ours."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Our name to the file's, for columns of the shape that were not mapped and go by another name."""
    gold: frozenset[str] = frozenset()
    """Every name of the column that holds the gold answer."""


def read_columns(row: Row, task: Task, data: Data, *, need_answer: bool = True) -> Reading:
    """Shape and columns of a raw row. Raises DataError where no shape of the task fits, or two columns could be the
    same one."""
    ours, places = map_columns(row, data)
    fitting: list[tuple[int, str, dict[str, str]]] = []
    unsure: list[str] = []
    for shape, need in _wanted(task.type, data.template, need_answer, need_answer or _plain_tokens(ours)):
        found = {name: _candidates(name, ours, data) for name in need}
        if not all(found.values()):
            continue
        unsure += [_unsure(name, others) for name, others in found.items() if len(others) > 1]
        if all(len(others) == 1 for others in found.values()):
            mapped = sum(name in data.columns for name in SHAPES[shape])
            fitting.append((-mapped, shape, {name: others[0] for name, others in found.items()}))
            if not data.columns:
                break
    if not fitting:
        if unsure:
            raise DataError(unsure[0])
        if data.template and not need_answer:
            return Reading(None, ours, places)
        raise DataError(_unknown_shape(row, ours, task, data))
    _, shape, found = min(fitting, key=lambda entry: entry[0])  # the one with most mapped columns; of equals, the first
    renamed = {name: theirs for name, theirs in found.items() if theirs != name}
    read = {
        name: _options(ours) if theirs == "A" and name == "choices" else ours[theirs]
        for name, theirs in renamed.items()
    }
    answer = SHAPES[shape][-1]
    gold = {answer, renamed.get(answer, answer), data.columns.get(answer, answer)} if len(SHAPES[shape]) > 1 else set()
    gold.discard("labels")  # as a place, it is the label set
    return Reading(shape, ours | read, places | read, renamed, frozenset(gold))


def detect_shape(row: Row, task: Task, data: Data | None = None, *, need_answer: bool = True) -> str | None:
    """Name of the shape that a row is read as; None if it has none that the task takes."""
    try:
        return read_columns(row, task, data or Data(), need_answer=need_answer).shape
    except DataError:
        return None


def map_columns(row: Row, data: Data) -> tuple[Row, Row]:
    """The row under our names as `data.columns` says, and everything a template may name. NaN becomes None.

    A column that is mapped to one of a shape's is not read as what its own name says besides.
    """
    row = {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
    mapped = {ours: theirs for ours, theirs in data.columns.items() if theirs in row}
    gone = {theirs for ours, theirs in mapped.items() if ours in _OF_SHAPES} - set(mapped)
    named = {ours: row[theirs] for ours, theirs in mapped.items()}
    return {key: value for key, value in row.items() if key not in gone} | named, row | named


def own_id(row: Row, data: Data) -> str | None:
    """The user's id of a raw row, as text; None if it has none."""
    value = map_columns(row, data)[0].get("id")
    return None if value in (None, "") else str(value)


def template_places(template: str | None) -> list[str]:
    """Names of a template's places; none for a template that cannot be read (which rendering reports)."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template or "") if name is not None]
    except ValueError:
        return []


@lru_cache(maxsize=64)
def _wanted(task: str, template: str | None, need_answer: bool, tokens: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Shapes that a task takes with the columns that each needs, in the order in which they are tried.

    tokens: whether a row to predict may be read as tokens.
    """
    natives = {name for names in NATIVE.values() for name in names}
    shapes = [name for name in SHAPES if name in NATIVE[task] or name not in natives]
    places = template_places(template)

    def needed(name: str) -> tuple[str, ...]:
        # The surfaces of entities are looked for in the text, whatever the prompt shows of it.
        dispensable = set(_BY_TEMPLATE).difference(places) if template and name not in NATIVE["ner"] else ()
        return tuple(column for column in SHAPES[name] if column not in dispensable)

    full = [(name, needed(name)) for name in shapes]
    if need_answer:
        return full
    # Tokens are what was learned where there were tags: a text beside them may be spaced in another way.
    order = sorted(full, key=lambda entry: entry[0] == "entities")
    inputs = [
        (name, need[:-1] if len(SHAPES[name]) > 1 else need) for name, need in order if tokens or name != "tokens"
    ]
    # A row to predict may bring its gold answer along: then it is read as it would be in training.
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
    return [other for other in others if not any(beside in row for beside in _PAIRED.get(other, ()))]


def _unsure(name: str, others: list[str]) -> str:
    listed = " and ".join(repr(other) for other in others)
    return (
        f"the columns {listed} could each be the column {name!r}, and nothing is guessed: write which it is,"
        f" data.columns={{{name}: {others[0]}}}"
    )


def _options(row: Row) -> list[Any]:
    """Choices in columns A, B, C, ...: up to the first letter that is no column; empty ones at the end are none."""
    letters = string.ascii_uppercase
    count = next((place for place, letter in enumerate(letters) if letter not in row), len(letters))
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


def _unknown_shape(row: Row, ours: Row, task: Task, data: Data) -> str:
    names = NATIVE[task.type][::-1] if task.type == "qa" else NATIVE[task.type]
    wanted = " or ".join(" + ".join(SHAPES[name]) for name in names)
    columns = SHAPES[names[0]]
    hints = [
        f" data.columns names {theirs!r}, which is not there." for theirs in data.columns.values() if theirs not in row
    ][:1]
    missing_gold = "label" not in ours and "labels" in ours and task.type == "classification"
    if missing_gold:
        hints.append(
            " `labels` are the answers allowed on a row; if they are the gold label: data.columns={label: labels}."
        )
    other = next(
        (kind for kind in NATIVE if kind != task.type and any(set(SHAPES[name]) <= set(ours) for name in NATIVE[kind])),
        None,
    )
    if other:
        hints.append(f" They are those of task.type={other}.")
    if not data.template and any(
        _candidates(SHAPES[name][-1], ours, data) for name in ("label", "span") if name in names
    ):
        hints.append(' A prompt can be made of any columns: data.template="{ONE} {OTHER}".')
    return (
        f"the columns {sorted(row)} are no shape that is known; a {task.type} row has {wanted} (or prompt + completion)."
        f"{''.join(hints)} Other names can be mapped: data.columns={{{columns[0]}: THEIR_NAME, {columns[-1]}: THEIR_NAME}}"
    )


# --- cells ---


def opened(value: Any) -> Any:
    """A text that is a whole list or object (a CSV cell), as JSON or Python writes it, opened; any other value as it
    is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError):
            continue
    return value


def list_in(value: Any, column: str) -> Any:
    """A list or object, as it is or written in a text cell; None stays None. Raises DataError for any other text."""
    value = opened(value)
    if isinstance(value, str):
        raise DataError(f'the column {column!r} holds {value!r}; in a text cell, write a JSON list: ["a", "b"]')
    return value


def words(value: Any) -> list[str]:
    """A list of texts: as it is, as JSON in a cell, or separated by spaces."""
    value = opened(value)
    return value.split() if isinstance(value, str) else [str(entry) for entry in value]


def accepted_answers(value: Any) -> list[str]:
    """The texts in a text, a list of texts or of {text}, or SQuAD's {text: [...]}; each may be written in a text
    cell."""
    entries = opened(value)
    if (
        isinstance(value, str)
        and isinstance(entries, list)
        and not all(isinstance(entry, str | dict) for entry in entries)
    ):
        entries = value  # the answer "[3]" is a text
    if isinstance(entries, dict):
        entries = entries["text"]
    entries = entries if isinstance(entries, list) else [] if entries is None else [entries]
    texts = [entry["text"] if isinstance(entry, dict) else entry for entry in entries]
    return [str(text).strip() for text in texts if text is not None and str(text).strip()]


def listed_objects(value: Any) -> Any:
    """The columns of an object of equally long lists (how some libraries store a list of objects) as a list of
    objects."""
    if not isinstance(value, dict) or not value or not all(isinstance(entries, list) for entries in value.values()):
        return value
    return [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
