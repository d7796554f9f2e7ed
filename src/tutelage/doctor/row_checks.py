"""The rows as the run would read them, and what stops it: every problem that `load_rows` reports becomes a check of its
own."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple

import yaml

from tutelage.data.dataset import Rows, load_rows, normalised, prompt_text
from tutelage.doctor.checks import Check
from tutelage.errors import ConfigError, DataError, RowsError
from tutelage.recipe.schema import Recipe
from tutelage.recipe.yaml_source import Dumper
from tutelage.records import SPLITS, Example

__all__ = ["SPLITS", "data_line", "normalised", "own_texts", "prompt_text", "read"]


class _Kind(NamedTuple):
    """What a heading of `load_rows` is called here, and the line that mends it; `{data}` is the one that names the
    file."""

    words: str
    name: str
    change: str


MANY_LABELS = 20
"""Labels above which the line to write does not list them."""
_KINDS = (
    _Kind("rows that are", "leaks", "data.overlap=drop"),
    _Kind("labels outside the set", "labels", "task.labels=[ALL, OF, THEM]"),
    _Kind("entities that are not in their text", "entities", "{data}"),
    _Kind("answers that are no entities", "entities", "{data}"),
    _Kind("columns that could be meant", "columns", "data.columns={{OURS: THEIRS}}"),
    _Kind("columns that are missing", "columns", "data.columns={{OURS: THEIRS}}"),
    _Kind("mapped columns", "columns", "data.columns={{OURS: THEIRS}}"),
    _Kind("columns that the template wants", "template", 'data.template="{{A_COLUMN}} ..."'),
    _Kind("ids that stand twice", "ids", "data.columns={{id: ANOTHER_COLUMN}}"),
    _Kind("no train rows", "files", "data.train=FILE"),
    _Kind("no test rows", "files", "data.test=FILE"),
    _Kind("empty answers", "answers", "{data}"),
    _Kind("", "rows", "{data}"),
)


def read(recipe: Recipe) -> tuple[Rows | None, list[Check]]:
    """Every split as `prepare` will read it, and what it will refuse.

    Where rows of one split are in another, the rest is looked at without them. None where the rows cannot be read at
    all.
    """
    try:
        rows = load_rows(recipe)
    except (DataError, ConfigError) as error:
        checks = [_refusal(line, recipe, error) for line in _lines(str(error))]
        return _without_leaks(recipe) if any(check.name == "leaks" for check in checks) else None, checks
    counts = {split: len(rows.examples[split]) for split in SPLITS}
    text = (
        ", ".join(f"{count:,} {split}" for split, count in counts.items())
        + " rows can be read, and no prompt is in two splits"
    )
    return rows, [Check("rows", "data", "passed", "\n".join([text, *rows.notes]), {"rows": counts})]


def data_line(recipe: Recipe, split: str = "train") -> str:
    """The line that names the rows of a split, for faults that are mended in the file."""
    if getattr(recipe.data, split) or not recipe.data.dataset:
        return f"data.{split}=MENDED_FILE"
    return "data.dataset=MENDED_FOLDER"


def own_texts(examples: Sequence[Example]) -> list[str]:
    """What is a row's own in each prompt: without the words that all prompts of its language begin and end with."""
    texts, groups = [prompt_text(example.prompt) for example in examples], {}
    for place, example in enumerate(examples):
        groups.setdefault(example.language, []).append(place)
    for places in groups.values():
        inside = {texts[place] for place in places}
        if len(inside) < 2:
            continue
        # Cut at white space and punctuation: half a word would be an odd thing to compare.
        start = _word_end(_shared_start(inside))
        stop = _word_end(_shared_start({text[start:][::-1] for text in inside}))
        for place in places:
            texts[place] = texts[place][start : len(texts[place]) - stop].strip()
    return texts


def _shared_start(texts: set[str]) -> str:
    """The characters that all of some texts begin with: those that the first and the last in order have in common."""
    first, last = min(texts), max(texts)
    return first[
        : next(
            (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
    ]


def _word_end(shared: str) -> int:
    """Length of the whole words at the start of `shared`."""
    return next((len(shared) - back for back, letter in enumerate(reversed(shared)) if not letter.isalnum()), 0)


def _without_leaks(recipe: Recipe) -> Rows | None:
    try:
        return load_rows(recipe.model_copy(update={"data": recipe.data.model_copy(update={"overlap": "drop"})}))
    except (DataError, ConfigError):
        return None


def _lines(message: str) -> list[str]:
    head, *problems = message.splitlines()
    return [line.removeprefix("  - ") for line in problems if line.startswith("  - ")] or [head]


def _refusal(line: str, recipe: Recipe, error: Exception) -> Check:
    kind = next(kind for kind in _KINDS if kind.words in line)
    if kind.words == "rows that are" and "rows too" not in line:
        kind = _KINDS[-1]
    split = next((split for split in SPLITS if f"{split}." in line or f"in {split} row" in line), "train")
    named = re.match(r"(data|task)\.\w+", line) or re.search(r"\b(data|task)\.(?!split)\w+=", line)
    change = kind.change.format(data=data_line(recipe, split))
    if kind is _KINDS[-1] and named:
        change = f"{named[0].rstrip('=')}=..."
    elif line.startswith("data files") or "is empty: there is no row" in line:
        kind = kind._replace(name="files")
    kinds = error.kinds if isinstance(error, RowsError) else {}
    places = next((own for words, own in kinds.items() if line.startswith(words)), [line])
    if kind.name == "labels" and isinstance(error, RowsError):
        change = _with_labels(error.labels or [], places) or change
    return Check(kind.name, "data", "fail", line, {"places": len(places)}, change)


def _with_labels(known: Sequence[str], places: Sequence[str]) -> str | None:
    """The line that makes the label set larger; None where it would be long. places: `'LABEL' in SPLIT row ID`."""
    strange = [
        match[1]
        for place in places
        if (match := re.match(r"""('.*?'|".*?") in (?:train|validation|test) row""", place))
    ]
    labels = [*known, *dict.fromkeys(map(ast.literal_eval, strange))]
    listed = yaml.dump(labels, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=1_000_000).strip()
    return f"task.labels={listed}" if len(labels) <= MANY_LABELS else None
