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
from tutelage.compare.shared_stages import prepare_rows, run_shared_stages, workspaces_of
from tutelage.compare.tuning import TUNED, learning_rate_option
from tutelage.errors import UserError
from tutelage.method.methods import method_names, split_variant
from tutelage.run import stage_inputs
from tutelage.run.manifest import digest, locked
from tutelage.run.workspace import Workspace


def run(plan: ComparisonPlan) -> CellTable:
    """Run all cells without an up-to-date result and record each; returns the state of every planned and recorded cell.

    Raises what a stage before the cells raises.
    """
    spaces = [space for recipe in plan.recipes for space in workspaces_of(recipe, plan)]
    if plan.teacher_seeds > 1 and len(plan.seeds) == 1:
        spaces[0].screen.warn(
            "one seed with several teacher seeds: 95 % intervals hold in 80 to 85 % only; give --seeds 2 or more"
        )
    with _locked(plan, spaces):
        _check_before_training(plan, spaces)
        rates: dict[str, dict[str, float]] = {}
        if plan.tune:
            spaces, rates = search_learning_rates(plan, spaces)
        elif (plan.folder / TUNED).is_file():
            spaces[0].screen.warn(
                "this comparison was tuned; without --tune students have the recipe's own learning rate again"
            )
        first_anchors: dict[str, Path] = {}
        for space in spaces:
            _announce(space, plan)
            anchor = first_anchors.setdefault(space.recipe.name, space.folder / "anchor")
            run_shared_stages(space, plan.methods, anchor)
        cells = {cell: space for space in spaces for cell in _cells(space, plan, rates.get(space.recipe.name, {}))}
        fingerprints = run_cells(plan, COMPARE, cells)
        records = ResultsFile(plan.folder / RESULTS).records()
        return CellTable(records, fingerprints, _fingerprints_now(spaces, records.keys() - fingerprints.keys()))


@contextmanager
def _locked(plan: ComparisonPlan, spaces: Sequence[Workspace]) -> Iterator[None]:
    with ExitStack() as locks:
        for space in spaces:
            locks.enter_context(locked(space.folder))
        locks.enter_context(locked(plan.folder, elsewhere="--output ANOTHER_FOLDER"))
        yield


def _check_before_training(plan: ComparisonPlan, spaces: Sequence[Workspace]) -> None:
    """Whether there is a cluster whose nodes see the folders, and the rows of all recipes can be used."""
    if plan.executor == "ray":
        make_executor(plan, make_cell, spaces).check()
    for space in spaces:
        _announce(space, plan)
        prepare_rows(space, plan.methods)


def _announce(space: Workspace, plan: ComparisonPlan) -> None:
    """Say which run the next lines are about, if there are several."""
    if plan.teacher_seeds > 1 or len(plan.recipes) > 1:
        space.screen.say(f"{space.recipe.name}, teacher seed {space.recipe.teacher_seed}, in {space.folder}:")


def _cells(space: Workspace, plan: ComparisonPlan, rates: dict[str, float]) -> list[Cell]:
    """The planned cells of a run. rates: learning rates of methods that have their own."""
    name, folder, teacher_seed = space.recipe.name, str(space.folder), space.recipe.teacher_seed
    own_folder = next(Path(recipe.output_dir) for recipe in plan.recipes if recipe.name == name)
    # A method without a teacher gives the same students with every teacher seed.
    methods = [method for method in plan.methods if space.folder == own_folder or has_teacher(method)]
    options = {method: learning_rate_option(rate) for method, rate in rates.items()}
    # Seed by seed, so that a comparison that is stopped has all methods on fewer seeds.
    return [
        Cell(name, folder, method, seed, teacher_seed, options.get(method, ""))
        for seed in plan.seeds
        for method in methods
    ]


def _fingerprints_now(spaces: Sequence[Workspace], cells: Collection[Cell]) -> dict[Cell, str | None]:
    """What cells of earlier commands would be made from with the recipes of today; None if what they need does not
    exist. Cells of other recipes, and of methods that are not installed, are left out."""
    own_spaces = {space.recipe.name: space for space in reversed(spaces)}
    fingerprints: dict[Cell, str | None] = {}
    for cell in cells:
        if cell.recipe not in own_spaces or split_variant(cell.method)[0] not in method_names():
            continue
        own_space = own_spaces[cell.recipe]
        space = replace(own_space, recipe=with_teacher_seed(own_space.recipe, cell.teacher_seed))
        try:
            same_folder = cell.run == str(space.folder)
            fingerprints[cell] = digest(stage_inputs.student(space, cell.name)) if same_folder else None
        except UserError:  # a stage that it is made from is stale or missing, or its settings are no longer allowed
            fingerprints[cell] = None
    return fingerprints
