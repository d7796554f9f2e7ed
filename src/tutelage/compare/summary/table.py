"""The table of a comparison on standard output, from summary.json alone; failed and stale cells on standard error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tutelage.analysis.slices import MEASURES
from tutelage.compare.cells import Cell, CellFields
from tutelage.compare.summary.recipe_section import (
    AgainstBestSummary,
    BaseSummary,
    GapClosedSummary,
    IntervalSummary,
    MethodSummary,
    RecipeSummary,
    TextBaselineSummary,
)
from tutelage.compare.summary.summarise import Summary
from tutelage.records import TEXT_BASELINE
from tutelage.utils.console import as_json, err, out, print_table

NOTE = (
    "* one training run: the interval is for other test rows only, not for other seeds."
    " p: of the difference in score from the method marked best, which validation chose, corrected for the number of"
    " methods (Holm); one seed: one training run in common with it, not tested."
    " gap closed: fraction of the gap from plain fine-tuning to the teacher; [-, -]: no bounds, as the teacher's lead"
    " is not significant; no gap: the teacher is not ahead by 0.005."
)
BASELINE_NOTE = f"{TEXT_BASELINE}: TF-IDF with logistic regression, no language model; its p is not corrected."
TEACHER_SEEDS_NOTE = "5 of 3 x 2: three seeds with each of two teacher seeds, one training run of them missing."


class MethodRow(NamedTuple):
    """A method in the printed table."""

    numbers: MethodSummary
    is_best: bool
    """Whether validation chose it by score."""


class Column(NamedTuple):
    """A column of numbers in the printed table."""

    head: str
    of_method: Callable[[MethodRow], str]
    of_base: Callable[[BaseSummary], str] = lambda base: ""
    """For teacher and anchor; by default empty."""
    of_baseline: Callable[[TextBaselineSummary], str] = lambda baseline: ""
    """For TF-IDF with logistic regression; by default empty."""


def columns(score: str) -> list[Column]:
    """The numbers of the table, from left to right. score: name of the metric."""
    return [
        Column(
            score,
            lambda row: _span(row.numbers["score"]),
            lambda base: _span(base["score"]),
            lambda baseline: _span(baseline["score"]),
        ),
        Column("gap closed", lambda row: _gap_closed(row.numbers["gap_closed"])),
        Column("loss (nats)", lambda row: _span(row.numbers["nll"]), lambda base: _span(base["nll"])),
        Column(
            "p (Holm)",
            lambda row: "best" if row.is_best else _p_holm(row.numbers.get("score_against_best")),
            of_baseline=lambda baseline: _p_holm(baseline.get("score_against_best")),
        ),
        Column("seconds", lambda row: f"{row.numbers['seconds']:.0f}"),
        Column("rank: score / loss", lambda row: f"{row.numbers['score_rank']} / {row.numbers['nll_rank']}"),
    ]


def show(summary: Summary, form: str = "table") -> None:
    """Print a summary. form: table, markdown, latex, csv or json. Failed and stale cells: on standard error."""
    for failed in summary["failed"]:
        err(f"failed: {_cell(failed)}: {failed['error'].splitlines()[0]}")
    for stale in summary["stale"]:
        err(f"stale, not counted: {_cell(stale)}: made from other inputs than now")
    if form == "json":
        out(as_json(summary))
    elif form == "csv":
        print_table("", *numbers(summary), form=form)
    else:
        print_table("methods on test rows, 95 % intervals", *grid(summary), form=form)
        if form == "table":
            _show_effects(summary)
        note = f"{NOTE} {TEACHER_SEEDS_NOTE}" if _several_teachers(summary) else NOTE
        note += f" {BASELINE_NOTE}" if any("text_baseline" in recipe for recipe in summary["recipes"]) else ""
        out({"markdown": f"\n\\{note}", "latex": f"% {note}"}.get(form, note))


def _show_effects(summary: Summary) -> None:
    for recipe in summary["recipes"]:
        for measure, effects in recipe["two_by_two"].items():
            spans = ", ".join(f"{name} {_span(interval, '+')}" for name, interval in effects.items())
            out(f"{recipe['name']}, effects on {recipe['metric'] if measure == 'score' else 'loss'}: {spans}")


def _cell(fields: CellFields) -> Cell:
    return Cell(**{name: fields[name] for name in Cell.__dataclass_fields__})


# --- for people ---


def grid(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of the printed table: base models, TF-IDF and methods of every recipe, the best on test first;
    then methods of which every cell failed."""
    metrics = list(dict.fromkeys(recipe["metric"] for recipe in summary["recipes"]))
    shown = columns(metrics[0] if len(metrics) == 1 else "score")
    seeds = "seeds x teachers" if _several_teachers(summary) else "seeds"
    failed = _failed_cells(summary)
    lines = []
    for recipe in summary["recipes"]:
        name = recipe["name"] if len(metrics) == 1 else f"{recipe['name']} ({recipe['metric']})"
        for model, base in recipe["base"].items():
            lines.append([name, model, "", *(column.of_base(base) for column in shown)])
        if "text_baseline" in recipe:
            baseline = recipe["text_baseline"]
            lines.append([name, TEXT_BASELINE, "", *(column.of_baseline(baseline) for column in shown)])
        for method, row in _by_rank(recipe):
            count = failed.pop((recipe["name"], method), 0)
            runs = run_count(row.numbers)
            lines.append([
                name, method, f"{runs}, {count} failed" if count else runs, *(column.of_method(row) for column in shown)
            ])  # fmt: skip
    lines += [[name, method, f"0, {count} failed", *[""] * len(shown)] for (name, method), count in failed.items()]
    return ["recipe", "method", seeds, *(column.head for column in shown)], lines


