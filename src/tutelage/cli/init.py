"""`tutelage init DATA`: looks at a data file and writes a first recipe with comments.

Rows are read with the readers of a run. Columns with unknown names are guessed by their contents, and the recipe says
so; `recipe_settings.py` guesses models and settings, `recipe_text.py` writes them. No file is ever overwritten.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.cli.guess_columns import Guess, guess_rows
from tutelage.cli.recipe_settings import Settings, guess_settings
from tutelage.cli.recipe_text import BYTES, recipe_text
from tutelage.data.columns import accepted_answers, map_columns
from tutelage.data.contents.sameness import normalised
from tutelage.data.readers import ENDINGS, SPLIT_NAMES, PlacedRow, Row, find_files, read_rows
from tutelage.data.splits import passages_of
from tutelage.doctor.data_checks import FEW_SCORED_ROWS
from tutelage.errors import ConfigError, DataError, Kind, Problem, UserError
from tutelage.errors.secrets import has_secret
from tutelage.errors.wording import SHOWN, SPLIT_WORDS
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Data
from tutelage.records import SPLITS
from tutelage.run.checkpoints import base_of
from tutelage.utils.files import write_text

TEST_FRACTION = 0.2
"""Fraction of the rows that become test rows if there are none."""
LARGEST_FRACTION = 0.3
"""Largest fraction that is taken from the training rows for validation or test."""
FEW_ROWS = 800
"""Training rows below which a fifth of them is held out instead of a tenth."""
FEWEST_INPUTS = 10
"""Different inputs below which rows are not split."""


@dataclass
class WrittenRecipe:
    """A recipe that was written, and what is to be said about it."""

    path: Path
    text: str
    found: list[str] = field(default_factory=list)
    """What was found in the data, a line each."""
    missing: list[str] = field(default_factory=list)
    """What is still to be done before the run can start, a line each."""


def initialise(
    data: Path | str | None,
    teacher: str | None = None,
    student: str | None = None,
    output: Path | None = None,
    *,
    task: str | None = None,
    files: Mapping[str, Path] | None = None,
    unlabelled: Path | None = None,
    checkpoints: Path | None = None,
) -> WrittenRecipe:
    """Look at `data` (a file, or a folder with train, validation and test files) and write a recipe.

    files: by split, instead of those that are found; with training rows among them, data is None. unlabelled: rows
    without gold. checkpoints: a folder of the teacher's; then it is not fine-tuned. output: the recipe, default
    NAME.yaml here. What is not given is guessed. Rows without a test split are split into new files,
    NAME_data/train.jsonl and test.jsonl. Raises UserError for files that exist, DataError for data that cannot be read
    or fits no task, ModelError for a folder without checkpoints.
    """
    named = dict(files or {})
    data = Path(data or named["train"])
    for place in (data, *named.values(), *([unlabelled] if unlabelled else ())):
        if not place.exists():
            raise DataError(Problem(Kind.DATA_MISSING, values={"path": str(place)}))
    path = output or Path(re.sub(r"[^\w.-]+", "_", data.resolve().stem) + ".yaml")
    _refuse_existing(path)
    for key, name in (("teacher", teacher), ("student", student)):
        if name and has_secret(name):  # before it is in a file
            raise ConfigError(Problem(Kind.SECRET_IN_RECIPE, key=f"{key}.model_name_or_path"))
    found = {} if "train" in named else _files(data)
    found |= {split: [str(file)] for split, file in named.items()}
    raw = {split: read_rows(names) for split, names in found.items()}
    guess = guess_rows([row for row, _ in raw["train"]], task)
    counts = ", ".join(
        f"{len(rows):,}" + (f" {SPLIT_WORDS[split]}" if len(raw) > 1 else "") for split, rows in raw.items()
    )
    written = WrittenRecipe(path, "", [f"{guess.task}: {guess.why}; {counts} row{'s' * (counts != '1')}", *guess.notes])
    section, training_rows = _data_section(None if named else data, found, guess), len(raw["train"])
    if "test" not in found and "validation" not in found:
        section, training_rows = _split(raw["train"], guess, path, written.found)
    elif "test" not in found:
        names = ", ".join(found["validation"])
        written.found.append(f"no test rows were given: {names} is the test split, validation rows are split off train")
    if not found.keys() >= {"validation", "test"}:  # with one of them, it is the test split
        section["validation_fraction"] = _fraction(0.2 if len(raw["train"]) < FEW_ROWS else 0.1, training_rows)
    rows = [row for row, _ in raw["train"]]
    if unlabelled:
        section["unlabelled"] = str(unlabelled)
    teacher = teacher or (base_of(str(checkpoints)) if checkpoints else None)
    settings = guess_settings(section, guess, teacher, student, rows, path, written.missing)
    written.found += _long_labels(settings) + ([f"student: {BYTES}"] if settings.over_bytes else [])
    settings.checkpoints = str(checkpoints) if checkpoints else None
    written.text = recipe_text(path, guess, settings)
    write_text(path, written.text, new=True)
    load_recipe(path)
    return written


def _long_labels(settings: Settings) -> list[str]:
    """That labels take many tokens, and what to do about it."""
    tokens = settings.long_labels.tokens if settings.long_labels else {}
    listed = ", ".join(f"{label!r} {count}" for label, count in list(tokens.items())[:SHOWN])
    more = ", ..." if len(tokens) > SHOWN else ""
    advice = "task.verbalizers in the recipe, written as a comment, gives them short forms"
    return [f"labels of many tokens ({listed}{more}): {advice}"] if tokens else []


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(Problem(Kind.FILE_EXISTS, values={"path": str(path)}))


# --- where the rows are ---


def _files(data: Path) -> dict[str, list[str]]:
    """Files by split, with `train` always among them."""
    if data.is_file():
        siblings = find_files(data.parent)
        if str(data) in siblings.get("train", []):
            return {split: siblings[split] for split in SPLITS if split in siblings}
        return {"train": [str(data)], **_named_alike(data)}
    files = find_files(data)
    if "train" in files:
        return {split: files[split] for split in SPLITS if split in files}
    readable = [path for path in sorted(data.iterdir()) if path.is_file() and path.suffix.lower() in ENDINGS]
    train = readable if len(readable) == 1 else [path for path in readable if _TRAIN.search(path.name)]
    train = train or [path for path in readable if _named_alike(path)]
    if len(train) == 1:
        return {"train": [str(train[0])], **_named_alike(train[0])}
    values = {
        "folder": str(data),
        "files": sorted((path.name for path in readable), key=lambda name: bool(_OTHERS.search(name))),
        "endings": ENDINGS,
        "ending": readable[0].suffix if readable else None,
    }
    raise DataError(Problem(Kind.TRAIN_FILE_UNCLEAR, values=values))


def _word(*names: str) -> re.Pattern[str]:
    """One of the names as a word of a file's name, which `_`, too, ends."""
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, names))})(?![^\W_])", re.IGNORECASE)


