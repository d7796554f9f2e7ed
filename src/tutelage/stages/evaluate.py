"""evaluate: score teacher, untrained student, anchor and every distilled student on the test rows.

Writes evaluate/MODEL/predictions.jsonl for each model (a restart, or another method, scores only what is new), then
evaluate/predictions.jsonl and evaluate/scores.json with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.artifacts import read_json, write_json
from tutelage.records import Prediction, read_records, write_jsonl
from tutelage.ui import print_table
from tutelage.workspace import Workspace


def run(space: Workspace) -> None:
    """Do the stage."""
    examples, rows = space.examples("test"), space.encoded("test")
    scores: dict[str, Any] = {}
    everything: list[Prediction] = []
    for name, inputs, load in _models(space):
        inputs |= space.upstream("prepare") | space.settings("task", "evaluate")
        with space.work(f"evaluate/{name}", inputs, rebuild_stale=True) as work:
            if work is not None:
                with space.screen.progress(f"score {name}", len(examples)) as advance:
                    predictions = space.evaluator.predict(name, load(), examples, rows, advance)
                write_jsonl(work.folder / "predictions.jsonl", predictions)
                summary = space.evaluator.summary(predictions, examples, space.recipe.evaluate.resamples)
                write_json(work.folder / "scores.json", summary)
        folder = space.folder / "evaluate" / name
        scores[name] = read_json(folder / "scores.json")
        everything += read_records(folder / "predictions.jsonl", Prediction)
    folder = space.folder / "evaluate"
    write_jsonl(folder / "predictions.jsonl", everything)
    result = {"task": space.recipe.task.type, "metric": space.task.metric, "split": "test", "rows": len(examples)}
    write_json(folder / "scores.json", {**result, "models": scores})


def _models(space: Workspace) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(name, what it is made from, how to load it) of every model there is."""
    recipe, folder = space.recipe, space.folder
    taught = read_json(folder / "teach" / "checkpoints.json")
    best = Path(next(c["folder"] for c in taught["checkpoints"] if c["name"] == taught["best"]))
    yield "teacher", space.upstream("teach"), lambda: space.load(recipe.teacher, best)
    yield "student", {}, lambda: space.load(recipe.student)
    yield "anchor", space.upstream("anchor"), lambda: space.load(recipe.student, folder / "anchor")
    for method in recipe.distill.methods:
        for seed in recipe.distill.seeds:
            cell = f"{method}/seed-{seed}"
            yield cell, space.upstream(f"distill/{cell}"), lambda cell=cell: space.load(recipe.student, folder / "distill" / cell)


def show_scores(folder: Path) -> None:
    """Print evaluate/scores.json as a table."""
    result = read_json(folder / "evaluate" / "scores.json")
    names = list(dict.fromkeys(m for table in result["models"].values() for m in table if "/" not in m))
    names.sort(key=lambda name: name != result["metric"])
    rows = [[model, *(_interval(table.get(name)) for name in names)] for model, table in result["models"].items()]
    print_table(f"{result['rows']:,} {result['split']} rows, 95 % intervals", ["model", *names], rows)


def _interval(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
