"""All rows of a run: read, rendered, split and checked, with every problem reported at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.data.columns import map_columns, own_id, read_columns
from tutelage.data.contents.settle import settle, without_rejected
from tutelage.data.encode import emptied_problem
from tutelage.data.files.json_files import parse_object
from tutelage.data.files.problems import PlacedRow, Row
from tutelage.data.row_formats import example_from_row
from tutelage.data.splits import (
    hold_out,
    overlap_problems,
    passages_of,
    prompt_key,
    prompt_text,
    read_splits,
    sample,
)
from tutelage.errors import DataError, Kind, Place, Problem, RowsError
from tutelage.errors.wording import SPLIT_WORDS
from tutelage.recipe.schema import Data, Recipe, Task
from tutelage.records import SPLITS, Example
from tutelage.tasks.ner import entities_from_answer
from tutelage.tasks.qa import one_line


@dataclass
class Rows:
    """All rows that a run trains and is scored on."""

    examples: dict[str, list[Example]]
    """By split; ids are unique over all splits."""
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


def load_rows(recipe: Recipe, fits: Callable[[Example], bool] | None = None) -> Rows:
    """Read every split of a recipe. Raises RowsError with all problems of rows, DataError for unreadable files.

    fits: whether a row is short enough; rows that are not are left out of samples (`data.max_train_rows`, ...), so that
    these have as many rows as they should.
    """
    task, data = recipe.task, recipe.data
    raw = read_splits(data)
    read = {split: len(raw[split]) for split in SPLITS}
    notes = _renamed_columns(raw["train"], recipe) + _unread_tools(raw["train"], data)
    left_out = without_rejected(raw, task, data)
    conventions = settle(raw, task, data)
    notes += conventions.notes
    data = conventions.data
    recipe = recipe.model_copy(update={"data": data})
    labels = task.labels or _labels_in_folder(data)
    drafts = _drafts(raw["train"], recipe, labels)
    held_out = 0
    if not raw["validation"]:
        held_out = _hold_out(raw, drafts, recipe, notes)
    if labels is None and task.type != "qa":  # before rendering: prompts may list them
        labels = _learned_labels([e for e in drafts if e], task.type, False) or None
    problems = conventions.problems + _column_problems(raw["train"], data)
    examples = _chosen(raw, recipe, labels, fits, problems, left_out)
    notes += left_out
    choice = task.type == "qa" and all(e.labels for e in examples["train"]) and bool(examples["train"])
    if task.type == "qa":
        labels = _learned_labels(examples["train"], task.type, choice) or labels
        examples = examples if choice else _on_one_line(examples, notes)
    if examples["train"]:
        problems += _label_problems(examples, task.type, labels, choice)
    problems += _id_problems(raw, data)
    problems += overlap_problems(examples) if data.overlap == "error" else []
    problems += _missing_splits(examples, read, left_out) if not problems else []
    if problems:
        raise RowsError(*problems, labels=labels)
    return Rows(_distinct(examples), labels, choice, held_out, notes, conventions.decided)


def simple_examples(dataset: Iterable[Row], split: str, *, chat_template: bool = False) -> list[Example]:
    """Examples of prompt + completion or messages rows, for `SCDTrainer`. Raises RowsError."""
    problems: list[Problem] = []
    rows = [(dict(row), Place(split, number, "row")) for number, row in enumerate(dataset, start=1)]
    examples = _examples(rows, split, Task(type="qa"), Data(chat_template=chat_template), None, problems)
    if problems:
        raise RowsError(*problems)
    return _distinct({split: examples})[split]


# --- training rows before the label set is known ---


def _renamed_columns(train: list[PlacedRow], recipe: Recipe) -> list[str]:
    """A note on columns of the first training row that are read under other names."""
    for row, _ in train[:1]:
        with suppress(DataError):
            renamed = read_columns(row, recipe.task, recipe.data).renamed
            listed = ", ".join(
                f"{theirs}{', B, ...' * (ours == 'choices')} as {ours}" for ours, theirs in renamed.items()
            )
            return [f"columns read under another name: {listed}; data.columns can change that"] if listed else []
    return []


def _unread_tools(train: list[PlacedRow], data: Data) -> list[str]:
    """A note on conversations with definitions of tools, which a chat template could show and prompts do not."""
    count = sum(bool(row.get("tools")) and ("messages" in row or "conversations" in row) for row, _ in train)
    shown = "tools" in data.columns.values() or "{tools}" in (data.template or "")
    note = f"the column tools of {count:,} training rows is not read: prompts show no tools"
    return [note] if count and not shown else []


def _drafts(rows: list[PlacedRow], recipe: Recipe, labels: list[str] | None) -> list[Example | None]:
    """Training rows rendered before the label set is known; None for rows that cannot be used, reported later."""
    drafts: list[Example | None] = []
    for row, place in rows:
        try:
            drafts.append(
                example_from_row(row, place=place, split="train", task=recipe.task, data=recipe.data, labels=labels)
            )
        except DataError:
            drafts.append(None)
    return drafts


def _hold_out(raw: dict[str, list[PlacedRow]], drafts: list[Example | None], recipe: Recipe, notes: list[str]) -> int:
    """Move a seeded fraction of the training rows to validation; equal prompts, and questions about one passage, stay
    together. Returns how many."""
    train, keys = raw["train"], []
    if recipe.task.type == "qa":
        keys = passages_of([map_columns(row, recipe.data)[0] for row, _ in train])
    if not keys:
        keys = [
            prompt_text(draft.prompt) if draft else str(place) for draft, (_, place) in zip(drafts, train, strict=True)
        ]
    raw["train"], raw["validation"] = hold_out(train, keys, recipe.data.validation_fraction, recipe.seed)
    count, total = len(raw["validation"]), len(train)
    fraction = f"{count / max(total, 1):.0%}, seed {recipe.seed}"
    notes.append(f"no validation rows given: {count:,} of {total:,} training rows ({fraction}) are held out")
    return count


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


def _learned_labels(train: list[Example], task: str, choice: bool) -> list[str] | None:
    """The label set of the training rows."""
    if task == "classification":
        return sorted({label for e in train for label in (e.labels or [e.answer])})
    if task == "ner":
        return sorted({kind for e in train for kind, _ in entities_from_answer(e.answer) or []})
    return sorted({label for e in train for label in e.labels or []}) if choice else None


def _label_problems(
    examples: dict[str, list[Example]], task: str, labels: list[str] | None, choice: bool
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


# --- rows ---


def _chosen(
    raw: dict[str, list[PlacedRow]],
    recipe: Recipe,
    labels: list[str] | None,
    fits: Callable[[Example], bool] | None,
    problems: list[Problem],
    left_out: list[str],
) -> dict[str, list[Example]]:
    """The examples of every split, sampled; `raw` is cut to the rows that were looked at.

    With `data.overlap: drop`, rows whose prompt is in a later split are left out; all test rows stay. In a sample,
    these and the rows that do not fit are replaced by others.
    """
    data, chosen, later = recipe.data, {}, set()
    found: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for split in reversed(SPLITS):
        order = {id(row): index for index, (row, _) in enumerate(raw[split])}
        rows, others = sample(raw[split], getattr(data, f"max_{split}_rows"), f"{recipe.seed}/{split}")
        looked, kept, repeated, long = [], [], 0, 0
        for row, place in (*rows, *others):
            if others and len(looked) - repeated - long == len(rows):
                break
            looked.append((row, place))
            for example in _examples([(row, place)], split, recipe.task, data, labels, found[split]):
                if data.overlap == "drop" and prompt_key(example) in later:
                    repeated += 1
                elif others and fits and not fits(example):
                    long += 1
                else:
                    kept.append((order[id(row)], example))
        chosen[split] = [example for _, example in sorted(kept, key=lambda entry: entry[0])]
        raw[split] = sorted(looked, key=lambda placed: order[id(placed[0])])
        later |= {prompt_key(example) for example in chosen[split]} if data.overlap == "drop" else set()
        for count, why in ((repeated, "have a prompt of a later split"), (long, f"exceed {data.max_length:,} tokens")):
            left_out += [f"{count:,} {SPLIT_WORDS[split]} rows {why} and are left out"] if count else []
    problems += itertools.chain(*found.values())
    return {split: chosen[split] for split in SPLITS}


def _examples(
    rows: list[PlacedRow], split: str, task: Task, data: Data, labels: list[str] | None, problems: list[Problem]
) -> list[Example]:
    examples = []
    for row, place in rows:
        try:
            examples.append(example_from_row(row, place=place, split=split, task=task, data=data, labels=labels))
        except DataError as error:
            problems += error.problems
    return examples


def _column_problems(train: list[PlacedRow], data: Data) -> list[Problem]:
    """Mapped columns that no training row has: typing errors."""
    names = {name for row, _ in train for name in row}
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


def _id_problems(raw: dict[str, list[PlacedRow]], data: Data) -> list[Problem]:
    """Ids of the user that more than one row has, over all splits."""
    ids: set[str] = set()
    problems = []
    for split in SPLITS:
        for row, place in raw[split]:
            row_id = own_id(row, data)
            if row_id is not None and row_id in ids:
                problems.append(Problem(Kind.ID_REPEATED, split, place, row_id))
            ids |= {row_id} - {None}
    return problems


def _missing_splits(examples: dict[str, list[Example]], read: dict[str, int], left_out: list[str]) -> list[Problem]:
    """The first of training and test that has no rows; and splits of which no row is left.

    read: rows of each file. left_out: why rows were left out, a line each.
    """
    emptied = [split for split in SPLITS if read[split] and not examples[split]]
    missing = [split for split in ("train", "test") if not examples[split] and split not in emptied]
    return [Problem(Kind.ROWS_MISSING, split, change=f"data.{split}=FILE") for split in missing[:1]] + [
        emptied_problem(split, read[split], left_out, f"data.{split}=FILE") for split in emptied
    ]


def _on_one_line(examples: dict[str, list[Example]], notes: list[str]) -> dict[str, list[Example]]:
    """Free answers as they are learned and compared: on one line (see tasks/qa.py)."""
    count = sum("\n" in example.answer for split in SPLITS for example in examples[split])
    if count:
        notes.append(f"line breaks in {count:,} answers become spaces: a free answer is one line")

    def flat(example: Example) -> Example:
        return replace(example, answer=one_line(example.answer), answers=[one_line(text) for text in example.answers])

    return {split: [flat(example) for example in rows] for split, rows in examples.items()}


def _distinct(examples: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Equal rows without an id of their own get different ones: the second gets the suffix -2, and so on."""
    counts: dict[str, int] = {}

    def named(example: Example) -> Example:
        count = counts[example.id] = counts.get(example.id, 0) + 1
        return example if count == 1 else replace(example, id=f"{example.id}-{count}")

    return {split: [named(example) for example in rows] for split, rows in examples.items()}
