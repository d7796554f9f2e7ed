"""summary.json: scores with intervals, differences from the best, the 2 x 2, and when students beat their teacher.

Reads results.jsonl, tune.jsonl and the run folders' predictions and losses; needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

from tutelage.analysis.method_comparison import PredictionTable, mean_ranks
from tutelage.analysis.slices import Measure
from tutelage.compare.cell_table import UNCHECKED, CellEntry, CellState, CellTable
from tutelage.compare.cells import RESULTS, Cell, CellFields, CellRecord, ResultsFile
from tutelage.compare.summary.against_best import SIGNS
from tutelage.compare.summary.recipe_section import RecipeSummary, summarise_recipe
from tutelage.compare.summary.scores import RecipeScores
from tutelage.compare.summary.student_section import StudentSummary, prediction, summarise_student
from tutelage.compare.tuning import TUNED, read_tuned
from tutelage.utils.files import write_json

SUMMARY = "summary.json"


class FailedSummary(CellFields):
    """A cell without a result."""

    error: str


class StaleSummary(CellFields):
    """A cell that was made from other inputs than the command's recipes have now. It does not count."""

    inputs: str
    """Fingerprint of what it was made from."""
    wanted: str | None
    """Fingerprint of what it would be made from; None if no inputs of today give this cell."""


class TunedRate(TypedDict):
    """A learning rate that was tried, with means over seeds on validation."""

    learning_rate: float
    score: NotRequired[float]
    nll: float


class TuningSummary(TypedDict):
    """The learning rates of one method of one recipe."""

    recipe: str
    method: str
    chosen: float | None
    rates: list[TunedRate]


class Summary(TypedDict):
    """summary.json."""

    tuning: list[TuningSummary]
    recipes: list[RecipeSummary]
    failed: list[FailedSummary]
    stale: list[StaleSummary]
    mean_ranks: dict[Measure, dict[str, float]]
    """Over recipes, of the methods that all of them have; empty without recipes."""
    cells: list[StudentSummary]
    validation_foretells_test: dict[Measure, PredictionTable]
    """Whether validation predicts that a student beats its teacher on test; empty without students."""


def write_summary(folder: Path, table: CellTable | None = None) -> Summary:
    """Compute summary.json of a comparison, write it and return it.

    table: of the command that just ran; stale cells in it are listed and do not count. By default nothing is expected
    and all recorded cells count. Raises UserError for results that cannot be put together, StaleArtifactError for
    results that the predictions contradict.
    """
    table = table or CellTable(ResultsFile(folder / RESULTS).records())
    counted = table.counted()
    records: dict[str, dict[Cell, CellRecord]] = {}
    for entry in counted:
        if entry.state is CellState.DONE:
            records.setdefault(entry.cell.recipe, {})[entry.cell] = entry.record
    recipes = [RecipeScores(name, of_recipe) for name, of_recipe in records.items()]
    sections = [summarise_recipe(recipe) for recipe in recipes]
    students = [summarise_student(recipe, cell) for recipe in recipes for cell in recipe.records]
    summary: Summary = {
        "tuning": _tuning(folder / TUNED),
        "recipes": sections,
        "failed": [
            {**asdict(entry.cell), "error": entry.record.error} for entry in counted if entry.state is CellState.FAILED
        ],
        "stale": [_stale(entry) for entry in table.in_state(CellState.STALE)],
        "mean_ranks": _mean_ranks(sections),
        "cells": students,
        "validation_foretells_test": prediction(students),
    }
    write_json(folder / SUMMARY, summary)
    return summary


def _tuning(path: Path) -> list[TuningSummary]:
    sections: list[TuningSummary] = []
    for tuned in read_tuned(path) if path.is_file() else ():
        rates = [{"learning_rate": rate, **means} for rate, means in sorted(tuned.validation.items())]
        sections.append({"recipe": tuned.recipe, "method": tuned.method, "chosen": tuned.best, "rates": rates})
    return sections


def _stale(entry: CellEntry) -> StaleSummary:
    wanted = None if entry.expected is UNCHECKED else entry.expected
    return {**asdict(entry.cell), "inputs": entry.record.inputs, "wanted": wanted}


def _mean_ranks(recipes: Sequence[RecipeSummary]) -> dict[Measure, dict[str, float]]:
    if not recipes:
        return {}
    methods = [name for name in recipes[0]["methods"] if all(name in recipe["methods"] for recipe in recipes)]
    ranks: dict[Measure, dict[str, float]] = {}
    for measure, sign in SIGNS.items():
        values = [[sign * recipe["methods"][name][measure]["value"] for recipe in recipes] for name in methods]
        ranks[measure] = dict(zip(methods, mean_ranks(values).tolist(), strict=True)) if methods else {}
    return ranks
