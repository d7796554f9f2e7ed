"""What a comparison says: scores with intervals, what differs from the best, the 2 x 2, and when the student can win.

Reads the run folders' predictions and losses, and the comparison's results.jsonl; needs no model. Writes summary.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.artifacts import read_json, write_json
from tutelage.cells import Cell, ResultsFile
from tutelage.config import load_recipe
from tutelage.records import Example, Prediction, read_jsonl, read_records
from tutelage.resampling import Estimate, Statistic
from tutelage.statistics import (
    gap_closed_interval,
    hierarchical_bootstrap,
    holm,
    mean_ranks,
    paired_difference,
    prediction_table,
    seeds_needed,
    two_by_two,
)
from tutelage.tasks import make_task
from tutelage.theory import split_risk
from tutelage.tuning import TUNED, tuned
from tutelage.ui import print_table

SUMMARY = "summary.json"
TWO_BY_TWO = ("td", "td-aw", "scd", "scd-aw")
"""Best constant, best adaptive, scheduled constant, scheduled adaptive."""
IDENTITY_NATS = 1e-9
"""R(S) - R(T) and deficit - advantage may differ by this, which is rounding."""


@dataclass(frozen=True)
class Scored:
    """One model on the test rows, in the order of the rows."""

    table: np.ndarray
    """[rows, k] numbers that the task's metrics are made of."""
    nll: np.ndarray
    """[rows] nats an answer token."""
    validation: dict[str, float]
    """Losses on the validation rows, by id."""


