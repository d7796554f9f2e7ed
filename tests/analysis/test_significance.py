"""Paired tests, corrections and seeds needed: numbers derived by hand, and error rates on simulated scores."""

import dataclasses
import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from helpers.simulated_scores import answers_of, micro_f1
from tutelage.analysis.crossed_intervals import Estimate
from tutelage.analysis.significance import (
    holm,
    holm_levels,
    mcnemar_exact,
    membership_test,
    paired_difference,
    randomisation_test,
    score_estimate,
    seeds_needed,
    sign_flip_test,
)
from tutelage.records import Interval

# --- two methods ---


def test_a_difference_is_paired_by_row_and_by_seed():
    # First is 0.1 better everywhere; rows and seeds differ widely, but they cancel in the difference.
    second = np.random.default_rng(0).normal(0, 5, (3, 1)) + np.random.default_rng(1).normal(0, 5, (3, 30))
    found = paired_difference(second + 0.1, second)
    assert found.interval == pytest.approx((0.1, 0.1, 0.1))
    assert (found.test, found.excludes_zero) == ("crossed_t", True)
    assert found.p_value < 0.002


def test_equal_methods_have_p_1():
    scores = np.random.default_rng(0).random((3, 30))
    assert paired_difference(scores, scores).p_value == 1.0
    assert paired_difference(scores[:1], scores[:1]).p_value == 1.0


def test_mcnemar_by_hand():
    # 1 against 8 of 9: 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    assert mcnemar_exact(1, 8) == mcnemar_exact(8, 1) == pytest.approx(20 / 512)
    assert mcnemar_exact(4, 4) == mcnemar_exact(0, 0) == 1.0
    first, second = np.zeros((1, 40)), np.zeros((1, 40))
    first[0, 0], second[0, 1:9] = 1, 1
    found = paired_difference(first, second)
    assert (found.test, found.rows_only) == ("mcnemar_exact", True)
    assert found.p_value == pytest.approx(20 / 512)
    assert found.interval.value == pytest.approx(-7 / 40)


def test_randomisation_is_the_sign_flip_test_of_a_mean():
    # Differences 1, 1, 1, 1, 1: of 32 sign patterns two are as extreme, 2 / 32.
    first, second = np.full((1, 5), 1.5), np.full((1, 5), 0.5)
    assert randomisation_test(first[0], second[0], resamples=20_000) == pytest.approx(2 / 32, abs=0.006)
    assert paired_difference(first, second).test == "randomisation"


def test_randomisation_with_a_statistic_swaps_whole_rows():
    # Two rows, F1 of 2 * 2 / 4 = 1 against 0: all four swaps but the two mixed ones (0.5 against 0.5) are as extreme.
    right, wrong = np.array([[1, 1, 1], [1, 1, 1]]), np.array([[0, 1, 1], [0, 1, 1]])
    assert randomisation_test(right, wrong, micro_f1, resamples=20_000) == pytest.approx(0.5, abs=0.015)


def test_the_sign_flip_test_by_hand():
    assert sign_flip_test(np.array([1.0, 1.0, 1.0, 0.0])) == 0.25  # McNemar: 2 x (1/2)^3
    assert sign_flip_test(np.array([0.5, 0.5, 0.25])) == 0.25  # 2 of 8 signs reach the sum
    assert sign_flip_test(np.zeros(5)) == 1.0


@pytest.mark.parametrize("heavy", [False, True])
def test_the_membership_test_agrees_with_all_choices_of_rows(heavy):
    values = np.random.default_rng(3).normal(size=18)
    values[[0, 1]] += [20.0 * heavy, -25.0 * heavy]
    order = np.argsort(values)
    sums = np.sort([values[list(choice)].sum() for choice in combinations(range(18), 5)])
    for indices in (order[-5:], order[[0, 1, 2, 4, 9]], order[[6, 12, 13, 16, 17]]):
        total = values[indices].sum()
        exact = min(1.0, 2 * min((sums >= total - 1e-9).mean(), (sums <= total + 1e-9).mean()))
        assert membership_test(values, indices) == pytest.approx(exact, abs=0.03)


