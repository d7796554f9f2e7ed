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
from tutelage.run import stage_inputs
from tutelage.run.manifest import rewriting
from tutelage.run.run_folder import RunFolder
from tutelage.training.run_models import RunModels
from tutelage.utils.console import print_table
from tutelage.utils.files import read_json, read_records, write_json, write_jsonl


class ScoredModel(NamedTuple):
    """A model to be scored."""

    name: str
    """`teacher`, `student`, `anchor`, or METHOD/seed-K."""
    inputs: dict[str, Any]
    """What it is made from."""
    load: Callable[[], nn.Module]


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    scores: dict[str, Any] = {}
    everything: list[Prediction] = []
    for model in [*base_models(run, models), *_students(run, models)]:
        score(run, models, model)
        folder = run.folder / "evaluate" / model.name
        scores[model.name] = read_json(folder / "scores.json")
        everything += read_records(folder / "predictions.jsonl", Prediction)
    folder = run.folder / "evaluate"
    rows = run.prepared["lengths"]["test"]["rows"]
    result = {"task": run.recipe.task.type, "metric": run.task.metric, "split": "test", "rows": rows}
    with rewriting(folder, "predictions.jsonl", "scores.json"):
        write_jsonl(folder / "predictions.jsonl", everything)
        write_json(folder / "scores.json", {**result, "models": scores})


def score(run: RunFolder, models: RunModels, model: ScoredModel) -> None:
    """Answers and scores of one model on the test rows, and its losses on the validation rows, unless they are
    there."""
    inputs = model.inputs | stage_inputs.upstream(run, "prepare") | run.settings("task", "evaluate")
    with run.work(f"evaluate/{model.name}", inputs, rebuild_stale=True) as work:
        if work is None:
            return
        eval_set, held_out, network = models.eval_set("test"), models.encoded("validation"), model.load()
        began = time.perf_counter()
        with run.screen.progress(f"score {model.name}", len(eval_set.examples)) as advance:
            predictions = models.evaluator.predict(model.name, network, eval_set, advance)
        work.about = {
            "answering": round(time.perf_counter() - began, 3)
        }  # without loading: what a comparison of speed is about
        losses = models.evaluator.losses(network, held_out)
        write_jsonl(work.folder / "predictions.jsonl", predictions)
        write_jsonl(work.folder / "validation_loss.jsonl", loss_records(held_out, losses))
        summary = models.evaluator.summary(predictions, eval_set.examples, run.recipe.evaluate.resamples)
        write_json(work.folder / "scores.json", summary)


def base_models(run: RunFolder, models: RunModels) -> Iterator[ScoredModel]:
    """What every distilled student is compared with: T*, the untrained student, the anchor."""
    recipe, folder = run.recipe, run.folder
    yield ScoredModel(
        "teacher", stage_inputs.upstream(run, "teach"), lambda: models.load(recipe.teacher, run.best_teacher)
    )
    yield ScoredModel("student", {}, lambda: models.load(recipe.student))
    yield ScoredModel(
        "anchor", stage_inputs.upstream(run, "anchor"), lambda: models.load(recipe.student, folder / "anchor")
    )


def student(run: RunFolder, models: RunModels, method: str, seed: int) -> ScoredModel:
    """One distilled student."""
    cell = f"{method}/seed-{seed}"
    folder = run.folder / "distill" / cell
    return ScoredModel(
        cell, stage_inputs.upstream(run, f"distill/{cell}"), lambda: models.load(run.recipe.student, folder)
    )


def _students(run: RunFolder, models: RunModels) -> Iterator[ScoredModel]:
    for method in run.recipe.distill.methods:
        for seed in run.recipe.distill.seeds:
            yield student(run, models, method, seed)


def show_scores(folder: Path) -> None:
    """Print evaluate/scores.json as a table."""
    result = read_json(folder / "evaluate" / "scores.json")
    names = list(dict.fromkeys(m for table in result["models"].values() for m in table if "/" not in m))
    names.sort(key=lambda name: name != result["metric"])
    rows = [[model, *(_interval(table.get(name)) for name in names)] for model, table in result["models"].items()]
    print_table(f"{result['rows']:,} {result['split']} rows, 95 % intervals", ["model", *names], rows)


def _interval(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
