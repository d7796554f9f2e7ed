"""All rows of a run: read, rendered, split and checked, with every problem reported at once."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.columns import BEFORE, NATIVE, map_columns, own_id, read_columns, template_fields
from tutelage.data.contents.sameness import content_key, normalised
from tutelage.data.contents.settle import settle
from tutelage.data.contents.verdicts import without_rejected
from tutelage.data.encode import emptied_problem
from tutelage.data.files.json_files import parse_object
from tutelage.data.files.problems import PlacedRow, Row
from tutelage.data.row_formats import example_from_row
from tutelage.data.splits import (
    Rendering,
    choose,
    held_out,
    overlap_problems,
    passage_of,
    read_splits,
    tell_apart,
)
from tutelage.errors import DataError, Kind, Place, Problem, RowsError
from tutelage.recipe.schema import Data, Recipe, Task
from tutelage.records import SPLITS, Example
from tutelage.tasks.ner import entities_from_answer
from tutelage.tasks.qa import one_line
from tutelage.tasks.verbalizers import label_problems
from tutelage.utils.console import no_progress
from tutelage.utils.digests import DigestSet, as_array, digest, digests, repeated
from tutelage.utils.spool import Mapped, Picked


@dataclass
class Rows:
    """All rows that a run trains and is scored on."""

    examples: Mapping[str, Sequence[Example]]
    """By split, on disk; ids are unique over all splits."""
    labels: list[str] | None
    """Label set (classification), entity types (ner), choices (closed questions), or None."""
    choice: bool
    """Whether the questions have closed choices."""
    held_out: int = 0
    """Training rows that became validation rows; 0 if validation rows were given."""
    notes: list[str] = field(default_factory=list)
    """What was decided about the rows, for the user, a line each."""
    decided: dict[str, Any] = field(default_factory=dict)
    """Keys of the data section that the recipe leaves open and the rows decided, with their values."""


def load_rows(
    recipe: Recipe,
    fits: Callable[[Example], bool] | None = None,
    *,
    folder: Path | None = None,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = no_progress,
) -> Rows:
    """Read every split of a recipe. Raises RowsError with all problems of rows, DataError for unreadable files.

    fits: whether a row is short enough; rows that are not are left out of samples (`data.max_train_rows`, ...), so that
    these have as many rows as they should. folder: for temporary files, see `Spool`. progress: as `Screen.progress`.
    """
    task, data = recipe.task, recipe.data
    raw = read_splits(data, folder)
    read = {split: len(raw[split]) for split in SPLITS}
    notes = _renamed_columns(raw["train"], recipe) + _unread_tools(raw["train"], data)
    notes += _unread_turns(raw["train"], task, data)
    left_out, unclear = without_rejected(raw, task, data)
    conventions = settle(raw, task, data)
    notes += conventions.notes
    data = conventions.data
    recipe = recipe.model_copy(update={"data": data})
    labels = task.labels or _labels_in_folder(data)
    learn, hold, held_out = labels is None and task.type != "qa", not raw["validation"], 0
    if learn or hold:
        learned, keys = _looked_through(raw["train"], recipe, labels, learn)
        held_out = _hold_out(raw, keys, recipe, notes) if hold else 0
        labels = sorted(learned) or None if learn else labels  # before rendering: prompts may list them
    problems = unclear + conventions.problems + _column_problems(raw["train"], data)
    sizes = [min(len(raw[split]), getattr(data, f"max_{split}_rows") or len(raw[split])) for split in SPLITS]
    with progress("render rows", sum(sizes)) as advance:
        chosen = choose(raw, Rendering(recipe, labels, fits, folder, advance), problems, left_out)
    examples: dict[str, Sequence[Example]] = {split: chosen[split].examples for split in SPLITS}
    notes += left_out
    choice = task.type == "qa" and all(e.labels for e in examples["train"]) and bool(examples["train"])
    if task.type == "qa":
        labels = _choices_of(examples["train"]) if choice else labels
        examples = examples if choice else _on_one_line(examples, notes)
    if examples["train"]:
        problems += _label_problems(examples, task.type, labels, choice)
        problems += _verbalizer_problems(examples, task, labels if choice or task.type != "qa" else None)
    ids = {split: chosen[split].ids for split in SPLITS}
    seen = np.concatenate([*ids.values(), *(chosen[split].left_out for split in SPLITS)])
    problems += _id_problems(raw, data) if problems or len(repeated(seen)) else []
    if data.overlap == "error":
        problems += overlap_problems(examples, {split: chosen[split].keys for split in SPLITS})
    problems += _missing_splits(examples, read, left_out) if not problems else []
    if problems:
        raise RowsError(*problems, labels=labels)
    return Rows(_distinct(examples, ids), labels, choice, held_out, notes, conventions.decided)


def simple_examples(dataset: Iterable[Row], split: str, *, chat_template: bool = False) -> list[Example]:
    """Examples of prompt + completion or messages rows, for `SCDTrainer`. Raises RowsError."""
    problems: list[Problem] = []
    task, data, examples = Task(type="qa"), Data(chat_template=chat_template), []
    for number, row in enumerate(dataset, start=1):
        place = Place(split, number, "row")
        try:
            examples.append(example_from_row(dict(row), place=place, split=split, task=task, data=data, labels=None))
        except DataError as error:
            problems += error.problems
    if problems:
        raise RowsError(*problems)
    return list(_distinct({split: examples}, {split: digests(example.id for example in examples)})[split])


# --- training rows before the label set is known ---


def _renamed_columns(train: Sequence[PlacedRow], recipe: Recipe) -> list[str]:
    """A note on columns of the first training row that are read under other names."""
    for row, _ in train[:1]:
        with suppress(DataError):
            renamed = read_columns(row, recipe.task, recipe.data).renamed
            listed = ", ".join(
                f"{theirs}{', B, ...' * (ours == 'choices')} as {ours}" for ours, theirs in renamed.items()
            )
            return [f"columns read under another name: {listed}; data.columns can change that"] if listed else []
    return []


def _unread_tools(train: Sequence[PlacedRow], data: Data) -> list[str]:
    """A note on conversations with definitions of tools, which a chat template could show and prompts do not."""
    count = sum(bool(row.get("tools")) and ("messages" in row or "conversations" in row) for row, _ in train)
    shown = "tools" in data.columns.values() or "{tools}" in (data.template or "")
    note = f"the column tools of {count:,} training rows is not read: prompts show no tools"
    return [note] if count and not shown else []


def _unread_turns(train: Sequence[PlacedRow], task: Task, data: Data) -> list[str]:
    """A note on each column of turns before the prompt that no prompt shows, and that is mapped to nothing else."""
    shown = {*template_fields(data.template), *(theirs for ours, theirs in data.columns.items() if ours not in BEFORE)}
    columns = [theirs for ours in BEFORE if not shown & {ours, theirs := data.columns.get(ours, ours)}]
    counts: Counter[str] = Counter()
    for row, _ in train:
        if there := [name for name in columns if row.get(name) not in (None, "", [])]:
            with suppress(DataError):  # reported when the row is rendered
                counts.update(there if data.template or _has_default_prompt(row, task, data) else ())
    why = "data.template does not show it" if data.template else "the default prompt does not show it"
    return [
        f"the column {name} of {counts[name]:,} training rows is not read: {why}" for name in columns if counts[name]
    ]


def _has_default_prompt(row: Row, task: Task, data: Data) -> bool:
    """Whether a row has no prompt of its own, if there is no template. Raises DataError as `read_columns`."""
    return read_columns(row, task, data).row_format in NATIVE[task.type]


def _looked_through(
    train: Sequence[PlacedRow], recipe: Recipe, labels: list[str] | None, learn: bool
) -> tuple[set[str], np.ndarray]:
    """(labels of the training rows, if they are to be learned; [rows] digests of what they ask).

    Rows are rendered before the label set is known; those that cannot be used are reported later.
    """
    learned: set[str] = set()
    keys = array("Q")
    for row, place in train:
        try:
            draft = example_from_row(row, place=place, split="train", task=recipe.task, data=recipe.data, labels=labels)
        except DataError:
            keys.append(digest(normalised(str(place))))
            continue
        keys.append(digest(content_key(draft)))
        if learn:
            learned |= _labels_of(draft, recipe.task.type)
    return learned, as_array(keys)


def _hold_out(raw: dict[str, Sequence[PlacedRow]], contents: np.ndarray, recipe: Recipe, notes: list[str]) -> int:
    """Move a seeded fraction of the training rows to validation; rows that ask the same, and questions about one
    passage, stay together. Returns how many.

    contents: [training rows] digests.
    """
    train, keys = raw["train"], contents
    if recipe.task.type == "qa" and tell_apart(digests(_passages(train, recipe.data))):
        keys = digests(map(normalised, _passages(train, recipe.data)))
    moved = held_out(keys, recipe.data.validation_fraction, recipe.seed)
    raw["train"], raw["validation"] = (Picked(train, np.flatnonzero(which)) for which in (~moved, moved))
    count, total = len(raw["validation"]), len(train)
    fraction = f"{count / max(total, 1):.0%}, seed {recipe.seed}"
    notes.append(f"no validation rows given: {count:,} of {total:,} training rows ({fraction}) are held out")
    return count


def _passages(rows: Iterable[PlacedRow], data: Data) -> Iterator[str]:
    return (passage_of(map_columns(row, data)[0]) for row, _ in rows)


# --- labels ---


def _labels_in_folder(data: Data) -> list[str] | None:
    """`labels` of a task.json in the data folder, if there is one."""
    path = Path(data.dataset or "") / "task.json"
    if data.dataset is None or not path.is_file():
        return None
    place = Place(str(path))
    labels = parse_object(path.read_text(encoding="utf-8-sig"), place).get("labels")
    if labels is not None and not isinstance(labels, list):
        raise DataError(Problem(Kind.LABEL_FILE_INVALID, place=place, values={"found": labels}))
    return [str(label) for label in labels] if labels else None


def _labels_of(example: Example, task: str) -> set[str]:
    """What a training row adds to the label set of classification or ner."""
    if task == "classification":
        return set(example.labels or [example.answer])
    return {kind for kind, _ in entities_from_answer(example.answer) or []}


def _choices_of(train: Iterable[Example]) -> list[str]:
    """The label set of closed questions."""
    found: set[str] = set()
    for example in train:
        found.update(example.labels or [])
    return sorted(found)


def _label_problems(
    examples: Mapping[str, Sequence[Example]], task: str, labels: list[str] | None, choice: bool
) -> list[Problem]:
    """Answers outside the label set, and answers of ner rows that are not entities."""
    if task == "qa" and not choice:
        return []
    known, problems = set(labels or []), []
    for example in (e for split in SPLITS for e in examples[split]):
        if task == "ner":
            pairs = entities_from_answer(example.answer)
            if pairs is None:
                values = {"answer": example.answer}
                problems.append(Problem(Kind.ENTITIES_UNREADABLE, example.split, row=example.id, values=values))
            unknown = {kind for kind, _ in pairs or []} - known
        else:
            unknown = {example.answer} - set(example.labels or known)
        problems += [
            Problem(Kind.LABEL_OUTSIDE_SET, example.split, row=example.id, key="task.labels", values={"label": label})
            for label in sorted(unknown)
        ]
    return problems


def _verbalizer_problems(
    examples: Mapping[str, Sequence[Example]], task: Task, labels: list[str] | None
) -> list[Problem]:
    """Short forms that do not fit the labels, those of single rows included."""
    forms = task.verbalizers
    own = (label for split in SPLITS for example in examples[split] for label in example.labels or ())
    return label_problems(forms, labels, own) if forms else []


# --- rows ---


def _column_problems(train: Sequence[PlacedRow], data: Data) -> list[Problem]:
    """Mapped columns that no training row has: typing errors."""
    names = {name for row, _ in train for name in row} if data.columns else set()
    problems = []
    for ours, theirs in data.columns.items():
        if names and theirs not in names:
            near = get_close_matches(theirs, names, 1)
            values = {"column": theirs, "near": near[0] if near else None, "columns": sorted(names)}
            change = f"data.columns.{ours}={near[0]}" if near else None
            problems.append(
                Problem(Kind.COLUMN_NOT_MAPPED, "train", key=f"data.columns.{ours}", change=change, values=values)
            )
    return problems


def _id_problems(raw: Mapping[str, Sequence[PlacedRow]], data: Data) -> list[Problem]:
    """Ids of the user that more than one row has, over all splits."""

    def named_rows() -> Iterator[tuple[str, Place, str]]:
        for split in SPLITS:
            for row, place in raw[split]:
                if (row_id := own_id(row, data)) is not None:
                    yield split, place, row_id

    several = DigestSet(repeated(digests(row_id for _, _, row_id in named_rows())))
    ids: set[str] = set()
    problems = []
    for split, place, row_id in named_rows():
        if digest(row_id) in several:
            problems += [Problem(Kind.ID_REPEATED, split, place, row_id)] if row_id in ids else []
            ids.add(row_id)
    return problems


def _missing_splits(
    examples: Mapping[str, Sequence[Example]], read: dict[str, int], left_out: list[str]
) -> list[Problem]:
    """The first of training and test that has no rows; and splits of which no row is left.

    read: rows of each file. left_out: why rows were left out, a line each.
    """
    emptied = [split for split in SPLITS if read[split] and not examples[split]]
    missing = [split for split in ("train", "test") if not examples[split] and split not in emptied]
    return [Problem(Kind.ROWS_MISSING, split, change=f"data.{split}=FILE") for split in missing[:1]] + [
        emptied_problem(split, read[split], left_out, f"data.{split}=FILE") for split in emptied
    ]


def _on_one_line(examples: Mapping[str, Sequence[Example]], notes: list[str]) -> dict[str, Sequence[Example]]:
    """Free answers as they are learned and compared: on one line (see tasks/qa.py)."""
    count = sum("\n" in example.answer for split in SPLITS for example in examples[split])
    if count:
        notes.append(f"line breaks in {count:,} answers become spaces: a free answer is one line")

    def flat(_: int, example: Example) -> Example:
        return replace(example, answer=one_line(example.answer), answers=[one_line(text) for text in example.answers])

    return {split: Mapped(rows, flat) for split, rows in examples.items()}


def _distinct(examples: Mapping[str, Sequence[Example]], ids: Mapping[str, np.ndarray]) -> dict[str, Sequence[Example]]:
    """Equal rows without an id of their own get different ones: the second gets the suffix -2, and so on.

    ids: by split, [rows] digests.
    """
    several = DigestSet(repeated(np.concatenate([*ids.values()])))
    counts: dict[str, int] = {}

    def renamed(split: str) -> dict[int, str]:
        names = {}
        for index in np.flatnonzero(several.holds(ids[split])).tolist():
            own = examples[split][index].id
            count = counts[own] = counts.get(own, 0) + 1
            if count > 1:
                names[index] = f"{own}-{count}"
        return names

    return {split: _named(rows, renamed(split)) for split, rows in examples.items()}


def _named(examples: Sequence[Example], names: dict[int, str]) -> Sequence[Example]:
    """The examples, some with another id. names: by index."""
    if not names:
        return examples
    return Mapped(examples, lambda index, e: replace(e, id=names[index]) if index in names else e)
