"""Gap closed, the 2 x 2, ranks and predictions: numbers derived by hand, and coverage of simulated truths."""

import math

import numpy as np
import pytest

from tutelage.analysis.method_comparison import gap_closed_interval, mean_ranks, prediction_table, two_by_two

# --- gap closed ---


def test_gap_closed_on_constants():
    # sft 0.5, teacher 0.9, student 0.8: 0.3 of 0.4
    found = gap_closed_interval(np.full((3, 20), 0.5), np.full((1, 20), 0.9), np.full((3, 20), 0.8))
    assert (found.fraction, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75), abs=1e-6)
    assert found.gap.interval.value == pytest.approx(0.4)


def test_gap_closed_by_the_delta_method():
    # Gap exactly 0.4; seed values of the student 0.7, 0.8, 0.9: fraction 0.75 -+ 4.303 * 0.1 / sqrt(3) / 0.4 = 0.75 -+
    # 0.621
    student = np.repeat([[0.7], [0.8], [0.9]], 20, axis=1)
    found = gap_closed_interval(np.full((3, 20), 0.5), np.full((1, 20), 0.9), student)
    assert (found.fraction, found.low, found.high) == pytest.approx((0.75, 0.129, 1.371), abs=0.015)


def test_no_fraction_without_a_gap_and_no_ends_if_the_gap_is_not_significant():
    level = np.full((1, 20), 0.5)
    assert gap_closed_interval(level, level + 0.004, level).fraction is None
    rng = np.random.default_rng(0)
    found = gap_closed_interval(rng.random((1, 20)), 0.05 + rng.random((1, 20)), rng.random((1, 20)))
    assert found.gap.interval.low < 0 < found.gap.interval.value
    assert (found.low, found.high) == (None, None)
    assert found.fraction is not None


def test_gap_closed_covers_its_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        hardness = rng.normal(size=(1, 300))
        sft, student = (level + hardness + rng.normal(0, 0.4, (3, 300)) for level in (0.0, 0.3))
        found = gap_closed_interval(sft, 0.4 + hardness + rng.normal(0, 0.4, (1, 300)), student)
        covered += found.low <= 0.75 <= found.high
    assert covered >= 90


# --- 2 x 2, ranks, predictions ---


def test_two_by_two_on_constants():
    cells = [np.full((3, 10), value) for value in (0.5, 0.6, 0.7, 1.0)]
    found = two_by_two(*cells)
    # schedule (0.7 + 1.0 - 0.5 - 0.6) / 2; weighting (0.6 + 1.0 - 0.5 - 0.7) / 2; interaction (1.0 - 0.7) - (0.6 - 0.5)
    assert found.schedule.interval == pytest.approx((0.3, 0.3, 0.3))
    assert found.weighting.interval == pytest.approx((0.2, 0.2, 0.2))
    assert found.interaction.interval == pytest.approx((0.2, 0.2, 0.2))


def test_two_by_two_is_paired_by_row_and_seed():
    # What all four cells share cancels; an effect of 0.1 on every row and seed has an interval of width 0.
    shared = np.random.default_rng(0).random((3, 25))
    found = two_by_two(shared, shared, shared + 0.1, shared + 0.1)
    assert found.schedule.interval == pytest.approx((0.1, 0.1, 0.1))
    assert found.weighting.interval == found.interaction.interval == (0, 0, 0)


def test_scores_that_differ_by_rounding_share_their_rank():
    # 0.1 + 0.2 and 0.3 differ in their last digit.
    assert mean_ranks([[0.1 + 0.2], [0.3], [0.2]]) == pytest.approx([1.5, 1.5, 3.0])


def test_mean_ranks_share_ties():
    # Data set 1: ranks 1, 2.5, 2.5; data set 2: 3, 1, 2
    assert mean_ranks([[0.9, 0.1], [0.8, 0.3], [0.8, 0.2]]) == pytest.approx([2.0, 1.75, 2.25])
    with pytest.raises(ValueError, match="every data set"):
        mean_ranks([[0.9, math.nan]])


def test_prediction_table_by_hand():
    # Predicted yes, yes, no (a tie), no; won yes, no, yes, no
    found = prediction_table([0.3, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4], [True, False, True, False])
    assert [found[key] for key in ("true_wins", "false_wins", "false_losses", "true_losses")] == [1, 1, 1, 1]
    assert found["accuracy"]["value"] == 0.5
    with pytest.raises(ValueError, match="at least one"):
        prediction_table([], [], [])
