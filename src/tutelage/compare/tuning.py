"""Learning rates that were tried on validation, and the one that is best; reads a comparison's tune.jsonl, needs no
model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tutelage.compare.cells import Cell, ResultsFile
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Recipe

TUNED = "tune.jsonl"
_RATE = "trainer.learning_rate="


@dataclass(frozen=True)
class Tuned:
    """One method of one recipe."""

    recipe: str
    method: str
    seeds: int
    """Students tried with each rate."""
    seen: dict[float, dict[str, float]]
    """By learning rate, mean `score` and `nll` of the kept students on validation; rates with which a training failed
    are not there."""
    best: float | None
    """The rate with the best score or loss, as `distill.select_by` says, the smaller one of equals; None where all
    failed."""


def cells(recipe: Recipe, methods: list[str]) -> list[Cell]:
    """What is trained for it: every method with every rate of the grid, `tune.seeds` times."""
    name, run, trajectory = recipe.name, recipe.output_dir, recipe.teacher_seed
    tried = itertools.product(methods, range(recipe.tune.seeds), recipe.tune.grid)
    return [Cell(name, run, method, seed, trajectory, setting(rate)) for method, seed, rate in tried]


def setting(rate: float) -> str:
    """A learning rate as the name of a variant has it."""
    return f"{_RATE}{rate!r}"


def tuned(path: Path) -> Iterator[Tuned]:
    """What tune.jsonl says about every method; rates and seeds that the recipe no longer has do not count."""
    lines = ResultsFile(path).lines()
    for run, recipe_name, method in dict.fromkeys((cell.run, cell.recipe, cell.method) for cell in lines):
        recipe = load_recipe(Path(run) / "recipe.yaml").recipe
        done = {cell: rows for cell, rows in lines.items() if rows[0]["status"] == "done"}
        seen = {}
        for rate in recipe.tune.grid:
            tried = [done[cell] for cell in cells(recipe, [method]) if cell in done and cell.options == setting(rate)]
            if len(tried) == recipe.tune.seeds:
                seen[rate] = {
                    same[0]["metric"]: fmean(row["value"] for row in same) for same in zip(*tried, strict=True)
                }
        yield Tuned(
            recipe_name, method, recipe.tune.seeds, seen, _best(seen, recipe.distill.select_by) if seen else None
        )


def _best(seen: dict[float, dict[str, float]], by: str) -> float:
    def rank(rate: float) -> tuple[float, float, float]:
        values = seen[rate]
        return values.get("score", 0.0) if by == "score" else 0.0, -values["nll"], -rate

    return max(seen, key=rank)
