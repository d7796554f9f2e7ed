"""Effects of weighting and schedule row by row: two methods that differ in one part, on the same test rows and seeds.

The question about adaptive weighting: does it keep what the anchor could do and plain distillation loses, and at what
price?
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from tutelage.analysis.significance import paired_difference
from tutelage.analysis.slices import MEASURES, Answers
from tutelage.method.methods import Method, find_method, method_names, split_variant

EXAMPLES = 20
"""Most ids given of each kind of row."""
RESAMPLES = 1000

Effect = Literal["weighting", "schedule"]


class MethodPair(NamedTuple):
    """Two methods that differ in one part."""

    effect: Effect
    plain: str
    """The one with constant weights, or with T* in all stages."""
    changed: str


class EffectRecord(TypedDict):
    """A measure of both methods, mean over rows and seeds."""

    rows: NotRequired[int]
    """Their number, of a record about some of the rows."""
    plain: float
    changed: float
    difference: float
    """changed - plain."""
    low: float
    high: float
    """Ends of the 95 % interval, over rows alone if there is one seed."""
    p_value: float


class ChangedRows(TypedDict):
    """Rows that the two methods answer differently."""

    count: int
    """Over all seeds."""
    ids: list[str]
    """Up to 20, those of most seeds first."""


class MethodEffect(TypedDict):
    """What a change of weighting or schedule did."""

    effect: Effect
    plain: str
    changed: str
    seeds: list[int]
    score: EffectRecord
    nll: EffectRecord
    rows: NotRequired[dict[Literal["kept", "lost", "gained", "missed"], ChangedRows]]
    """Rows by the anchor's score. `kept`: the plain student lost what the anchor had, the changed one did not; `lost`:
    the reverse; `gained` and `missed`: the same if the anchor was no better than the worse of the two. Absent without
    an anchor, as is `nll_where`."""
    nll_where: NotRequired[dict[Literal["sfs", "tfs"], EffectRecord]]
    """`nll` on the rows on which the anchor's loss is below the teacher's (`sfs`), and on the others (`tfs`)."""


def comparable_pairs(methods: Sequence[str]) -> list[MethodPair]:
    """Pairs of these methods, with equal settings, that differ in weighting alone or in schedule alone."""
    known = [name for name in methods if split_variant(name)[0] in method_names()]
    return [
        MethodPair(effect, plain, changed)
        for plain, changed in itertools.product(known, known)
        if split_variant(plain)[1] == split_variant(changed)[1]
        and (effect := _single_change(find_method(plain), find_method(changed)))
    ]


def _single_change(plain: Method, changed: Method) -> Effect | None:
    """The component (schedule or weighting) that `changed` adds to `plain`; None unless only that one differs."""
    if plain.divergence != changed.divergence or plain.answers != changed.answers:
        return None
    if "none" in (plain.schedule, changed.schedule):
        return None
    same_weighting, same_schedule = plain.weighting == changed.weighting, plain.schedule == changed.schedule
    if same_schedule and not same_weighting and plain.weighting == "constant":
        return "weighting"
    return "schedule" if same_weighting and not same_schedule and plain.schedule == "best" else None


def effect_of(
    pair: MethodPair,
    answers: Mapping[int, tuple[Answers, Answers]],
    anchor: Answers | None,
    teacher: Answers,
    ids: Sequence[str],
) -> MethodEffect:
    """What the change did. answers: (plain, changed) student on the same rows, by seed, at least one. ids: of rows."""
    seeds = sorted(answers)
    scores, losses = (
        [np.stack([getattr(answers[seed][side], measure) for seed in seeds]) for side in (0, 1)] for measure in MEASURES
    )
    by_measure = {"score": _compared(*scores), "nll": _compared(*losses)}
    effect: MethodEffect = {**pair._asdict(), "seeds": seeds, **by_measure}
    if anchor is not None:
        effect["rows"] = _changed_rows(*scores, anchor.score, ids)
        favoured = anchor.nll < teacher.nll
        effect["nll_where"] = {
            side: {"rows": int(inside.sum()), **_compared(*(table[:, inside] for table in losses))}
            for side, inside in (("sfs", favoured), ("tfs", ~favoured))
            if inside.any()
        }
    return effect


def _compared(plain: np.ndarray, changed: np.ndarray) -> EffectRecord:
    """Means of two tables [seeds, rows], and their difference."""
    difference = paired_difference(changed, plain, resamples=RESAMPLES)
    value, low, high = difference.interval
    means = {"plain": float(plain.mean()), "changed": float(changed.mean())}
    return {**means, "difference": value, "low": low, "high": high, "p_value": difference.p_value}


def _changed_rows(
    plain: np.ndarray, changed: np.ndarray, anchor: np.ndarray, ids: Sequence[str]
) -> dict[Literal["kept", "lost", "gained", "missed"], ChangedRows]:
    """Rows that two students [seeds, rows] answer differently, by the anchor's score [rows]."""
    better, worse, anchor_had = changed > plain, changed < plain, anchor > np.minimum(plain, changed)
    kinds = {"kept": better & anchor_had, "lost": worse & anchor_had}
    kinds |= {"gained": better & ~anchor_had, "missed": worse & ~anchor_had}
    records = {}
    for kind, inside in kinds.items():
        seeds_of_row = inside.sum(axis=0)
        most_first = np.argsort(-seeds_of_row, kind="stable")[:EXAMPLES].tolist()
        shown = [ids[index] for index in most_first if seeds_of_row[index]]
        records[kind] = ChangedRows(count=int(seeds_of_row.sum()), ids=shown)
    return records