def _by_rank(recipe: RecipeSummary) -> list[tuple[str, MethodRow]]:
    """The methods, the best on test first."""
    methods = sorted(recipe["methods"].items(), key=lambda item: item[1]["score_rank"])
    return [(name, MethodRow(numbers, name == recipe["best"]["score"])) for name, numbers in methods]


def _failed_cells(summary: Summary) -> Counter[tuple[str, str]]:
    """Number of them by recipe and method."""
    return Counter((cell["recipe"], cell["method"]) for cell in summary["failed"])


def _several_teachers(summary: Summary) -> bool:
    return any(method["trajectories"] > 1 for recipe in summary["recipes"] for method in recipe["methods"].values())


def run_count(method: MethodSummary) -> str:
    """Seeds of a method, 3; with several teacher seeds 3 x 2, or 5 of 3 x 2 if a training run is missing."""
    seeds, teacher_seeds, runs = method["seeds"], method["trajectories"], method["trainings"]
    product = f"{seeds} x {teacher_seeds}" if teacher_seeds > 1 else f"{seeds}"
    return f"{runs} of {product}" if runs < seeds * teacher_seeds else product


def _span(interval: IntervalSummary, sign: str = "") -> str:
    ends = (interval["value"], interval["low"], interval["high"])
    value, low, high = (f"{round(end, 3) + 0.0:{sign}.3f}" for end in ends)  # + 0.0: no negative zero
    return f"{value} [{low}, {high}]" + ("*" if interval["rows_only"] else "")


def _p_holm(against: AgainstBestSummary | None) -> str:
    if against is None:
        return ""
    return "one seed" if against["p_holm"] is None else f"{against['p_holm']:.3f}"


def _gap_closed(gap: GapClosedSummary | None) -> str:
    if gap is None:
        return ""
    if gap["share"] is None:
        return "no gap"
    low, high = ("-" if end is None or not math.isfinite(end) else f"{end:.0%}" for end in (gap["low"], gap["high"]))
    return f"{gap['share']:.0%} [{low}, {high}]"


# --- for other programs ---


def numbers(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of the same table as CSV: one number a column, in full; empty if there is none."""
    failed = _failed_cells(summary)
    rows: list[dict[str, Any]] = []
    for recipe in summary["recipes"]:
        shared = {"recipe": recipe["name"], "metric": recipe["metric"]}
        others = {**recipe["base"], **({TEXT_BASELINE: recipe["text_baseline"]} if "text_baseline" in recipe else {})}
        for model, base in others.items():
            rows.append({**shared, "model": model, "failed": None, "best": None, **_flat(base)})
        for name, method in recipe["methods"].items():
            count, is_best = failed.pop((recipe["name"], name), 0), name == recipe["best"]["score"]
            rows.append({**shared, "model": name, "failed": count, "best": is_best, **_flat(method)})
    rows += [{"recipe": recipe, "model": name, "failed": count} for (recipe, name), count in failed.items()]
    head = list(dict.fromkeys(key for row in rows for key in row))
    return head, [["" if row.get(key) is None else str(row[key]) for key in head] for row in rows]


def _flat(model: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a base model or a method, nested keys joined; of its differences from the best p alone."""
    flat = {key: model.get(key) for key in ("trainings", "seeds", "trajectories")}
    for measure in MEASURES:
        against = model.get(f"{measure}_against_best", {})
        interval = model.get(measure, {})  # TF-IDF has no loss
        flat |= {f"{measure}_{key}": interval.get(key) for key in ("value", "low", "high", "rows_only")}
        flat |= {f"{measure}_{key}": against.get(key) for key in ("p_value", "p_holm")}
        flat[f"{measure}_rank"] = model.get(f"{measure}_rank")
    gap = model.get("gap_closed") or {}
    flat |= {f"gap_closed_{key}": gap.get(key) for key in ("share", "low", "high", "from")}
    return flat | {"seconds": model.get("seconds")}
