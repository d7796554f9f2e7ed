"""Shares of the gap, 2 x 2, seeds needed, Holm, ranks and forecasts, against numbers worked out by hand and simulated
truths."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from tutelage.analysis.statistics import (
    Estimate,
    gap_closed_interval,
    hierarchical_bootstrap,
    holm,
    holm_levels,
    mean_ranks,
    prediction_table,
    seeds_needed,
    two_by_two,
    wilson_interval,
)
from tutelage.records import Interval

# --- share of the gap ---


def test_share_of_the_gap_on_constants():
    # sft 0.5, teacher 0.9, student 0.8: 0.3 of 0.4
    found = gap_closed_interval(np.full((3, 20), 0.5), np.full((1, 20), 0.9), np.full((3, 20), 0.8))
    assert (found.share, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75), abs=1e-6)
    assert found.gap.interval.value == pytest.approx(0.4)


def test_share_of_the_gap_by_the_delta_method():
    # Gap 0.4 surely; seed values of the student 0.7, 0.8, 0.9: share 0.75 -+ 4.303 * 0.1 / sqrt(3) / 0.4 = 0.75 -+
    # 0.621
    student = np.repeat([[0.7], [0.8], [0.9]], 20, axis=1)
    found = gap_closed_interval(np.full((3, 20), 0.5), np.full((1, 20), 0.9), student)
    assert (found.share, found.low, found.high) == pytest.approx((0.75, 0.129, 1.371), abs=0.015)


def test_no_share_where_there_is_no_gap_and_no_ends_where_the_gap_is_open():
    level = np.full((1, 20), 0.5)
    assert gap_closed_interval(level, level + 0.004, level).share is None
    rng = np.random.default_rng(0)
    found = gap_closed_interval(rng.random((1, 20)), 0.05 + rng.random((1, 20)), rng.random((1, 20)))
    assert found.gap.interval.low < 0 < found.gap.interval.value
    assert (found.low, found.high) == (None, None)
    assert found.share is not None


def test_share_of_the_gap_covers_its_truth():
    rng, held = np.random.default_rng(0), 0
    for number in range(100):
        hardness = rng.normal(size=(1, 300))
        sft, student = (level + hardness + rng.normal(0, 0.4, (3, 300)) for level in (0.0, 0.3))
        found = gap_closed_interval(
            sft, 0.4 + hardness + rng.normal(0, 0.4, (1, 300)), student, resamples=300, seed=number
        )
        held += found.low <= 0.75 <= found.high
    assert held >= 90


# --- 2 x 2, seeds, corrections, ranks, forecasts ---


def test_two_by_two_on_constants():
    cells = [np.full((3, 10), value) for value in (0.5, 0.6, 0.7, 1.0)]
    found = two_by_two(*cells)
    # schedule (0.7 + 1.0 - 0.5 - 0.6) / 2; weighting (0.6 + 1.0 - 0.5 - 0.7) / 2; interaction (1.0 - 0.7) - (0.6 - 0.5)
    assert found.schedule.interval == pytest.approx((0.3, 0.3, 0.3))
    assert found.weighting.interval == pytest.approx((0.2, 0.2, 0.2))
    assert found.interaction.interval == pytest.approx((0.2, 0.2, 0.2))


def test_two_by_two_takes_rows_and_seeds_together():
    # What all four cells share cancels; an effect of 0.1 on every row and seed is found without width.
    shared = np.random.default_rng(0).random((3, 25))
    found = two_by_two(shared, shared, shared + 0.1, shared + 0.1)
    assert found.schedule.interval == pytest.approx((0.1, 0.1, 0.1))
    assert found.weighting.interval == found.interaction.interval == (0, 0, 0)


def estimate(value, half, *, seeds=3, row_error, seed_deviation, **parts):
    whole = {"seed_noise": 0.0, "trajectories": 1, "trajectory_error": 0.0, "both_error": 0.0} | parts
    known = {"seeds": seeds, "rows": 10_000, "row_error": row_error, "seed_deviation": seed_deviation}
    return Estimate(interval=Interval(value, value - half, value + half), **known, **whole, error=half / 2, freedom=9.0)


@pytest.mark.parametrize("trajectories", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_seeds_needed_foretells_by_the_interval_itself(trajectories, spread):
    # With the seeds there are the forecast is the interval that is there, whichever part dominates.
    rng, grid = np.random.default_rng(5), [(t, s) for t in range(trajectories) for s in range(3)]
    for _ in range(20):
        levels = spread * (rng.random(3)[None] + rng.random(trajectories)[:, None] + rng.random((trajectories, 3)))
        found = hierarchical_bootstrap(levels.reshape(-1, 1) + rng.random((len(grid), 40)), grid=grid)
        assert [float(part) for part in found.with_seeds(3)] == pytest.approx([found.error, found.freedom])


def test_seeds_that_agree_by_luck_are_not_taken_to_agree_for_ever():
    # Three equal seeds whose rows differ: rows alone would make a deviation of 0.1 between them. 90 of 100 sets of S
    # seeds differ by more than sqrt(c / (S - 1)) of that: c is 0.2107 for 2 degrees of freedom and 4.168 for 9.
    lucky = estimate(0.01, 0.07, row_error=0.0, seed_deviation=0.1 * math.sqrt(0.2107 / 2), seed_noise=0.1)
    errors, freedom = lucky.with_seeds([3, 10])
    assert errors == pytest.approx([0.1 * math.sqrt(0.2107 / 2 / 3), 0.1 * math.sqrt(4.168 / 9 / 10)], rel=1e-3)
    assert freedom == pytest.approx([2, 9])


def test_what_seeds_and_trajectories_share_shrinks_with_more_seeds():
    # Parts with 2 seeds: seeds 0.02, trajectories 0.02, of which 0.01 in both. With 4 seeds 0.01, 0.015 and 0.005: 0.02
    # in all. Degrees of freedom: shares 0.4 and 0.6, 1 / (0.4^(2 - 1/3) / 3 + 0.6^(2 - 1) / 1) = 1 / 0.67239.
    parts = {"trajectories": 2, "trajectory_error": math.sqrt(0.02), "both_error": 0.1}
    error, freedom = estimate(0.02, 0.07, seeds=2, row_error=0.0, seed_deviation=0.2, **parts).with_seeds(4)
    assert (float(error), float(freedom)) == pytest.approx((math.sqrt(0.02), 1 / (0.4 ** (5 / 3) / 3 + 0.6)))


def test_one_seed_under_several_trajectories_tells_nothing_of_seeds():
    scores = np.random.default_rng(3).random((2, 30))
    found = hierarchical_bootstrap(scores, grid=[(0, 0), (1, 0)])
    assert (found.seeds, found.trajectories, found.rows_only) == (1, 2, False)
    assert seeds_needed(found, settled=False).verdict == "seed_variance_unknown"
    with pytest.raises(ValueError, match="one seed"):
        found.with_seeds(2)


def test_seeds_needed_by_hand():
    # Rows known exactly, seed deviation 0.03, difference 0.02: t(n-1) 0.03 / sqrt(n) is 2.228 * 0.03 / sqrt(11) =
    # 0.0202 with 11 seeds and 2.201 * 0.03 / sqrt(12) = 0.0191 with 12.
    open_yet = estimate(0.02, 0.07, row_error=0.0, seed_deviation=0.03)
    found = seeds_needed(open_yet, settled=False)
    assert (found.verdict, found.total, found.more) == ("more_seeds", 12, 9)
    # A tenth of the level, as with ten tests: t(23) at 0.9975 is 3.104, 3.104 * 0.03 / sqrt(24) = 0.0190; with 21 seeds
    # 3.153 gives 0.0206, with 22 3.135 gives 0.0201, with 23 3.119 gives 0.0195.
    assert seeds_needed(open_yet, settled=False, level=0.005).total == 23


def test_seeds_do_not_help_where_trajectories_are_too_few():
    # 1.96 * 0.011 > 0.02
    two = dataclasses.replace(
        estimate(0.02, 0.07, row_error=0.0, seed_deviation=0.03), trajectories=2, trajectory_error=0.011
    )
    assert seeds_needed(two, settled=False).verdict == "rows_too_few"


def test_seeds_do_not_help_where_rows_are_too_few():
    # 1.96 * 0.011 > 0.02
    found = seeds_needed(estimate(0.02, 0.07, row_error=0.011, seed_deviation=0.03), settled=False)
    assert (found.verdict, found.total, found.more) == ("rows_too_few", None, None)


def test_no_more_seeds_where_it_is_settled_and_no_answer_from_one_seed():
    settled = seeds_needed(estimate(0.02, 0.01, row_error=0.005, seed_deviation=0.0), settled=True)
    assert (settled.verdict, settled.total, settled.more) == ("settled", 3, 0)
    single = seeds_needed(estimate(0.02, 0.03, seeds=1, row_error=0.01, seed_deviation=None), settled=False)
    assert (single.verdict, single.total) == ("seed_variance_unknown", None)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.5])


def test_equal_p_values_have_one_level():
    # Of three, 0.02 twice: both must be below 0.05 / 3 before either is rejected.
    assert holm_levels([0.02, 0.3, 0.02]) == pytest.approx([0.05 / 3, 0.05, 0.05 / 3])


def test_what_holm_compares_each_p_value_with():
    # Smallest of four first: 0.05 / 4, / 3, / 2, / 1.
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.05, 0.025, 0.0125])
    assert len(holm_levels([])) == 0


def test_ranks_do_not_tell_rounding_apart():
    # 0.1 + 0.2 and 0.3 differ in their last digit.
    assert mean_ranks([[0.1 + 0.2], [0.3], [0.2]]) == pytest.approx([1.5, 1.5, 3.0])


def test_mean_ranks_share_ties():
    # Data set 1: ranks 1, 2.5, 2.5; data set 2: 3, 1, 2
    assert mean_ranks([[0.9, 0.1], [0.8, 0.3], [0.8, 0.2]]) == pytest.approx([2.0, 1.75, 2.25])
    with pytest.raises(ValueError, match="every data set"):
        mean_ranks([[0.9, math.nan]])


def test_prediction_table_by_hand():
    # Foretold yes, yes, no (a tie), no; won yes, no, yes, no
    found = prediction_table([0.3, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4], [True, False, True, False])
    assert (found.true_wins, found.false_wins, found.false_losses, found.true_losses) == (1, 1, 1, 1)
    assert found.accuracy.value == 0.5
    with pytest.raises(ValueError, match="at least one"):
        prediction_table([], [], [])


def test_wilson_by_hand():
    # 8 of 10, z^2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 1.96 / 1.38415 * sqrt(0.016 + 0.0096036) =
    # 0.22658
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-4)
    assert wilson_interval(5, 5).high == 1.0
    assert wilson_interval(0, 5).low == 0.0
    with pytest.raises(ValueError, match="0 of 0"):
        wilson_interval(0, 0)


def test_importing_loads_no_scipy():
    code = "import sys, tutelage.analysis.statistics; print('scipy' in sys.modules or 'torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
