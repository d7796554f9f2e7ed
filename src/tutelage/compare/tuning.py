"""The learning rates to try, what validation says of them, and the best one. Reads tune.jsonl, needs no model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tutelage.compare.cells import Cell, CellRecord, ResultsFile
from tutelage.recipe.load import load_recipe
from tutelage.recipe.schema import Recipe

TUNED = "tune.jsonl"


@dataclass(frozen=True)
class TunedMethod:
    """The learning rates of one method of one recipe."""

    recipe: str
    method: str
    seeds: int
    """Number of students trained with each rate."""
    validation: dict[float, dict[str, float]]
    """By learning rate, mean `score` and `nll` of its kept students on validation, unless one of them failed."""
    best: float | None
    """Best by score or loss, as `distill.select_by` says, the smaller one of equals; None if all failed."""


def tuning_cells(recipe: Recipe, methods: Sequence[str]) -> list[Cell]:
    """Every method with every rate of the grid, with `tune.seeds` seeds each."""
    return [
        Cell(recipe.name, recipe.output_dir, method, seed, recipe.teacher_seed, learning_rate_option(rate))
        for method, seed, rate in itertools.product(methods, range(recipe.tune.seeds), recipe.tune.grid)
    ]


def learning_rate_option(rate: float) -> str:
    """A learning rate as the name of a variant has it."""
    return f"trainer.learning_rate={rate!r}"


def read_tuned(path: Path) -> Iterator[TunedMethod]:
    """What tune.jsonl says about every method. Rates and seeds that the recipe no longer has do not count."""
    records = ResultsFile(path).records()
    for run, recipe_name, method in dict.fromkeys((cell.run, cell.recipe, cell.method) for cell in records):
        recipe = load_recipe(Path(run) / "recipe.yaml").recipe
        validation = _validation_means(recipe, method, records)
        best = _best_rate(validation, recipe.distill.select_by) if validation else None
        yield TunedMethod(recipe_name, method, recipe.tune.seeds, validation, best)


def _validation_means(recipe: Recipe, method: str, records: Mapping[Cell, CellRecord]) -> dict[float, dict[str, float]]:
    """By rate, of those with which all seeds were trained."""
    done = {cell: record for cell, record in records.items() if not record.failed}
    means = {}
    for rate in recipe.tune.grid:
        cells = [cell for cell in tuning_cells(recipe, [method]) if cell.options == learning_rate_option(rate)]
        if all(cell in done for cell in cells):
            by_metric = zip(*(done[cell].rows for cell in cells), strict=True)
            means[rate] = {rows[0]["metric"]: fmean(row["value"] for row in rows) for rows in by_metric}
    return means


def _best_rate(validation: Mapping[float, Mapping[str, float]], select_by: str) -> float:
    def quality(rate: float) -> tuple[float, float, float]:
        values = validation[rate]
        return values.get("score", 0.0) if select_by == "score" else 0.0, -values["nll"], -rate

    return max(validation, key=quality)
