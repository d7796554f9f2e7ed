"""evaluate: score teacher, untrained student, anchor and every distilled student on the test rows.

Writes evaluate/MODEL/ for each model (a restart, or another method, scores only what is new): predictions.jsonl,
scores.json and validation_loss.jsonl; then evaluate/predictions.jsonl and evaluate/scores.json with all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tutelage.models.evaluation import loss_records
from tutelage.records import Prediction
from tutelage.run.workspace import Workspace
from tutelage.utils.console import print_table
from tutelage.utils.files import read_json, read_records, write_json, write_jsonl


class Candidate(NamedTuple):
    """A model to be scored."""

    name: str
    """`teacher`, `student`, `anchor`, or METHOD/seed-K."""
    inputs: dict[str, Any]
    """What it is made from."""
    load: Callable[[], nn.Module]


def run(space: Workspace) -> None:
    """Do the stage."""
    scores: dict[str, Any] = {}
    everything: list[Prediction] = []
    for model in [*base_models(space), *_students(space)]:
        score(space, model)
        folder = space.folder / "evaluate" / model.name
        scores[model.name] = read_json(folder / "scores.json")
        everything += read_records(folder / "predictions.jsonl", Prediction)
    folder = space.folder / "evaluate"
    write_jsonl(folder / "predictions.jsonl", everything)
    rows = len(space.exam("test").examples)
    result = {"task": space.recipe.task.type, "metric": space.task.metric, "split": "test", "rows": rows}
    write_json(folder / "scores.json", {**result, "models": scores})


def score(space: Workspace, model: Candidate) -> None:
    """Answers and scores of one model on the test rows, and its losses on the validation rows, unless they are
    there."""
    inputs = model.inputs | space.upstream("prepare") | space.settings("task", "evaluate")
    with space.work(f"evaluate/{model.name}", inputs, rebuild_stale=True) as work:
        if work is None:
            return
        exam, held_out, network = space.exam("test"), space.encoded("validation"), model.load()
        began = time.perf_counter()
        with space.screen.progress(f"score {model.name}", len(exam.examples)) as advance:
            predictions = space.evaluator.predict(model.name, network, exam, advance)
        work.about = {
            "answering": round(time.perf_counter() - began, 3)
        }  # without loading: what a comparison of speed is about
        losses = space.evaluator.losses(network, held_out)
        write_jsonl(work.folder / "predictions.jsonl", predictions)
        write_jsonl(work.folder / "validation_loss.jsonl", loss_records(held_out, losses))
        summary = space.evaluator.summary(predictions, exam.examples, space.recipe.evaluate.resamples)
        write_json(work.folder / "scores.json", summary)


def base_models(space: Workspace) -> Iterator[Candidate]:
    """What every distilled student is compared with: T*, the untrained student, the anchor."""
    recipe, folder = space.recipe, space.folder
    yield Candidate("teacher", space.upstream("teach"), lambda: space.load(recipe.teacher, space.best_teacher))
    yield Candidate("student", {}, lambda: space.load(recipe.student))
    yield Candidate("anchor", space.upstream("anchor"), lambda: space.load(recipe.student, folder / "anchor"))


def student(space: Workspace, method: str, seed: int) -> Candidate:
    """One distilled student."""
    cell = f"{method}/seed-{seed}"
    folder = space.folder / "distill" / cell
    return Candidate(cell, space.upstream(f"distill/{cell}"), lambda: space.load(space.recipe.student, folder))


def _students(space: Workspace) -> Iterator[Candidate]:
    for method in space.recipe.distill.methods:
        for seed in space.recipe.distill.seeds:
            yield student(space, method, seed)


def show_scores(folder: Path) -> None:
    """Print evaluate/scores.json as a table."""
    result = read_json(folder / "evaluate" / "scores.json")
    names = list(dict.fromkeys(m for table in result["models"].values() for m in table if "/" not in m))
    names.sort(key=lambda name: name != result["metric"])
    rows = [[model, *(_interval(table.get(name)) for name in names)] for model, table in result["models"].items()]
    print_table(f"{result['rows']:,} {result['split']} rows, 95 % intervals", ["model", *names], rows)


def _interval(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
