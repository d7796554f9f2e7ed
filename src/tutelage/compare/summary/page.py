"""The page of a comparison: summary.json as one self-contained HTML file. Reads nothing else: no model, no torch.

What may be claimed is decided in claims.py, positions in charts here; the templates in report/templates/comparison word
and draw them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.analysis.slices import MEASURES, Measure
from tutelage.compare.summary import claims
from tutelage.compare.summary.claims import PairClaim, Standing, TeacherClaim, interval
from tutelage.compare.summary.recipe_section import Effects, IntervalSummary, MethodSummary, RecipeSummary
from tutelage.compare.summary.student_section import StudentSummary, beats_teacher
from tutelage.compare.summary.summarise import Summary
from tutelage.compare.summary.table import run_count
from tutelage.records import TEXT_BASELINE, Interval
from tutelage.report import page
from tutelage.report.charts import forest, linear_scatter
from tutelage.utils.files import write_text
from tutelage.utils.format import percent, signed_span, span

TWO_BY_TWO = (("td", "td-aw"), ("scd", "scd-aw"))
"""Rows: best checkpoint, scheduled; columns: constant weights, adaptive ones."""
BAR_PERCENT = 48.0
"""Length of the longest bar of the risk split, to either side of the middle."""
SCATTER_HEIGHT = 300.0


def write_page(summary: Summary, path: Path, title: str | None = None) -> None:
    """Write the page of a comparison as a whole or not at all.

    path: of the HTML file; its folder is created if needed. title: heading of the page, by default the recipe's name.
    Every text is escaped. Raises KeyError for a dict that is no summary.
    """
    from tutelage import __version__

    recipes = [_recipe_view(recipe, summary["cells"]) for recipe in summary["recipes"]]
    text = page.render(
        "comparison.html.jinja",
        (ends, signed_ends, gap_ends),
        title=title or _title(summary),
        version=__version__,
        date=time.strftime("%Y-%m-%d"),
        recipes=recipes,
        cells=summary["cells"],
        ranks=_mean_ranks(summary["mean_ranks"]) if len(recipes) > 1 else [],
        predictions={
            measure: {"claim": claims.prediction_claim(table), "table": table}
            for measure, table in summary["validation_foretells_test"].items()
        },
        identity_error=max((cell["identity_error"] for cell in summary["cells"]), default=None),
        failed=[{**cell, "reason": _first_line(cell["error"])} for cell in summary["failed"]],
    )
    write_text(path, text)


def _title(summary: Summary) -> str:
    names = [recipe["name"] for recipe in summary["recipes"]]
    return names[0] if len(names) == 1 else f"{len(names)} data sets" if names else "Comparison"


# --- how numbers are written ---


def ends(score: Interval) -> str:
    """[0.768, 0.818]; empty if the interval is unbounded."""
    return span(score).partition(" ")[2]


def signed_ends(score: Interval) -> str:
    """[−0.006, +0.034]."""
    return signed_span(score).partition(" ")[2]


def gap_ends(gap_closed: Interval) -> str:
    """[12 %, 86 %]; an end that is not bounded says so."""
    if not (math.isfinite(gap_closed.low) or math.isfinite(gap_closed.high)):
        return "unbounded"
    low, high = (percent(end) if math.isfinite(end) else "no bound" for end in (gap_closed.low, gap_closed.high))
    return f"[{low}, {high}]"


def _first_line(error: str | None) -> str:
    return next(iter((error or "").strip().splitlines()), "no message")


# --- one recipe ---


@dataclass(frozen=True)
class RecipeView:
    """What the templates show of one data set."""

    summary: RecipeSummary
    seeds: list[int]
    """Numbers of seeds that methods have."""
    teacher_seeds: int
    base: dict[str, dict[Measure, Interval]]
    standings: dict[Measure, Standing]
    """Empty without methods; so are the next three."""
    teacher_claims: dict[Measure, TeacherClaim]
    """Of the chosen method."""
    chosen_rows: dict[Measure, dict[str, Any]]
    rows: dict[Measure, list[dict[str, Any]]]
    """Lines of the tables of methods, best on test first."""
    plots: dict[Measure, dict[str, Any]]
    gap_from: str
    """Where the gap begins: `sft` or `anchor`."""
    effects: dict[Measure, dict[str, Any]]
    split: dict[str, Any] | None
    text_baseline: Interval | None
    """Score of TF-IDF with logistic regression."""
    baseline_claim: PairClaim | None
    """The same against the chosen method."""


def _recipe_view(recipe: RecipeSummary, cells: Sequence[StudentSummary]) -> RecipeView:
    methods = recipe["methods"]
    students = [cell for cell in cells if cell["recipe"] == recipe["name"]]
    standings = {m: claims.standing(methods, m, recipe["best"][m]) for m in MEASURES} if methods else {}
    rows = {name: _method_row(name, numbers, standings) for name, numbers in methods.items()}
    gaps = (numbers["gap_closed"] for numbers in methods.values())
    return RecipeView(
        summary=recipe,
        seeds=sorted({numbers["seeds"] for numbers in methods.values()}),
        teacher_seeds=max((numbers["trajectories"] for numbers in methods.values()), default=1),
        base={name: {m: interval(numbers[m]) for m in MEASURES} for name, numbers in recipe["base"].items()},
        standings=standings,
        teacher_claims={m: claims.against_teacher(recipe, stand.chosen, m, students) for m, stand in standings.items()},
        chosen_rows={m: rows[stand.chosen] for m, stand in standings.items()},
        rows={m: [rows[name] for name in stand.order] for m, stand in standings.items()},
        plots={m: _interval_plot(recipe, m) for m in MEASURES},
        gap_from=next((gap["from"] for gap in gaps if gap), "anchor"),
        effects={m: _effects(recipe, effects, m) for m, effects in recipe["two_by_two"].items()},
        split=_split(students) if students else None,
        text_baseline=interval(recipe["text_baseline"]["score"]) if "text_baseline" in recipe else None,
        baseline_claim=claims.baseline_claim(recipe),
    )


def _method_row(name: str, numbers: MethodSummary, standings: Mapping[Measure, Standing]) -> dict[str, Any]:
    """A line of the tables of methods. numbers: as in summary.json, for what is shown as it is there."""
    gap = numbers["gap_closed"]
    return {
        "name": name,
        "numbers": numbers,
        "seeds": run_count(numbers).replace(" x ", " × "),
        **{measure: interval(numbers[measure]) for measure in MEASURES},
        "gap": None if gap is None or gap["share"] is None else interval({**gap, "value": gap["share"]}),
        "pair": {measure: stand.pairs.get(name) for measure, stand in standings.items()},
    }


def _interval_plot(recipe: RecipeSummary, measure: Measure) -> dict[str, Any]:
    """Teacher, anchor, TF-IDF (by score), then the methods from first to last.

    Lines are keyed by their index, as a method may be named like a base model.
    """
    methods = recipe["methods"]
    order = sorted(methods, key=lambda name: methods[name][f"{measure}_rank"])
    chosen = recipe["best"][measure] or next(iter(order), None)
    models: list[tuple[str, str, IntervalSummary]] = [
        (name, name, recipe["base"][name][measure]) for name in ("teacher", "anchor") if name in recipe["base"]
    ]
    if measure == "score" and "text_baseline" in recipe:
        models.append((TEXT_BASELINE, "baseline", recipe["text_baseline"]["score"]))
    models += [(name, "distilled", methods[name][measure]) for name in order]
    limits = {"floor": 0.0, "ceiling": 1.0} if measure == "score" else {"floor": 0.0}
    plot = forest({str(index): interval(numbers) for index, (_, _, numbers) in enumerate(models)}, **limits)
    for line, (name, role, numbers) in zip(plot["lines"], models, strict=True):
        is_chosen = role == "distilled" and name == chosen
        line |= {"name": name, "role": role, "rows_only": numbers["rows_only"], "chosen": is_chosen}
    return plot


def _effects(recipe: RecipeSummary, effects: Effects, measure: Measure) -> dict[str, Any]:
    """The 2 x 2: the four methods' means, and the effects with what may be said of them."""
    return {
        "means": [[interval(recipe["methods"][name][measure]) for name in row] for row in TWO_BY_TWO],
        "effects": {
            name: {
                "interval": interval(effect),
                "rows_only": effect["rows_only"],
                "verdict": claims.effect_verdict(interval(effect), measure),
            }
            for name, effect in effects.items()
        },
    }