def test_a_few_rows_with_huge_losses_do_not_make_a_small_slice_significant():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(200):
        values = rng.normal(0, 0.02, 300) + np.where(
            rng.random(300) < 0.03, rng.gamma(2, 2, 300) * rng.choice([-1, 1], 300), 0
        )
        p_values.append(membership_test(values, np.arange(15)))
    assert np.mean(np.array(p_values) <= 0.01) <= 0.035


def test_the_membership_test_distinguishes_small_p_values():
    values = np.r_[np.ones(200), np.zeros(800)]
    small, large = membership_test(values, np.arange(40)), membership_test(values, np.arange(120))
    assert large < small < 1e-20


def test_a_fixed_teacher_is_compared_with_every_seed():
    # Students 0.6, 0.7, 0.8 on all rows against a teacher at 0.5: 0.2 -+ 0.248, as of three values of deviation 0.1.
    found = paired_difference(np.repeat([[0.6], [0.7], [0.8]], 20, axis=1), np.full((1, 20), 0.5))
    assert found.interval == pytest.approx((0.2, -0.048, 0.448), abs=0.006)
    assert (found.seeds, found.test) == (3, "crossed_t")
    # t = 0.2 / (0.1 / sqrt(3)) = 3.46 with 2 degrees of freedom: p = 0.074
    assert found.p_value == pytest.approx(0.0742, abs=0.0005)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_the_false_positive_rate_of_equal_methods(seeds, seed_sd):
    rng, rejected = np.random.default_rng(seeds), 0
    for number in range(200):
        hardness = rng.normal(0, 1.5, 200)
        first, second = (answers_of(seeds, hardness, seed_sd=seed_sd, rng=rng) for _ in range(2))
        rejected += paired_difference(first, second, resamples=300, seed=number).p_value <= 0.05
    assert 0.02 <= rejected / 200 <= 0.08


def test_p_value_and_interval_agree():
    rng = np.random.default_rng(0)
    for number in range(40):
        first, second = rng.normal(0.05, 0.3, (3, 100)), rng.normal(0, 0.3, (3, 100))
        found = paired_difference(first, second, resamples=500, seed=number)
        assert found.excludes_zero == (found.p_value < 0.05)


def estimate(value, half, *, seeds=3, row_error, seed_deviation, **parts):
    whole = {"seed_noise": 0.0, "trajectories": 1, "trajectory_error": 0.0, "both_error": 0.0} | parts
    known = {"seeds": seeds, "rows": 10_000, "row_error": row_error, "seed_deviation": seed_deviation}
    return Estimate(interval=Interval(value, value - half, value + half), **known, **whole, error=half / 2, freedom=9.0)


