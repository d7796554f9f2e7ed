"""When a run should stop: the two rules on numbers that a reader can follow, and runs that are too small to judge."""

import numpy as np
import pytest

from tutelage.analysis.worth import Gain, learned_nothing
from tutelage.method.risk_split import score_lead
from tutelage.records import Interval
from tutelage.utils.bootstrap import wilson_interval


@pytest.mark.parametrize(
    ("right", "rows", "baseline", "stops"),
    [
        (0, 9, 0.44, True),  # nothing right
        (0, 3, 0.0, True),
        (4, 9, 0.44, False),  # as good as the baseline, but nine rows do not rule out 0.73
        (20, 40, 0.5, True),  # always the most common answer: at most 0.65
        (60, 200, 0.5, True),  # below it
        (22, 40, 0.5, False),  # above it, not yet surely
        (55, 100, 0.5, False),
        (110, 200, 0.5, True),  # above it by no more than chance: at most 0.62
        (130, 200, 0.5, False),
        (4, 30, 0.1, True),  # ten labels: at most 0.30
        (10, 30, 0.1, False),
        (1, 5, 0.1, False),
        (190, 200, 0.95, True),  # 95 % of the rows have one label
        (95, 100, 0.95, False),
        (1, 1, 0.5, False),
    ],
)
def test_a_teacher_has_learned_nothing_where_the_rows_can_say_so(right, rows, baseline, stops):
    assert learned_nothing(wilson_interval(right, rows), baseline) is stops


def gain(score: Interval, loss: Interval, anchor_loss: float = 1.0) -> Gain:
    return Gain(0.8, 0.8, 0.9, score, loss, anchor_loss, 100)


NO_LEAD, CLEAR_LEAD = Interval(0.05, -0.1, 0.2), Interval(0.3, -0.1, 0.7)  # of 1 nat


@pytest.mark.parametrize(
    ("score", "loss", "stops"),
    [
        (Interval(0.0, -0.03, 0.03), NO_LEAD, True),
        (Interval(-0.05, -0.09, -0.01), CLEAR_LEAD, True),  # the teacher is worse
        (Interval(0.0, -0.06, 0.06), NO_LEAD, False),  # few rows
        (Interval(0.03, 0.01, 0.05), NO_LEAD, False),
        (Interval(0.01, -0.01, 0.03), CLEAR_LEAD, False),
        (Interval(0.0, -0.01, 0.01), CLEAR_LEAD, True),
    ],
)
def test_an_anchor_equals_its_teacher_where_the_interval_leaves_little(score, loss, stops):
    assert gain(score, loss).nothing is stops


def test_a_lead_in_loss_that_no_score_shows_is_none():
    assert gain(Interval(0.0, -0.03, 0.03), Interval(0.002, 0.001, 0.003), anchor_loss=0.004).nothing


def test_rows_that_all_agree_still_have_an_interval():
    ones = np.ones(9)
    assert score_lead(ones, ones) == pytest.approx((0, -0.29915, 0.29915), abs=1e-5)
    assert score_lead(ones, 0 * ones).value == 1 and score_lead(ones[:1], 0 * ones[:1]).low < 0
    mixed = np.array([1.0, 0.0, 1.0, 1.0])
    assert score_lead(mixed, np.zeros(4)).value == 0.75
