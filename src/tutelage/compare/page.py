"""The page of a comparison: summary.json as one self-contained HTML file. Reads nothing else: no model, no torch.

Here numbers become what is claimed of them and places in charts; the templates word and draw them. Nothing is called
first, better or worse but where a test over seeds says so after Holm's correction and its interval leaves 0 out; the
rest is said to be open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.compare.table import trained
from tutelage.records import Interval
from tutelage.report import page
from tutelage.report.charts import forest, linear_scatter
from tutelage.report.page import number, percent, signed_span, span

ALPHA = 0.05
SAME = 1e-12
"""Differences below this are rounding."""
KEYS = ("score", "nll")
TWO_BY_TWO = (("td", "td-aw"), ("scd", "scd-aw"))
"""Rows: best checkpoint, scheduled; columns: constant weights, adaptive ones."""

Numbers = Mapping[str, Any]
"""A dict of summary.json (docs/artifacts.md)."""


def write_page(summary: dict[str, Any], path: Path, title: str | None = None) -> None:
    """Write the page of a comparison.

    summary: as in summary.json. path: of the HTML file; its folder is made if need be, and the file moved into place
    whole.
    title: heading of the page, by default the recipe's name. Every text is escaped. Raises KeyError for a dict that is
    no summary.
    """
    from tutelage import __version__

    recipes = [_recipe(recipe, summary["cells"]) for recipe in summary["recipes"]]
    names = [recipe["name"] for recipe in recipes]
    text = page.render(
        "comparison.html.jinja",
        (p_value, ends, signed_ends, share_ends),
        title=title or (names[0] if len(names) == 1 else f"{len(names)} data sets" if names else "Comparison"),
        version=__version__,
        date=time.strftime("%Y-%m-%d"),
        recipes=recipes,
        cells=summary["cells"],
        ranks=_mean_ranks(summary["mean_ranks"]) if len(recipes) > 1 else [],
        foretells=[_foretold(key, table) for key, table in summary["validation_foretells_test"].items()],
        identity=max((cell["identity_error"] for cell in summary["cells"]), default=None),
        failed=[{**cell, "why": _first_line(cell.get("error"))} for cell in summary["failed"]],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


# --- how numbers are written ---


def p_value(value: float) -> str:
    """0.012; below a thousandth "< 0.001", so that nothing looks certain."""
    return "< 0.001" if value < 0.001 else number(value)


def ends(score: Interval) -> str:
    """[0.768, 0.818], or nothing where the interval is unbounded."""
    return span(score).partition(" ")[2]


def signed_ends(score: Interval) -> str:
    """[−0.006, +0.034]."""
    return signed_span(score).partition(" ")[2]


def share_ends(share: Interval) -> str:
    """[12 %, 86 %]; an end that is not bounded says so."""
    if not (math.isfinite(share.low) or math.isfinite(share.high)):
        return "unbounded"
    shown = (percent(end) if math.isfinite(end) else "no bound" for end in (share.low, share.high))
    return "[{}, {}]".format(*shown)


def _interval(numbers: Numbers) -> Interval:
    """Of a summary's dict; what it does not know becomes NaN."""
    return Interval(*(math.nan if numbers[key] is None else float(numbers[key]) for key in ("value", "low", "high")))


def _first_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[0] if lines else "no message"


# --- one recipe ---


def _recipe(recipe: Numbers, cells: Sequence[Numbers]) -> dict[str, Any]:
    """Everything that the page says of one data set."""
    methods, base = recipe["methods"], recipe["base"]
    races = {key: race(methods, key, recipe["best"][key]) for key in KEYS} if methods else {}
    mine = [cell for cell in cells if cell["recipe"] == recipe["name"]]
    return {
        **{key: recipe[key] for key in ("name", "task", "metric", "rows")},
        "seeds": sorted({seen["seeds"] for seen in methods.values()}),
        "teachers": max((seen["trajectories"] for seen in methods.values()), default=1),
        "base": {name: {key: _interval(seen[key]) for key in KEYS} for name, seen in base.items()},
        "base_rows_only": {name: {key: seen[key]["rows_only"] for key in KEYS} for name, seen in base.items()},
        "races": races,
        "teacher": {key: against_teacher(recipe, races[key]["first"], key, mine) for key in races},
        "firsts": {key: _row(races[key]["first"], methods, races) for key in races},
        "plots": {key: _plot(recipe, key) for key in KEYS},
        "rows_of": {key: [_row(name, methods, races) for name in races[key]["order"]] for key in races},
        "gap_from": next((seen["gap_closed"]["from"] for seen in methods.values() if seen["gap_closed"]), "anchor"),
        "effects": _effects(recipe),
        "split": _split(mine),
    }


