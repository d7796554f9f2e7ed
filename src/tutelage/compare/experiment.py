"""compare: every method with every seed on the same teacher, anchor and cache; one cell after another, or several at a
time.

Writes COMPARISON/results.jsonl (a line for each cell and metric, appended as cells end), logs/ and summary.json. The
students lie where `distill` and `evaluate` put them, in the run folders: a cell that is there already is read and not
made again.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tutelage.compare import tuning
from tutelage.compare.cells import Cell, ResultsFile
from tutelage.compare.collect import has_teacher, kept_on_validation
from tutelage.compare.executors import CellTask, Executor, LocalExecutor, Outcome
from tutelage.errors import ConfigError, ModelError, StaleArtifactError, UserError, problems
from tutelage.method.methods import method_names, split_variant
from tutelage.recipe.load import check, load_recipe, varied
from tutelage.recipe.schema import Recipe
from tutelage.run import stage_inputs
from tutelage.run.manifest import MANIFEST, Work, digest, locked
from tutelage.run.run_folder import RunFolder
from tutelage.stages import distill, evaluate
from tutelage.stages.pipeline import run_stages
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json


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
    tune: bool = False
    """Find the students' learning rate first, as the recipes' `tune` sections say."""
    executor: Literal["local", "ray"] = "local"
    force: bool = False
    """Make again what was made from other inputs."""


def make_plan(
    recipes: Sequence[Recipe],
    methods: str,
    seeds: int,
    teacher_seeds: int = 1,
    jobs: int = 1,
    folder: Path | None = None,
    *,
    tune: bool = False,
    executor: Literal["local", "ray"] = "local",
    force: bool = False,
) -> Plan:
    """A checked plan. methods: names with commas. Raises ConfigError for what cannot be compared."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    wrong = list(dict.fromkeys(problem for recipe in recipes for problem in check(_with(recipe, names, range(seeds)))))
    for recipe, name in itertools.product(recipes, [*names, *([recipe.tune.on for recipe in recipes] if tune else [])]):
        try:
            varied(recipe, name)
        except ConfigError as error:
            wrong.append(str(error))
    wrong += [
        f"{recipe.name}: --teacher-seeds trains further teachers, and teach.checkpoints names yours; leave it out"
        for recipe in recipes if teacher_seeds > 1 and recipe.teach.checkpoints
    ]  # fmt: skip
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
    folder = folder or Path(recipes[0].output_dir) / "compare"
    return Plan(recipes, names, range(seeds), teacher_seeds, jobs, folder, tune, executor, force)


class MadeFrom(NamedTuple):
    """Fingerprints of what cells are made from as the recipes are now."""

    planned: dict[Cell, str]
    others: dict[Cell, str | None]
    """Cells of the plan's recipes that earlier commands made, with other methods or teachers; None: what they need is
    not there."""


def run(plan: Plan) -> MadeFrom:
    """Make all cells that lack a result, and record each. Raises what a stage before the cells raises."""
    spaces = [space for recipe in plan.recipes for space in _trajectories(recipe, plan)]
    if plan.teacher_seeds > 1 and len(plan.seeds) == 1:
        spaces[0].screen.warn(
            "one seed under several trajectories: intervals are too narrow (80 to 85 % for 95 %); give --seeds 2 or more"
        )
    with ExitStack() as held:
        for space in spaces:
            held.enter_context(locked(space.folder))
        held.enter_context(locked(plan.folder, elsewhere="--output ANOTHER_FOLDER"))
        # Before anything is trained: is there a cluster that sees the folders, and are all rows as they should be?
        if plan.executor == "ray":
            _executor(plan, make_cell, spaces).check()
        for space in spaces:
            _say_which(space, plan)
            _stages(space, plan.methods, ["prepare"])
        own: dict[str, dict[str, float]] = {}
        if plan.tune:
            spaces, own = _tune(plan, spaces)
        elif (plan.folder / tuning.TUNED).is_file():
            spaces[0].screen.warn(
                "this comparison was tuned; without --tune students have the recipe's own learning rate again"
            )
        anchors: dict[str, Path] = {}
        for space in spaces:
            _say_which(space, plan)
            _shared_stages(space, plan.methods, anchors.setdefault(space.recipe.name, space.folder / "anchor"))
        wanted = {cell: space for space in spaces for cell in _cells(space, plan, own.get(space.recipe.name, {}))}
        results = ResultsFile(plan.folder / "results.jsonl")
        planned = _make(plan, wanted, results, _executor(plan, make_cell, spaces), _rows_of)
        return MadeFrom(planned, _others(spaces, results.lines().keys() - planned.keys()))