@pytest.mark.parametrize("trajectories", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_the_forecast_for_the_present_seeds_is_the_present_interval(trajectories, spread):
    # Whichever part of the variance dominates.
    rng, grid = np.random.default_rng(5), [(t, s) for t in range(trajectories) for s in range(3)]
    for _ in range(20):
        levels = spread * (rng.random(3)[None] + rng.random(trajectories)[:, None] + rng.random((trajectories, 3)))
        found = score_estimate(levels.reshape(-1, 1) + rng.random((len(grid), 40)), grid=grid)
        assert [float(part) for part in found.with_seeds(3)] == pytest.approx([found.error, found.freedom])


def test_seeds_that_agree_by_chance_are_not_expected_to_agree_again():
    # Three equal seeds whose rows differ: rows alone would make a deviation of 0.1 between them. 90 of 100 sets of S
    # seeds differ by more than sqrt(c / (S - 1)) of that: c is 0.2107 for 2 degrees of freedom and 4.168 for 9.
    by_chance = estimate(0.01, 0.07, row_error=0.0, seed_deviation=0.1 * math.sqrt(0.2107 / 2), seed_noise=0.1)
    errors, freedom = by_chance.with_seeds([3, 10])
    assert errors == pytest.approx([0.1 * math.sqrt(0.2107 / 2 / 3), 0.1 * math.sqrt(4.168 / 9 / 10)], rel=1e-3)
    assert freedom == pytest.approx([2, 9])


def test_variance_that_seeds_and_trajectories_share_shrinks_with_more_seeds():
    # Parts with 2 seeds: seeds 0.02, trajectories 0.02, of which 0.01 in both. With 4 seeds 0.01, 0.015 and 0.005: 0.02
    # in all. Degrees of freedom: shares 0.4 and 0.6, 1 / (0.4^(2 - 1/3) / 3 + 0.6^(2 - 1) / 1) = 1 / 0.67239.
    parts = {"trajectories": 2, "trajectory_error": math.sqrt(0.02), "both_error": 0.1}
    error, freedom = estimate(0.02, 0.07, seeds=2, row_error=0.0, seed_deviation=0.2, **parts).with_seeds(4)
    assert (float(error), float(freedom)) == pytest.approx((math.sqrt(0.02), 1 / (0.4 ** (5 / 3) / 3 + 0.6)))


def test_one_seed_under_several_trajectories_says_nothing_about_seeds():
    scores = np.random.default_rng(3).random((2, 30))
    found = score_estimate(scores, grid=[(0, 0), (1, 0)])
    assert (found.seeds, found.trajectories, found.rows_only) == (1, 2, False)
    assert seeds_needed(found, significant=False)["verdict"] == "seed_variance_unknown"
    with pytest.raises(ValueError, match="one seed"):
        found.with_seeds(2)


def test_seeds_needed_by_hand():
    # Rows known exactly, seed deviation 0.03, difference 0.02: t(n-1) 0.03 / sqrt(n) is 2.228 * 0.03 / sqrt(11) =
    # 0.0202 with 11 seeds and 2.201 * 0.03 / sqrt(12) = 0.0191 with 12.
    not_significant = estimate(0.02, 0.07, row_error=0.0, seed_deviation=0.03)
    found = seeds_needed(not_significant, significant=False)
    assert found == {"verdict": "more_seeds", "total": 12, "more": 9}
    # A tenth of the level, as with ten tests: t(23) at 0.9975 is 3.104, 3.104 * 0.03 / sqrt(24) = 0.0190; with 21 seeds
    # 3.153 gives 0.0206, with 22 3.135 gives 0.0201, with 23 3.119 gives 0.0195.
    assert seeds_needed(not_significant, significant=False, level=0.005)["total"] == 23


def test_seeds_do_not_help_where_trajectories_are_too_few():
    # 1.96 * 0.011 > 0.02
    two = dataclasses.replace(
        estimate(0.02, 0.07, row_error=0.0, seed_deviation=0.03), trajectories=2, trajectory_error=0.011
    )
    assert seeds_needed(two, significant=False)["verdict"] == "rows_too_few"


def test_seeds_do_not_help_where_rows_are_too_few():
    # 1.96 * 0.011 > 0.02
    found = seeds_needed(estimate(0.02, 0.07, row_error=0.011, seed_deviation=0.03), significant=False)
    assert found == {"verdict": "rows_too_few", "total": None, "more": None}


def test_no_more_seeds_if_significant_and_no_answer_from_one_seed():
    enough = seeds_needed(estimate(0.02, 0.01, row_error=0.005, seed_deviation=0.0), significant=True)
    assert enough == {"verdict": "settled", "total": 3, "more": 0}
    single = seeds_needed(estimate(0.02, 0.03, seeds=1, row_error=0.01, seed_deviation=None), significant=False)
    assert single == {"verdict": "seed_variance_unknown", "total": None, "more": None}


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.5])


def test_equal_p_values_have_the_same_level():
    # Of three, 0.02 twice: both must be below 0.05 / 3 before either is rejected.
    assert holm_levels([0.02, 0.3, 0.02]) == pytest.approx([0.05 / 3, 0.05, 0.05 / 3])


def test_the_level_that_holm_compares_each_p_value_with():
    # Smallest of four first: 0.05 / 4, / 3, / 2, / 1.
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.05, 0.025, 0.0125])
    assert len(holm_levels([])) == 0


def test_importing_loads_no_scipy():
    code = "import sys, tutelage.analysis.method_comparison; print('scipy' in sys.modules or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