# --- when the student wins ---


def _split(students: Sequence[StudentSummary]) -> dict[str, Any]:
    """The SFS/TFS split by method, means over its students; and every student as a point, on test and on validation."""
    methods = dict.fromkeys(student["method"] for student in students)
    rows = [_mean_split(name, [student for student in students if student["method"] == name]) for name in methods]
    longest = max(max(row["advantage"], row["deficit"]) for row in rows) or 1.0
    for row in rows:
        row |= {"up": BAR_PERCENT * row["advantage"] / longest, "down": BAR_PERCENT * row["deficit"] / longest}
    on_validation = [student for student in students if student["validation"]]
    splits = [student["test"] for student in students] + [student["validation"] for student in on_validation]
    most = max(split[side] for split in splits for side in ("advantage", "deficit")) or 1.0
    charts = [_outcome_chart(students, "test", "score", most)]
    if on_validation:
        charts.append(_outcome_chart(on_validation, "validation", "nll", most))
    return {"rows": sorted(rows, key=lambda row: row["difference"]), "charts": charts}


def _mean_split(name: str, students: Sequence[StudentSummary]) -> dict[str, Any]:
    keys = ("sfs_mass", "tfs_mass", "advantage", "deficit", "difference")
    means = {key: math.fsum(student["test"][key] for student in students) / len(students) for key in keys}
    wins = {measure: sum(beats_teacher(students, measure)) for measure in MEASURES}
    return {"name": name, "students": len(students), **means, "wins": wins}


def _outcome_chart(students: Sequence[StudentSummary], split: str, measure: Measure, most: float) -> dict[str, Any]:
    """Every student at its deficit (across) and advantage (upward) on a split; marked: it won on test by a measure."""
    several_teachers = len({student["teacher_seed"] for student in students}) > 1
    names = [
        f"{student['method']}, seed {student['seed']}"
        + (f", teacher seed {student['teacher_seed']}" if several_teachers else "")
        for student in students
    ]
    deficits, advantages = ([student[split][side] for student in students] for side in ("deficit", "advantage"))
    won = beats_teacher(students, measure)
    chart = linear_scatter(deficits, advantages, won, names, most=most, height=SCATTER_HEIGHT)
    above = [advantage > deficit for advantage, deficit in zip(advantages, deficits, strict=True)]
    return {"split": split, "students": len(students), "won": sum(won), "above": sum(above), **chart}


def _mean_ranks(ranks: Mapping[Measure, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Best first."""
    names = sorted(ranks.get("score", {}), key=lambda name: (ranks["score"][name], ranks["nll"][name]))
    return [{"name": name, **{measure: ranks[measure][name] for measure in MEASURES}} for name in names]