def _others(spaces: Sequence[RunFolder], cells: Collection[Cell]) -> dict[Cell, str | None]:
    """What the recipes' other cells would be made from now. Methods that are not installed, and other recipes, are left
    out."""
    first = {space.recipe.name: space for space in reversed(spaces)}
    found: dict[Cell, str | None] = {}
    for cell in sorted(cells, key=str):
        if cell.recipe not in first or split_variant(cell.method)[0] not in method_names():
            continue
        space = replace(first[cell.recipe], recipe=_trajectory(first[cell.recipe].recipe, cell.teacher_seed))
        try:
            found[cell] = digest(stage_inputs.student(space, cell.name)) if cell.run == str(space.folder) else None
        except UserError:  # a stage that it is made from is stale or gone, or its name says what cannot be any more
            found[cell] = None
    return found


def _say_which(space: RunFolder, plan: Plan) -> None:
    """What the lines from here on are about, where there are several runs."""
    if plan.teacher_seeds > 1 or len(plan.recipes) > 1:
        space.screen.say(f"{space.recipe.name}, teacher seed {space.recipe.teacher_seed}, in {space.folder}:")


def make_cell(cell: Cell, rebuild: bool = False) -> None:
    """Train and score one student, in a process of its own."""
    space = train_cell(cell, rebuild)
    models = RunModels(space)
    evaluate.score(space, models, evaluate.student(space, models, cell.name, cell.seed))


def train_cell(cell: Cell, rebuild: bool = False) -> RunFolder:
    """Train one student, in a process of its own: what tuning looks at is validation."""
    only = [f"distill.methods=[{json.dumps(cell.name)}]", f"distill.seeds=[{cell.seed}]"]
    space = RunFolder(load_recipe(Path(cell.run) / "recipe.yaml", only).recipe, rebuild=rebuild)
    distill.cell(space, RunModels(space), cell.name, cell.seed)
    return space


def _make(
    plan: Plan,
    wanted: dict[Cell, RunFolder],
    results: ResultsFile,
    executor: Executor,
    rows_of: Callable[[Outcome], list[dict[str, Any]]],
) -> dict[Cell, str]:
    """Run the cells that results.jsonl lacks, or has from other inputs, and append a line for each as it ends.

    Returns the fingerprints of what the cells are made from. Raises StaleArtifactError where their folders hold
    students that were made from other inputs, unless the plan says `force`.
    """
    what = "compare" if rows_of is _rows_of else "tune"
    made_from = {cell: stage_inputs.student(space, cell.name) for cell, space in wanted.items()}
    inputs, done = {cell: digest(given) for cell, given in made_from.items()}, results.done()
    works = {cell: Work(Path(cell.run) / "distill" / cell.student, made_from[cell]) for cell in wanted}
    missing = [cell for cell in wanted if done.get(cell) != inputs[cell] or (what == "compare" and not _scored(cell))]
    if not plan.force:
        _refuse_stale({cell: works[cell] for cell in missing})
    screen, began = next(iter(wanted.values())).screen, time.monotonic()
    if other := _other_threads(works.values(), executor.threads):
        screen.warn(other)
    screen.say(f"{what}: {len(wanted)} cells, {len(wanted) - len(missing)} of them are there")
    for number, outcome in enumerate(executor.run(missing), start=1):
        rows = rows_of(outcome)
        results.append(outcome.cell, inputs[outcome.cell], rows)
        left = (time.monotonic() - began) / number * (len(missing) - number)
        ahead = f"; about {left / 60:.0f} min left" if left > 60 else ""
        screen.say(f"[{number}/{len(missing)}] {_in_words(outcome, rows, wanted[outcome.cell])}{ahead}")
    return inputs


def _scored(cell: Cell) -> bool:
    """Whether the predictions are there that a summary is made of; somebody may have cleared them away."""
    return (Path(cell.run) / "evaluate" / cell.student / "predictions.jsonl").is_file()


def _refuse_stale(works: dict[Cell, Work]) -> None:
    changed = {cell: lines for cell, work in works.items() if (lines := work.changed())}
    if changed:
        first = next(iter(changed))
        title = f"{len(changed)} students are there that were made from other inputs than asked for now, first {works[first].folder}:"
        raise StaleArtifactError(
            f"{problems(title, changed[first])}\n  make them again, deleting the old ones:  add --force to this command\n"
            "  keep them, and compare with them:  change a setting in a method's name, as in td+kd_ratio=0.7, not in the recipe\n"
            "  keep them, and run elsewhere:  output_dir=runs/ANOTHER_NAME"
        )


