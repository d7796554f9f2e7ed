"""compare --tune: trains students with every learning rate of the grid; runs and methods then get the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tutelage.compare.cell_runs import TUNE, run_cells
from tutelage.compare.plan import ComparisonPlan, with_learning_rate
from tutelage.compare.shared_stages import anchor_stages, teacher_stages
from tutelage.compare.tuning import TUNED, TunedMethod, read_tuned, tuning_cells
from tutelage.errors import ModelError
from tutelage.run.workspace import Workspace

Rates = dict[str, dict[str, float]]
"""Learning rates by recipe and method."""


def search_learning_rates(plan: ComparisonPlan, spaces: Sequence[Workspace]) -> tuple[list[Workspace], Rates]:
    """The runs with the learning rate that is best on validation, and the rates of methods that have their own
    (`tune.each`).

    The rate of `tune.on` comes first, since the anchor is trained with it too. Rates are searched in the recipe's own
    run folder; the run folders of other teacher seeds get the same.
    """
    own = _first_of_recipe(spaces)
    for space in own:
        teacher_stages(space, list(dict.fromkeys([*plan.methods, space.recipe.tune.on])))
    shared = _best_rates(plan, [(space, [space.recipe.tune.on]) for space in own])
    tuned = [_with_rate(space, shared[space.recipe.name][space.recipe.tune.on]) for space in spaces]
    per_method = [space for space in _first_of_recipe(tuned) if space.recipe.tune.each]
    for space in per_method:
        anchor_stages(space, list(plan.methods))
    rates = _best_rates(plan, [(space, list(plan.methods)) for space in per_method]) if per_method else {}
    return tuned, rates


def _first_of_recipe(spaces: Sequence[Workspace]) -> list[Workspace]:
    """Of every recipe the run folder of its own teacher seed."""
    first: dict[str, Workspace] = {}
    for space in spaces:
        first.setdefault(space.recipe.name, space)
    return list(first.values())


def _best_rates(plan: ComparisonPlan, methods_of: Sequence[tuple[Workspace, list[str]]]) -> Rates:
    """Train these methods of these runs with every rate of the grid. Raises ModelError if all rates of one fail."""
    spaces = {cell: space for space, methods in methods_of for cell in tuning_cells(space.recipe, methods)}
    run_cells(plan, TUNE, spaces)
    tuned = list(read_tuned(plan.folder / TUNED))
    return {
        space.recipe.name: {
            result.method: _announce(space, result)
            for result in tuned
            if result.recipe == space.recipe.name and result.method in methods
        }
        for space, methods in methods_of
    }


def _announce(space: Workspace, tuned: TunedMethod) -> float:
    """Tell the user which rate was chosen, and return it."""
    if tuned.best is None:
        raise ModelError(
            f"{tuned.recipe}: {tuned.method} failed with every learning rate of tune.grid; the errors are in logs/"
        )
    rates = list(tuned.validation)
    means = f" by the means of {tuned.seeds} seeds" if tuned.seeds > 1 else ""
    space.screen.say(
        f"tune: {tuned.recipe} {tuned.method}: learning rate {tuned.best:g}, the best of {len(rates)}{means}"
    )
    if len(rates) > 1 and tuned.best in (min(rates), max(rates)):
        space.screen.warn(f"{tuned.best:g} is the end of tune.grid: a rate beyond it may be better; widen the grid")
    return tuned.best


def _with_rate(space: Workspace, rate: float) -> Workspace:
    return replace(space, recipe=with_learning_rate(space.recipe, rate))
