"""The learning curve of the baseline: what it predicts, and when it says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.data.near_duplicates import distinct_texts
from tutelage.records import Example
from tutelage.tasks.classification import Classification
from tutelage.tasks.learning_curve import FEWEST_ROWS, learning_curve, predict
from tutelage.tasks.tfidf import TfidfAnswers, tfidf_answers
from tutelage.utils.bootstrap import unseen_share

SIZES = [100, 200, 400, 800]


def right(*shares: float, rows: int = 400) -> np.ndarray:
    """[points, rows] 1 on the first rows: what is right once stays right."""
    return (np.arange(rows) < np.array(shares)[:, None] * rows).astype(float)


def test_a_power_law_goes_on_and_lies_below_the_last_gain():
    """Errors 0.8, 0.4, 0.2, 0.1: half of them goes with every doubling, so 0.05 is next, and the last gain was 0.1."""
    found = predict(SIZES, right(0.2, 0.6, 0.8, 0.9))
    assert (found.power_law, found.last) == (pytest.approx(0.05), pytest.approx(0.1))
    assert found.low < 0.05 and found.high == pytest.approx(0.1)  # no more than the errors that are left


def test_a_flat_curve_gains_no_more_than_rows_that_are_not_seen():
    found = predict(SIZES, right(0.7, 0.7, 0.7, 0.7))
    assert (found.power_law, found.last) == (0, 0)
    assert (found.low, found.high) == pytest.approx((-unseen_share(400), unseen_share(400))) and found.high < 0.01


def test_a_falling_curve_is_not_predicted_to_fall_further_by_the_law():
    found = predict(SIZES, right(0.8, 0.75, 0.7, 0.65))
    assert found.power_law == 0 and found.last == pytest.approx(-0.05)
    assert found.low < -0.05 and found.high >= 0


def test_the_interval_narrows_with_validation_rows():
    few, many = (predict(SIZES, right(0.3, 0.4, 0.5, 0.6, rows=rows)) for rows in (50, 5000))
    assert few.power_law == pytest.approx(many.power_law, abs=0.01)
    assert many.high - many.low < 0.5 * (few.high - few.low)


# --- when it says nothing ---


def example(number: int, split: str, labels: int) -> Example:
    label = f"L{number % labels}"
    return Example(f"{split}-{number}", split, f"row {number} about thing{number % labels}", label, [label])


def curve(rows: int, labels: int, trained_on: int | None = None):
    training = [example(number, "train", labels) for number in range(rows)]
    validation = [example(number, "validation", labels) for number in range(40)]
    task = Classification()
    texts = distinct_texts([*training, *validation])
    found = tfidf_answers(training, validation, task, texts)
    on_all = TfidfAnswers(found.answers, trained_on or rows, found.features)
    return learning_curve(training, validation, task, texts, on_all)


def test_there_is_no_curve_with_few_rows_or_few_for_each_label_or_a_sample_of_them():
    assert curve(FEWEST_ROWS, 4).rows == [12, 25, 50, 100]
    assert curve(FEWEST_ROWS - 1, 4) is None
    assert curve(FEWEST_ROWS, 51) is None
    assert curve(FEWEST_ROWS, 4, trained_on=FEWEST_ROWS - 1) is None