def race(methods: Mapping[str, Numbers], key: str, chosen: str | None) -> dict[str, Any]:
    """How the method that validation chose stands by `score` or by `nll` on test, and what of that is settled.

    chosen: its name; without one the first on test stands in. `behind`: methods that it is ahead of over seeds and rows
    after Holm's correction; `ahead`: those that are ahead of it. `behind_here`: different with one seed each, so of the
    trained models alone. `open`: the rest. `single`: one training in common with it, where others have more;
    `untested`: none. `state`: settled (all others are behind), partly, open (none is), one_seed (only one seed was
    tested), or alone (one method).
    """
    order = sorted(methods, key=lambda name: methods[name][f"{key}_rank"])
    first = chosen or order[0]
    others = [name for name in order if name != first]
    pairs = {name: _pair(methods[name].get(f"{key}_against_best"), 1 if key == "score" else -1) for name in others}
    groups: dict[str, list[str]] = {
        "behind": [],
        "ahead": [],
        "behind_here": [],
        "open": [],
        "single": [],
        "untested": [],
    }
    for name, pair in pairs.items():
        groups[pair["verdict"]].append(name)
    tested = [pair for pair in pairs.values() if pair["verdict"] not in ("single", "untested")]
    state = "settled" if len(groups["behind"]) == len(others) else "partly" if groups["behind"] else "open"
    if tested and all(pair["rows_only"] for pair in tested):
        state = "one_seed"
    return {
        "first": first, "order": order, "others": others, "pairs": pairs, **groups,
        "state": state if others else "alone",
        "rank": methods[first][f"{key}_rank"],
        "smallest_p": min((pair["p"] for pair in tested), default=None),
        "needs": _needs({name: pairs[name] for name in groups["open"]}),
    }  # fmt: skip


def _pair(against: Numbers | None, sign: int) -> dict[str, Any]:
    """A method's difference from the chosen one, and what may be said of it. sign: -1 where less is better."""
    if against is None:
        return {"verdict": "untested", "rows_only": True}
    difference = _interval(against["difference"])
    rows_only, p = against["difference"]["rows_only"], against["p_holm"]
    if p is None:
        return {"verdict": "single", "difference": difference, "rows_only": rows_only, "p": None}
    settled = p < ALPHA and (difference.low > 0 or difference.high < 0)
    verdict = (
        ("behind_here" if rows_only else "ahead" if sign * difference.value > 0 else "behind") if settled else "open"
    )
    return {
        "verdict": verdict, "difference": difference, "rows_only": rows_only, "p": p, "needed": against["seeds_needed"],
        "alone": against["p_value"], "same": abs(difference.value) <= SAME,
    }  # fmt: skip


def _needs(pairs: Mapping[str, Numbers]) -> dict[str, Any]:
    """What would settle the open pairs: `more` seeds for those where seeds will do (`last` is the pair that needs the
    most)."""
    more = {name: pair["needed"]["more"] for name, pair in pairs.items() if pair["needed"]["verdict"] == "more_seeds"}
    last = max(more, key=lambda name: more[name], default=None)
    return {
        "more": more.get(last), "last": last,
        "same": [name for name, pair in pairs.items() if pair["same"]],
        "rows": [name for name, pair in pairs.items() if pair["needed"]["verdict"] == "rows_too_few" and not pair["same"]],
        "unknown": [name for name, pair in pairs.items() if pair["needed"]["verdict"] == "seed_variance_unknown"],
        "corrected": [name for name, pair in pairs.items() if pair["needed"]["verdict"] == "settled"],
    }  # fmt: skip