def _other_threads(works: Collection[Work], threads: int) -> str | None:
    """What to say where some students are trained, on processors and with other numbers of threads than those to come
    will have."""
    trained = [
        read_json(work.folder / MANIFEST) for work in works if (work.folder / MANIFEST).is_file() and not work.changed()
    ]
    other = Counter(found["threads"] for found in trained if found.get("threads", threads) != threads)
    if not other or len(trained) == len(works):
        return None
    found = ", ".join(f"{number} for {students} of those that are there" for number, students in sorted(other.items()))
    return (
        f"processor threads: {threads} for the students to come, {found}. Sums round differently then, which can move a student"
        " as far as another seed does. With the same --jobs (on a cluster compare.num_cpus) they are alike; `tutelage run` is as"
        " --jobs 1"
    )


def _executor(plan: Plan, task: CellTask, spaces: Sequence[RunFolder]) -> Executor:
    logs, task = plan.folder / "logs", partial(task, rebuild=plan.force)
    if plan.executor == "local":
        return LocalExecutor(task, logs, plan.jobs)
    from tutelage.compare.ray_executor import RayExecutor

    cell = plan.recipes[0].compare
    folders = [plan.folder, *(space.folder for space in spaces)]
    return RayExecutor(task, logs, folders, num_cpus=cell.num_cpus, num_gpus=cell.num_gpus)


# --- learning rates ---


def _tune(plan: Plan, spaces: Sequence[RunFolder]) -> tuple[list[RunFolder], dict[str, dict[str, float]]]:
    """The runs with the learning rate that is best on validation, and by recipe those of methods that have their own.

    The rate of `tune.on` comes first, since the anchor is trained with it too. Other trajectories take that of the
    recipe's own.
    """
    first = {space.recipe.name: space for space in reversed(spaces)}
    for space in first.values():
        _teacher_stages(space, list(dict.fromkeys([*plan.methods, space.recipe.tune.on])))
    shared = _best_rates(plan, {name: (space, [space.recipe.tune.on]) for name, space in first.items()})
    found = [_with_rate(space, *shared[space.recipe.name].values()) for space in spaces]
    each = {space.recipe.name: (space, list(plan.methods)) for space in reversed(found) if space.recipe.tune.each}
    for space, methods in each.values():
        _anchor_stages(space, methods)
    return found, _best_rates(plan, each) if each else {}


def _best_rates(plan: Plan, tried: dict[str, tuple[RunFolder, list[str]]]) -> dict[str, dict[str, float]]:
    """By recipe and method. tried: the runs of recipes, with the methods that are trained at each rate."""
    cells = {cell: space for space, methods in tried.values() for cell in tuning.cells(space.recipe, methods)}
    path = plan.folder / tuning.TUNED
    _make(
        plan,
        cells,
        ResultsFile(path),
        _executor(plan, train_cell, [space for space, _ in tried.values()]),
        _validation_rows,
    )
    best: dict[str, dict[str, float]] = {name: {} for name in tried}
    for found in tuning.tuned(path):
        space, methods = tried.get(found.recipe, (None, []))
        if found.method in methods:
            best[found.recipe][found.method] = _say_rate(space, found)
    return best


def _say_rate(space: RunFolder, found: tuning.Tuned) -> float:
    if found.best is None:
        raise ModelError(
            f"{found.recipe}: {found.method} failed with every learning rate of tune.grid; what its cells said is in logs/"
        )
    means = f" by the means of {found.seeds} seeds" if found.seeds > 1 else ""
    space.screen.say(
        f"tune: {found.recipe} {found.method}: learning rate {found.best:g}, the best of {len(found.seen)}{means}"
    )
    if len(found.seen) > 1 and found.best in (min(found.seen), max(found.seen)):
        space.screen.warn(f"{found.best:g} is the end of tune.grid: a rate beyond it may be better; widen the grid")
    return found.best


def _with_rate(space: RunFolder, rate: float) -> RunFolder:
    trainer = space.recipe.distill.trainer | {"learning_rate": rate}
    section = space.recipe.distill.model_copy(update={"trainer": trainer})
    return replace(space, recipe=space.recipe.model_copy(update={"distill": section}))


# --- what cells share ---


