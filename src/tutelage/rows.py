"""All rows of a run: read, rendered, split and checked, with every problem reported at once."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, problems
from tutelage.recipe_schema import Data, Recipe, Task
from tutelage.records import SPLITS, Example
from tutelage.shapes import example_from_row, map_columns
from tutelage.sources import Row, find_files, parse_object, read_hub, read_rows
from tutelage.tasks.ner import entities_from_answer

SHOWN = 3
"""Places shown of each kind of problem."""


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
    raw, notes = _read(recipe), []
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
    _check_labels(examples, recipe.task.type, labels, choice, found)
    _check_ids(raw, recipe.data, found)
    _check_overlap(examples, found)
    for split in ("train", "test"):
        if not examples[split] and not found:
            found.add(f"no {split} rows", f"name some: data.{split}=FILE, or a {split} file in data.dataset")
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
    """Contents of the data files and the label list beside them (or name and revision of a hub data set), for staleness."""
    files, data = _files(recipe.data), recipe.data
    hub = {"hub": f"{data.dataset}/{data.dataset_config}@{data.revision}"} if _on_hub(data) else {}
    paths = [Path(name) for names in files.values() for name in names]
    paths += [Path(data.dataset) / "task.json"] if data.dataset else []
    return hub | {str(path): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths if path.is_file()}


class _Problems:
    """Problems by kind, each with its first places."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

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
        raise DataError(problems("the rows cannot be used:", lines))


# --- reading ------------------------------------------------------------------------------------------------------------------


def _on_hub(data: Data) -> bool:
    """Whether `data.dataset` is a hub id. Raises DataError if it can only be a folder, and there is none."""
    if data.dataset is None or (folder := Path(data.dataset)).is_dir():
        return False
    if data.dataset.startswith((".", "/", "~")) or data.dataset.count("/") != 1 or folder.parent.is_dir():
        raise DataError(f"no folder {data.dataset!r}: data.dataset is a folder with train, validation and test files, or a hub id")
    return True


def _files(data: Data) -> dict[str, list[str]]:
    """Local files by split: those of the folder, and those given, which win."""
    files: dict[str, list[str]] = {}
    if data.dataset is not None and not _on_hub(data):
        folder = Path(data.dataset)
        files = find_files(folder)
        if not files:
            raise DataError(f"no train, validation or test file in {folder}: name the files with data.train, data.test")
    return files | {split: given for split in SPLITS if (given := getattr(data, split))}


def _read(recipe: Recipe) -> dict[str, list[tuple[Row, str]]]:
    data, files = recipe.data, _files(recipe.data)
    missing = [name for names in files.values() for name in names if not Path(name).is_file()]
    read_rows(missing)  # names all that are missing at once
    raw = {split: read_rows(files[split]) if split in files else [] for split in SPLITS}
    if not _on_hub(data) or len(files) == len(SPLITS):
        return raw
    from datasets import get_dataset_split_names

    names = {split: getattr(data, f"{split}_split") for split in SPLITS if split not in files}
    try:
        there = get_dataset_split_names(data.dataset, data.dataset_config, revision=data.revision)
    except Exception:  # reading the training split will fail with the message for users
        there = [data.train_split]
    return raw | {
        split: read_hub(data.dataset, data.dataset_config, name, data.revision) if name in there or split == "train" else []
        for split, name in names.items()
    }


def _drafts(rows: list[tuple[Row, str]], recipe: Recipe, labels: list[str] | None) -> dict[str, Example]:
    """Training rows rendered before the label set is known, by place. Rows that cannot be used are reported later."""
    drafts = {}
    for row, where in rows:
        with suppress(DataError):
            drafts[where] = example_from_row(row, where=where, split="train", task=recipe.task, data=recipe.data, labels=labels)
    return drafts


def _hold_out(raw: dict[str, list[tuple[Row, str]]], drafts: dict[str, Example], recipe: Recipe) -> str:
    """Move a seeded share of the training rows to validation; rows of equal prompts stay together. Returns the note."""
    groups: dict[str, list[str]] = {}
    for _, where in raw["train"]:
        key = _normalised(_text(drafts[where].prompt)) if where in drafts else where
        groups.setdefault(key, []).append(where)
    keys, total = list(groups), len(raw["train"])
    random.Random(f"{recipe.seed}/hold out").shuffle(keys)
    wanted, places = max(1, round(total * recipe.data.validation_share)), set()
    for key in keys:
        if len(places) >= wanted:
            break
        places.update(groups[key])
    raw["validation"] = [entry for entry in raw["train"] if entry[1] in places]
    raw["train"] = [entry for entry in raw["train"] if entry[1] not in places]
    count = len(raw["validation"])
    share = f"{count / max(total, 1):.0%}, seed {recipe.seed}"
    return f"no validation rows given: {count:,} of {total:,} training rows ({share}) are held out"


def _sample(rows: list[Any], most: int | None, seed: str) -> list[Any]:
    if most is None or most >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), most))]


# --- labels -------------------------------------------------------------------------------------------------------------------


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


def _check_labels(examples: dict[str, list[Example]], task: str, labels: list[str] | None, choice: bool, found: _Problems) -> None:
    known = set(labels or [])
    for example in (e for split in SPLITS for e in examples[split]):
        if task == "ner":
            pairs = entities_from_answer(example.answer)
            if pairs is None:
                found.add("answers that are no entities (`TYPE: text` lines, or `none`)", f"{example.id}: {example.answer!r}")
            strange = {kind for kind, _ in pairs or []} - known
        elif task == "classification" or choice:
            strange = {example.answer} - set(example.labels or known)
        else:
            continue
        for label in sorted(strange):
            kind = "labels outside the set; add them to task.labels, or leave the rows out"
            found.add(kind, f"{label!r} in {example.split} row {example.id}")


# --- rows ---------------------------------------------------------------------------------------------------------------------


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
        own = map_columns(row, data).get("id")
        if own in (None, ""):
            continue
        if str(own) in seen:
            found.add("ids that stand twice; every row needs its own, or none has one", f"{own} at {where}")
        seen.add(str(own))


def _check_overlap(examples: dict[str, list[Example]], found: _Problems) -> None:
    """No prompt may be both learned and judged, after Unicode normalisation, case folding and dropping punctuation."""
    train = {_normalised(_text(e.prompt)): e.id for e in examples["train"]}
    for example in (e for split in ("validation", "test") for e in examples[split]):
        twin = train.get(_normalised(_text(example.prompt)))
        if twin is not None:
            kind = f"training rows that are {example.split} rows too; leave them out of one"
            found.add(kind, f"{twin} = {example.id}")


def _distinct(examples: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Rows without an id of their own may be equal: the second gets the suffix -2, and so on."""
    seen: dict[str, int] = {}

    def named(example: Example) -> Example:
        count = seen[example.id] = seen.get(example.id, 0) + 1
        return example if count == 1 else replace(example, id=f"{example.id}-{count}")

    return {split: [named(example) for example in rows] for split, rows in examples.items()}


def _text(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Vowel signs (Hindi, Thai) and symbols (+, emoji) tell texts apart: only punctuation, spaces and controls go.
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "PZC")