def against_teacher(recipe: Numbers, name: str, key: str, cells: Sequence[Numbers]) -> dict[str, Any]:
    """Whether a method of a recipe is `above` its teacher, `below`, or `open`, and what says so. cells: those of the
    recipe.

    `by`: "difference", a paired interval; "share", the share of the gap closed, whose interval leaves 1 out exactly
    where that of the paired difference leaves 0 out; or "apart", two intervals that settle it only where they do not
    meet. `rows_only`: what says so is about one training alone.
    """
    seen, teacher = recipe["methods"][name], recipe["base"]["teacher"]
    mine, theirs, sign = _interval(seen[key]), _interval(teacher[key]), 1 if key == "score" else -1
    found = {"mine": mine, "theirs": theirs, "by": "apart", "interval": None, "rows_only": seen[key]["rows_only"]}
    share, paired = seen["gap_closed"] or {"share": None}, seen.get(f"{key}_against_teacher")
    if paired:
        found |= {
            "by": "difference",
            "interval": _interval(paired["difference"]),
            "rows_only": paired["difference"]["rows_only"],
        }
        low, high = sorted(sign * end for end in found["interval"][1:])
    elif key == "score" and share["share"] is not None and None not in (share["low"], share["high"]):
        interval = Interval(share["share"], share["low"], share["high"])
        found |= {"by": "share", "interval": interval, "rows_only": _in_common(cells, name, share["from"]) < 2}
        low, high = interval.low - 1, interval.high - 1
    else:
        low, high = sorted((sign * (mine.low - theirs.high), sign * (mine.high - theirs.low)))
    return found | {"verdict": "above" if low > 0 else "below" if high < 0 else "open"}


def _in_common(cells: Sequence[Numbers], name: str, baseline: str) -> int:
    """Seeds on which a share of the gap rests: those that a method has with its baseline, or all where that is the
    anchor."""
    seeds = [
        {(cell["teacher_seed"], cell["seed"]) for cell in cells if cell["method"] == method}
        for method in (name, baseline if baseline == "sft" else name)
    ]
    return len(seeds[0] & seeds[1])


def _plot(recipe: Numbers, key: str) -> dict[str, Any]:
    """Teacher, anchor, then the methods from first to last. A method may bear the name of a base model, so lines
    count."""
    order = sorted(recipe["methods"], key=lambda name: recipe["methods"][name][f"{key}_rank"])
    named = [*((name, name, recipe["base"][name]) for name in ("teacher", "anchor") if name in recipe["base"])]
    named += [(name, "distilled", recipe["methods"][name]) for name in order]
    limits = {"floor": 0.0, "ceiling": 1.0} if key == "score" else {"floor": 0.0}
    first = recipe["best"][key] or next(iter(order), None)
    plot = forest({str(place): _interval(seen[key]) for place, (_, _, seen) in enumerate(named)}, **limits)
    for line, (name, role, seen) in zip(plot["lines"], named, strict=True):
        is_first = role == "distilled" and name == first
        line |= {"name": name, "role": role, "rows_only": seen[key]["rows_only"], "first": is_first}
    return plot


def _row(name: str, methods: Mapping[str, Numbers], races: Mapping[str, Numbers]) -> dict[str, Any]:
    """A line of the table of methods."""
    seen = methods[name]
    gap = seen["gap_closed"]
    return {
        "name": name,
        "seeds": trained(seen).replace(" x ", " × "),
        "trainings": seen["trainings"],
        "seconds": seen["seconds"],
        **{key: _interval(seen[key]) for key in KEYS},
        "rows_only": {key: seen[key]["rows_only"] for key in KEYS},
        "ranks": [seen["score_rank"], seen["nll_rank"]],
        "gap": None if gap is None or gap["share"] is None else _interval({**gap, "value": gap["share"]}),
        "is_baseline": gap is None,
        "pair": {key: races[key]["pairs"].get(name) for key in KEYS},
    }


