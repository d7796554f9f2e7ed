"""compare: every method with every seed on the same teacher, anchor and cache.

Writes COMPARISON/results.jsonl (a line for each cell and metric, appended as cells end) and logs/. The students are
where `distill` and `evaluate` write them, in the run folders; a finished cell is read and not run again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tutelage.compare.cell_runs import COMPARE, make_cell, make_executor, run_cells
from tutelage.compare.cell_table import CellTable
from tutelage.compare.cells import RESULTS, Cell, ResultsFile, has_teacher
from tutelage.compare.learning_rate_search import search_learning_rates
from tutelage.compare.plan import ComparisonPlan, with_teacher_seed
from tutelage.compare.shared_stages import prepare_rows, run_folders, run_shared_stages
from tutelage.compare.tuning import TUNED, learning_rate_option
from tutelage.errors import UserError
from tutelage.method.methods import method_names, split_variant
from tutelage.recipe.renamed import variant_notes
from tutelage.run import stage_inputs
from tutelage.run.manifest import Work, locked
from tutelage.run.run_folder import RunFolder


def run_comparison(plan: ComparisonPlan) -> CellTable:
    """Run all cells without an up-to-date result and record each; returns the state of every planned and recorded cell.

    Raises what a stage before the cells raises.
    """
    runs = [run for recipe in plan.recipes for run in run_folders(recipe, plan)]
    told = {note for recipe in plan.recipes for method in recipe.distill.methods for note in variant_notes(method)}
    for note in dict.fromkeys(note for method in plan.methods for note in variant_notes(method)):
        if note not in told:  # by the recipe that has the same method
            runs[0].screen.warn(note)
    if plan.teacher_seeds > 1 and len(plan.seeds) == 1:
        runs[0].screen.warn(
            "one seed with several teacher seeds: 95 % intervals hold in 80 to 85 % only; give --seeds 2 or more"
        )
    with _locked(plan, runs):
        _check_before_training(plan, runs)
        rates: dict[str, dict[str, float]] = {}
        if plan.tune:
            runs, rates = search_learning_rates(plan, runs)
        elif (plan.folder / TUNED).is_file():
            runs[0].screen.warn(
                "this comparison was tuned; without --tune students have the recipe's own learning rate again"
            )
        first_anchors: dict[str, Path] = {}
        for run in runs:
            _announce(run, plan)
            anchor = first_anchors.setdefault(run.recipe.name, run.folder / "anchor")
            run_shared_stages(run, plan.methods, anchor)
        cells = {cell: run for run in runs for cell in _cells(run, plan, rates.get(run.recipe.name, {}))}
        fingerprints = run_cells(plan, COMPARE, cells)
        records = ResultsFile(plan.folder / RESULTS).records()
        return CellTable(records, fingerprints, _fingerprints_now(runs, records.keys() - fingerprints.keys()))


@contextmanager
def _locked(plan: ComparisonPlan, runs: Sequence[RunFolder]) -> Iterator[None]:
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(locked(run.folder))
        locks.enter_context(locked(plan.folder, elsewhere="--output ANOTHER_FOLDER", is_own=is_comparison))
        yield


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds the results of a comparison."""
    return any((folder / name).is_file() for name in (RESULTS, TUNED))


def _check_before_training(plan: ComparisonPlan, runs: Sequence[RunFolder]) -> None:
    """Whether there is a cluster whose nodes see the folders, and the rows of all recipes can be used."""
    if plan.executor == "ray":
        make_executor(plan, make_cell, runs).check()
    for run in runs:
        _announce(run, plan)
        prepare_rows(run, plan.methods)


def _announce(run: RunFolder, plan: ComparisonPlan) -> None:
    """Say which run the next lines are about, if there are several."""
    if plan.teacher_seeds > 1 or len(plan.recipes) > 1:
        run.screen.say(f"{run.recipe.name}, teacher seed {run.recipe.teacher_seed}, in {run.folder}:")


def _cells(run: RunFolder, plan: ComparisonPlan, rates: dict[str, float]) -> list[Cell]:
    """The planned cells of a run. rates: learning rates of methods that have their own."""
    name, folder, teacher_seed = run.recipe.name, str(run.folder), run.recipe.teacher_seed
    own_folder = next(Path(recipe.output_dir) for recipe in plan.recipes if recipe.name == name)
    # A method without a teacher gives the same students with every teacher seed.
    methods = [method for method in plan.methods if run.folder == own_folder or has_teacher(method)]
    options = {method: learning_rate_option(rate) for method, rate in rates.items()}
    # Seed by seed, so that a comparison that is stopped has all methods on fewer seeds.
    return [
        Cell(name, folder, method, seed, teacher_seed, options.get(method, ""))
        for seed in plan.seeds
        for method in methods
    ]


def _fingerprints_now(runs: Sequence[RunFolder], cells: Collection[Cell]) -> dict[Cell, str | None]:
    """What cells of earlier commands would be made from with the recipes of today; None if what they need does not
    exist. Cells of other recipes, and of methods that are not installed, are left out."""
    own_runs = {run.recipe.name: run for run in reversed(runs)}
    fingerprints: dict[Cell, str | None] = {}
    for cell in cells:
        if cell.recipe not in own_runs or split_variant(cell.method)[0] not in method_names():
            continue
        own_run = own_runs[cell.recipe]
        run = replace(own_run, recipe=with_teacher_seed(own_run.recipe, cell.teacher_seed))
        try:
            student = Work(run.folder / "distill" / cell.student, stage_inputs.student(run, cell.name))
            fingerprints[cell] = student.fingerprint() if cell.run == str(run.folder) else None
        except UserError:  # a stage that it is made from is stale or missing, or its settings are no longer allowed
            fingerprints[cell] = None
    return fingerprints