def _trajectories(recipe: Recipe, plan: Plan) -> list[RunFolder]:
    """A run for every teacher seed; the first is the recipe's own."""
    seeds = range(recipe.teacher_seed, recipe.teacher_seed + plan.teacher_seeds)
    recipes = (_trajectory(_with(recipe, plan.methods, plan.seeds), seed) for seed in seeds)
    return [RunFolder(found, rebuild=plan.force) for found in recipes]


def _trajectory(recipe: Recipe, seed: int) -> Recipe:
    """A recipe with another teacher seed, in a folder of its own."""
    if seed == recipe.teacher_seed:
        return recipe
    teach = recipe.teach.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"output_dir": f"{recipe.output_dir}-teacher-{seed}", "teach": teach})


def _with(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> Recipe:
    return recipe.model_copy(
        update={"distill": recipe.distill.model_copy(update={"methods": [*methods], "seeds": [*seeds]})}
    )


def _shared_stages(space: RunFolder, methods: Sequence[str], anchor_of_first: Path) -> None:
    """Everything that cells share, and the scores that they are compared with.

    The anchor does not depend on the teacher: other trajectories have that of the first, `anchor_of_first`.
    """
    _teacher_stages(space, methods)
    mine = space.folder / "anchor"
    if mine != anchor_of_first and not (mine / MANIFEST).is_file():
        draft = mine.with_name("anchor.part")
        for old in (mine, draft):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(anchor_of_first, draft)
        draft.replace(mine)
    _anchor_stages(space, methods)
    models = RunModels(space)
    for model in evaluate.base_models(space, models):
        evaluate.score(space, models, model)


def _teacher_stages(space: RunFolder, methods: Sequence[str]) -> None:
    """What does not depend on how students are trained."""
    _stages(space, methods, ["prepare", "teach", "cache"])


def _anchor_stages(space: RunFolder, methods: Sequence[str]) -> None:
    _stages(space, methods, ["anchor", "cross_fit"])


def _stages(space: RunFolder, methods: Sequence[str], stages: Sequence[str]) -> None:
    space = replace(space, recipe=_with(space.recipe, methods, space.recipe.distill.seeds))
    run_stages(space, stages)


def _cells(space: RunFolder, plan: Plan, rates: dict[str, float]) -> list[Cell]:
    """rates: learning rates of methods that were tuned by themselves."""
    first = next(Path(recipe.output_dir) for recipe in plan.recipes if recipe.name == space.recipe.name)
    name, run, trajectory = space.recipe.name, str(space.folder), space.recipe.teacher_seed
    own = {method: tuning.setting(rate) for method, rate in rates.items()}
    # A training without a teacher is the same under every trajectory. Seed by seed, so that a comparison that is
    # stopped has all methods on fewer seeds.
    methods = [method for method in plan.methods if space.folder == first or has_teacher(method)]
    return [Cell(name, run, method, seed, trajectory, own.get(method, "")) for seed in plan.seeds for method in methods]


# --- what is kept of a cell ---


def _rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """What results.jsonl keeps of a cell: a row for every metric on test, and for validation; or one with the error."""
    if outcome.error is not None:
        return _validation_rows(outcome)
    run, student = Path(outcome.cell.run), outcome.cell.student
    scores = read_json(run / "evaluate" / student / "scores.json")
    kept = _validation_rows(outcome)
    fixed = {key: kept[0][key] for key in ("status", "seconds")}
    return [*kept, *(fixed | {"split": "test", "metric": name, **score} for name, score in scores.items())]


def _validation_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for every metric of the kept student on validation, or one with the error."""
    if outcome.error is not None:
        return [{"status": "failed", "error": outcome.error, "seconds": round(outcome.seconds, 3)}]
    student = Path(outcome.cell.run) / "distill" / outcome.cell.student
    fixed = {"status": "done", "seconds": read_json(student / MANIFEST)["seconds"], "split": "validation"}
    kept = kept_on_validation(student).items()
    return [{**fixed, "metric": name, "value": value} for name, value in kept if value is not None]


def _in_words(outcome: Outcome, rows: Sequence[dict[str, Any]], space: RunFolder) -> str:
    if outcome.error is not None:
        return f"{outcome.cell}: FAILED, {outcome.error.splitlines()[0]}"
    seen = {row["metric"]: row["value"] for row in rows if row["split"] == rows[-1]["split"]}  # test, if it was scored
    metric = space.task.metric
    score = seen.get(metric, seen.get("score"))
    return f"{outcome.cell}: {metric} {score:.3f}, loss {seen['nll']:.3f} nats, {rows[0]['seconds']:.0f} s"