_TRAIN, _OTHERS = _word("training", "train"), _word(*SPLIT_NAMES["validation"], *SPLIT_NAMES["test"])


def _named_alike(train: Path) -> dict[str, list[str]]:
    """Validation and test files beside a training file, by its own pattern of names: intents_test.csv beside
    intents_train.csv or intents.csv."""
    word, found = _TRAIN.search(train.name), {}
    if word:
        patterns = [(train.name[: word.start()], train.name[word.end() :])]
    else:
        patterns = [(f"{train.stem}{mark}", train.suffix) for mark in "_-."]
    for split in ("validation", "test"):
        paths = [train.with_name(before + name + after) for name in SPLIT_NAMES[split] for before, after in patterns]
        here = [str(path) for path in paths if path.is_file()]
        found |= {split: here[:1]} if here else {}
    return found


def _data_section(data: Path | None, files: dict[str, list[str]], guess: Guess) -> dict[str, Any]:
    """The part of `data` that names rows and columns. data: None where the user named the files."""
    if data is not None and data.is_dir() and files.keys() - {"train"} and "train" in find_files(data):
        section: dict[str, Any] = {"dataset": str(data)}
        if "test" not in files:
            section["test_split"] = re.split(r"-\d+-of-", Path(files["validation"][0]).stem)[0]
    else:
        section = {split: names[0] if len(names) == 1 else names for split, names in files.items()}
        if "test" not in section and "validation" in section:
            section["test"] = section.pop("validation")
    return section | ({"columns": guess.columns} if guess.columns else {})


