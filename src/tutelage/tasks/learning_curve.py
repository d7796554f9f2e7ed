"""What more rows with gold would be worth: a learning curve of TF-IDF with logistic regression.

The curve is the baseline's: a language model has another one, and often needs fewer rows. It says whether the rows at
hand are near the end of what more of them can teach. docs/checks.md says how it is made and how often it was right.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.records import Example, Interval
from tutelage.tasks.base import BaseTask
from tutelage.tasks.tfidf import TfidfAnswers, tfidf_answers
from tutelage.utils.bootstrap import resampled_means, widened

DIVISORS = (8, 4, 2)
"""The baseline is trained on these parts of the rows, each within the next, and on all of them."""
FEWEST_ROWS, FEWEST_PER_LABEL = 100, 2
"""With fewer rows, or fewer of them for each label, a curve has not taken its shape: what it predicts is wrong."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Doubling:
    """What twice as many rows would add to the score."""

    power_law: float
    """Gain by a power law of the error through all points, from the last of them on."""
    last: float
    """Gain of the last doubling; the next one is smaller once errors get rare."""
    low: float
    """Ends of the 95 % interval that holds both, and the chance of other validation rows."""
    high: float


def predict(rows: Sequence[int], scores: np.ndarray) -> Doubling:
    """The gain of a further doubling, from [points, validation rows] scores in [0, 1] of the same validation rows.

    rows: number of training rows of each point, at least two, increasing; the last is twice the one before.
    """
    steps = np.log(rows) - np.log(rows).mean()

    def gains(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N] by power law, [N] of the last doubling) from [N, points] mean scores."""
        errors = np.maximum(1.0 - means, 0.5 / scores.shape[1])
        slopes = np.minimum(np.log(errors) @ steps / (steps @ steps), 0.0)  # more rows are taken to do no harm
        by_law = errors[:, -1] * (1.0 - 2.0**slopes)
        return by_law.round(12), np.minimum(means[:, -1] - means[:, -2], errors[:, -1]).round(12)

    (power_law,), (last,) = gains(scores.mean(axis=1)[None])
    by_law, by_last = gains(resampled_means(scores.T.astype(np.float64), RESAMPLES))
    # A fit through all points varies less than a measured gain does, of which the next one will be an example.
    by_law = by_law + by_last - last
    low = float(np.quantile(np.minimum(by_law, by_last), 0.025))
    high = float(np.quantile(np.maximum(by_law, by_last), 0.975))
    # Where the last doubling changed no answer, as far as few rows can say.
    gain = widened(Interval(float(last), low, high), scores.shape[1], low=-1.0)
    return Doubling(float(power_law), float(last), gain.low, min(gain.high, 1.0 - float(scores[-1].mean())))


@dataclass(frozen=True, slots=True)
class Curve:
    """The baseline's mean row score on the validation rows, by number of training rows."""

    rows: list[int]
    scores: list[float]
    doubling: Doubling


def learning_curve(
    training: Sequence[Example],
    validation: Sequence[Example],
    task: BaseTask,
    texts: Sequence[str],
    on_all: TfidfAnswers,
) -> Curve | None:
    """The curve of the baseline; None with too few rows, or too many to train on all.

    texts: of the training rows, then of the validation rows, as of `tfidf_answers`; on_all: what it answered.
    """
    needed = max(FEWEST_ROWS, FEWEST_PER_LABEL * len({row.answer for row in training}))
    if len(training) < needed or on_all.training_rows < len(training):
        return None
    order = random.Random(0).sample(range(len(training)), len(training))
    held_out, sizes, answers = list(texts[len(training) :]), [], []
    for size in (len(training) // divisor for divisor in DIVISORS):
        part = order[:size]
        found = tfidf_answers([training[i] for i in part], validation, task, [texts[i] for i in part] + held_out)
        sizes.append(size)
        answers.append(found.answers)
    scores = np.array([
        [task.score(answer, row) for answer, row in zip(of_size, validation, strict=True)]
        for of_size in [*answers, on_all.answers]
    ])  # fmt: skip
    sizes.append(len(training))
    return Curve(sizes, scores.mean(axis=1).tolist(), predict(sizes, scores))
