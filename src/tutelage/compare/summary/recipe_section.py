"""One recipe in summary.json: base models, methods with intervals, their differences from the best, the 2 x 2.

docs/artifacts.md says how each number is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from tutelage.analysis.crossed_intervals import Estimate
from tutelage.analysis.method_comparison import gap_closed_interval, mean_ranks, two_by_two
from tutelage.analysis.significance import SeedsNeeded, TestName, score_estimate
from tutelage.analysis.slices import MEASURES, Measure
from tutelage.compare.summary.against_best import (
    SIGNS,
    TestedDifference,
    compare_baseline_with_best,
    compare_with_best,
)
from tutelage.compare.summary.scores import RecipeScores, RunKey
from tutelage.records import IntervalRecord
from tutelage.utils.bootstrap import widened

BaseModel = Literal["teacher", "anchor"]
BASELINE = "sft"
"""Where the gap to the teacher begins."""
TWO_BY_TWO = ("td", "td-aw", "scd", "scd-aw")
"""Best checkpoint and constant weights, best and adaptive, scheduled and constant, scheduled and adaptive."""

# --- keys of summary.json ---


class IntervalSummary(IntervalRecord):
    """A mean over training runs with its 95 % interval."""

    rows_only: bool
    """One training run: the interval is about other test rows alone."""


GapClosedSummary = TypedDict(
    "GapClosedSummary",
    {"share": float | None, "low": float | None, "high": float | None, "from": Literal["sft", "anchor"]},
)
"""Fraction of the gap from `from` to the teacher that a method closes. None: no gap, or an unbounded end."""


class AgainstBestSummary(TypedDict):
    """A method minus the best one."""

    best: str
    difference: IntervalSummary
    test: TestName
    p_value: float
    p_holm: float | None
    """None if the method has one training run in common with the best, and others have several."""
    seeds_needed: SeedsNeeded


class BaseSummary(TypedDict):
    """Teacher or anchor on the test rows."""

    score: IntervalSummary
    nll: IntervalSummary


class MethodSummary(BaseSummary):
    """A method on the test rows."""

    trainings: int
    """Number of training runs."""
    seeds: int
    """Number of different seeds among them."""
    trajectories: int
    """Number of different teacher seeds among them."""
    gap_closed: GapClosedSummary | None
    """None for the baseline."""
    validation: dict[str, float]
    """Mean `score` and `nll` of the kept stages on validation rows."""
    seconds: float
    """Mean of a training run."""
    score_rank: float
    """From 1; methods with equal values share their mean rank."""
    nll_rank: float
    score_against_best: NotRequired[AgainstBestSummary]
    nll_against_best: NotRequired[AgainstBestSummary]


class TextBaselineSummary(TypedDict):
    """TF-IDF with logistic regression on the test rows: trained once on the same rows, it has no loss per token."""

    score: IntervalSummary
    score_against_best: NotRequired[AgainstBestSummary]
    """`p_holm` is `p_value`: the only test of its kind. Absent where validation chose no method."""


Effects = dict[Literal["schedule", "weighting", "interaction"], IntervalSummary]


class RecipeSummary(TypedDict):
    """One recipe."""

    name: str
    task: str
    metric: str
    """What `score` is."""
    rows: int
    """Number of test rows."""
    base: dict[BaseModel, BaseSummary]
    text_baseline: NotRequired[TextBaselineSummary]
    """Absent where it does not suit the task, or was not scored."""
    methods: dict[str, MethodSummary]
    best: dict[Measure, str | None]
    """The method that validation chose; None without validation losses."""
    two_by_two: dict[Measure, Effects]
    """Empty unless the four methods have a training run in common."""


# --- how they are made ---


def summarise_recipe(recipe: RecipeScores) -> RecipeSummary:
    """The section of a recipe."""
    teacher_keys = [(teacher_seed, 0) for teacher_seed in recipe.runs]
    score, nll = _by_measure(recipe, "score"), _by_measure(recipe, "nll")
    return {
        "name": recipe.name,
        "task": recipe.task.name,
        "metric": recipe.task.metric,
        "rows": len(recipe.examples),
        "base": {
            "teacher": _base_summary(recipe, "teacher", teacher_keys),
            "anchor": _base_summary(recipe, "anchor", teacher_keys[:1]),
        },
        **_text_baseline(recipe),
        "methods": {method: _method_summary(recipe, method, score, nll) for method in recipe.methods},
        "best": {"score": score.best, "nll": nll.best},
        "two_by_two": _two_by_two(recipe),
    }


class _ByMeasure(NamedTuple):
    """All methods by score, or by loss."""

    intervals: dict[str, IntervalSummary]
    ranks: dict[str, float]
    best: str | None
    against_best: dict[str, AgainstBestSummary]


def _by_measure(recipe: RecipeScores, measure: Measure) -> _ByMeasure:
    keys = {method: recipe.keys(method) for method in recipe.methods}
    samples = {method: recipe.student_sample(measure, method, keys[method]) for method in recipe.methods}
    intervals = {m: _clipped(score_estimate(sample, grid=keys[m]), measure) for m, sample in samples.items()}
    ranks = mean_ranks([[SIGNS[measure] * interval["value"]] for interval in intervals.values()]).tolist()
    best, differences = compare_with_best(recipe, measure)
    return _ByMeasure(
        intervals,
        {method: int(rank) if rank.is_integer() else rank for method, rank in zip(intervals, ranks, strict=True)},
        best,
        {method: _against_best(best, tested) for method, tested in differences.items()},
    )


def _method_summary(recipe: RecipeScores, method: str, score: _ByMeasure, nll: _ByMeasure) -> MethodSummary:
    keys = recipe.keys(method)
    return {
        "trainings": len(keys),
        "seeds": len({seed for _, seed in keys}),
        "trajectories": len({teacher_seed for teacher_seed, _ in keys}),
        "score": score.intervals[method],
        "nll": nll.intervals[method],
        "gap_closed": _gap_closed(recipe, method),
        "validation": recipe.validation_means(method),
        "seconds": float(np.mean([record.seconds for record in recipe.cell_records(method)])),
        "score_rank": score.ranks[method],
        **({"score_against_best": score.against_best[method]} if method in score.against_best else {}),
        "nll_rank": nll.ranks[method],
        **({"nll_against_best": nll.against_best[method]} if method in nll.against_best else {}),
    }


def _base_summary(recipe: RecipeScores, model: BaseModel, keys: Sequence[RunKey]) -> BaseSummary:
    estimates = {m: score_estimate(recipe.base_sample(m, model, keys), grid=keys) for m in MEASURES}
    return {"score": _clipped(estimates["score"], "score"), "nll": _clipped(estimates["nll"], "nll")}


def _text_baseline(recipe: RecipeScores) -> dict[str, TextBaselineSummary]:
    if recipe.text_baseline is None:
        return {}
    found: TextBaselineSummary = {"score": _clipped(score_estimate(recipe.text_baseline), "score")}
    if against := compare_baseline_with_best(recipe):
        found["score_against_best"] = _against_best(*against)
    return {"text_baseline": found}


def _gap_closed(recipe: RecipeScores, method: str) -> GapClosedSummary | None:
    """On the training runs in common with the baseline; without any, from the anchor and on all of the method's."""
    if method == BASELINE:
        return None
    shared = recipe.keys(BASELINE, method) if BASELINE in recipe.methods else []
    keys = recipe.under_teachers(shared or recipe.keys(method), method)
    low = recipe.student_sample("score", BASELINE, keys) if shared else recipe.base_sample("score", "anchor", keys)
    teacher, student = recipe.base_sample("score", "teacher", keys), recipe.student_sample("score", method, keys)
    gap = gap_closed_interval(low, teacher, student, grid=keys)
    return {"share": gap.fraction, "low": gap.low, "high": gap.high, "from": "sft" if shared else "anchor"}