class Recipe:
    """One recipe's runs (one for each teacher trajectory) with everything that was scored in them."""

    def __init__(self, name: str, cells: Sequence[Cell]) -> None:
        """cells: those that came to a good end."""
        self.name, self.cells = name, list(cells)
        runs = list(dict.fromkeys(cell.run for cell in cells))
        loaded = load_recipe(Path(runs[0]) / "recipe.yaml").recipe
        about = read_json(Path(runs[0]) / "prepare" / "data.json")
        self.task = make_task(loaded.task, about["labels"], choice=about["choice"])
        lines = (line for line in read_jsonl(Path(runs[0]) / "prepare" / "rows.jsonl") if line["split"] == "test")
        self.examples = [Example(**line) for line in lines]
        self.models: dict[tuple[str, str], Scored] = {}
        """By run and name in it."""
        for run in runs:
            names = ["teacher", "anchor", *(cell.student for cell in cells if cell.run == run)]
            self.models |= {(run, name): self._read(Path(run) / "evaluate" / name) for name in names}

    def statistic(self, metric: str) -> Statistic:
        """A metric of the task as a function of draws of rows."""
        return lambda draws, rows: self._metrics(draws, rows)[metric]

    def of(self, method: str) -> list[Cell]:
        """Cells of a method, by trajectory and seed."""
        return sorted((c for c in self.cells if c.method == method), key=lambda c: (c.teacher_seed, c.seed))

    def common(self, *methods: str) -> list[list[Cell]]:
        """Cells of each method, those alone whose trajectory and seed all of them have; pairs in order."""
        found = [{(cell.teacher_seed, cell.seed): cell for cell in self.of(name)} for name in methods]
        keys = [key for key in found[0] if all(key in cells for cells in found)]
        return [[cells[key] for key in keys] for cells in found]

    def tables(self, cells: Sequence[Cell], name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """([cells, rows, k], [cells, rows] losses) of the cells' students, or of the model `name` in the cells' runs."""
        found = [self.models[cell.run, name or cell.student] for cell in cells]
        if name is not None and len({cell.run for cell in cells}) == 1:
            found = found[:1]
        return np.stack([model.table for model in found]), np.stack([model.nll for model in found])

    def _read(self, folder: Path) -> Scored:
        rows = {row.id: row for row in read_records(folder / "predictions.jsonl", Prediction)}
        ordered = [rows[example.id] for example in self.examples]
        table, self._metrics = self.task.table([row.prediction for row in ordered], self.examples)
        validation = {row["id"]: row["nll"] for row in read_jsonl(folder / "validation_loss.jsonl")}
        return Scored(table, np.array([row.nll for row in ordered]), validation)


def write_summary(folder: Path) -> dict[str, Any]:
    """Work out summary.json of a comparison from results.jsonl and the run folders, and return it."""
    lines = ResultsFile(folder / "results.jsonl").lines()
    good = {cell: rows for cell, rows in lines.items() if rows[0]["status"] == "done"}
    names = list(dict.fromkeys(cell.recipe for cell in good))
    recipes = [Recipe(name, [cell for cell in good if cell.recipe == name]) for name in names]
    summary = {
        "tuning": _tuning(folder / TUNED),
        "recipes": [_recipe(recipe, good) for recipe in recipes],
        "failed": [{**asdict(cell), "error": rows[0]["error"]} for cell, rows in lines.items() if cell not in good],
    }
    summary["mean_ranks"] = _ranks(summary["recipes"])
    summary["cells"] = [_cell(recipe, cell) for recipe in recipes for cell in recipe.cells]
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


def _recipe(recipe: Recipe, results: dict[Cell, list[dict[str, Any]]]) -> dict[str, Any]:
    metric = recipe.task.metric
    methods = list(dict.fromkeys(cell.method for cell in recipe.cells))
    found = {name: _method(recipe, name, results) for name in methods}
    base = {}
    one_a_run = list({cell.run: cell for cell in recipe.cells}.values())
    for name in ("teacher", "anchor"):
        table, nll = recipe.tables(one_a_run, name)
        base[name] = _estimates(recipe, table, nll)
    for key in ("score", "nll"):
        _against_best(recipe, found, key)
    effects = {}
    if set(TWO_BY_TWO) <= set(methods) and recipe.common(*TWO_BY_TWO)[0]:
        effects = {key: _two_by_two(recipe, key) for key in ("score", "nll")}
    return {
        "name": recipe.name, "task": recipe.task.name, "metric": metric, "rows": len(recipe.examples), "base": base,
        "methods": found, "two_by_two": effects,
    }  # fmt: skip


def _method(recipe: Recipe, name: str, results: dict[Cell, list[dict[str, Any]]]) -> dict[str, Any]:
    """Score, loss and share of the gap of one method; the gap is that from `sft`, or else from the anchor, to the teacher."""
    cells = recipe.of(name)
    return {
        "seeds": len(cells),
        **_estimates(recipe, *recipe.tables(cells)),
        "gap_closed": _gap_closed(recipe, name),
        "validation": _validation([row for cell in cells for row in results[cell] if row["split"] == "validation"]),
        "seconds": float(np.mean([results[cell][0]["seconds"] for cell in cells])),
    }


def _validation(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of what choices are made by."""
    names = dict.fromkeys(row["metric"] for row in rows)
    return {name: float(np.mean([row["value"] for row in rows if row["metric"] == name])) for name in names}


def _gap_closed(recipe: Recipe, name: str) -> dict[str, Any]:
    """Share of the gap between plain fine-tuning and teacher, on the seeds that both methods have."""
    baseline, cells = recipe.common("sft", name)
    cells = cells or recipe.of(name)
    sft = recipe.tables(baseline)[0] if baseline else recipe.tables(cells, "anchor")[0]
    teacher, students = recipe.tables(cells, "teacher")[0], recipe.tables(cells)[0]
    gap = gap_closed_interval(sft, teacher, students, recipe.statistic(recipe.task.metric))
    return {"share": gap.share, "low": gap.low, "high": gap.high, "from": "sft" if baseline else "anchor"}


def _estimates(recipe: Recipe, table: np.ndarray, nll: np.ndarray) -> dict[str, Any]:
    return {
        "score": _interval(hierarchical_bootstrap(table, recipe.statistic(recipe.task.metric))),
        "nll": _interval(hierarchical_bootstrap(nll)),
    }


def _interval(estimate: Estimate) -> dict[str, Any]:
    return estimate.interval._asdict() | {"rows_only": estimate.rows_only}


def _against_best(recipe: Recipe, found: dict[str, dict[str, Any]], key: str) -> None:
    """Add to every method its rank, and its difference from the best by score, or by loss, with Holm's correction."""
    sign = 1 if key == "score" else -1
    order = sorted(found, key=lambda name: -sign * found[name][key]["value"])
    best = order[0]
    others = [name for name in order[1:] if recipe.common(name, best)[0]]
    statistic = recipe.statistic(recipe.task.metric) if key == "score" else None
    place = 0 if key == "score" else 1
    differences = []
    for name in others:
        theirs, mine = (recipe.tables(cells)[place] for cells in recipe.common(name, best))
        differences.append(paired_difference(theirs, mine, statistic))
    adjusted = holm([difference.p_value for difference in differences]) if differences else []
    for rank, name in enumerate(order, start=1):
        found[name][f"{key}_rank"] = rank
    for name, difference, p_value in zip(others, differences, adjusted, strict=True):
        found[name][f"{key}_against_best"] = {
            "best": best,
            "difference": _interval(difference),
            "test": difference.test,
            "p_value": difference.p_value,
            "p_holm": float(p_value),
            "seeds_needed": asdict(seeds_needed(difference)),
        }


def _two_by_two(recipe: Recipe, key: str) -> dict[str, Any]:
    place, statistic = (0, recipe.statistic(recipe.task.metric)) if key == "score" else (1, None)
    effects = two_by_two(*(recipe.tables(cells)[place] for cells in recipe.common(*TWO_BY_TWO)), statistic)
    return {name: _interval(getattr(effects, name)) for name in ("schedule", "weighting", "interaction")}


def _ranks(recipes: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean rank over recipes of the methods that all of them have, by score and by loss."""
    if not recipes:
        return {}
    methods = [name for name in recipes[0]["methods"] if all(name in recipe["methods"] for recipe in recipes)]
    found = {}
    for key, sign in (("score", 1), ("nll", -1)):
        scores = [[sign * recipe["methods"][name][key]["value"] for recipe in recipes] for name in methods]
        found[key] = dict(zip(methods, mean_ranks(scores).tolist(), strict=True)) if methods else {}
    return found


def _cell(recipe: Recipe, cell: Cell) -> dict[str, Any]:
    """The split of a student's risk against its teacher's on test and on validation, and who won."""
    student, teacher = recipe.models[cell.run, cell.student], recipe.models[cell.run, "teacher"]
    test = split_risk(student.nll, teacher.nll)
    error = abs(test.difference - (test.deficit - test.advantage))
    if error > IDENTITY_NATS:
        raise ArithmeticError(f"{cell}: R(S) - R(T) and deficit - advantage differ by {error:.3g} nats")
    shared = [id for id in student.validation if id in teacher.validation]
    held_out = split_risk([student.validation[id] for id in shared], [teacher.validation[id] for id in shared]) if shared else None
    score = recipe.statistic(recipe.task.metric)
    once = np.ones((1, len(recipe.examples)))
    mine, theirs = (float(score(once, model.table)[0]) for model in (student, teacher))
    return {
        **asdict(cell),
        "score": mine, "teacher_score": theirs, "beats_teacher_in_score": mine > theirs,
        "beats_teacher_in_nll": test.difference < 0,
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


# --- printed ---

NOTE = (
    "* one seed: the interval is about other test rows, not about training again. p: difference in score from the best, which"
    " was picked on the same rows and so looks a little better than it is."
)


def show(summary: dict[str, Any], form: str = "table") -> None:
    """Print a summary. form: table, markdown, latex, csv or json."""
    if form == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    print_table("methods on test rows, 95 % intervals", *grid(summary), form=form)
    if form == "markdown":
        print(f"\n{NOTE}")
    if form != "table":
        return
    for recipe in summary["recipes"]:
        for key, effects in recipe["two_by_two"].items():
            words = ", ".join(f"{name} {_span(value, '+')}" for name, value in effects.items())
            print(f"{recipe['name']}, effects on {recipe['metric'] if key == 'score' else 'loss'}: {words}")
    for cell in summary["failed"]:
        print(f"failed: {cell['recipe']} {cell['method']} seed {cell['seed']}: {cell['error'].splitlines()[0]}")
    print(NOTE)


def grid(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the printed table: base models and methods of every recipe, the best first."""
    head = ["recipe", "method", "seeds", "score", "gap closed", "loss (nats)", "p (Holm)", "seconds", "rank"]
    lines = []
    for recipe in summary["recipes"]:
        for name, seen in recipe["base"].items():
            lines.append([recipe["name"], name, "", _span(seen["score"]), "", _span(seen["nll"]), "", "", ""])
        for name, seen in sorted(recipe["methods"].items(), key=lambda item: item[1]["score_rank"]):
            against = seen.get("score_against_best")
            lines.append(
                [
                    recipe["name"],
                    name,
                    str(seen["seeds"]),
                    _span(seen["score"]),
                    _share(seen["gap_closed"]),
                    _span(seen["nll"]),
                    f"{against['p_holm']:.3f}" if against else "best" if seen["score_rank"] == 1 else "",
                    f"{seen['seconds']:.0f}",
                    f"{seen['score_rank']} / {seen['nll_rank']}",
                ]
            )
    return head, lines


def _span(value: dict[str, Any], sign: str = "") -> str:
    numbers = (f"{value[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*numbers) + ("*" if value["rows_only"] else "")


def _share(gap: dict[str, Any]) -> str:
    if gap["share"] is None:
        return "no gap"
    ends = ["" if gap[end] is None or not math.isfinite(gap[end]) else f"{gap[end]:.0%}" for end in ("low", "high")]
    return f"{gap['share']:.0%} [{ends[0]}, {ends[1]}]"
