"""Rows without gold answers (`data.unlabelled`): read, rendered as prompts, and kept apart from validation and test."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.contents.languages import main_language
from tutelage.data.contents.sameness import asked_key, content_key, normalised, prompt_key, prompt_text
from tutelage.data.dataset import Rows
from tutelage.data.encode import Room
from tutelage.data.near_duplicates import distinct_text, near_pairs, shared_parts
from tutelage.data.readers import PlacedRow, check_files, read_hub, spool_rows
from tutelage.data.row_formats import content_id, example_from_row
from tutelage.data.splits import (
    UNLABELLED,
    example_spool,
    on_hub,
    sample,
    unlabelled_files,
)
from tutelage.errors import DataError, Kind, Place, Problem, RowsError
from tutelage.recipe.schema import Data, Recipe, Task
from tutelage.records import Example
from tutelage.utils.digests import DigestSet, as_array, digest, digests
from tutelage.utils.spool import Joined, Mapped, Picked

COMPARED = (prompt_key, content_key, asked_key)
"""What rows are compared by. The last one, to those of validation and test alone: a row too many that is left out costs
little there. Among training rows another system message may be another task."""
LOOKED_AT = 500
"""Rows whose language and length are compared with those of the training rows."""
MUCH_LONGER = 2.0
"""Ratio of the median lengths of prompts from which on the user is told."""


@dataclass(frozen=True)
class RoomTest:
    """Whether a row fits with an answer, as each model reads it; without rooms every row does."""

    rooms: Sequence[Room] = ()
    longest: Sequence[int] = ()
    """Tokens of the longest answer in each room."""

    def __call__(self, row: Example) -> bool:
        """Whether a row fits. With `too_long: truncate_prompt` its prompt is cut before."""
        return all(
            0 < len(encoder.prompt(row, longest)) <= tokens - longest
            for (encoder, tokens, _), longest in zip(self.rooms, self.longest, strict=True)
        )

    @property
    def limit(self) -> str:
        """What rows that do not fit exceed, for the user."""
        return f"{', or '.join(dict.fromkeys(map(str, self.rooms)))} with an answer"


EVERY_ROW = RoomTest()


@dataclass
class UnlabelledRows:
    """The rows that the teacher will answer, and what became of the others."""

    examples: Sequence[Example] = ()
    """Without answers, on disk; their ids are those of no other row of the run."""
    read: int = 0
    """Rows in the files."""
    repeated: int = 0
    """Left out: their prompt, or what it asks, occurs before."""
    labelled: int = 0
    """Left out: they ask what a training row asks."""
    overlapping: int = 0
    """Rows that ask what a validation or test row asks: left out, or kept as `data.unlabelled_overlap` says."""
    near: int = 0
    """Rows whose text nearly repeats that of a validation or test row: left out or kept likewise."""
    shared: int = 0
    """Rows among `examples` that are, or nearly repeat, validation or test rows: 0 unless such rows are kept."""
    too_long: int = 0
    """Left out: prompt and the longest answer have more tokens than `data.max_length`, or than a model has positions
    for."""
    limit: str = ""
    """What these exceed, for the user."""

    @property
    def counts(self) -> dict[str, int]:
        """All numbers, and `rows`, how many are left."""
        numbers = ("read", "repeated", "labelled", "overlapping", "near", "shared", "too_long")
        return {"rows": len(self.examples), **{name: getattr(self, name) for name in numbers}}


def read_unlabelled(data: Data, folder: Path | None = None) -> Sequence[PlacedRow]:
    """The raw rows. Raises DataError for files that cannot be read. folder: for temporary files, see `Spool`."""
    if not data.unlabelled and data.unlabelled_split and on_hub(data):
        return read_hub(data.dataset, data.dataset_config, data.unlabelled_split, data.revision)
    files = unlabelled_files(data)
    check_files(files)
    return spool_rows(files, data.encoding, folder, need_answers=False)


def load_unlabelled(
    recipe: Recipe,
    labels: list[str] | None,
    examples: Mapping[str, Sequence[Example]],
    fits: RoomTest = EVERY_ROW,
    *,
    folder: Path | None = None,
) -> UnlabelledRows:
    """Unlabelled rows of a recipe whose conventions are settled.

    labels: the resolved label set. examples: the rows with gold, by split. fits: whether a row is short enough; others
    are never drawn. folder: for temporary files, see `Spool`. Raises RowsError for rows that cannot be used, or if none
    is left.
    """
    raw = read_unlabelled(recipe.data, folder)
    return pick_unlabelled(raw, recipe.task, recipe.data, recipe.seed, labels, examples, fits, folder=folder)


def pick_unlabelled(
    raw: Sequence[PlacedRow],
    task: Task,
    data: Data,
    seed: int,
    labels: list[str] | None,
    examples: Mapping[str, Sequence[Example]],
    fits: RoomTest,
    *,
    folder: Path | None = None,
) -> UnlabelledRows:
    """The rows that the teacher will answer, of those that were read; as `load_unlabelled`."""
    found, keep = UnlabelledRows(), data.unlabelled_overlap == "keep"
    found.read, found.limit = len(raw), fits.limit
    rendered, keys = example_spool(folder), array("Q")
    for example in _rendered(raw, task, data, labels):
        rendered.append(example)
        keys.extend(digest(key) for key in _keys(example))
    compared = as_array(keys).reshape(-1, len(COMPARED))
    first = _first(compared[:, 0]) & _first(compared[:, 1])
    taught = first & _among(compared[:, :2], examples["train"])
    scored = first & _among(compared, Joined(examples["validation"], examples["test"]))
    found.repeated, found.labelled, found.overlapping = int((~first).sum()), int(taught.sum()), int(scored.sum())
    usable = np.flatnonzero(first & ~taught & (keep | ~scored))
    fitting = np.array([fits(rendered[index]) for index in usable.tolist()], dtype=bool)
    found.too_long = int((~fitting).sum())
    usable = usable[fitting]
    apart = usable[~scored[usable]]
    near = apart[_near(Joined(examples["validation"], examples["test"]), Picked(rendered, apart))]
    found.near = len(near)
    usable = usable if keep else np.setdiff1d(usable, near, assume_unique=True)
    picked, _ = sample(len(usable), data.max_unlabelled_rows, f"{seed}/{UNLABELLED}")
    drawn = usable[np.asarray(picked, dtype=np.int64)]
    found.shared = int((scored[drawn] | np.isin(drawn, near)).sum())
    found.examples = _named(Picked(rendered, drawn), examples)
    if not found.examples:
        change = "data.unlabelled=FILE"
        values = {"read": found.read, "left_out": notes_of(found, data)}
        raise RowsError(Problem(Kind.SPLIT_EMPTIED, UNLABELLED, change=change, values=values))
    return found


def _keys(example: Example) -> Iterator[str]:
    """What a row is compared by, see `COMPARED`."""
    return (key(example) for key in COMPARED)


def _first(keys: np.ndarray) -> np.ndarray:
    """[rows] whether no row before has an equal key."""
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _among(keys: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
    """[rows] whether one of the keys of a row is one of an example. keys: [rows, k] digests of the first `COMPARED`."""
    wanted = DigestSet(digests(key for example in examples for key in islice(_keys(example), keys.shape[1])))
    return wanted.holds(keys.ravel()).reshape(keys.shape).any(axis=1)


def simple_unlabelled(
    dataset: Iterable[Mapping[str, Any]],
    examples: Mapping[str, Sequence[Example]],
    fits: RoomTest,
    *,
    chat_template: bool = False,
) -> Sequence[Example]:
    """Prompts without gold, for `SCDTrainer`: those that are no training or evaluation row, and repeat none.

    dataset: rows with `prompt`, or with `messages`; answers in them are not read. examples, fits: as in
    `load_unlabelled`. Raises RowsError as that does.
    """
    raw = [(dict(row), Place(UNLABELLED, number, "row")) for number, row in enumerate(dataset, start=1)]
    data = Data(chat_template=chat_template)
    return pick_unlabelled(raw, Task(type="qa"), data, 0, None, {"test": [], **examples}, fits).examples


def load_fitting(recipe: Recipe, rows: Rows, fits: RoomTest, *, folder: Path | None = None) -> UnlabelledRows | None:
    """Rows without gold that fit with an answer; None if the recipe names none.

    Arguments and errors as for `load_unlabelled`.
    """
    if not recipe.data.has_unlabelled:
        return None
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=rows.decided)})
    labels = recipe.task.labels if recipe.task.type == "qa" else rows.labels
    return load_unlabelled(recipe, labels, rows.examples, fits, folder=folder)


def notes_of(found: UnlabelledRows, data: Data) -> list[str]:
    """What was left out and kept, for the user, a line each."""
    kept = "kept (data.unlabelled_overlap)" if data.unlabelled_overlap == "keep" else "left out"
    lines = {
        f"{found.repeated:,} unlabelled rows repeat the prompt of another one and are left out": found.repeated,
        f"{found.labelled:,} unlabelled rows have the prompt of a training row and are left out": found.labelled,
        f"{found.overlapping:,} unlabelled rows have the prompt of a validation or test row and are {kept}": (
            found.overlapping
        ),
        f"{found.near:,} unlabelled rows nearly repeat a validation or test row and are {kept}": found.near,
        f"{found.too_long:,} unlabelled rows exceed {found.limit} and are left out": found.too_long,
    }
    return [line for line, count in lines.items() if count]


def differences(training: Sequence[Example], unlabelled: Sequence[Example]) -> list[str]:
    """How the rows without gold differ from those with gold, for the user, a line each: another domain teaches less."""
    texts = [[prompt_text(example.prompt) for example in rows[:LOOKED_AT]] for rows in (training, unlabelled)]
    languages = [main_language(of_kind) for of_kind in texts]
    lengths = [float(np.median([len(text) for text in of_kind])) for of_kind in texts]
    lines = []
    if all(languages) and languages[0] != languages[1]:
        lines.append(f"unlabelled rows are mostly in {languages[1]}, training rows in {languages[0]}")
    if not 1 / MUCH_LONGER <= lengths[1] / max(1.0, lengths[0]) <= MUCH_LONGER:
        lines.append(
            f"unlabelled prompts have a median of {lengths[1]:,.0f} characters, training prompts {lengths[0]:,.0f}"
        )
    return lines


def _near(scored: Sequence[Example], drafts: Sequence[Example]) -> np.ndarray:
    """[n] indices of the drafts whose text nearly repeats that of a scored row."""
    cuts = shared_parts(Joined(scored, drafts))
    folded = [Mapped(rows, lambda _, example: normalised(distinct_text(example, cuts))) for rows in (scored, drafts)]
    return np.array([late for late, _, _ in near_pairs(*folded)], dtype=np.int64)


def _rendered(raw: Iterable[PlacedRow], task: Task, data: Data, labels: list[str] | None) -> Iterable[Example]:
    """Examples without answers. Raises RowsError with all rows that cannot be used."""
    problems: list[Problem] = []
    for row, place in raw:
        try:
            example = example_from_row(
                row,
                place=place,
                split=UNLABELLED,
                task=task,
                data=data,
                labels=labels,
                need_answer=False,
                read_answer=False,
            )
        except DataError as error:
            problems += error.problems
            continue
        own_id = example.id != content_id(example.prompt, example.answer)
        row_id = example.id if own_id else content_id(example.prompt, "")
        yield replace(example, id=row_id, answer="", answers=[])
    if problems:
        raise RowsError(*problems)


def _named(drawn: Sequence[Example], examples: Mapping[str, Sequence[Example]]) -> Sequence[Example]:
    """The examples with ids that no row has yet: one that is taken gets the suffix -u2, -u3, and so on."""
    gold = DigestSet(digests(example.id for rows in examples.values() for example in rows))
    own = digests(example.id for example in drawn)
    distinct, first = np.unique(own, return_index=True)
    suspected = gold.holds(own)
    suspected |= ~np.isin(np.arange(len(own)), first)
    waiting = np.flatnonzero(suspected).tolist()
    names: dict[int, str] = {}
    made: set[str] = set()

    def first_with(number: int) -> int:
        """Index of the first row whose own id has a digest; the number of rows if none has."""
        place = int(np.searchsorted(distinct, np.uint64(number)))
        return int(first[place]) if place < len(distinct) and int(distinct[place]) == number else len(own)

    def taken(name: str, index: int) -> bool:
        """Whether a row with gold, or an unlabelled row before this one, has a name."""
        return name in made or (number := digest(name)) in gold or first_with(number) < index

    while waiting:
        index = heappop(waiting)
        name, number = (own_id := drawn[index].id), 1
        while taken(name, index):
            number += 1
            name = f"{own_id}-u{number}"
        if number > 1:
            names[index] = name
            made.add(name)
            later = first_with(digest(name))  # a row of this id is no longer the first to have it
            if index < later < len(own) and not suspected[later]:
                suspected[later] = True
                heappush(waiting, later)
    if not names:
        return drawn
    return Mapped(drawn, lambda index, e: replace(e, id=names[index]) if index in names else e)
