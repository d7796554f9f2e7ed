"""All rows of a run: read, rendered, split and checked, with every problem reported at once."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.data.columns import map_columns, own_id, read_columns
from tutelage.data.readers import HUB_ID, SPLIT_NAMES, Row, find_files, parse_object, read_hub, read_rows
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, RowsError, problems
from tutelage.recipe.schema import Data, Recipe, Task
from tutelage.records import SPLITS, Example
from tutelage.tasks.ner import entities_from_answer
from tutelage.tasks.qa import one_line

SHOWN = 3
"""Places shown of each kind of problem."""
_SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass
class Rows:
    """Everything a run learns and is judged on."""

    examples: dict[str, list[Example]]
    """By split; ids are unique over all of them."""
    labels: list[str] | None
    """Label set (classification), entity types (ner), choices (closed questions), or None."""
    choice: bool
    """Whether the questions have closed choices."""
    notes: list[str] = field(default_factory=list)
    """Decisions the user should know of."""


def load_rows(recipe: Recipe) -> Rows:
    """Read every split of a recipe. Raises DataError with all problems found."""
    raw = _read(recipe)
    notes = _renamed(raw["train"], recipe)
    labels = recipe.task.labels or _labels_beside(recipe.data)
    drafts = _drafts(raw["train"], recipe, labels)
    if not raw["validation"]:
        notes.append(_hold_out(raw, drafts, recipe))
    for split in SPLITS:
        raw[split] = _sample(raw[split], getattr(recipe.data, f"max_{split}_rows"), f"{recipe.seed}/{split}")
    if labels is None and recipe.task.type != "qa":  # before rendering: prompts may list them
        labels = _learned_labels(list(drafts.values()), recipe.task.type, False) or None
    found = _Problems()
    _check_columns(raw["train"], recipe.data, found)
    examples = {split: _examples(raw[split], split, recipe.task, recipe.data, labels, found) for split in SPLITS}
    choice = recipe.task.type == "qa" and all(e.labels for e in examples["train"]) and bool(examples["train"])
    if recipe.task.type == "qa":
        labels = _learned_labels(examples["train"], recipe.task.type, choice) or labels
        examples = examples if choice else _on_one_line(examples, notes)
    found.labels = labels
    if examples["train"]:
        _check_labels(examples, recipe.task.type, labels, choice, found)
    _check_ids(raw, recipe.data, found)
    examples = _apart(examples, recipe.data.overlap == "drop", found, notes)
    for split in ("train", "test"):
        if not examples[split] and not found:
            split_hint = "" if split == "train" else ", or data.test_split=validation to judge by those"
            found.add(
                f"no {split} rows", f"name some: data.{split}=FILE, or a {split} file in data.dataset{split_hint}"
            )
    found.raise_all()
    return Rows(_distinct(examples), labels, choice, notes)


def simple_examples(dataset: Iterable[Row], split: str, *, chat_template: bool = False) -> list[Example]:
    """Examples of prompt + completion or messages rows, for `SCDTrainer`."""
    task, data = Task(type="qa"), Data(chat_template=chat_template)
    found = _Problems()
    rows = [(dict(row), f"{split} row {number}") for number, row in enumerate(dataset, start=1)]
    examples = _examples(rows, split, task, data, None, found)
    found.raise_all()
    return _distinct({split: examples})[split]


def fingerprint(recipe: Recipe) -> dict[str, str]:
    """Contents of the data files and the label list beside them (or name and revision of a hub data set), for
    staleness."""
    files, data = _files(recipe.data), recipe.data
    hub = {"hub": f"{data.dataset}/{data.dataset_config}@{data.revision}"} if _on_hub(data) else {}
    paths = [Path(name) for names in files.values() for name in names]
    paths += [Path(data.dataset) / "task.json"] if data.dataset else []
    return hub | {str(path): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths if path.is_file()}


class _Problems:
    """Problems by kind, each with its first places."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self.labels: list[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, kind: str, place: str) -> None:
        self._places.setdefault(kind, []).append(place)

    def raise_all(self) -> None:
        if not self._places:
            return
        lines = []
        for kind, places in self._places.items():
            more = f" (and {len(places) - SHOWN:,} more)" if len(places) > SHOWN else ""
            lines.append(f"{kind}: " + "; ".join(places[:SHOWN]) + more)
        raise RowsError(problems("the rows cannot be used:", lines), self._places, self.labels)


