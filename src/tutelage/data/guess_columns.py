"""Which task rows are for, and which of their columns is what: by our names where they are there, else by what the
columns hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tutelage.data.columns import NATIVE, SHAPES, opened, read_columns
from tutelage.data.entities import TYPE_KEYS
from tutelage.data.readers import TAG, Row
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError
from tutelage.recipe.schema import Data, Task
from tutelage.tasks.ner import NO_ENTITIES, entities_from_answer

LOOKED_AT = 2000
LABEL_NAMES = (
    "label",
    "class",
    "categor",
    "intent",
    "sentiment",
    "target",
    "topic",
    "rating",
    "stars",
    "department",
    "tag",
    "type",
)
ANSWER_NAMES = ("answer", "response", "completion", "output", "reply", "target", "summary", "translation")
ASIDE = frozenset({"split", "language", "lang", "source", "subdomain", "author"})
"""Names of columns that are about a row and no part of it."""
ASIDE_WORDS = frozenset({"id", "idx", "index", "uuid", "url", "date", "time"})
"""Words that make any name one of those."""
DATE = re.compile(r"(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{2,4})([T ][\d:.,+Z -]*)?")
SHORT = 60
"""Mean characters of a label, at most."""


@dataclass
class Guess:
    """What rows seem to be for."""

    task: str
    columns: dict[str, str] = field(default_factory=dict)
    """`data.columns`: our name to the file's."""
    why: str = ""
    """In a few words."""
    notes: list[str] = field(default_factory=list)
    """What the user should know."""
    chat: bool = False
    """Whether rows are conversations."""
    native: bool = True
    """Whether the prompt is made by the task's own template."""
    gold: str | None = None
    """The column of the answer; None in conversations, which hold it."""
    beside: frozenset[str] = frozenset()
    """Columns that say nothing of what is asked: ids and gold."""


def guess_rows(rows: Sequence[Row]) -> Guess:
    """Task and columns of raw rows. Raises DataError, with what to write, where no task fits."""
    sample = rows[:LOOKED_AT]
    guess = _by_names(sample) or _shared(sample, Data()) or _by_contents(sample)
    if guess is None:
        raise DataError(
            f"the columns {sorted(sample[0])} do not tell what is asked and what is the answer: rename two of them to text and"
            " label (classification), text and entities (ner), or prompt and completion, and try again"
        )
    return guess


def _by_names(rows: Sequence[Row]) -> Guess | None:
    """A shape that belongs to one task, in all rows."""
    for task in ("ner", "qa", "classification"):
        shapes = {_shape(row, task) for row in rows[:50]}
        shape = next(iter(shapes))
        if len(shapes) == 1 and shape in NATIVE[task]:
            reading = read_columns(rows[0], Task(type=task), Data())
            names = [reading.renamed.get(name, name) for name in SHAPES[shape]]
            if shape == "label" and _column(names[-1], rows).kind == "entities":
                return None  # what annotation tools write: told by what it holds
            return Guess(
                task,
                why=f"rows have {' + '.join(names)}",
                gold=names[-1],
                beside=frozenset({"id", names[-1], "choices"}),
            )
    return None


def _shape(row: Row, task: str) -> str | None:
    with suppress(DataError):
        return read_columns(row, Task(type=task), Data()).shape
    return None


def _shared(rows: Sequence[Row], data: Data) -> Guess | None:
    """Prompt and answer, or a conversation: the task is told by the answers."""
    shape = _shape_of_all(rows, data)
    if shape is None:
        return None
    chat = shape in ("messages", "conversations") or isinstance(opened(rows[0].get("prompt")), list)
    data = data.model_copy(update={"chat_template": chat})
    answers = []
    for row in rows:
        with suppress(DataError):
            answers.append(
                example_from_row(row, where="", split="train", task=Task(type="qa"), data=data, labels=None).answer
            )
    counts, gold = Counter(answers), SHAPES[shape][-1]
    gold = None if gold in ("messages", "conversations") else data.columns.get(gold, gold)
    beside = frozenset({"id", gold} - {None})
    more = {"columns": dict(data.columns), "chat": chat, "native": False, "gold": gold, "beside": beside}
    if len(counts) > 1 and len(counts) * 3 <= len(answers) and sum(map(len, counts)) <= SHORT * len(counts):
        return Guess("classification", why=f"{len(counts)} different answers in {len(answers):,} rows", **more)
    lines = [line for answer in answers for line in answer.splitlines() if line.strip().casefold() != NO_ENTITIES]
    types = Counter(kind for answer in answers for kind, _ in entities_from_answer(answer) or [])
    if lines and types.total() == len(lines) and len(types) * 3 <= len(lines):
        return Guess("ner", why="answers are lines of `TYPE: text`", **more)
    return Guess("qa", why="answers are free text", **more)


def _shape_of_all(rows: Sequence[Row], data: Data) -> str | None:
    found = set()
    for row in rows[:50]:
        try:
            found.add(read_columns(row, Task(type="qa"), data).shape)
        except DataError:
            return None
    shape = next(iter(found)) if len(found) == 1 else None
    return shape if shape not in NATIVE["qa"] else None


# --- columns by what they hold ---


