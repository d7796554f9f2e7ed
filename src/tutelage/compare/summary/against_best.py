"""The method that validation puts first, and how the others differ from it on the test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from tutelage.analysis import significance
from tutelage.analysis.significance import ALPHA, Difference, SeedsNeeded, holm, holm_levels, paired_difference
from tutelage.analysis.slices import Measure
from tutelage.compare.summary.scores import RecipeScores

SIGNS: dict[Measure, int] = {"score": 1, "nll": -1}
"""1: higher is better."""


class TestedDifference(NamedTuple):
    """A method minus the best, on the training runs that both have."""

    difference: Difference
    p_holm: float | None
    """Corrected for the number of methods that were tested; None if this difference was not."""
    seeds_needed: SeedsNeeded


class AgainstBest(NamedTuple):
    """All methods of a recipe against the best."""

    best: str | None
    """None without validation losses: nothing is tested then."""
    differences: dict[str, TestedDifference]
    """By method; without the best, and those that have no training run in common with it."""


def compare_with_best(recipe: RecipeScores, measure: Measure) -> AgainstBest:
    """Choose the best by validation and test the others against it, with Holm's correction.

    A method with one training run in common with the best says nothing about methods, so it is not part of the family
    of tests if others have several.
    """
    best = _best_on_validation(recipe, measure)
    if best is None:
        return AgainstBest(None, {})
    shared = {method: recipe.keys(method, best) for method in recipe.methods if method != best}
    differences = {
        method: paired_difference(
            recipe.student_sample(measure, method, keys), recipe.student_sample(measure, best, keys), grid=keys
        )
        for method, keys in shared.items()
        if keys
    }
    corrected = _corrected(differences)
    return AgainstBest(best, {name: _tested(difference, *corrected[name]) for name, difference in differences.items()})


def compare_baseline_with_best(recipe: RecipeScores) -> tuple[str, TestedDifference] | None:
    """(the method that is best on validation, how the score of TF-IDF with logistic regression differs from it).

    A test of its own, outside the family of the methods: p is not corrected. None without the baseline, or without
    validation scores.
    """
    best = _best_on_validation(recipe, "score")
    if recipe.text_baseline is None or best is None:
        return None
    keys = recipe.keys(best)
    difference = paired_difference(recipe.text_baseline, recipe.student_sample("score", best, keys), grid=keys)
    return best, _tested(difference, difference.p_value, ALPHA)


def _corrected(differences: Mapping[str, Difference]) -> dict[str, tuple[float | None, float]]:
    """By method, (p after Holm's correction or None, the level that p was compared with)."""
    some_with_several_runs = not all(difference.rows_only for difference in differences.values())
    family = [name for name, test in differences.items() if not (some_with_several_runs and test.rows_only)]
    p_values = [differences[name].p_value for name in family]
    tested = zip(holm(p_values).tolist(), holm_levels(p_values).tolist(), strict=True)
    return dict.fromkeys(differences, (None, ALPHA)) | dict(zip(family, tested, strict=True))


def _tested(difference: Difference, p_holm: float | None, level: float) -> TestedDifference:
    is_significant = p_holm is not None and p_holm <= ALPHA and not difference.rows_only
    return TestedDifference(difference, p_holm, significance.seeds_needed(difference, is_significant, level))


def _best_on_validation(recipe: RecipeScores, measure: Measure) -> str | None:
    """Of the methods with the most training runs in common with others, the best on validation.

    Test rows choose nothing here: the best of many equal methods on the test rows would differ from the others by
    chance. None without validation losses.
    """
    means = {method: recipe.validation_means(method) for method in recipe.methods}
    candidates = [method for method in recipe.methods if "nll" in means[method]]
    in_common = {method: _in_common(recipe, method) for method in candidates}
    most = max(in_common.values(), default=None)

    def quality(method: str) -> tuple[float, float]:
        score, nll = (sign * round(means[method].get(key, -math.inf), 12) for key, sign in SIGNS.items())
        return (score, nll) if measure == "score" else (nll, score)

    return max((method for method in candidates if in_common[method] == most), key=quality, default=None)


def _in_common(recipe: RecipeScores, method: str) -> tuple[int, int]:
    """(seeds, teacher seeds) that a method has in common with another, each summed over the others."""
    pairs = [
        recipe.under_teachers(recipe.keys(method, other), method, other) for other in recipe.methods if other != method
    ]
    seeds = sum(len({seed for _, seed in keys}) for keys in pairs)
    return seeds, sum(len({teacher_seed for teacher_seed, _ in keys}) for keys in pairs)