# --- reading ---


def _on_hub(data: Data) -> bool:
    """Whether `data.dataset` is a hub id. Raises DataError if it can only be a folder, and there is none."""
    if data.dataset is None or (folder := Path(data.dataset)).is_dir():
        return False
    if folder.is_file():
        raise DataError(
            f"{data.dataset!r} is a file, and data.dataset is a folder or a hub id: write data.train={data.dataset}"
        )
    if not HUB_ID.fullmatch(data.dataset) or ("/" in data.dataset and folder.parent.is_dir()):
        raise DataError(
            f"no folder {data.dataset!r}: data.dataset is a folder with train, validation and test files, or a hub id"
        )
    return True


def _given_name(data: Data, split: str) -> str | None:
    """What the recipe calls a split of `data.dataset`; None if it leaves that to us."""
    name = getattr(data, f"{split}_split")
    return None if name == split else name


def _split_names(data: Data) -> dict[str, tuple[str, ...]]:
    """What each split may be called in `data.dataset`: as the recipe says, else the usual names that it gives to no
    other split.

    So `test_split: validation` makes test rows of them, and validation rows are held out of training.
    """
    given = {split: _given_name(data, split) for split in SPLITS}
    free = {split: tuple(name for name in names if name not in given.values()) for split, names in SPLIT_NAMES.items()}
    return {split: (name,) if name else free[split] or SPLIT_NAMES[split] for split, name in given.items()}


def _files(data: Data) -> dict[str, list[str]]:
    """Local files by split: those of the folder, and those given, which win."""
    files: dict[str, list[str]] = {}
    if data.dataset is not None and not _on_hub(data):
        folder = Path(data.dataset)
        names = _split_names(data)
        files = find_files(folder, names)
        if not files:
            raise DataError(f"no train, validation or test file in {folder}: name the files with data.train, data.test")
        for split in SPLITS:
            if _given_name(data, split) and split not in files and not getattr(data, split):
                raise DataError(f"no file {names[split][0]}.* in {folder}, which data.{split}_split asks for")
    return files | {split: given for split in SPLITS if (given := getattr(data, split))}


def _read(recipe: Recipe) -> dict[str, list[tuple[Row, str]]]:
    data, files = recipe.data, _files(recipe.data)
    missing = [name for names in files.values() for name in names if not Path(name).is_file()]
    read_rows(missing)  # names all that are missing at once
    raw = {split: read_rows(files[split]) if split in files else [] for split in SPLITS}
    if not _on_hub(data) or len(files) == len(SPLITS):
        return raw
    from datasets import get_dataset_split_names

    try:
        there = get_dataset_split_names(data.dataset, data.dataset_config, revision=data.revision)
    except Exception:  # reading the training split will fail with the message for users
        there = [data.train_split]
    for split, names in _split_names(data).items():
        name = next((name for name in names if name in there), names[0])
        # A name that the recipe gives is read in any case: it may be a slice (`train[:1000]`), or a slip to be told.
        if split not in files and (name in there or split == "train" or _given_name(data, split)):
            raw[split] = read_hub(data.dataset, data.dataset_config, name, data.revision)
    return raw


def _renamed(train: list[tuple[Row, str]], recipe: Recipe) -> list[str]:
    """A note on columns of the first training row that are read though they go by other names."""
    for row, _ in train[:1]:
        with suppress(DataError):
            renamed = read_columns(row, recipe.task, recipe.data).renamed
            told = ", ".join(
                f"{theirs}{', B, ...' * (ours == 'choices')} as {ours}" for ours, theirs in renamed.items()
            )
            return [f"columns read under another name: {told}; data.columns can say otherwise"] if told else []
    return []