@dataclass
class _Column:
    """What a column holds over the rows looked at."""

    name: str
    filled: int
    distinct: int
    length: float
    """Mean characters."""
    kind: str
    """`text`, `number`, `entities`, `tags`, `words` or `other`."""
    named: bool
    """Whether the name is one of the values, as in a table whose first row was taken for names."""


def _by_contents(rows: Sequence[Row]) -> Guess | None:
    columns = [_column(name, rows) for name in dict.fromkeys(name for row in rows for name in row)]
    columns = [column for column in columns if column.filled > 0.5 * len(rows)]
    free = [c for c in columns if not _aside(c.name)]
    texts = sorted((c for c in free if c.kind == "text" and c.distinct > 0.3 * c.filled), key=lambda c: -c.length)
    kinds = {c.kind: c for c in reversed(free)}
    aside = _language(columns, rows)
    if "tags" in kinds and "words" in kinds:
        return _mapped(
            "ner", {"tokens": kinds["words"], "tags": kinds["tags"]}, aside, "a list of words and one of tags"
        )
    if "entities" in kinds and texts:
        return _mapped(
            "ner", {"text": texts[0], "entities": kinds["entities"]}, aside, "a text and a list of typed entities"
        )
    labels = [c for c in free if c.kind in ("text", "number") and 2 <= c.distinct <= c.filled / 3 and c.length <= SHORT]
    labels = [c for c in labels if not texts or c is not texts[0]]
    if texts and labels:
        label = _by_hint(labels, LABEL_NAMES)
        if label.named and " " in texts[0].name:
            raise DataError(
                f"the first line, {texts[0].name!r} and {label.name!r}, looks like a row: write a line with the names of the"
                " columns in front of it, e.g. text,label, and try again"
            )
        guess = _mapped(
            "classification", {"text": texts[0], "label": label}, aside, f"{label.name} has {label.distinct} values"
        )
        others = [c.name for c in labels if c is not label]
        if others:
            guess.notes.append(f"the label could also be {', '.join(others)}: data.columns={{label: ...}}")
        return guess
    if len(texts) > 1:
        answer = _by_hint([c for c in free if c in texts], ANSWER_NAMES)
        prompt = next(c for c in texts if c is not answer)
        guess = _shared(rows, Data(columns={"prompt": prompt.name, "completion": answer.name} | aside))
        if guess:
            guess.notes.append(
                f"taken for the question: {prompt.name}, for the answer: {answer.name}; data.columns can say otherwise"
            )
        return guess
    return None


def _mapped(task: str, roles: dict[str, _Column], aside: dict[str, str], why: str) -> Guess:
    columns = {ours: column.name for ours, column in roles.items() if column.name != ours} | aside
    told = ", ".join(f"{column.name} as {ours}" for ours, column in roles.items())
    gold = list(roles.values())[-1].name
    return Guess(
        task, columns, why, [f"columns guessed by what they hold: {told}"], gold=gold, beside=frozenset({"id", gold})
    )


def _by_hint(columns: Sequence[_Column], names: Sequence[str]) -> _Column:
    """The column whose name says so, the first hint winning; else the last one."""
    for hint in names:
        if found := [c for c in columns if hint in c.name.casefold()]:
            return found[0]
    return columns[-1]


def _column(name: str, rows: Sequence[Row]) -> _Column:
    values = [row[name] for row in rows if row.get(name) not in (None, "")]
    shown = [str(value) for value in values]
    length = sum(map(len, shown)) / max(1, len(shown))
    return _Column(name, len(values), len(set(shown)), length, _kind(values), name in shown)


def _aside(name: str) -> bool:
    return name.casefold() in ASIDE or not ASIDE_WORDS.isdisjoint(re.split(r"[\W_]+", name.casefold()))


def _kind(values: Sequence[Any]) -> str:
    first = [opened(value) for value in values[:50]]
    lists = [value for value in first if isinstance(value, list) and value]
    if lists and all(isinstance(value, list) for value in first):
        entries = [entry for value in lists for entry in value]
        if all(_is_entity(entry) for entry in entries):
            return "entities"
        if all(isinstance(entry, str) for entry in entries):
            return "tags" if all(TAG.fullmatch(entry) for entry in entries) else "words"
        return "other"
    if any(isinstance(value, list | dict) for value in first) or all(DATE.fullmatch(str(value)) for value in first):
        return "other"
    return "text" if any(isinstance(value, str) and not _is_number(value) for value in first) else "number"


def _is_entity(entry: Any) -> bool:
    """An object with a type, or [start, end, type]."""
    if isinstance(entry, list):
        return [type(part) for part in entry] == [int, int, str]
    return isinstance(entry, dict) and any(key in entry for key in TYPE_KEYS)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _language(columns: Sequence[_Column], rows: Sequence[Row]) -> dict[str, str]:
    """A column `lang` of two-letter codes is the language of each row."""
    lang = next((c for c in columns if c.name.casefold() == "lang"), None)
    codes = {str(row.get(lang.name)) for row in rows[:200]} if lang else set()
    return {"language": lang.name} if codes and all(len(code) == 2 and code.islower() for code in codes) else {}