def _two_by_two(recipe: RecipeScores) -> dict[Measure, Effects]:
    keys = recipe.keys(*TWO_BY_TWO) if set(TWO_BY_TWO) <= set(recipe.methods) else []
    if not keys:
        return {}
    samples = {measure: [recipe.student_sample(measure, method, keys) for method in TWO_BY_TWO] for measure in MEASURES}
    effects = {measure: two_by_two(*samples[measure], grid=keys) for measure in MEASURES}
    parts = ("schedule", "weighting", "interaction")
    return {m: {part: _interval(getattr(effect, part)) for part in parts} for m, effect in effects.items()}


def _against_best(best: str, tested: TestedDifference) -> AgainstBestSummary:
    difference, p_holm, seeds = tested
    p_values = {"test": difference.test, "p_value": difference.p_value, "p_holm": p_holm}
    return {"best": best, "difference": _interval(difference), **p_values, "seeds_needed": seeds}


def _interval(estimate: Estimate) -> IntervalSummary:
    value, low, high = estimate.interval
    return {"value": value, "low": low, "high": high, "rows_only": estimate.rows_only}


def _clipped(estimate: Estimate, measure: Measure) -> IntervalSummary:
    """The interval of a score within [0, 1], of a loss above 0."""
    value, low, high = widened(estimate.interval, estimate.rows) if measure == "score" else estimate.interval
    most = 1.0 if measure == "score" else math.inf
    return {"value": value, "low": max(low, 0.0), "high": min(high, most), "rows_only": estimate.rows_only}
