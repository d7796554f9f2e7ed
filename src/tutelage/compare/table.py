"""The table of a comparison on standard output, from summary.json alone; what is not in it goes to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tutelage.compare.cells import Cell
from tutelage.utils.console import print_table, visible

NOTE = (
    "* one training: the interval is about other test rows, not about training again. p: of the difference in score from the method"
    " marked best, which validation chose, corrected for their number (Holm); one seed: compared on one training, not tested with"
    " the others. gap closed: share of the way from plain fine-tuning to the teacher; [-, -]: no bounds, as the teacher's own lead"
    " is not settled; no gap: the teacher is not ahead by 0.005."
)


OF_TEACHERS = "5 of 3 x 2: three seeds under two teachers each, of which one training is missing."


def show(summary: dict[str, Any], form: str = "table") -> None:
    """Print a summary. form: table, markdown, latex, csv or json. Cells that failed or are left out: on standard
    error."""
    for cell in summary["failed"]:
        print(visible(f"failed: {_cell(cell)}: {cell['error'].splitlines()[0]}"), file=sys.stderr)
    for cell in summary["stale"]:
        print(
            visible(f"left out: {_cell(cell)}: it was made from other inputs than the comparison asks for now"),
            file=sys.stderr,
        )
    if form == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    if form == "csv":
        print_table("", *numbers(summary), form=form)
        return
    print_table("methods on test rows, 95 % intervals", *grid(summary), form=form)
    if form == "table":
        _show_effects(summary)
    note = f"{NOTE} {OF_TEACHERS}" if _several_teachers(summary) else NOTE
    print({"markdown": f"\n\\{note}", "latex": f"% {note}"}.get(form, note))


def _show_effects(summary: dict[str, Any]) -> None:
    for recipe in summary["recipes"]:
        for key, effects in recipe["two_by_two"].items():
            words = ", ".join(f"{name} {_span(value, '+')}" for name, value in effects.items())
            print(f"{recipe['name']}, effects on {recipe['metric'] if key == 'score' else 'loss'}: {words}")


def _cell(found: Mapping[str, Any]) -> Cell:
    return Cell(**{name: found[name] for name in Cell.__dataclass_fields__})


def grid(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the printed table: base models and methods of every recipe, the best on test first, failed
    ones last."""
    metrics = list(dict.fromkeys(recipe["metric"] for recipe in summary["recipes"]))
    score = metrics[0] if len(metrics) == 1 else "score"
    seeds = "seeds x teachers" if _several_teachers(summary) else "seeds"
    head = ["recipe", "method", seeds, score, "gap closed", "loss (nats)", "p (Holm)", "seconds", "rank: score / loss"]
    failed = Counter((cell["recipe"], cell["method"]) for cell in summary["failed"])
    lines = []
    for recipe in summary["recipes"]:
        shown = recipe["name"] if len(metrics) == 1 else f"{recipe['name']} ({recipe['metric']})"
        for name, seen in recipe["base"].items():
            lines.append([shown, name, "", _span(seen["score"]), "", _span(seen["nll"]), "", "", ""])
        for name, seen in sorted(recipe["methods"].items(), key=lambda item: item[1]["score_rank"]):
            lost = failed.pop((recipe["name"], name), 0)
            counted = f"{trained(seen)}, {lost} failed" if lost else trained(seen)
            lines.append([shown, name, counted, *_results(recipe, name, seen)])
    lines += [[recipe, name, f"0, {count} failed", *[""] * 6] for (recipe, name), count in failed.items()]
    return head, lines


def _several_teachers(summary: Mapping[str, Any]) -> bool:
    return any(seen["trajectories"] > 1 for recipe in summary["recipes"] for seen in recipe["methods"].values())


def numbers(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the same table for other programs: a number a column, in full, and nothing where there is
    none."""
    failed = Counter((cell["recipe"], cell["method"]) for cell in summary["failed"])
    rows: list[dict[str, Any]] = []
    for recipe in summary["recipes"]:
        for role in ("base", "methods"):
            for name, seen in recipe[role].items():
                lost = failed.pop((recipe["name"], name), 0) if role == "methods" else None
                best = name == recipe["best"]["score"] if role == "methods" else None
                rows.append(
                    {"recipe": recipe["name"], "metric": recipe["metric"], "model": name, "failed": lost, "best": best}
                )
                rows[-1] |= _flat(seen)
    rows += [{"recipe": recipe, "model": name, "failed": count} for (recipe, name), count in failed.items()]
    head = list(dict.fromkeys(key for row in rows for key in row))
    return head, [["" if row.get(key) is None else str(row[key]) for key in head] for row in rows]


def _flat(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of a base model or a method; of its differences from the best p alone."""
    found = {key: seen.get(key) for key in ("trainings", "seeds", "trajectories")}
    for key in ("score", "nll"):
        against = seen.get(f"{key}_against_best", {})
        found |= {f"{key}_{part}": seen[key][part] for part in ("value", "low", "high", "rows_only")}
        found |= {f"{key}_{part}": against.get(part) for part in ("p_value", "p_holm")} | {
            f"{key}_rank": seen.get(f"{key}_rank")
        }
    gap = seen.get("gap_closed") or {}
    found |= {f"gap_closed_{part}": gap.get(part) for part in ("share", "low", "high", "from")}
    return found | {"seconds": seen.get("seconds")}


def _results(recipe: Mapping[str, Any], name: str, seen: Mapping[str, Any]) -> list[str]:
    return [
        _span(seen["score"]),
        _share(seen["gap_closed"]),
        _span(seen["nll"]),
        "best" if name == recipe["best"]["score"] else _p_value(seen.get("score_against_best")),
        f"{seen['seconds']:.0f}",
        f"{seen['score_rank']} / {seen['nll_rank']}",
    ]


def trained(seen: Mapping[str, Any]) -> str:
    """Seeds of a method, 3; with several teachers 3 x 2, or 5 of 3 x 2 where a training is missing."""
    seeds, teachers, trainings = (seen[key] for key in ("seeds", "trajectories", "trainings"))
    found = f"{seeds} x {teachers}" if teachers > 1 else f"{seeds}"
    return f"{trainings} of {found}" if trainings < seeds * teachers else found


def _span(value: Mapping[str, Any], sign: str = "") -> str:
    ends = (f"{round(value[key], 3) + 0.0:{sign}.3f}" for key in ("value", "low", "high"))  # + 0.0: no negative zero
    return "{} [{}, {}]".format(*ends) + ("*" if value["rows_only"] else "")


def _p_value(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return ""
    return "one seed" if against["p_holm"] is None else f"{against['p_holm']:.3f}"


def _share(gap: Mapping[str, Any] | None) -> str:
    if gap is None:
        return ""
    if gap["share"] is None:
        return "no gap"
    ends = ("-" if gap[end] is None or not math.isfinite(gap[end]) else f"{gap[end]:.0%}" for end in ("low", "high"))
    return "{:.0%} [{}, {}]".format(gap["share"], *ends)
