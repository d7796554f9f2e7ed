"""Does a model know when it is right, and what is gained by asking the teacher where the student is unsure.

A model's confidence in an answer is the probability it gave the whole of it, end-of-sequence included: the product over
tokens.
`predictions.jsonl` holds it as `confidence` where `evaluate` recorded it. Where it did not, the loss on gold tells it
only on the rows that were answered with the gold text, exp(-nll x tokens); on the others the model's own answer can
have had anything up to what gold left over. `limits` says what follows from that, and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.analysis.statistics import wilson_interval
from tutelage.utils.bootstrap import resampled_means

BINS = 15
"""Equal widths of confidence, as in Guo et al. 2017 (arXiv 1706.04599), so that values of ECE can be set beside
others'."""
SHARES = tuple(n / 20 for n in range(21))
"""Shares of the rows that are sent on to the teacher: the points of a cascade."""
TOLERANCE = 0.01
"""A cascade is level with the teacher where it is surely within a point of its score."""


def sequence_probability(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[rows] probability of whole answers. nll: [rows] mean nats a token; tokens: [rows], end-of-sequence included in
    both."""
    return np.exp(-np.asarray(nll, dtype=np.float64) * tokens)


def reliability(confidence: np.ndarray, right: np.ndarray, *, bins: int = BINS, seed: int = 0) -> dict[str, Any]:
    """Calibration of a model whose confidences are known; JSON-able.

    confidence: [rows] in [0, 1]. right: [rows] booleans, whether the whole answer is right. Returns `rows`, `accuracy`,
    `confidence` (mean), `ece` (mean over rows of |accuracy - confidence| by bin), `ece_by_chance` (what 95 % of models
    that know exactly how sure to be would stay below, with these confidences on so many rows), `brier`, `auroc` (that a
    right answer has the higher confidence than a wrong one; None where all are right or all wrong) and `bins`, those
    that hold rows: `low`,
    `high`, `rows`, `confidence`, `accuracy` with a Wilson interval. Raises ValueError for other values, or no rows.
    """
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if sure.ndim != 1 or sure.shape != hit.shape or not len(sure) or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(
            f"confidence and right must be lists over the same rows, confidence in [0, 1]; found {sure}, {hit}"
        )
    places = np.minimum((sure * bins).astype(int), bins - 1)
    rng = np.random.default_rng(seed)
    chance = [_ece(sure, rng.random(len(sure)) < sure, places, bins) for _ in range(200)]
    return {
        "from": "confidence",
        "rows": len(sure),
        "accuracy": float(hit.mean()),
        "confidence": float(sure.mean()),
        "ece": _ece(sure, hit, places, bins),
        "ece_by_chance": float(np.quantile(chance, 0.95)),
        "brier": float(((sure - hit) ** 2).mean()),
        "auroc": auroc(sure, hit),
        "bins": [_bin(sure, hit, places == n, n / bins, (n + 1) / bins) for n in np.unique(places).tolist()],
    }


def limits(gold: np.ndarray, right: np.ndarray, same: np.ndarray) -> dict[str, Any]:
    """What is known of the calibration of a model that did not record its confidences; JSON-able.

    gold: [rows] probability of the gold answer. right: [rows] whether the answer is right. same: [rows] whether the
    model wrote the gold text, so that `gold` is its confidence. Elsewhere that lies between 0 and 1 - gold. Returns
    `accuracy`, `confidence` (`low` and `high`: where its mean must lie) and `sure_when_right` (its mean where it is
    known; None where it never is). Above `accuracy` the model is too sure of itself, below it too unsure; both can be
    open.
    """
    gold, right, same = np.asarray(gold, dtype=np.float64), np.asarray(right, dtype=bool), np.asarray(same, dtype=bool)
    if not len(gold):
        raise ValueError("there are no rows: a mean over nothing has no value")
    known = float(gold[same].sum())
    return {
        "from": "gold",
        "rows": len(gold),
        "accuracy": float(right.mean()),
        "confidence": {"low": known / len(gold), "high": (known + float((1 - gold[~same]).sum())) / len(gold)},
        "sure_when_right": float(gold[same].mean()) if same.any() else None,
    }


def auroc(values: np.ndarray, right: np.ndarray) -> float | None:
    """Chance in [0, 1] that a right answer has the higher value than a wrong one, ties counted half; None without one
    of them."""
    wrong = np.sort(values[~right])
    hits = values[right]
    if not len(wrong) or not len(hits):
        return None
    below, upto = np.searchsorted(wrong, hits, "left"), np.searchsorted(wrong, hits, "right")
    return float((below + upto).mean() / 2 / len(wrong))


def _ece(sure: np.ndarray, hit: np.ndarray, places: np.ndarray, bins: int) -> float:
    return float(np.abs(np.bincount(places, hit - sure, minlength=bins)).sum() / len(sure))


def _bin(sure: np.ndarray, hit: np.ndarray, inside: np.ndarray, low: float, high: float) -> dict[str, Any]:
    accuracy = wilson_interval(int(hit[inside].sum()), int(inside.sum()))._asdict()
    return {
        "low": low,
        "high": high,
        "rows": int(inside.sum()),
        "confidence": float(sure[inside].mean()),
        "accuracy": accuracy,
    }


# --- cascade ---


def cascades(
    students: Mapping[str, np.ndarray],
    teacher: np.ndarray,
    signals: Mapping[str, np.ndarray],
    costs: Mapping[str, float | None],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """What comes of it if each student answers where its signal is high and the teacher elsewhere; JSON-able, by
    student.

    students, teacher: [rows] scores in [0, 1]. signals: [rows] of each student; the rows with the lowest go to the
    teacher, equal ones in the order of the rows. costs: of a student's call, in calls of the teacher; None if unknown.
    Returns `points`, one for each of `SHARES`: `share` of calls to the teacher, `threshold` (the signal from which on
    the student answers; None where all rows go to the teacher), `score`, `against_teacher` (`value`, `low`, `high`:
    paired bootstrap over rows, the order held fixed), `cost` a row in calls of the teacher (the student is always asked
    first), and `perfect`, the score of a gate that knows the rows on which the teacher is better and sends no others.
    `level`: the least share whose score is not below the teacher's; `surely_level`: the least whose interval is above
    -0.01; None where there is none below 1.
    """
    names, rows = list(students), len(teacher)
    order = {name: np.argsort(signals[name], kind="stable") for name in names}
    answers = np.stack([_handed_on(students[name], teacher, order[name]) for name in names])
    apart = (answers - teacher).reshape(-1, rows).T
    draws = resampled_means(apart.astype(np.float32), resamples, seed).reshape(-1, len(names), len(SHARES))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    found = {}
    for place, name in enumerate(names):
        ranked, best = signals[name][order[name]], _perfect(students[name], teacher)
        points = []
        for step, share in enumerate(SHARES):
            sent = _sent(share, rows)
            against = {
                "value": float(answers[place, step].mean() - teacher.mean()),
                "low": float(low[place, step]),
                "high": float(high[place, step]),
            }
            cost = None if costs.get(name) is None else costs[name] + sent / rows
            points.append({
                "share": sent / rows, "threshold": float(ranked[sent]) if sent < rows else None,
                "score": float(answers[place, step].mean()), "against_teacher": against, "cost": cost, "perfect": best[sent],
            })  # fmt: skip
        found[name] = {
            "points": points,
            "level": _least(points, "value", -1e-12),
            "surely_level": _least(points, "low", -TOLERANCE),
        }
    return found


def router(topics: np.ndarray, gains: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """[rows, students] how far each student is expected not to lose to the teacher, from prompts alone: a signal for
    `cascades`.

    topics: [rows, k] prompts as numbers. gains: [rows, students] score of student - teacher. Ridge regression, every
    row foretold by one that has not seen it: an honest stand-in where no model recorded how sure it was.
    """
    from sklearn.linear_model import Ridge

    fold = np.random.default_rng(seed).permutation(len(topics)) % folds
    foretold = np.zeros(gains.shape)
    for number in range(folds):
        inside = fold == number
        if topics.shape[1] and inside.any() and not inside.all():
            foretold[inside] = (
                Ridge(alpha=1.0)
                .fit(topics[~inside], gains[~inside])
                .predict(topics[inside])
                .reshape(-1, gains.shape[1])
            )
    return foretold


def _sent(share: float, rows: int) -> int:
    return round(share * rows)


def _handed_on(student: np.ndarray, teacher: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[shares, rows] scores of the cascade at every share."""
    found = np.tile(student, (len(SHARES), 1))
    for step, share in enumerate(SHARES):
        sent = order[: _sent(share, len(order))]
        found[step, sent] = teacher[sent]
    return found


def _perfect(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    """[rows + 1] best score with at most so many calls of the teacher."""
    gains = np.sort(np.maximum(teacher - student, 0.0))[::-1]
    return (student.mean() + np.concatenate([[0.0], np.cumsum(gains)]) / len(student)).tolist()


def _least(points: Sequence[Mapping[str, Any]], key: str, bound: float) -> float | None:
    return next((point["share"] for point in points[:-1] if point["against_teacher"][key] >= bound), None)