# --- splitting ---


def _fraction(usual: float, rows: int) -> float:
    """Fraction of some rows for validation or test: the usual one, or as much more as gives enough rows."""
    return max(usual, min(LARGEST_FRACTION, math.ceil(100 * FEW_SCORED_ROWS / max(1, rows)) / 100))


def _split(rows: list[PlacedRow], guess: Guess, recipe: Path, notes: list[str]) -> tuple[dict[str, Any], int]:
    """Write train and test files of rows that came in one file.

    Returns the part of `data` that names them, and the number of training rows. Equal inputs, and questions about one
    passage, stay in one split. Rows without an answer are left out.
    """
    folder = recipe.with_name(f"{recipe.stem}_data")
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "test")}
    answered = [_without_bytes(row) for row, _ in rows if not _unanswered(row, guess)]
    if answered and len(answered) < len(rows):
        count = len(rows) - len(answered)
        notes.append(f"{count:,} of {len(rows):,} rows have no answer ({guess.gold}) and are left out")
    groups = _groups(answered, guess)
    if len(groups) < FEWEST_INPUTS:
        values = {"rows": len(answered), "inputs": len(groups), "task": guess.task}
        raise DataError(Problem(Kind.ROWS_TOO_FEW, values=values))
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    wanted = _fraction(TEST_FRACTION, len(answered)) * len(answered)
    keys = sorted(groups)
    random.Random(0).shuffle(keys)
    for key in keys:
        parts["test" if len(parts["test"]) < wanted else "train"] += groups[key]
    texts = {
        path: "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in parts[split])
        for split, path in paths.items()
    }
    for path, text in texts.items():  # an interrupted command left the same files behind
        if not (path.is_file() and path.read_bytes() == text.encode()):
            _refuse_existing(path)
    for path, text in texts.items():
        write_text(path, text)
    notes.append(
        f"no test rows were given: {len(parts['test']):,} of the {len(answered):,} rows, a seeded sample, became"
        f" {paths['test']}, the others {paths['train']}"
    )
    return {"dataset": str(folder)} | ({"columns": guess.columns} if guess.columns else {}), len(parts["train"])


def _without_bytes(row: Row) -> Row:
    """A row without cells, such as images, that JSON lines cannot hold and no prompt shows."""
    return {name: value for name, value in row.items() if not isinstance(value, bytes)}


def _groups(rows: Sequence[Row], guess: Guess) -> dict[str, list[Row]]:
    """Rows that must stay in one split, by what they have in common."""
    passages = []
    if guess.task == "qa":
        passages = passages_of([map_columns(row, Data(columns=guess.columns))[0] for row in rows])
    groups: dict[str, list[Row]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(normalised(passages[index] if passages else _input(row, guess)), []).append(row)
    return groups


def _unanswered(row: Row, guess: Guess) -> bool:
    """Whether a row has nothing to learn from; a text without entities has."""
    if guess.gold is None:
        return False
    value = row.get(guess.gold)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return blank or (guess.task == "qa" and not accepted_answers(value))


def _input(row: Row, guess: Guess) -> str:
    """All of a row but answer and id."""
    inputs = {key: value for key, value in row.items() if key not in guess.not_input}
    return json.dumps(inputs, ensure_ascii=False, sort_keys=True, default=str)
