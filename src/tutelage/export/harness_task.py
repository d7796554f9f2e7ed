"""What lm-evaluation-harness calls for a task that `tutelage export --to lm-eval` wrote: rows in, scores out.

A copy of this file, utils.py, lies beside the task's YAML, task.json and rows.jsonl. The harness asks the model;
answers are read and scored by the library's own task, as in `tutelage evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.records import Example
from tutelage.tasks import make_task
from tutelage.tasks.base import BaseTask
from tutelage.tasks.verbalizers import Verbalizers

FOLDER = Path(__file__).parent
Answered = tuple[str, str]
"""A row (JSON of an Example) and the answer to it."""


@cache
def _about() -> dict[str, Any]:
    return json.loads((FOLDER / "task.json").read_text(encoding="utf-8"))


@cache
def _task() -> BaseTask:
    from tutelage.recipe.schema import Task

    section = _about()["task"]
    return make_task(Task(**section), section["labels"], choice=_about()["choice"])


def load(**_: Any) -> dict[str, Any]:
    """The rows; the harness passes settings that are not needed."""
    from datasets import Dataset

    with (FOLDER / "rows.jsonl").open(encoding="utf-8") as file:
        return {"test": Dataset.from_list([json.loads(line) for line in file])}


def read_text(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Answered]:
    """The answer that a model wrote, for every metric."""
    answer = Verbalizers(_about()["task"].get("verbalizers", {})).read(results[0].strip())
    return dict.fromkeys(_about()["metrics"], (doc["example"], answer))


def read_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Answered]:
    """The allowed answer with the highest mean log-likelihood per token, the first of equal ones, for every metric.

    results: for each choice the log-likelihood of all its tokens, end-of-sequence included.
    """
    means = [total / tokens for (total, _), tokens in zip(results, doc["tokens"], strict=True)]
    best = max(means)
    index = next(n for n, mean in enumerate(means) if mean > best - 1e-5)  # equal, as in models/label_scoring.py
    return dict.fromkeys(_about()["metrics"], (doc["example"], doc["labels"][index]))


def _over_rows(metric: str) -> Callable[[Sequence[Answered]], float]:
    """A metric over all rows, as the harness calls it."""

    def value(answered: Sequence[Answered]) -> float:
        examples = [Example(**json.loads(row)) for row, _ in answered]
        parsed = [_task().parse(text, example) for (_, text), example in zip(answered, examples, strict=True)]
        return float(_task().metrics(parsed, examples, resamples=1)[metric].value)

    return value


accuracy = _over_rows("accuracy")
macro_f1 = _over_rows("macro_f1")
invalid_rate = _over_rows("invalid_rate")
entity_f1 = _over_rows("entity_f1")
precision = _over_rows("precision")
recall = _over_rows("recall")
unparsable_rate = _over_rows("unparsable_rate")
exact_match = _over_rows("exact_match")
token_f1 = _over_rows("token_f1")
empty_rate = _over_rows("empty_rate")
