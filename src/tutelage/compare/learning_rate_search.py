"""compare --tune: trains students with every learning rate of the grid; runs and methods then get the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tutelage.compare.cell_runs import TUNE, run_cells
from tutelage.compare.plan import ComparisonPlan, with_learning_rate
from tutelage.compare.shared_stages import anchor_stages, teacher_stages
from tutelage.compare.tuning import TUNED, TunedMethod, read_tuned, tuning_cells
from tutelage.errors import ModelError
from tutelage.run.run_folder import RunFolder

Rates = dict[str, dict[str, float]]
"""Learning rates by recipe and method."""


def search_learning_rates(plan: ComparisonPlan, runs: Sequence[RunFolder]) -> tuple[list[RunFolder], Rates]:
    """The runs with the learning rate that is best on validation; and with `tune.per_method` the rates of methods.

    The rate of `tune.method` comes first, since the anchor is trained with it too. Rates are searched in the recipe's
    own run folder; the run folders of other teacher seeds get the same.
    """
    own = _first_of_recipe(runs)
    for run in own:
        teacher_stages(run, list(dict.fromkeys([*plan.methods, run.recipe.tune.method])))
    shared = _best_rates(plan, [(run, [run.recipe.tune.method]) for run in own])
    chosen = [shared[run.recipe.name][run.recipe.tune.method] for run in runs]
    tuned = [replace(run, recipe=with_learning_rate(run.recipe, rate)) for run, rate in zip(runs, chosen, strict=True)]
    per_method = [run for run in _first_of_recipe(tuned) if run.recipe.tune.per_method]
    for run in per_method:
        anchor_stages(run, list(plan.methods))
    rates = _best_rates(plan, [(run, list(plan.methods)) for run in per_method]) if per_method else {}
    return tuned, rates


def _first_of_recipe(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Of every recipe the run folder of its own teacher seed."""
    first: dict[str, RunFolder] = {}
    for run in runs:
        first.setdefault(run.recipe.name, run)
    return list(first.values())


def _best_rates(plan: ComparisonPlan, methods_of: Sequence[tuple[RunFolder, list[str]]]) -> Rates:
    """Train these methods of these runs with every rate of the grid. Raises ModelError if all rates of one fail."""
    runs = {cell: run for run, methods in methods_of for cell in tuning_cells(run.recipe, methods)}
    run_cells(plan, TUNE, runs)
    tuned = list(read_tuned(plan.folder / TUNED))
    return {
        run.recipe.name: {
            result.method: _announce(run, result)
            for result in tuned
            if result.recipe == run.recipe.name and result.method in methods
        }
        for run, methods in methods_of
    }


def _announce(run: RunFolder, tuned: TunedMethod) -> float:
    """Tell the user which rate was chosen, and return it."""
    if tuned.best is None:
        raise ModelError(
            f"{tuned.recipe}: {tuned.method} failed with every learning rate of tune.grid; the errors are in logs/"
        )
    rates = list(tuned.validation)
    means = f" by the means of {tuned.seeds} seeds" if tuned.seeds > 1 else ""
    run.screen.say(
        f"tune: {tuned.recipe} {tuned.method}: learning rate {tuned.best:g}, the best of {len(rates)}{means}"
    )
    if len(rates) > 1 and tuned.best in (min(rates), max(rates)):
        run.screen.warn(f"{tuned.best:g} is the end of tune.grid: a rate beyond it may be better; widen the grid")
    return tuned.best
