"""Guesses for `tutelage init`: the task of some rows, and which column is which, by our names or by the contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.data.columns import NATIVE, ROW_FORMATS, read_columns
from tutelage.data.contents.entities import TYPE_KEYS
from tutelage.data.files.conll import TAG
from tutelage.data.files.exports import way_out
from tutelage.data.files.printed import opened
from tutelage.data.readers import Row
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, Kind, Place, Problem
from tutelage.recipe.schema import Data, Task
from tutelage.tasks.ner import NO_ENTITIES, entities_from_answer

TASKS = ("ner", "qa", "classification")
SAMPLE_ROWS = 2000
FORMAT_ROWS = 50
"""Rows that must all have the same row format."""
LABEL_NAMES = (
    *("label", "class", "categor", "intent", "sentiment", "target", "topic", "rating", "stars", "department", "tag"),
    "type",
)
ANSWER_NAMES = ("answer", "response", "completion", "output", "reply", "target", "summary", "translation")
METADATA = frozenset({"split", "language", "lang", "source", "subdomain", "author"})
"""Names of columns that describe a row and are no part of question and answer."""
METADATA_WORDS = frozenset({"id", "idx", "index", "uuid", "url", "date", "time"})
"""Words that mark any name as metadata."""
DATE = re.compile(r"(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{2,4})([T ][\d:.,+Z -]*)?")
LABEL_LENGTH = 60
"""Largest mean length of a label, in characters."""


@dataclass
class Guess:
    """Task and columns of some rows."""

    task: str
    columns: dict[str, str] = field(default_factory=dict)
    """`data.columns`: our name to the file's."""
    why: str = ""
    """The reason, in a few words."""
    notes: list[str] = field(default_factory=list)
    """What the user should check."""
    chat: bool = False
    """Whether rows are conversations."""
    native: bool = True
    """Whether the task's own template makes the prompt."""
    gold: str | None = None
    """The column of the answer; None in conversations, which hold it."""
    not_input: frozenset[str] = frozenset()
    """Columns that are no part of the question: ids and answer."""


def guess_rows(rows: Sequence[Row], task: str | None = None) -> Guess:
    """Task and columns of raw rows. task: `--task`. Raises DataError where no task, or another one fits."""
    sample = rows[:SAMPLE_ROWS]
    guess = _by_names(sample, (task,) if task else TASKS) or _by_answers(sample, Data()) or _by_contents(sample)
    if guess is None:
        values = {"columns": sorted(sample[0]), "way_out": (way_out(sample[0]) or (None,))[0]}
        raise DataError(Problem(Kind.TASK_UNCLEAR, values=values))
    if task in (None, guess.task):
        return guess
    if guess.native:
        raise DataError(
            f"--task {task}: the rows look like {guess.task} ({guess.why}); rename their columns as"
            f" docs/your-own-data.md lists them for {task}, or leave --task out"
        )
    return replace(guess, task=task, why="as --task says")  # a prompt and its answer fit every task


# --- by names ---


def _by_names(rows: Sequence[Row], tasks: Sequence[str]) -> Guess | None:
    """All rows have a row format that belongs to one of the tasks."""
    for task in tasks:
        row_format = _common_format(rows, task, Data())
        if row_format in NATIVE[task]:
            renamed = read_columns(rows[0], Task(type=task), Data()).renamed
            names = [renamed.get(name, name) for name in ROW_FORMATS[row_format]]
            if row_format == "label" and _column(names[-1], rows).content == "entities":
                return None  # annotation tools write entities under `label`: the contents show it
            not_input = frozenset({"id", names[-1], "choices"})
            return Guess(task, why=f"rows have {' + '.join(names)}", gold=names[-1], not_input=not_input)
    return None


def _common_format(rows: Sequence[Row], task: str, data: Data) -> str | None:
    """The row format of all rows; None where they differ or one has none."""
    formats = set()
    for row in rows[:FORMAT_ROWS]:
        try:
            formats.add(read_columns(row, Task(type=task), data).row_format)
        except DataError:
            return None
    return formats.pop() if len(formats) == 1 else None


def _by_answers(rows: Sequence[Row], data: Data) -> Guess | None:
    """Rows with prompt and answer, or conversations: the answers show the task."""
    row_format = _common_format(rows, "qa", data)
    if row_format is None or row_format in NATIVE["qa"]:
        return None
    chat = row_format in ("messages", "conversations") or isinstance(opened(rows[0].get("prompt")), list)
    answers = _answers(rows, data.model_copy(update={"chat_template": chat}))
    gold = ROW_FORMATS[row_format][-1]
    gold = None if gold in ("messages", "conversations") else data.columns.get(gold, gold)
    not_input = frozenset({"id", gold} - {None})
    more = {"columns": dict(data.columns), "chat": chat, "native": False, "gold": gold, "not_input": not_input}
    counts = Counter(answers)
    if len(counts) > 1 and len(counts) * 3 <= len(answers) and sum(map(len, counts)) <= LABEL_LENGTH * len(counts):
        return Guess("classification", why=f"{len(counts)} different answers in {len(answers):,} rows", **more)
    lines = [line for answer in answers for line in answer.splitlines() if line.strip().casefold() != NO_ENTITIES]
    types = Counter(kind for answer in answers for kind, _ in entities_from_answer(answer) or [])
    if lines and types.total() == len(lines) and len(types) * 3 <= len(lines):
        return Guess("ner", why="answers are lines of `TYPE: text`", **more)
    return Guess("qa", why="answers are free text", **more)


