"""What a comparison says: scores with intervals, what differs from the best, the 2 x 2, and when the student can win.

Reads the run folders' predictions and losses, and the comparison's results.jsonl; needs no model. Writes summary.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.analysis.crossed_intervals import ROUNDING, Estimate
from tutelage.analysis.method_comparison import gap_closed_interval, mean_ranks, prediction_table, two_by_two
from tutelage.analysis.significance import (
    ALPHA,
    Difference,
    holm,
    holm_levels,
    paired_difference,
    score_estimate,
    seeds_needed,
)
from tutelage.compare.cells import Cell, ResultsFile
from tutelage.compare.collect import Inputs, Key, ScoredRecipe, current, in_order
from tutelage.compare.tuning import TUNED, tuned
from tutelage.method.risk_split import split_risk
from tutelage.utils.files import write_json

SUMMARY = "summary.json"
TWO_BY_TWO = ("td", "td-aw", "scd", "scd-aw")
"""Best constant, best adaptive, scheduled constant, scheduled adaptive."""
BASELINE = "sft"
"""Where the gap to the teacher begins."""
SIGNS = {"score": 1, "nll": -1}
"""1: higher is better."""
IDENTITY_NATS = 1e-9
"""R(S) - R(T) and deficit - advantage may differ by this, which is rounding."""


def write_summary(folder: Path, inputs: Inputs | None = None) -> dict[str, Any]:
    """Work out summary.json of a comparison from results.jsonl and the run folders, and return it.

    inputs: fingerprints of what cells are made from now, first those of the plan; cells of other inputs are left out
    and listed. Raises UserError for results that cannot be put together, StaleArtifactError for results that the
    predictions contradict.
    """
    lines, stale = current(in_order(ResultsFile(folder / "results.jsonl").lines(), list(inputs or {})), inputs)
    good = {cell: rows for cell, rows in lines.items() if rows[0]["status"] == "done"}
    names = list(dict.fromkeys(cell.recipe for cell in good))
    recipes = [ScoredRecipe(name, {cell: rows for cell, rows in good.items() if cell.recipe == name}) for name in names]
    summary = {
        "tuning": _tuning(folder / TUNED),
        "recipes": [_recipe(recipe) for recipe in recipes],
        "failed": [{**asdict(cell), "error": rows[0]["error"]} for cell, rows in lines.items() if cell not in good],
        "stale": stale,
    }
    summary["mean_ranks"] = _ranks(summary["recipes"])
    summary["cells"] = [_cell(recipe, cell) for recipe in recipes for cell in recipe.lines]
    summary["validation_foretells_test"] = _foretells(summary["cells"])
    write_json(folder / SUMMARY, summary)
    return summary


def _tuning(path: Path) -> list[dict[str, Any]]:
    """Learning rates that were tried, with what validation said, and the one that was chosen."""
    found = []
    for tried in tuned(path) if path.is_file() else []:
        rates = [{"learning_rate": rate, **seen} for rate, seen in sorted(tried.seen.items())]
        found.append({"recipe": tried.recipe, "method": tried.method, "chosen": tried.best, "rates": rates})
    return found


def _recipe(recipe: ScoredRecipe) -> dict[str, Any]:
    found = {name: _method(recipe, name) for name in recipe.methods}
    teachers = [(trajectory, 0) for trajectory in recipe.runs]
    base = {
        name: {key: _interval(score_estimate(recipe.base(key, name, keys), grid=keys), key) for key in SIGNS}
        for name, keys in {"teacher": teachers, "anchor": teachers[:1]}.items()
    }
    best = {key: _against_best(recipe, found, key) for key in SIGNS}
    return {
        "name": recipe.name, "task": recipe.task.name, "metric": recipe.task.metric, "rows": len(recipe.examples), "base": base,
        "methods": found, "best": best, "two_by_two": _two_by_two(recipe),
    }  # fmt: skip


def _method(recipe: ScoredRecipe, name: str) -> dict[str, Any]:
    """Score, loss and share of the gap of one method; the gap is that from `sft`, or else from the anchor, to the
    teacher."""
    keys = recipe.keys(name)
    rows = [recipe.lines[recipe.cell(name, key)] for key in keys]
    return {
        "trainings": len(keys),
        "seeds": len({seed for _, seed in keys}),
        "trajectories": len({trajectory for trajectory, _ in keys}),
        **{key: _interval(score_estimate(recipe.sample(key, name, keys), grid=keys), key) for key in SIGNS},
        "gap_closed": _gap_closed(recipe, name),
        "validation": _validation([row for cell in rows for row in cell if row["split"] == "validation"]),
        "seconds": float(np.mean([cell[0]["seconds"] for cell in rows])),
    }


def _validation(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of what choices are made by."""
    names = dict.fromkeys(row["metric"] for row in rows)
    return {name: float(np.mean([row["value"] for row in rows if row["metric"] == name])) for name in names}


