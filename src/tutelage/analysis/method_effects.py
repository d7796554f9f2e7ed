"""What weighting and schedule did, row by row: two methods that differ in one part, on the same test rows and seeds.

The question of adaptive weighting: does it keep what the anchor could do and plain distillation loses, and at what
price?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tutelage.analysis.slices import Answers
from tutelage.analysis.statistics import paired_difference
from tutelage.method.methods import Method, find_method, method_names, split_variant

EXAMPLES = 20
"""Ids named of each kind of row."""
RESAMPLES = 1000


class Contrast(NamedTuple):
    """Two methods that differ in one part."""

    effect: Literal["weighting", "schedule"]
    plain: str
    """The one with constant weights, or with T* in all stages."""
    changed: str


def contrasts(methods: Sequence[str]) -> list[Contrast]:
    """Pairs among these methods that differ in their weighting alone, or in their schedule alone; settings of variants
    equal."""
    known = [name for name in methods if split_variant(name)[0] in method_names()]
    pairs = [(one, other) for one in known for other in known if split_variant(one)[1] == split_variant(other)[1]]
    found = []
    for one, other in pairs:
        effect = _difference(find_method(one), find_method(other))
        if effect:
            found.append(Contrast(effect, one, other))
    return found


def _difference(plain: Method, changed: Method) -> Literal["weighting", "schedule"] | None:
    if (
        plain.divergence != changed.divergence
        or plain.answers != changed.answers
        or "none" in (plain.schedule, changed.schedule)
    ):
        return None
    weighting, schedule = plain.weighting == changed.weighting, plain.schedule == changed.schedule
    if schedule and plain.weighting == "constant" and not weighting:
        return "weighting"
    return "schedule" if weighting and plain.schedule == "best" and not schedule else None


def effect_of(
    contrast: Contrast,
    pairs: Mapping[int, tuple[Answers, Answers]],
    anchor: Answers | None,
    teacher: Answers,
    ids: Sequence[str],
) -> dict[str, Any]:
    """What the change did; JSON-able. pairs: (plain, changed) student on the same rows, by seed, at least one.

    `score`, `nll`: changed - plain, mean over seeds, with interval and p-value (rows alone where there is one seed).
    `rows`: how many rows the two answer differently, over all seeds, by what the anchor made of them, and some ids
    (most seeds first):
    `kept` (the plain student lost what the anchor had, the changed one did not), `lost` (the reverse), `gained` and
    `missed` (the same where the anchor was no better than the worse of the two). `nll_where`: changed - plain on the
    rows on which the anchor's loss is below the teacher's (`sfs`), and on the others (`tfs`).
    """
    seeds = sorted(pairs)
    tables = {
        key: [np.stack([getattr(pairs[seed][side], key) for seed in seeds]) for side in (0, 1)]
        for key in ("score", "nll")
    }
    found: dict[str, Any] = {**contrast._asdict(), "seeds": seeds}
    found |= {key: _compared(*both) for key, both in tables.items()}
    if anchor is not None:
        found["rows"] = _by_anchor(*tables["score"], anchor.score, ids)
        favoured = anchor.nll < teacher.nll
        sides = {"sfs": favoured, "tfs": ~favoured}
        found["nll_where"] = {
            side: {"rows": int(inside.sum()), **_compared(*(table[:, inside] for table in tables["nll"]))}
            for side, inside in sides.items()
            if inside.any()
        }
    return found


def _compared(plain: np.ndarray, changed: np.ndarray) -> dict[str, Any]:
    """Means of two tables [seeds, rows], and their difference."""
    difference = paired_difference(changed, plain, resamples=RESAMPLES)
    value, low, high = difference.interval
    ends = {"difference": value, "low": low, "high": high, "p_value": difference.p_value}
    return {"plain": float(plain.mean()), "changed": float(changed.mean()), **ends}


def _by_anchor(plain: np.ndarray, changed: np.ndarray, anchor: np.ndarray, ids: Sequence[str]) -> dict[str, Any]:
    """Rows that two students [seeds, rows] answer differently, by the anchor's score [rows]."""
    better, worse = changed > plain, changed < plain
    had = anchor > np.minimum(plain, changed)
    kinds = {"kept": better & had, "lost": worse & had, "gained": better & ~had, "missed": worse & ~had}
    found = {}
    for name, inside in kinds.items():
        times = inside.sum(axis=0)
        order = [place for place in np.argsort(-times, kind="stable")[:EXAMPLES].tolist() if times[place]]
        found[name] = {"count": int(times.sum()), "ids": [ids[place] for place in order]}
    return found
