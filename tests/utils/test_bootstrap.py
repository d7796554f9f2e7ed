"""The bootstrap over rows: textbook widths, resamples that repeat with their seed, undefined values left out."""

import numpy as np
import pytest

from tutelage.records import Interval
from tutelage.utils import bootstrap as module
from tutelage.utils.bootstrap import (
    batch_sizes,
    bootstrap,
    percentile_interval,
    resampled_counts,
    resampled_means,
    widened,
    wilson_interval,
)


def mean(draws, patterns):
    return {"mean": draws @ patterns[:, 0] / draws.sum(1)}


def test_bootstrap_of_a_mean_has_the_textbook_width():
    # 400 rows, half of them 1: standard error 0.5 / 20 = 0.025, so the interval is about 0.5 -+ 1.96 * 0.025.
    rows = np.repeat([0.0, 1.0], 200)[:, None]
    value, low, high = bootstrap(rows, mean, 4000, seed=1)["mean"]
    assert value == 0.5
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_bootstrap_repeats_with_its_seed_and_does_not_depend_on_row_order():
    rows = np.random.default_rng(0).random((50, 1))
    first = bootstrap(rows, mean, 200, seed=3)
    assert bootstrap(rows, mean, 200, seed=3) == first
    assert bootstrap(rows, mean, 200, seed=4) != first
    assert bootstrap(rows[::-1], mean, 200, seed=3) == first


def test_bootstrap_in_several_batches_equals_one_batch(monkeypatch):
    rows = np.random.default_rng(0).random((50, 1))
    whole, counts = bootstrap(rows, mean, 200), np.concatenate(list(resampled_counts(50, 200)))
    monkeypatch.setattr(module, "MAX_DRAWS", 50 * 7)
    assert bootstrap(rows, mean, 200)["mean"] == pytest.approx(whole["mean"])
    assert np.array_equal(np.concatenate(list(resampled_counts(50, 200))), counts)


def test_bootstrap_of_one_row_and_of_none():
    assert bootstrap(np.array([[0.25]]), mean)["mean"] == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap(np.zeros((0, 1)), mean)


def test_bootstrap_leaves_out_draws_without_a_value():
    def fraction_of_first(draws, patterns):
        return {"fraction": np.where(draws[:, 1] > 0, 1.0, np.nan)}

    assert bootstrap(np.array([[0], [1]]), fraction_of_first)["fraction"] == (1.0, 1.0, 1.0)


def test_every_resample_draws_as_many_rows_as_there_are_by_numpys_integers():
    counts = np.concatenate(list(resampled_counts(7, 20, seed=5, dtype=np.float32)))
    drawn = np.random.default_rng(5).integers(7, size=(20, 7))
    assert counts.dtype == np.float32
    assert counts.tolist() == [[float((line == row).sum()) for row in range(7)] for line in drawn]


def test_means_of_columns_share_their_resamples():
    table = np.random.default_rng(0).random((30, 2))
    drawn = np.random.default_rng(1).integers(30, size=(40, 30))
    assert resampled_means(table, 40, seed=1) == pytest.approx(table[drawn].mean(axis=1))


def test_an_interval_leaves_out_draws_that_are_not_finite_and_has_no_negative_zero():
    assert percentile_interval(1.0, np.array([np.nan, 2.0, np.inf])) == (1.0, 2.0, 2.0)
    assert percentile_interval(1.0, np.array([np.nan])) == (1.0, 1.0, 1.0)
    assert str(percentile_interval(0.0, np.array([-0.0])).low) == "0.0"


def test_batches_hold_a_bounded_number_of_draws(monkeypatch):
    monkeypatch.setattr(module, "MAX_DRAWS", 12)
    assert list(batch_sizes(5, 6)) == [2, 2, 1]
    assert list(batch_sizes(3, 100)) == [1, 1, 1]
    with pytest.raises(ValueError, match="found 0"):
        list(batch_sizes(0, 5))


def test_wilson_by_hand():
    # 8 of 10, z^2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 1.96 / 1.38415 * sqrt(0.016 + 0.0096036) =
    # 0.22658
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-4)
    assert wilson_interval(5, 5).high == 1.0
    assert wilson_interval(0, 5).low == 0.0
    with pytest.raises(ValueError, match="0 of 0"):
        wilson_interval(0, 0)


def test_rows_that_are_all_alike_leave_room_for_others():
    # Wilson's upper end for 0 of 9 is 3.8415 / (9 + 3.8415) = 0.29915.
    assert widened(Interval(0, 0, 0), 9) == pytest.approx((0, 0, 0.29915), abs=1e-5)
    assert widened(Interval(1, 1, 1), 9) == pytest.approx((1, 0.70085, 1), abs=1e-5)
    assert widened(Interval(0.5, 0.2, 0.8), 9) == (0.5, 0.2, 0.8)
    # A difference of two scores lies in [-1, 1]: up to 0.29915 of the rows may still differ by 1, either way.
    assert widened(Interval(0, 0, 0), 9, low=-1) == pytest.approx((0, -0.29915, 0.29915), abs=1e-5)
    assert widened(Interval(1, 1, 1), 1, low=-1).low < 0 < widened(Interval(1, 1, 1), 6, low=-1).low
