"""Rows without gold answers (`data.unlabelled`): read, rendered as prompts, and kept apart from validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tutelage.data.readers import PlacedRow, check_files, read_hub, read_rows
from tutelage.data.row_formats import content_id, example_from_row
from tutelage.data.splits import UNLABELLED, on_hub, prompt_key, sample, unlabelled_files
from tutelage.errors import DataError, Kind, Problem, RowsError
from tutelage.recipe.schema import Data, Recipe
from tutelage.records import Example


@dataclass
class UnlabelledRows:
    """The rows that the teacher will answer, and what became of the others."""

    examples: list[Example] = field(default_factory=list)
    """Without answers; their ids are those of no other row of the run."""
    read: int = 0
    """Rows in the files."""
    repeated: int = 0
    """Left out: their prompt occurs before."""
    labelled: int = 0
    """Left out: their prompt is that of a training row."""
    overlapping: int = 0
    """Rows whose prompt is also a validation or test row: left out, or kept as `data.unlabelled_overlap` says."""
    shared: int = 0
    """Rows among `examples` whose prompt is also a validation or test row: 0 unless such rows are kept."""
    too_long: int = 0
    """Left out: prompt and the longest answer have more than `data.max_length` tokens."""

    @property
    def counts(self) -> dict[str, int]:
        """All numbers, and `rows`, how many are left."""
        numbers = ("read", "repeated", "labelled", "overlapping", "shared", "too_long")
        return {"rows": len(self.examples), **{name: getattr(self, name) for name in numbers}}


def read_unlabelled(data: Data) -> list[PlacedRow]:
    """The raw rows. Raises DataError for files that cannot be read."""
    if not data.unlabelled and data.unlabelled_split and on_hub(data):
        return read_hub(data.dataset, data.dataset_config, data.unlabelled_split, data.revision)
    files = unlabelled_files(data)
    check_files(files)
    return read_rows(files, data.encoding)


def load_unlabelled(
    recipe: Recipe,
    labels: list[str] | None,
    examples: Mapping[str, Sequence[Example]],
    fits: Callable[[Example], bool] = lambda example: True,
) -> UnlabelledRows:
    """Unlabelled rows of a recipe whose conventions are settled.

    labels: the resolved label set. examples: the rows with gold, by split. fits: whether a row is short enough; others
    are never drawn. Raises RowsError for rows that cannot be used, or if none is left.
    """
    found, keep = UnlabelledRows(), recipe.data.unlabelled_overlap == "keep"
    raw = read_unlabelled(recipe.data)
    found.read = len(raw)
    held_out = {prompt_key(example) for split in ("validation", "test") for example in examples[split]}
    labelled = {prompt_key(example) for example in examples["train"]}
    drafts, seen = [], set()
    for example in _rendered(raw, recipe, labels):
        key = prompt_key(example)
        found.repeated += key in seen
        found.labelled += key not in seen and key in labelled
        found.overlapping += key not in seen and key in held_out
        if not (key in seen or key in labelled or (key in held_out and not keep)):
            fitting = fits(example)
            found.too_long += not fitting
            drafts += [example] * fitting
        seen.add(key)
    drawn, _ = sample(drafts, recipe.data.max_unlabelled_rows, f"{recipe.seed}/{UNLABELLED}")
    found.shared = sum(prompt_key(example) in held_out for example in drawn)
    taken = {example.id for rows in examples.values() for example in rows}
    found.examples = list(_named(drawn, taken))
    if not found.examples:
        change = "data.unlabelled=FILE"
        values = {"read": found.read, "left_out": notes_of(found, recipe.data)}
        raise RowsError(Problem(Kind.SPLIT_EMPTIED, UNLABELLED, change=change, values=values))
    return found


def notes_of(found: UnlabelledRows, data: Data) -> list[str]:
    """What was left out and kept, for the user, a line each."""
    kept = "kept (data.unlabelled_overlap)" if data.unlabelled_overlap == "keep" else "left out"
    lines = {
        f"{found.repeated:,} unlabelled rows repeat the prompt of another one and are left out": found.repeated,
        f"{found.labelled:,} unlabelled rows have the prompt of a training row and are left out": found.labelled,
        f"{found.overlapping:,} unlabelled rows have the prompt of a validation or test row and are {kept}": (
            found.overlapping
        ),
        f"{found.too_long:,} unlabelled rows exceed {data.max_length:,} tokens and are left out": found.too_long,
    }
    return [line for line, count in lines.items() if count]


def _rendered(raw: Iterable[PlacedRow], recipe: Recipe, labels: list[str] | None) -> Iterable[Example]:
    """Examples without answers. Raises RowsError with all rows that cannot be used."""
    problems: list[Problem] = []
    for row, place in raw:
        try:
            example = example_from_row(
                row, place=place, split=UNLABELLED, task=recipe.task, data=recipe.data, labels=labels, need_answer=False
            )
        except DataError as error:
            problems += error.problems
            continue
        own_id = example.id != content_id(example.prompt, example.answer)
        row_id = example.id if own_id else content_id(example.prompt, "")
        yield replace(example, id=row_id, answer="", answers=[])
    if problems:
        raise RowsError(*problems)


def _named(examples: Iterable[Example], taken: set[str]) -> Iterable[Example]:
    """The examples with ids that no row has yet: one that is taken gets the suffix -u2, -u3, and so on."""
    for example in examples:
        name, number = example.id, 1
        while name in taken:
            number += 1
            name = f"{example.id}-u{number}"
        taken.add(name)
        yield example if name == example.id else replace(example, id=name)