def _gap_closed(recipe: ScoredRecipe, name: str) -> dict[str, Any] | None:
    """Share of the gap between plain fine-tuning and teacher, on the seeds that both methods have; None for the
    baseline."""
    if name == BASELINE:
        return None
    shared = recipe.keys(BASELINE, name) if BASELINE in recipe.methods else []
    keys = recipe.under_teachers(shared or recipe.keys(name), name)
    low = recipe.sample("score", BASELINE, keys) if shared else recipe.base("score", "anchor", keys)
    gap = gap_closed_interval(low, recipe.base("score", "teacher", keys), recipe.sample("score", name, keys), grid=keys)
    return {"share": gap.fraction, "low": gap.low, "high": gap.high, "from": BASELINE if shared else "anchor"}


def _interval(estimate: Estimate, of: str | None = None) -> dict[str, Any]:
    """of: `score` or `nll`, which end where the metric does; a difference has no such ends."""
    value, low, high = estimate.interval
    if of is not None:
        low, high = max(low, 0.0), min(high, 1.0) if of == "score" else high
    return {"value": value, "low": low, "high": high, "rows_only": estimate.rows_only}


def _against_best(recipe: ScoredRecipe, found: dict[str, dict[str, Any]], key: str) -> str | None:
    """Add to every method its rank and its difference from the best by validation, with Holm's correction; returns the
    best."""
    ranks = mean_ranks([[SIGNS[key] * seen[key]["value"]] for seen in found.values()])
    for name, rank in zip(found, ranks.tolist(), strict=True):
        found[name][f"{key}_rank"] = int(rank) if rank.is_integer() else rank
    best = _best_on_validation(recipe, found, key)
    shared = {name: recipe.keys(name, best) for name in found if best is not None and name != best}
    differences = {name: _difference(recipe, name, best, keys, key) for name, keys in shared.items() if keys}
    # A test of one training each says nothing of methods: it has no place among those that do.
    several = not all(difference.rows_only for difference in differences.values())
    family = [name for name, difference in differences.items() if not (several and difference.rows_only)]
    p_values = [differences[name].p_value for name in family]
    corrected = dict(
        zip(family, zip(holm(p_values).tolist(), holm_levels(p_values).tolist(), strict=True), strict=True)
    )
    for name, difference in differences.items():
        p_holm, level = corrected.get(name, (None, ALPHA))
        settled = p_holm is not None and p_holm <= ALPHA and not difference.rows_only
        found[name][f"{key}_against_best"] = {
            "best": best,
            "difference": _interval(difference),
            "test": difference.test,
            "p_value": difference.p_value,
            "p_holm": p_holm,
            "seeds_needed": asdict(seeds_needed(difference, settled, level)),
        }
    return best


