"""Learning rates that were tried on validation, and the one that is best; reads a comparison's tune.jsonl, needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tutelage.cells import Cell, ResultsFile
from tutelage.config import load_recipe
from tutelage.recipe_schema import Recipe

TUNED = "tune.jsonl"
_RATE = "trainer.learning_rate="


@dataclass(frozen=True)
class Tuned:
    """One method of one recipe."""

    recipe: str
    method: str
    seen: dict[float, dict[str, float]]
    """By learning rate, `score` and `nll` of the kept student on validation; rates whose training failed are not there."""
    best: float | None
    """The rate with the best score or loss, as `distill.keep_by` says, the smaller one of equals; None where all failed."""


def cells(recipe: Recipe, methods: list[str], seed: int) -> list[Cell]:
    """What is trained for it: every method with every rate of the grid, one seed."""
    name, run, trajectory = recipe.name, recipe.output_dir, recipe.teacher_seed
    return [Cell(name, run, method, seed, trajectory, setting(rate)) for method in methods for rate in recipe.tune.grid]


def setting(rate: float) -> str:
    """A learning rate as the name of a variant has it."""
    return f"{_RATE}{rate!r}"


def tuned(path: Path) -> Iterator[Tuned]:
    """What tune.jsonl says about every method; rates that the recipe's grid no longer has do not count."""
    lines = ResultsFile(path).lines()
    for run, recipe_name, method in dict.fromkeys((cell.run, cell.recipe, cell.method) for cell in lines):
        recipe = load_recipe(Path(run) / "recipe.yaml").recipe
        seen = {}
        for cell, rows in lines.items():
            rate = float(cell.options.removeprefix(_RATE))
            if (cell.run, cell.method) == (run, method) and rate in recipe.tune.grid and rows[0]["status"] == "done":
                seen[rate] = {row["metric"]: row["value"] for row in rows}
        yield Tuned(recipe_name, method, seen, _best(seen, recipe.distill.keep_by) if seen else None)


def _best(seen: dict[float, dict[str, float]], by: str) -> float:
    def rank(rate: float) -> tuple[float, float, float]:
        values = seen[rate]
        return values.get("score", 0.0) if by == "score" else 0.0, -values["nll"], -rate

    return max(seen, key=rank)