def _answers(rows: Sequence[Row], data: Data) -> list[str]:
    """Answers of the rows that can be read as questions."""
    answers, task = [], Task(type="qa")
    for number, row in enumerate(rows, start=1):
        place = Place("rows", number, "row")
        with suppress(DataError):
            answers.append(example_from_row(row, place=place, split="train", task=task, data=data, labels=None).answer)
    return answers


# --- by contents ---


@dataclass
class _Column:
    """What a column holds in the sample."""

    name: str
    filled: int
    distinct: int
    length: float
    """Mean characters."""
    content: str
    """`text`, `number`, `entities`, `tags`, `words` or `other`."""
    name_is_value: bool
    """Whether the name is one of the values, as in a table without a header."""


def _by_contents(rows: Sequence[Row]) -> Guess | None:
    columns = [_column(name, rows) for name in dict.fromkeys(name for row in rows for name in row)]
    columns = [column for column in columns if column.filled > 0.5 * len(rows)]
    language = _language_column(columns, rows)
    columns = [column for column in columns if not _is_metadata(column.name)]
    texts = sorted((c for c in columns if c.content == "text" and c.distinct > 0.3 * c.filled), key=lambda c: -c.length)
    first = {column.content: column for column in reversed(columns)}
    if "tags" in first and "words" in first:
        roles = {"tokens": first["words"], "tags": first["tags"]}
        return _mapped("ner", roles, language, "a list of words and one of tags")
    if "entities" in first and texts:
        roles = {"text": texts[0], "entities": first["entities"]}
        return _mapped("ner", roles, language, "a text and a list of typed entities")
    labels = [column for column in columns if _may_be_label(column) and column not in texts[:1]]
    if texts and labels:
        return _text_and_label(texts[0], labels, language)
    if len(texts) > 1:
        answer = _by_hint([column for column in columns if column in texts], ANSWER_NAMES)
        prompt = next(column for column in texts if column is not answer)
        guess = _by_answers(rows, Data(columns={"prompt": prompt.name, "completion": answer.name} | language))
        if guess:
            taken = f"taken for the question: {prompt.name}, for the answer: {answer.name}"
            guess.notes.append(f"{taken}; data.columns can change that")
        return guess
    return None


def _may_be_label(column: _Column) -> bool:
    few = 2 <= column.distinct <= column.filled / 3
    return column.content in ("text", "number") and few and column.length <= LABEL_LENGTH


def _text_and_label(text: _Column, labels: list[_Column], language: dict[str, str]) -> Guess:
    label = _by_hint(labels, LABEL_NAMES)
    if label.name_is_value and " " in text.name:
        raise DataError(Problem(Kind.HEADER_MISSING, values={"text": text.name, "label": label.name}))
    roles = {"text": text, "label": label}
    guess = _mapped("classification", roles, language, f"{label.name} has {label.distinct} values")
    others = [column.name for column in labels if column is not label]
    if others:
        guess.notes.append(f"the label could also be {', '.join(others)}: data.columns={{label: ...}}")
    return guess


def _mapped(task: str, roles: dict[str, _Column], language: dict[str, str], why: str) -> Guess:
    """roles: our name to the column, the answer last."""
    columns = {ours: column.name for ours, column in roles.items() if column.name != ours} | language
    listed = ", ".join(f"{column.name} as {ours}" for ours, column in roles.items())
    gold = list(roles.values())[-1].name
    notes = [f"columns guessed by their contents: {listed}"]
    return Guess(task, columns, why, notes, gold=gold, not_input=frozenset({"id", gold}))


def _by_hint(columns: Sequence[_Column], names: Sequence[str]) -> _Column:
    """The first column whose name has one of the words, earlier words first; else the last column."""
    for name in names:
        if matching := [column for column in columns if name in column.name.casefold()]:
            return matching[0]
    return columns[-1]


def _column(name: str, rows: Sequence[Row]) -> _Column:
    values = [row[name] for row in rows if row.get(name) not in (None, "")]
    texts = [str(value) for value in values]
    length = sum(map(len, texts)) / max(1, len(texts))
    return _Column(name, len(values), len(set(texts)), length, _content(values), name in texts)


def _is_metadata(name: str) -> bool:
    return name.casefold() in METADATA or not METADATA_WORDS.isdisjoint(re.split(r"[\W_]+", name.casefold()))


def _content(values: Sequence[Any]) -> str:
    first = [opened(value) for value in values[:50]]
    lists = [value for value in first if isinstance(value, list) and value]
    if lists and all(isinstance(value, list) for value in first):
        entries = [entry for value in lists for entry in value]
        if all(_is_entity(entry) for entry in entries):
            return "entities"
        if all(isinstance(entry, str) for entry in entries):
            return "tags" if all(TAG.fullmatch(entry) for entry in entries) else "words"
        return "other"
    if any(isinstance(value, list | dict | bytes) for value in first) or all(
        DATE.fullmatch(str(value)) for value in first
    ):
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


def _language_column(columns: Sequence[_Column], rows: Sequence[Row]) -> dict[str, str]:
    """The mapping of a column `lang` of two-letter codes to the language of each row."""
    lang = next((column for column in columns if column.name.casefold() == "lang"), None)
    codes = {str(row.get(lang.name)) for row in rows[:200]} if lang else set()
    return {"language": lang.name} if codes and all(len(code) == 2 and code.islower() for code in codes) else {}