def _drafts(rows: list[tuple[Row, str]], recipe: Recipe, labels: list[str] | None) -> dict[str, Example]:
    """Training rows rendered before the label set is known, by place. Rows that cannot be used are reported later."""
    drafts = {}
    for row, where in rows:
        with suppress(DataError):
            drafts[where] = example_from_row(
                row, where=where, split="train", task=recipe.task, data=recipe.data, labels=labels
            )
    return drafts


def _hold_out(raw: dict[str, list[tuple[Row, str]]], drafts: dict[str, Example], recipe: Recipe) -> str:
    """Move a seeded share of the training rows to validation; equal prompts and one passage's questions stay together.

    Returns the note.
    """
    passages = (
        passages_of([map_columns(row, recipe.data)[0] for row, _ in raw["train"]]) if recipe.task.type == "qa" else []
    )
    groups: dict[str, list[str]] = {}
    for place, (_, where) in enumerate(raw["train"]):
        key = passages[place] if passages else prompt_text(drafts[where].prompt) if where in drafts else where
        key = normalised(key)
        groups.setdefault(key, []).append(where)
    keys, total = list(groups), len(raw["train"])
    random.Random(f"{recipe.seed}/hold out").shuffle(keys)
    wanted, places = max(1, round(total * recipe.data.validation_fraction)), set()
    for key in keys:
        if len(places) >= wanted:
            break
        places.update(groups[key])
    raw["validation"] = [entry for entry in raw["train"] if entry[1] in places]
    raw["train"] = [entry for entry in raw["train"] if entry[1] not in places]
    count = len(raw["validation"])
    share = f"{count / max(total, 1):.0%}, seed {recipe.seed}"
    return f"no validation rows given: {count:,} of {total:,} training rows ({share}) are held out"


def passages_of(rows: Sequence[Row]) -> list[str]:
    """The passage that each question is about; none where questions have none, or a tenth of them are about the same
    one."""
    passages = [str(row.get("context") or "") for row in rows]
    return passages if passages and max(Counter(passages).values()) <= len(rows) / 10 else []


def _sample(rows: list[Any], most: int | None, seed: str) -> list[Any]:
    if most is None or most >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), most))]


# --- labels ---


def _labels_beside(data: Data) -> list[str] | None:
    """`labels` of a task.json in the data folder, if there is one."""
    path = Path(data.dataset or "") / "task.json"
    if data.dataset is None or not path.is_file():
        return None
    labels = parse_object(path.read_text(encoding="utf-8-sig"), str(path)).get("labels")
    if labels is not None and not isinstance(labels, list):
        raise DataError(f"{path}: `labels` is a list of the allowed answers, found {labels!r}")
    return [str(label) for label in labels] if labels else None


def _learned_labels(train: list[Example], task: str, choice: bool) -> list[str] | None:
    """The label set as the training rows show it."""
    if task == "classification":
        return sorted({label for e in train for label in (e.labels or [e.answer])})
    if task == "ner":
        return sorted({kind for e in train for kind, _ in entities_from_answer(e.answer) or []})
    return sorted({label for e in train for label in e.labels or []}) if choice else None


def _check_labels(
    examples: dict[str, list[Example]], task: str, labels: list[str] | None, choice: bool, found: _Problems
) -> None:
    known = set(labels or [])
    for example in (e for split in SPLITS for e in examples[split]):
        if task == "ner":
            pairs = entities_from_answer(example.answer)
            if pairs is None:
                found.add(
                    "answers that are no entities (`TYPE: text` lines, or `none`)", f"{example.id}: {example.answer!r}"
                )
            strange = {kind for kind, _ in pairs or []} - known
        elif task == "classification" or choice:
            strange = {example.answer} - set(example.labels or known)
        else:
            continue
        for label in sorted(strange):
            kind = "labels outside the set; add them to task.labels, or leave the rows out"
            found.add(kind, f"{label!r} in {example.split} row {example.id}")


# --- rows ---


def _examples(
    rows: list[tuple[Row, str]], split: str, task: Task, data: Data, labels: list[str] | None, found: _Problems
) -> list[Example]:
    examples = []
    for row, where in rows:
        try:
            examples.append(example_from_row(row, where=where, split=split, task=task, data=data, labels=labels))
        except DataError as error:
            found.add(_kind_of(str(error)), str(error))
    return examples


