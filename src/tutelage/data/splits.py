"""Training, validation and test rows: their files, what is held out or sampled, and that no prompt is in two splits."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tutelage.data.readers import (
    HUB_ID,
    SPLIT_NAMES,
    PlacedRow,
    Row,
    check_files,
    find_files,
    read_hub,
    read_rows,
)
from tutelage.errors import DataError, Kind, Problem
from tutelage.recipe.schema import Data
from tutelage.records import SPLITS, Example

Entry = TypeVar("Entry")
UNLABELLED = "unlabelled"
"""What rows without gold have as their split."""


# --- which files ---


def read_splits(data: Data) -> dict[str, list[PlacedRow]]:
    """The raw rows of every split; none for a split that has no file. Raises DataError."""
    files = split_files(data)
    check_files([name for names in files.values() for name in names])
    raw = {split: read_rows(files[split], data.encoding) if split in files else [] for split in SPLITS}
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
    return hub | {str(path): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths if path.is_file()}


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


def hold_out(rows: list[Entry], keys: Sequence[str], fraction: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """(rows that stay, rows held out): a seeded fraction, at least one; rows of equal keys stay together.

    keys: one for each row, compared after `normalised`.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(normalised(key), []).append(index)
    order = list(groups)
    random.Random(f"{seed}/hold out").shuffle(order)
    wanted, held_out = max(1, round(len(rows) * fraction)), set()
    for key in order:
        if len(held_out) >= wanted:
            break
        held_out.update(groups[key])
    stay = [row for index, row in enumerate(rows) if index not in held_out]
    return stay, [row for index, row in enumerate(rows) if index in held_out]


def passages_of(rows: Sequence[Row]) -> list[str]:
    """The passage of each question; none where questions have none, or more than a tenth of them share one."""
    passages = [str(row.get("context") or "") for row in rows]
    return passages if passages and max(Counter(passages).values()) <= len(rows) / 10 else []


def sample(rows: list[Entry], most: int | None, seed: str) -> tuple[list[Entry], list[Entry]]:
    """(at most `most` of the rows, in their order; the others, in the order in which they replace any of those)."""
    if most is None or most >= len(rows):
        return rows, []
    drawn = random.Random(seed).sample(range(len(rows)), most)
    others = sorted(set(range(len(rows))).difference(drawn))
    random.Random(f"{seed}/others").shuffle(others)
    return [rows[index] for index in sorted(drawn)], [rows[index] for index in others]


# --- no prompt in two splits ---


def overlap_problems(examples: dict[str, list[Example]]) -> list[Problem]:
    """A problem for each row whose prompt is in a later split."""
    return [
        Problem(
            Kind.ROW_IN_TWO_SPLITS,
            split,
            row=example.id,
            key="data.overlap",
            change="data.overlap=drop",
            values={"other_split": other.split, "other_row": other.id},
        )
        for split, example, other in _overlap(examples)
    ]


def _overlap(examples: dict[str, list[Example]]) -> list[tuple[str, Example, Example]]:
    """(split, row, row of a later split with the same prompt); validation rows first."""
    later: dict[str, Example] = {}
    pairs = []
    for split in reversed(SPLITS):
        keys = [prompt_key(example) for example in examples[split]]
        pairs += [(split, e, later[key]) for key, e in zip(keys, examples[split], strict=True) if key in later]
        later |= dict(zip(keys, examples[split], strict=True))
    return pairs


def prompt_key(example: Example) -> str:
    """What prompts are compared by to find equal ones."""
    return normalised(prompt_text(example.prompt))


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt as one text: of chat messages their contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def normalised(text: str) -> str:
    """What texts are compared by to find equal ones: NFKC and case-folded, without punctuation, spaces and controls."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Vowel signs (Hindi, Thai) and symbols (+, emoji) distinguish texts, so they stay.
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "PZC") or folded
