"""evaluate: score teacher, untrained student, anchor and every distilled student on the test rows.

Writes evaluate/MODEL/ for each model (a restart, or another method, scores only what is new): predictions.jsonl,
scores.json and validation_loss.jsonl; then evaluate/predictions.jsonl and evaluate/scores.json with all of them.

TF-IDF with logistic regression is scored beside them (baseline/), and stands in evaluate/scores.json by itself: it is
no model of the run, and has no loss per token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tutelage.data.near_duplicates import distinct_texts
from tutelage.models.evaluation import loss_records
from tutelage.records import SPLITS, TEXT_BASELINE, Example, Prediction
from tutelage.run import stage_inputs
from tutelage.run.manifest import rewriting
from tutelage.run.run_folder import RunFolder
from tutelage.tasks.tfidf import suits, tfidf_answers
from tutelage.training.run_models import RunModels
from tutelage.utils.console import print_table
from tutelage.utils.files import read_json, read_records, write_json, write_jsonl
from tutelage.utils.format import NO_VALUE


class ScoredModel(NamedTuple):
    """A model to be scored."""

    name: str
    """`teacher`, `student`, `anchor`, or METHOD/seed-K."""
    inputs: dict[str, Any]
    """What it is made from."""
    load: Callable[[], nn.Module]
    taught: bool = False
    """Whether it reads the teacher's tokens."""


def run_stage(run: RunFolder, models: RunModels) -> None:
    """Do the stage."""
    baseline = score_baseline(run)
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
        write_json(folder / "scores.json", {**result, "models": scores} | ({"baseline": baseline} if baseline else {}))


def score(run: RunFolder, models: RunModels, model: ScoredModel) -> None:
    """Answers and scores of one model on the test rows, and its losses on the validation rows, unless they are
    there."""
    inputs = model.inputs | stage_inputs.upstream(run, "prepare") | run.settings("task", "evaluate")
    with run.work(f"evaluate/{model.name}", inputs, rebuild_stale=True) as work:
        if work is None:
            return
        models = models.taught if model.taught else models
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


def score_baseline(run: RunFolder) -> dict[str, Any] | None:
    """Every metric of TF-IDF with logistic regression on the test rows; None where that does not suit the task.

    Trained on the training rows with gold. Its answers are in baseline/answers.jsonl.
    """
    inputs = stage_inputs.upstream(run, "prepare") | run.settings("evaluate.resamples")
    rows = list(read_records(run.folder / "prepare" / "rows.jsonl", Example))
    training, _, test = ([row for row in rows if row.split == split] for split in SPLITS)
    if not (training and test and suits(run.task, training)):
        return None
    with run.work("baseline", inputs, rebuild_stale=True) as work:
        if work is not None:
            found = tfidf_answers(training, test, run.task, distinct_texts([*training, *test]))
            lines = [
                {"id": row.id, "gold": run.task.gold(row), "prediction": answer, "score": run.task.score(answer, row)}
                for row, answer in zip(test, found.answers, strict=True)
            ]
            work.about = {"training_rows": found.training_rows, "features": found.features}
            metrics = run.task.metrics(found.answers, test, resamples=run.recipe.evaluate.resamples)
            write_jsonl(work.folder / "answers.jsonl", lines)
            write_json(work.folder / "scores.json", {name: score.as_record() for name, score in metrics.items()})
    return read_json(run.folder / "baseline" / "scores.json")


def base_models(run: RunFolder, models: RunModels) -> Iterator[ScoredModel]:
    """What every distilled student is compared with: T*, the untrained student, the anchor."""
    recipe, folder = run.recipe, run.folder
    of_teacher = stage_inputs.upstream(run, "teach")
    yield ScoredModel("teacher", of_teacher, lambda: models.load(recipe.teacher, run.best_teacher), taught=True)
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
    tables = result["models"] | ({TEXT_BASELINE: result["baseline"]} if "baseline" in result else {})
    names = list(dict.fromkeys(m for table in tables.values() for m in table if "/" not in m))
    names.sort(key=lambda name: name != result["metric"])
    rows = [[model, *(_interval(table.get(name)) for name in names)] for model, table in tables.items()]
    print_table(f"{result['rows']:,} {result['split']} rows, 95 % intervals", ["model", *names], rows)


def _interval(score: dict[str, float] | None) -> str:
    return NO_VALUE if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
