"""compare: every method with every seed on the same teacher, anchor and cache; one cell after another, or several at a time.

Writes COMPARISON/results.jsonl (a line for each cell and metric, appended as cells end), logs/ and summary.json. The students lie
where `distill` and `evaluate` put them, in the run folders: a cell that is there already is read and not made again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage import lineage
from tutelage.artifacts import digest, locked, read_json
from tutelage.cells import Cell, ResultsFile
from tutelage.config import check, dump_recipe, load_recipe, varied
from tutelage.errors import ConfigError, problems
from tutelage.executors import LocalExecutor, Outcome
from tutelage.methods import find_method
from tutelage.recipe_schema import Recipe
from tutelage.stages import anchor, cache, cross_fit, distill, evaluate, prepare, teach
from tutelage.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    recipes: Sequence[Recipe]
    methods: Sequence[str]
    seeds: Sequence[int]
    teacher_seeds: int
    """Trajectories: the recipe's own, and this many less one with seeds after it."""
    jobs: int
    folder: Path
    """Of the comparison."""


def make_plan(recipes: Sequence[Recipe], methods: str, seeds: int, teacher_seeds: int, jobs: int, folder: Path | None) -> Plan:
    """A checked plan. methods: names with commas. Raises ConfigError for what cannot be compared."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    wrong = [problem for recipe in recipes[:1] for problem in check(_with(recipe, names, range(seeds)))]
    for recipe, name in itertools.product(recipes, names):
        try:
            varied(recipe, name)
        except ConfigError as error:
            wrong.append(str(error))
    if not recipes:
        wrong.append("no recipe: name one file at least")
    twice = sorted({r.output_dir for r in recipes if [other.output_dir for other in recipes].count(r.output_dir) > 1})
    wrong += [f"{place}: two recipes write there; give each its own output_dir" for place in twice]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        wrong.append("two recipes have the same name; give each its own `name`")
    if folder is None and len(recipes) > 1:
        wrong.append("several recipes have no folder in common: name one with --output")
    if wrong:
        raise ConfigError(problems("this cannot be compared:", wrong))
    return Plan(recipes, names, range(seeds), teacher_seeds, jobs, folder or Path(recipes[0].output_dir) / "compare")


def run(plan: Plan) -> None:
    """Make all cells that lack a result, and record each. Raises what a stage before the cells raises."""
    spaces = [space for recipe in plan.recipes for space in _trajectories(recipe, plan)]
    results = ResultsFile(plan.folder / "results.jsonl")
    with ExitStack() as held:
        for folder in [plan.folder, *(space.folder for space in spaces)]:
            held.enter_context(locked(folder))
        for space in spaces:
            _shared_stages(space, plan.methods)
        wanted = {cell: space for space in spaces for cell in _cells(space, plan)}
        inputs = {cell: digest(lineage.student(space, cell.method)) for cell, space in wanted.items()}
        done = results.done()
        missing = [cell for cell in wanted if done.get(cell) != inputs[cell]]
        screen, began = spaces[0].screen, time.monotonic()
        screen.say(f"compare: {len(wanted)} cells, {len(wanted) - len(missing)} of them are there")
        for number, outcome in enumerate(LocalExecutor(make_cell, plan.folder / "logs", plan.jobs).run(missing), start=1):
            rows = _rows_of(outcome)
            results.append(outcome.cell, inputs[outcome.cell], rows)
            left = (time.monotonic() - began) / number * (len(missing) - number)
            ahead = f"; about {left / 60:.0f} min left" if left > 60 else ""
            screen.say(f"[{number}/{len(missing)}] {_in_words(outcome, rows)}{ahead}")


def make_cell(cell: Cell) -> None:
    """Train and score one student, in a process of its own."""
    only = [f"distill.methods=[{cell.method}]", f"distill.seeds=[{cell.seed}]"]
    space = Workspace(load_recipe(Path(cell.run) / "recipe.yaml", only).recipe)
    distill.cell(space, cell.method, cell.seed)
    evaluate.score(space, evaluate.student(space, cell.method, cell.seed))


def _trajectories(recipe: Recipe, plan: Plan) -> list[Workspace]:
    """A run for every teacher seed; the first is the recipe's own."""
    first, found = recipe.teacher_seed, []
    for seed in range(first, first + plan.teacher_seeds):
        changes: dict[str, Any] = {}
        if seed != first:
            changes = {
                "output_dir": f"{recipe.output_dir}-teacher-{seed}",
                "teach": recipe.teach.model_copy(update={"seed": seed}),
                # The anchor does not depend on the teacher: one for all trajectories.
                "anchor": recipe.anchor.model_copy(update={"model_name_or_path": str(found[0].folder / "anchor")}),
            }
        found.append(Workspace(_with(recipe, plan.methods, plan.seeds).model_copy(update=changes)))
    return found


def _with(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> Recipe:
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"methods": [*methods], "seeds": [*seeds]})})


def _shared_stages(space: Workspace, methods: Sequence[str]) -> None:
    """Everything that cells share, and the scores that they are compared with."""
    stages = [prepare, teach, anchor]
    if any(find_method(name).schedule != "none" or find_method(name).answers == "teacher" for name in methods):
        stages += [cache, cross_fit]
    for stage in stages:
        stage.run(space)
        (space.folder / "recipe.yaml").write_text(dump_recipe(space.recipe), encoding="utf-8")
    for model in evaluate.base_models(space):
        evaluate.score(space, model)


def _cells(space: Workspace, plan: Plan) -> list[Cell]:
    name, run, trajectory = space.recipe.name, str(space.folder), space.recipe.teacher_seed
    # Seed by seed, so that a comparison that is stopped has all methods on fewer seeds.
    return [Cell(name, run, method, seed, trajectory) for seed in plan.seeds for method in plan.methods]


def _rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """What results.jsonl keeps of a cell: a row for every metric on test, and for validation; or one with the error."""
    if outcome.error is not None:
        return [{"status": "failed", "error": outcome.error, "seconds": round(outcome.seconds, 3)}]
    run, student = Path(outcome.cell.run), outcome.cell.student
    trained = read_json(run / "distill" / student / "manifest.json")
    stages = read_json(run / "distill" / student / "stages.json")
    kept = next(stage for stage in stages if stage["stage"] == trained["kept_stage"])["validation"]
    fixed = {"status": "done", "seconds": trained["seconds"]}
    rows = [{"split": "validation", "metric": name, "value": value} for name, value in kept.items() if value is not None]
    rows += [
        {"split": "test", "metric": name, **score} for name, score in read_json(run / "evaluate" / student / "scores.json").items()
    ]
    return [fixed | row for row in rows]


def _in_words(outcome: Outcome, rows: Sequence[dict[str, Any]]) -> str:
    if outcome.error is not None:
        return f"{outcome.cell}: FAILED, {outcome.error.splitlines()[0]}"
    seen = [row for row in rows if row["split"] == "test" and "/" not in row["metric"]]
    first, nll = seen[0], next(row for row in seen if row["metric"] == "nll")
    return f"{outcome.cell}: {first['metric']} {first['value']:.3f}, loss {nll['value']:.3f} nats, {rows[0]['seconds']:.0f} s"
