"""evaluate: score teacher, untrained student, anchor and every distilled student on the test rows.

Writes evaluate/MODEL/ for each model (a restart, or another method, scores only what is new): predictions.jsonl,
scores.json and validation_loss.jsonl; then evaluate/predictions.jsonl and evaluate/scores.json with all of them.

TF-IDF with logistic regression is scored beside them (baseline/), and stands in evaluate/scores.json by itself: it is
no model of the run, and has no loss per token. Every model is tested against it, row by row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tutelage.analysis.run_results import read_results
from tutelage.analysis.significance import paired_difference
from tutelage.data.near_duplicates import distinct_texts
from tutelage.models.evaluation import loss_records
from tutelage.recipe.schema import row_metric
from tutelage.records import SPLITS, TEXT_BASELINE, Example, Interval, Prediction, SampleLoss
from tutelage.run import stage_inputs
from tutelage.run.artifacts import AgainstBaseline
from tutelage.run.manifest import rewriting
from tutelage.run.run_folder import RunFolder
from tutelage.tasks.tfidf import suits, tfidf_answers
from tutelage.training.run_models import RunModels
from tutelage.utils import ranks
from tutelage.utils.bootstrap import widened
from tutelage.utils.console import out, print_table
from tutelage.utils.files import read_json, read_jsonl, read_records, write_json, write_jsonl
from tutelage.utils.format import NO_VALUE, metric_words, p_value, signed_span


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
    baseline = ranks.once(lambda: score_baseline(run))
    scored = [*base_models(run, models), *_students(run, models)]
    for model in scored:
        score(run, models, model)
    ranks.once(lambda: _write_together(run, [model.name for model in scored], baseline))


def _write_together(run: RunFolder, names: list[str], baseline: dict[str, Any] | None) -> None:
    """What stands in the models' own folders, in one file for each kind."""
    folder = run.folder / "evaluate"
    scores = {name: read_json(folder / name / "scores.json") for name in names}
    everything = [line for name in names for line in read_records(folder / name / "predictions.jsonl", Prediction)]
    rows = run.prepared["lengths"]["test"]["rows"]
    result = {"task": run.recipe.task.type, "metric": run.task.metric, "split": "test", "rows": rows, "models": scores}
    if baseline:
        result |= {"baseline": baseline, "against_baseline": _against_baseline(run, everything)}
    with rewriting(folder, "predictions.jsonl", "scores.json"):
        write_jsonl(folder / "predictions.jsonl", everything)
        write_json(folder / "scores.json", result)


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
        ranks.once(lambda: _write_scores(run, models, work.folder, predictions, loss_records(held_out, losses)))


def _write_scores(
    run: RunFolder, models: RunModels, folder: Path, predictions: list[Prediction], losses: Iterable[SampleLoss]
) -> None:
    """losses: on the validation rows."""
    write_jsonl(folder / "predictions.jsonl", predictions)
    write_jsonl(folder / "validation_loss.jsonl", losses)
    examples = models.eval_set("test").examples
    write_json(folder / "scores.json", models.evaluator.summary(predictions, examples, run.recipe.evaluate.resamples))


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


def _against_baseline(run: RunFolder, predictions: Sequence[Prediction]) -> dict[str, AgainstBaseline]:
    """By model: its mean row score minus the baseline's on the same test rows, with the p-value of a paired test."""
    baseline = {line["id"]: line["score"] for line in read_jsonl(run.folder / "baseline" / "answers.jsonl")}
    tests: dict[str, AgainstBaseline] = {}
    for model in dict.fromkeys(row.model for row in predictions):
        own = {row.id: row.score for row in predictions if row.model == model}
        tables = ([[scores[id] for id in own]] for scores in (own, baseline))
        found = paired_difference(*tables)
        interval = widened(found.interval, found.rows, low=-1.0)
        tests[model] = {**interval.as_record(), "p_value": found.p_value, "test": found.test}
    return tests


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
    """Print evaluate/scores.json as a table, and how the student to show first differs from the baseline."""
    result = read_json(folder / "evaluate" / "scores.json")
    tables = result["models"] | ({TEXT_BASELINE: result["baseline"]} if "baseline" in result else {})
    names = list(dict.fromkeys(m for table in tables.values() for m in table if "/" not in m))
    names.sort(key=lambda name: name != result["metric"])
    rows = [[model, *(_interval(table.get(name)) for name in names)] for model, table in tables.items()]
    print_table(f"{result['rows']:,} {result['split']} rows, 95 % intervals", ["model", *names], rows)
    main, tests = read_results(folder).main, result.get("against_baseline", {})
    if main in tests:
        difference = signed_span(Interval(*(tests[main][end] for end in ("value", "low", "high"))))
        name = metric_words(row_metric(result["metric"]))
        out(f"{main} minus {TEXT_BASELINE}: {difference} {name}, p {p_value(tests[main]['p_value'])} (paired by row)")


def _interval(score: dict[str, float] | None) -> str:
    return NO_VALUE if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