def _best_on_validation(recipe: ScoredRecipe, found: Mapping[str, Mapping[str, Any]], key: str) -> str | None:
    """The method that others are tested against: of those with the most trainings in common with others, the best on
    validation.

    Test rows choose nothing here: the best of many equal methods on the rows of the test would differ from the others
    by its luck. None where there are no validation losses.
    """
    known = [name for name, seen in found.items() if "nll" in seen["validation"]]
    shared = {name: _in_common(recipe, name, [other for other in found if other != name]) for name in known}

    def standing(name: str) -> tuple[float, float]:
        seen = {part: sign * round(found[name]["validation"].get(part, -math.inf), 12) for part, sign in SIGNS.items()}
        return (seen["score"], seen["nll"]) if key == "score" else (seen["nll"], seen["score"])

    return max((name for name in known if shared[name] == max(shared.values())), key=standing, default=None)


def _in_common(recipe: ScoredRecipe, name: str, others: Sequence[str]) -> tuple[int, int]:
    """(seeds, trajectories) that a method has with others, each summed over them: seeds count first, however many
    teachers."""
    pairs = [recipe.under_teachers(recipe.keys(name, other), name, other) for other in others]
    return sum(len({seed for _, seed in keys}) for keys in pairs), sum(len({run for run, _ in keys}) for keys in pairs)


def _difference(recipe: ScoredRecipe, name: str, best: str, keys: Sequence[Key], key: str) -> Difference:
    return paired_difference(recipe.sample(key, name, keys), recipe.sample(key, best, keys), grid=keys)


def _two_by_two(recipe: ScoredRecipe) -> dict[str, Any]:
    """Empty where the four methods have no seed in common."""
    keys = recipe.keys(*TWO_BY_TWO) if set(TWO_BY_TWO) <= set(recipe.methods) else []
    if not keys:
        return {}
    effects = {key: two_by_two(*(recipe.sample(key, name, keys) for name in TWO_BY_TWO), grid=keys) for key in SIGNS}
    parts = ("schedule", "weighting", "interaction")
    return {key: {part: _interval(getattr(found, part)) for part in parts} for key, found in effects.items()}


def _ranks(recipes: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean rank over recipes of the methods that all of them have, by score and by loss."""
    if not recipes:
        return {}
    methods = [name for name in recipes[0]["methods"] if all(name in recipe["methods"] for recipe in recipes)]
    found = {}
    for key, sign in SIGNS.items():
        scores = [[sign * recipe["methods"][name][key]["value"] for recipe in recipes] for name in methods]
        found[key] = dict(zip(methods, mean_ranks(scores).tolist(), strict=True)) if methods else {}
    return found


def _cell(recipe: ScoredRecipe, cell: Cell) -> dict[str, Any]:
    """The split of a student's risk against its teacher's on test and on validation, and who won."""
    student, teacher = recipe.models[cell.run, cell.student], recipe.models[cell.run, "teacher"]
    test = split_risk(student.losses, teacher.losses)
    error = abs(test.difference - (test.deficit - test.advantage))
    if error > IDENTITY_NATS:
        raise ArithmeticError(f"{cell}: R(S) - R(T) and deficit - advantage differ by {error:.3g} nats")
    shared = [id for id in student.validation if id in teacher.validation]
    held_out = (
        split_risk([student.validation[id] for id in shared], [teacher.validation[id] for id in shared])
        if shared
        else None
    )
    mine, theirs = (model.metrics[recipe.task.metric] for model in (student, teacher))
    return {
        **asdict(cell),
        "score": mine, "teacher_score": theirs, "beats_teacher_in_score": mine > theirs + ROUNDING,
        "beats_teacher_in_nll": test.difference < -ROUNDING,
        "test": asdict(test), "validation": asdict(held_out) if held_out else None, "identity_error": error,
    }  # fmt: skip


def _foretells(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether advantage minus deficit on validation foretells a win on test, in loss and in score."""
    known = [cell for cell in cells if cell["validation"]]
    if not known:
        return {}
    found = {}
    for key in ("score", "nll"):
        table = prediction_table(
            [cell["validation"]["advantage"] for cell in known],
            [cell["validation"]["deficit"] for cell in known],
            [cell[f"beats_teacher_in_{key}"] for cell in known],
        )
        found[key] = asdict(table) | {"accuracy": table.accuracy._asdict()}
    return found