def _effects(recipe: Numbers) -> dict[str, Any]:
    """The 2 x 2: the four methods' means, and the effects with what may be said of them."""
    found = {}
    for key, effects in recipe["two_by_two"].items():
        means = [[_interval(recipe["methods"][name][key]) for name in row] for row in TWO_BY_TWO]
        read = {
            name: {"interval": _interval(effect), "rows_only": effect["rows_only"]} for name, effect in effects.items()
        }
        for effect in read.values():
            helps, hurts = effect["interval"].low > 0, effect["interval"].high < 0
            if key == "nll":
                helps, hurts = hurts, helps
            effect["verdict"] = "helps" if helps else "hurts" if hurts else "open"
        found[key] = {"means": means, "effects": read}
    return found


# --- when the student wins ---


def _split(cells: Sequence[Numbers]) -> dict[str, Any] | None:
    """The SFS/TFS split by method, means over its cells, and every cell as a point: on test, and on validation."""
    if not cells:
        return None
    rows = [_mean_split(name, [cell for cell in cells if cell["method"] == name]) for name in _methods_of(cells)]
    rows.sort(key=lambda row: row["difference"])
    most = max(max(row["advantage"], row["deficit"]) for row in rows) or 1.0
    for row in rows:
        row |= {"up": 48 * row["advantage"] / most, "down": 48 * row["deficit"] / most}
    held_out = [cell for cell in cells if cell["validation"]]
    splits = [cell["test"] for cell in cells] + [cell["validation"] for cell in held_out]
    most = max(split[side] for split in splits for side in ("advantage", "deficit"))
    charts = [_picture(cells, "test", "score", most)]
    if held_out:
        charts.append(_picture(held_out, "validation", "nll", most))
    return {"rows": rows, "charts": charts}


def _methods_of(cells: Sequence[Numbers]) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells))


def _mean_split(name: str, cells: Sequence[Numbers]) -> dict[str, Any]:
    parts = ("sfs_mass", "tfs_mass", "advantage", "deficit", "difference")
    means = {part: math.fsum(cell["test"][part] for cell in cells) / len(cells) for part in parts}
    wins = {key: sum(bool(cell[f"beats_teacher_in_{key}"]) for cell in cells) for key in KEYS}
    return {"name": name, "cells": len(cells), **means, "wins": wins}


def _picture(cells: Sequence[Numbers], part: str, key: str, most: float) -> dict[str, Any]:
    """Every cell at its deficit (across) and advantage (upward) on `part`, marked where it won on test by `key`."""
    won = [bool(cell[f"beats_teacher_in_{key}"]) for cell in cells]
    several = len({cell["teacher_seed"] for cell in cells}) > 1
    names = [
        f"{cell['method']}, seed {cell['seed']}" + (f", teacher {cell['teacher_seed']}" if several else "")
        for cell in cells
    ]
    deficits, advantages = ([cell[part][side] for cell in cells] for side in ("deficit", "advantage"))
    chart = linear_scatter(deficits, advantages, won, names, most=most or 1.0, height=300)
    above = [advantage > deficit for advantage, deficit in zip(advantages, deficits, strict=True)]
    return {"part": part, "key": key, "cells": len(cells), "won": sum(won), "above": sum(above), **chart}


def _foretold(key: str, table: Numbers) -> dict[str, Any]:
    """The confusion table, and what guessing the commoner outcome every time would reach."""
    wins = table["true_wins"] + table["false_losses"]
    cells = wins + table["false_wins"] + table["true_losses"]
    accuracy, guess = _interval(table["accuracy"]), max(wins, cells - wins) / cells
    verdict = "better" if accuracy.low > guess else "worse" if accuracy.high < guess else "open"
    return {
        **table, "key": key, "cells": cells, "wins": wins, "accuracy": accuracy, "guess": guess, "verdict": verdict,
        "right": table["true_wins"] + table["true_losses"],
    }  # fmt: skip


def _mean_ranks(ranks: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    names = sorted(ranks.get("score", {}), key=lambda name: (ranks["score"][name], ranks["nll"][name]))
    return [{"name": name, **{key: ranks[key][name] for key in KEYS}} for name in names]