def _kind_of(message: str) -> str:
    """A heading for rows that failed for the same reason."""
    kinds = {
        "answer is empty": "empty answers",
        "no shape that is known": "columns that are missing",
        "nothing is guessed": "columns that could be meant",
        "has the place": "columns that the template wants",
        "is not in the text": "entities that are not in their text",
    }
    return next((kind for words, kind in kinds.items() if words in message), "rows that are not what they should be")


def _check_columns(train: list[tuple[Row, str]], data: Data, found: _Problems) -> None:
    """A mapped column that no training row has is a slip of the pen."""
    there = {name for row, _ in train for name in row}
    for ours, theirs in data.columns.items():
        if there and theirs not in there:
            near = get_close_matches(theirs, there, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(there)}"
            found.add("mapped columns that no training row has", f"data.columns.{ours}: {theirs!r}; {hint}")


def _check_ids(raw: dict[str, list[tuple[Row, str]]], data: Data, found: _Problems) -> None:
    """A user's own id may stand once only, over all splits."""
    seen: set[str] = set()
    for row, where in (entry for split in SPLITS for entry in raw[split]):
        own = own_id(row, data)
        if own is None:
            continue
        if own in seen:
            found.add("ids that stand twice; every row needs its own, or none has one", f"{own} at {where}")
        seen.add(own)


def _apart(
    examples: dict[str, list[Example]], drop: bool, found: _Problems, notes: list[str]
) -> dict[str, list[Example]]:
    """No prompt may be both learned and judged, or both chosen by and judged: such rows are problems, or left out.

    Compared after Unicode normalisation, case folding and dropping punctuation.
    """
    later: dict[str, Example] = {}
    kept: dict[str, list[Example]] = {}
    for split in reversed(SPLITS):  # a row that goes, goes from the earlier split: test rows all stay
        keys = [normalised(prompt_text(example.prompt)) for example in examples[split]]
        twins = [(example, later.get(key)) for key, example in zip(keys, examples[split], strict=True)]
        kept[split] = [example for example, twin in twins if twin is None or not drop]
        for example, twin in twins if not drop else []:
            if twin is not None:
                kind = f"{_SPLIT_WORDS[split]} rows that are {twin.split} rows too; take them out, or write data.overlap=drop"
                found.add(kind, f"{example.id} = {twin.id}")
        if gone := len(examples[split]) - len(kept[split]):
            notes.append(f"{gone:,} {_SPLIT_WORDS[split]} rows have a prompt of a later split and are left out")
        later |= dict(zip(keys, examples[split], strict=True))
    return {split: kept[split] for split in SPLITS}


def _on_one_line(examples: dict[str, list[Example]], notes: list[str]) -> dict[str, list[Example]]:
    """Free answers as they are learned and compared: on one line (see tasks/qa.py)."""
    count = sum("\n" in example.answer for split in SPLITS for example in examples[split])
    if count:
        notes.append(f"line breaks in {count:,} answers become spaces: a free answer is one line")

    def flat(example: Example) -> Example:
        return replace(example, answer=one_line(example.answer), answers=[one_line(text) for text in example.answers])

    return {split: [flat(example) for example in rows] for split, rows in examples.items()}


def _distinct(examples: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Rows without an id of their own may be equal: the second gets the suffix -2, and so on."""
    seen: dict[str, int] = {}

    def named(example: Example) -> Example:
        count = seen[example.id] = seen.get(example.id, 0) + 1
        return example if count == 1 else replace(example, id=f"{example.id}-{count}")

    return {split: [named(example) for example in rows] for split, rows in examples.items()}


def prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """A prompt as one text: of chat messages their contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def normalised(text: str) -> str:
    """What two texts are compared by to be called the same: letters, digits, marks and symbols, case and width
    aside."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Vowel signs (Hindi, Thai) and symbols (+, emoji) tell texts apart: only punctuation, spaces and controls go.
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "PZC") or folded
