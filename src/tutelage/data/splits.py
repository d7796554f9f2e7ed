"""Training, validation and test rows: their files, what is held out or sampled, that no prompt is in two splits.

The examples of each split are rendered row by row onto the disk.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from tutelage.data.contents.sameness import content_key, prompt_key
from tutelage.data.readers import (
    HUB_ID,
    SPLIT_NAMES,
    PlacedRow,
    Row,
    check_files,
    find_files,
    read_hub,
    spool_rows,
)
from tutelage.data.row_formats import example_from_row
from tutelage.errors import DataError, Kind, Problem
from tutelage.errors.wording import SPLIT_WORDS
from tutelage.recipe.schema import Data, Recipe
from tutelage.records import SPLITS, Example
from tutelage.utils.digests import DigestSet, as_array, digest, digests
from tutelage.utils.spool import Picked, Spool

UNLABELLED = "unlabelled"
"""What rows without gold have as their split."""


# --- which files ---


def read_splits(data: Data, folder: Path | None = None) -> dict[str, Sequence[PlacedRow]]:
    """The raw rows of every split, on disk; none for a split that has no file. Raises DataError.

    folder: for temporary files, see `Spool`.
    """
    files = split_files(data)
    check_files([name for names in files.values() for name in names])
    raw: dict[str, Sequence[PlacedRow]] = {
        split: spool_rows(files[split], data.encoding, folder) if split in files else [] for split in SPLITS
    }
    if not on_hub(data) or len(files) == len(SPLITS):
        return raw
    from datasets import get_dataset_split_names

    try:
        available = get_dataset_split_names(data.dataset, data.dataset_config, revision=data.revision)
    except Exception:  # reading the training split will fail with a message for users
        available = [data.train_split]
    for split, names in _split_names(data).items():
        name = next((name for name in names if name in available), names[0])
        # A name given by the recipe is always read: it may be a slice (`train[:1000]`), or a mistake to report.
        if split not in files and (name in available or split == "train" or _given_name(data, split)):
            raw[split] = read_hub(data.dataset, data.dataset_config, name, data.revision)
    return raw


def split_files(data: Data) -> dict[str, list[str]]:
    """Local files by split: those of the folder, replaced by those that the recipe names."""
    files: dict[str, list[str]] = {}
    if data.dataset is not None and not on_hub(data):
        folder = Path(data.dataset)
        names = _split_names(data)
        files = find_files(folder, names)
        if not files:
            raise DataError(Problem(Kind.SPLIT_FILES_MISSING, key="data.dataset", values={"folder": str(folder)}))
        for split in SPLITS:
            if _given_name(data, split) and split not in files and not getattr(data, split):
                values = {"name": names[split][0], "folder": str(folder)}
                raise DataError(Problem(Kind.SPLIT_FILE_MISSING, split, key=f"data.{split}_split", values=values))
    return files | {split: given for split in SPLITS if (given := getattr(data, split))}


def unlabelled_files(data: Data) -> list[str]:
    """Local files of rows without gold. Raises DataError for a split that the folder lacks."""
    if data.unlabelled or data.unlabelled_split is None or on_hub(data):
        return data.unlabelled or []
    folder, name = Path(data.dataset or "."), data.unlabelled_split
    files = find_files(folder, {UNLABELLED: (name,)})
    if not files:
        values = {"name": name, "folder": str(folder)}
        raise DataError(Problem(Kind.SPLIT_FILE_MISSING, UNLABELLED, key="data.unlabelled_split", values=values))
    return files[UNLABELLED]


def data_fingerprint(data: Data) -> dict[str, str]:
    """Content hashes of the data files and of the label list next to them (or name and revision of a Hub data set)."""
    files = split_files(data)
    hub = {"hub": f"{data.dataset}/{data.dataset_config}@{data.revision}"} if on_hub(data) else {}
    paths = [Path(name) for names in files.values() for name in names]
    paths += [Path(name) for name in unlabelled_files(data)]
    paths += [Path(data.dataset) / "task.json"] if data.dataset else []
    return hub | {str(path): _content_hash(path) for path in paths if path.is_file()}


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def on_hub(data: Data) -> bool:
    """Whether `data.dataset` is a Hub id. Raises DataError if it can only be a folder, and there is none."""
    if data.dataset is None or (folder := Path(data.dataset)).is_dir():
        return False
    values = {"name": data.dataset}
    if folder.is_file():
        change = f"data.train={data.dataset}"
        raise DataError(Problem(Kind.DATASET_IS_FILE, key="data.dataset", change=change, values=values))
    if not HUB_ID.fullmatch(data.dataset) or ("/" in data.dataset and folder.parent.is_dir()):
        raise DataError(Problem(Kind.DATASET_MISSING, key="data.dataset", values=values))
    return True


def _given_name(data: Data, split: str) -> str | None:
    """What the recipe calls a split of `data.dataset`; None if it has the default name."""
    name = getattr(data, f"{split}_split")
    return None if name == split else name


def _split_names(data: Data) -> dict[str, tuple[str, ...]]:
    """Names of each split in `data.dataset`: the recipe's, else the common ones that no other split has in the recipe.

    So `test_split: validation` makes them the test rows, and validation rows are held out of training.
    """
    given = {split: _given_name(data, split) for split in SPLITS}
    free = {split: tuple(name for name in names if name not in given.values()) for split, names in SPLIT_NAMES.items()}
    return {split: (name,) if name else free[split] or SPLIT_NAMES[split] for split, name in given.items()}


# --- held out, sampled ---


def held_out(keys: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """[rows] whether a row is held out: a seeded fraction, at least one row; rows of equal keys stay together.

    keys: [rows] digests.
    """
    _, first, group_of_row, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    shuffled = array("q", np.argsort(first).tobytes())  # groups as they first occur
    random.Random(f"{seed}/hold out").shuffle(shuffled)
    order = np.asarray(shuffled, dtype=np.int64)
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = np.zeros(len(sizes), dtype=bool)
    taken[order[before < max(1, round(len(keys) * fraction))]] = True
    return taken[group_of_row]


def passages_of(rows: Sequence[Row]) -> list[str]:
    """The passage of each question; none where questions have none, or more than a tenth of them share one."""
    passages = [passage_of(row) for row in rows]
    return passages if tell_apart(digests(passages)) else []


def passage_of(row: Row) -> str:
    """The passage of a question; empty where it has none."""
    return str(row.get("context") or "")


def tell_apart(passages: np.ndarray) -> bool:
    """Whether no more than a tenth of the questions share a passage. passages: [questions] digests."""
    return len(passages) > 0 and int(np.unique(passages, return_counts=True)[1].max()) <= len(passages) / 10


def sample(count: int, most: int | None, seed: str) -> tuple[Sequence[int], array[int]]:
    """(at most `most` of `count` indices, ascending; the others, in the order in which they replace any of those).

    Without a sample there are no others.
    """
    if most is None or most >= count:
        return range(count), array("q")
    drawn = array("q", sorted(random.Random(seed).sample(range(count), most)))
    left = np.ones(count, dtype=bool)
    left[drawn] = False
    others = array("q", np.flatnonzero(left).tobytes())
    random.Random(f"{seed}/others").shuffle(others)
    return drawn, others


# --- no prompt in two splits ---


def overlap_problems(examples: Mapping[str, Sequence[Example]], keys: Mapping[str, np.ndarray]) -> list[Problem]:
    """A problem for each row whose prompt or content is in a later split. keys: by split, as `Chosen.keys`."""
    return [
        Problem(
            Kind.ROW_IN_TWO_SPLITS,
            split,
            row=example.id,
            key="data.overlap",
            change="data.overlap=drop",
            values={"other_split": other.split, "other_row": other.id},
        )
        for split, example, other in _overlap(examples, keys)
    ]


def _overlap(
    examples: Mapping[str, Sequence[Example]], keys: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Example, Example]]:
    """(split, row, row of a later split that asks the same); validation rows first."""
    train, validation, test = (keys[split] for split in SPLITS)
    repeating = _held(train, validation, test)
    suspects = {
        "train": repeating,
        "validation": _held(validation, test, train[repeating]),
        "test": _held(test, validation, train[repeating]),
    }
    later: dict[str, Example] = {}
    for split in reversed(SPLITS):
        rows = list(Picked(examples[split], np.flatnonzero(suspects[split])))
        named = [((prompt_key(example), content_key(example)), example) for example in rows]
        for own, example in named:
            if other := next((later[key] for key in own if key in later), None):
                yield split, example, other
        later |= {key: example for own, example in named for key in own}


def _held(keys: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """[rows] whether one of the keys of a row is one of the others. keys, others: as `Chosen.keys`."""
    return DigestSet(*map(np.ravel, others)).holds(keys.ravel()).reshape(keys.shape).any(axis=1)


# --- rendered and sampled ---


@dataclass(frozen=True)
class Rendering:
    """How raw rows become examples."""

    recipe: Recipe
    labels: list[str] | None
    """The resolved label set, for prompts that list it."""
    fits: Callable[[Example], bool] | None
    """Whether a row is short enough for a sample; None: every row is."""
    folder: Path | None
    """For temporary files, see `Spool`."""
    advance: Callable[[int], None]
    """Gets the number of rows that are newly done."""


@dataclass(frozen=True)
class Chosen:
    """The examples of one split."""

    examples: Sequence[Example]
    ids: np.ndarray
    """[examples] digests."""
    keys: np.ndarray
    """[examples, 2] digests of `prompt_key` and `content_key`."""
    left_out: np.ndarray
    """Digests of the ids of rows that were left out."""


def example_spool(folder: Path | None = None) -> Spool[Example]:
    """An empty spool of examples. folder: for temporary files."""
    return Spool(folder, pack=_values, unpack=lambda values: Example(*values))


def _values(example: Example) -> tuple[object, ...]:
    return tuple(getattr(example, name) for name in Example.__slots__)


def choose(
    raw: dict[str, Sequence[PlacedRow]], rendering: Rendering, problems: list[Problem], left_out: list[str]
) -> dict[str, Chosen]:
    """The examples of every split, sampled; `raw` is cut to the rows that were looked at.

    With `data.overlap: drop`, rows that ask what a row of a later split asks are left out; all test rows stay. In a
    sample, these and the rows that do not fit are replaced by others. problems, left_out: get what is wrong with rows,
    and a line about those that are left out.
    """
    data, made = rendering.recipe.data, {}
    for split in reversed(SPLITS):
        later = [other.chosen.keys.ravel() for other in made.values()] if data.overlap == "drop" else []
        made[split] = _Split(raw[split], split, rendering, DigestSet(*later))
        raw[split] = made[split].looked_at
        counts = {"have a prompt of a later split": made[split].repeated}
        counts[f"exceed {data.max_length:,} tokens"] = made[split].long
        left_out += [f"{n:,} {SPLIT_WORDS[split]} rows {why} and are left out" for why, n in counts.items() if n]
    problems += chain.from_iterable(made[split].problems for split in SPLITS)
    return {split: made[split].chosen for split in SPLITS}


@dataclass
class _Split:
    """The rows of one split, looked at until there are as many examples as the sample should have."""

    rows: Sequence[PlacedRow]
    split: str
    rendering: Rendering
    later: DigestSet
    """Digests of the prompts and contents of later splits, whose rows are left out."""
    repeated: int = 0
    """Rows that were left out because their prompt or content is in a later split."""
    long: int = 0
    """Rows that were left out of a sample because they do not fit."""
    left_out: array[int] = field(default_factory=lambda: array("Q"))
    """Digests of the ids of both."""
    problems: list[Problem] = field(default_factory=list)
    chosen: Chosen = field(init=False)
    looked_at: Sequence[PlacedRow] = field(init=False)

    def __post_init__(self) -> None:
        """Look at the rows."""
        recipe = self.rendering.recipe
        most = getattr(recipe.data, f"max_{self.split}_rows")
        drawn, others = sample(len(self.rows), most, f"{recipe.seed}/{self.split}")
        examples, looked = example_spool(self.rendering.folder), array("q")
        places, ids, keys = array("q"), array("Q"), array("Q")
        for index, placed in self._in_turn(drawn, others):
            looked.append(index)
            for example, own in self._usable(placed, sampled=bool(others)):
                examples.append(example)
                places.append(index)
                ids.append(digest(example.id))
                keys.extend(own)
            self.rendering.advance(1)
            if others and len(looked) - self.repeated - self.long == len(drawn):
                break
        left_out, self.looked_at, pairs = as_array(self.left_out), self.rows, as_array(keys).reshape(-1, 2)
        self.chosen = Chosen(examples, as_array(ids), pairs, left_out)
        if others:
            order = np.argsort(np.asarray(places, dtype=np.int64))
            self.chosen = Chosen(Picked(examples, order), as_array(ids)[order], pairs[order], left_out)
            self.looked_at = Picked(self.rows, np.sort(np.asarray(looked, dtype=np.int64)))

    def _in_turn(self, drawn: Sequence[int], others: Sequence[int]) -> Iterator[tuple[int, PlacedRow]]:
        if not others:
            return enumerate(self.rows)
        return ((index, self.rows[index]) for index in chain(drawn, others))

    def _usable(self, placed: PlacedRow, *, sampled: bool) -> Iterator[tuple[Example, tuple[int, int]]]:
        """The example of a row and its keys, unless the row is left out or cannot be used."""
        (row, place), (recipe, labels) = placed, (self.rendering.recipe, self.rendering.labels)
        try:
            example = example_from_row(
                row, place=place, split=self.split, task=recipe.task, data=recipe.data, labels=labels
            )
        except DataError as error:
            self.problems += error.problems
            return
        own, fits = (digest(prompt_key(example)), digest(content_key(example))), self.rendering.fits
        if own[0] in self.later or own[1] in self.later:
            self.repeated += 1
        elif sampled and fits and not fits(example):
            self.long += 1
        else:
            yield example, own
            return
        self.left_out.append(digest(example.id))
