"""Statistics of a comparison against numbers worked out by hand, and against simulated scores whose truth is known."""

import math

import numpy as np
import pytest

from tutelage.analysis.crossed_intervals import stack, take_samples
from tutelage.analysis.statistics import (
    hierarchical_bootstrap,
    mcnemar_exact,
    paired_difference,
    randomisation_test,
)


def mean(draws, rows):
    return draws @ rows[:, 0] / draws.sum(axis=1)


def micro_f1(draws, rows):
    matched, predicted, gold = (draws @ rows).T
    return 2 * matched / (predicted + gold)


def scores_of(seeds, rows, *, seed_sd, row_sd, noise_sd, rng):
    """[seeds, rows] normal scores about 0."""
    return rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, row_sd, rows) + rng.normal(0, noise_sd, (seeds, rows))


def grid_of(trajectories, seeds):
    return [(trajectory, seed) for trajectory in range(trajectories) for seed in range(seeds)]


def crossed(trajectories, seeds, rows, *, effects, noise_sd=0.3, rng):
    """[trajectories x seeds, rows] normal scores about 0, in the order of `grid_of`.

    effects: standard deviations of trajectories, seeds, and seeds under one trajectory.
    """
    of_trajectory, of_seed, of_both = effects
    level = rng.normal(0, of_trajectory, (trajectories, 1)) + rng.normal(0, of_seed, (1, seeds))
    level = (level + rng.normal(0, of_both, (trajectories, seeds))).reshape(-1, 1)
    return level + rng.normal(0, 0.3, rows) + rng.normal(0, noise_sd, (trajectories * seeds, rows))


def answers_of(seeds, hardness, *, seed_sd, rng):
    """[seeds, rows] of 0 and 1: right with probability Phi(1 + seed effect - hardness)."""
    return (rng.normal(size=(seeds, len(hardness))) < 1 + rng.normal(0, seed_sd, (seeds, 1)) - hardness).astype(float)


# --- one method ---


def test_constant_scores_have_no_width():
    found = hierarchical_bootstrap(np.full((3, 50), 0.7), resamples=200)
    assert found.interval == pytest.approx((0.7, 0.7, 0.7))
    assert (found.seeds, found.rows) == (3, 50)
    assert found.row_error == pytest.approx(0, abs=1e-9)
    assert found.seed_deviation == pytest.approx(0, abs=1e-9)


def test_rows_that_all_seeds_answer_alike_have_the_width_of_one_seed():
    # Half right of 400: standard error 0.5 / 20 = 0.025. Copies of one seed are no new rows: no narrower with three.
    row = np.repeat([0.0, 1.0], 200)
    one, three = hierarchical_bootstrap(row[None]), hierarchical_bootstrap(np.stack([row] * 3))
    assert one.interval == pytest.approx((0.5, 0.451, 0.549), abs=0.004)
    assert three.interval == pytest.approx(one.interval, abs=0.003)
    assert three.row_error == pytest.approx(0.025, rel=0.05)


def test_seeds_that_differ_on_every_row_alike_have_the_t_interval():
    # Values 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(2) = 4.303: 0.2 -+ 4.303 * 0.1 / sqrt(3) = 0.2 -+ 0.248.
    found = hierarchical_bootstrap(np.repeat([[0.1], [0.2], [0.3]], 40, axis=1))
    assert found.interval == pytest.approx((0.2, 0.2 - 0.248, 0.2 + 0.248), abs=0.006)
    assert found.seed_deviation == pytest.approx(0.1)
    assert found.row_error == pytest.approx(0, abs=1e-9)


def test_seeds_that_agree_by_luck_do_not_give_an_interval_without_width():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.permutation(np.repeat([0.0, 1.0], 100)) for _ in range(3)])  # 0.5 three times, on other rows
    low, high = hierarchical_bootstrap(scores).interval[1:]
    assert high - low > 0.03


def test_one_seed_says_that_it_knows_of_rows_only():
    assert hierarchical_bootstrap(np.eye(1, 9)).rows_only
    assert hierarchical_bootstrap(np.eye(1, 9)).seed_deviation is None
    assert not hierarchical_bootstrap(np.eye(2, 9)).rows_only


def test_the_mean_as_a_statistic_equals_plain_scores():
    # Plain scores have the variance that infinitely many resamples come to.
    scores = np.random.default_rng(0).random((4, 60))
    plain = hierarchical_bootstrap(scores)
    named = hierarchical_bootstrap(scores[..., None], mean, resamples=50_000)
    assert named.interval == pytest.approx(plain.interval, abs=0.001)
    assert named.row_error == pytest.approx(plain.row_error, rel=0.03)
    first, second = scores[:1], scores[1:2]
    both = paired_difference(first, second), paired_difference(first[..., None], second[..., None], mean)
    assert both[0].p_value == both[1].p_value


def test_a_statistic_that_is_no_mean_of_rows():
    # (matched, predicted, gold) of two rows. Seed 1: 2 * 3 / (4 + 4) = 0.75; seed 2: 2 * 2 / (4 + 4) = 0.5.
    counts = [[[1, 2, 1], [2, 2, 3]], [[1, 1, 1], [1, 3, 3]]]
    assert hierarchical_bootstrap(counts, micro_f1, resamples=100).interval.value == pytest.approx(0.625)


def test_results_repeat_with_their_seed_and_do_not_depend_on_memory(monkeypatch):
    scores = np.random.default_rng(1).random((3, 50, 1))
    whole = hierarchical_bootstrap(scores, mean, resamples=600, seed=2)
    assert hierarchical_bootstrap(scores, mean, resamples=600, seed=2) == whole
    assert hierarchical_bootstrap(scores, mean, resamples=600, seed=3) != whole
    monkeypatch.setattr("tutelage.utils.bootstrap.MAX_DRAWS", 50 * 7)
    assert hierarchical_bootstrap(scores, mean, resamples=600, seed=2).interval == pytest.approx(whole.interval)


def test_means_of_rows_owe_nothing_to_chance():
    scores = np.random.default_rng(1).random((3, 50))
    assert hierarchical_bootstrap(scores, resamples=10, seed=2) == hierarchical_bootstrap(
        scores, resamples=2000, seed=3
    )
    first, second = np.random.default_rng(2).random((2, 3, 50))
    found = [paired_difference(first, second, seed=seed).p_value for seed in range(5)]
    assert len(set(found)) == 1


def test_what_was_sampled_once_gives_the_same_as_its_tables():
    # One seed after another, as they are read, with the same resamples for all.
    counts = np.random.default_rng(3).integers(0, 3, (4, 30, 3)) + np.array([0, 2, 2])
    single = take_samples({str(n): table[None] for n, table in enumerate(counts)}, micro_f1)
    first, second = stack(single[:2]), stack(single[2:])
    assert hierarchical_bootstrap(first).interval == pytest.approx(
        hierarchical_bootstrap(counts[:2], micro_f1).interval
    )
    found, expected = paired_difference(first, second), paired_difference(counts[:2], counts[2:], micro_f1)
    assert (*found.interval, found.p_value) == pytest.approx((*expected.interval, expected.p_value))
    assert paired_difference(single[0], single[2]) == paired_difference(counts[:1], counts[2:3], micro_f1)


def test_draws_on_which_a_statistic_has_no_value_are_left_out():
    def share_of_first(draws, rows):
        return np.where(draws[:, 1] > 0, 1.0, np.nan)

    assert hierarchical_bootstrap(np.zeros((1, 2, 1)), share_of_first, resamples=50).interval == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no value on all rows"):
        hierarchical_bootstrap(np.zeros((1, 2, 1)), lambda draws, rows: np.full(len(draws), np.nan))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.1, 0.2], [0.1, 0.2], r"must be \[seeds, rows\]"),
        (np.ones((2, 3)), np.ones((2, 4)), "same rows"),
        (np.ones((2, 0)), np.ones((2, 0)), "at least one seed and one row"),
        (np.ones((2, 3)), np.ones((3, 3)), "same_seeds=False"),
        (np.ones((1, 2)), [[0.5, math.nan]], "second must be finite; found nan at seed 0, row 1"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(first, second)


def test_tables_of_the_wrong_form_for_a_statistic_are_refused():
    with pytest.raises(ValueError, match=r"\[seeds, rows, k\]"):
        hierarchical_bootstrap(np.ones((2, 3)), mean)
    with pytest.raises(ValueError, match="found 0"):
        hierarchical_bootstrap(np.ones((2, 3)), resamples=0)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_intervals_cover_the_truth_of_normal_scores(seeds, seed_sd):
    rng, held = np.random.default_rng(seeds), 0
    for number in range(200):
        scores = scores_of(seeds, 200, seed_sd=seed_sd, row_sd=0.3, noise_sd=0.3, rng=rng)
        interval = hierarchical_bootstrap(scores, resamples=300, seed=number).interval
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 200 <= 0.98


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_intervals_cover_the_truth_of_right_and_wrong_answers(seeds, seed_sd):
    rng, held = np.random.default_rng(seeds), 0
    truth = 0.5 * math.erfc(-1 / math.sqrt(2 * (2 + seed_sd**2)))  # Phi(1 / sqrt(1 + hardness + seed variance))
    for number in range(200):
        scores = answers_of(seeds, rng.normal(size=200), seed_sd=seed_sd, rng=rng)
        interval = hierarchical_bootstrap(scores, resamples=300, seed=number).interval
        held += interval.low <= truth <= interval.high
    assert 0.90 <= held / 200 <= 0.98


# --- teacher trajectories ---


def test_one_model_under_several_trajectories_is_no_more_models():
    # A method without a teacher, copied to three trajectories: the interval stays what its seeds say.
    scores = np.random.default_rng(0).random((3, 1)) + np.random.default_rng(1).random((3, 40))
    once, copied = hierarchical_bootstrap(scores), hierarchical_bootstrap(np.tile(scores, (3, 1)), grid=grid_of(3, 3))
    assert copied.interval == pytest.approx(once.interval)
    assert (copied.seeds, copied.trajectories) == (3, 3)


def test_trajectories_and_seeds_by_hand():
    # Level of trajectories 0.2, 0.4, of seeds -0.1, 0, 0.1; rows all alike. Variances of the mean: 0.02 / 2 and 0.01 /
    # 3, so the error is sqrt(0.01333). Shares 0.75 and 0.25, degrees of freedom 1 / (0.75^(2 - 1/1) / 1 + 0.25^(2 -
    # 1/2) / 2) = 1 / 0.8125, 1.231; t(1.231) = 8.254.
    levels = np.array([[0.2], [0.4]]) + np.array([[-0.1, 0.0, 0.1]])
    found = hierarchical_bootstrap(np.repeat(levels.reshape(-1, 1), 30, axis=1), grid=grid_of(2, 3))
    assert found.interval.value == pytest.approx(0.3)
    assert found.error == pytest.approx(math.sqrt(0.01 + 0.01 / 3))
    assert found.freedom == pytest.approx(1 / 0.8125)
    assert found.interval.high == pytest.approx(0.3 + 8.254 * found.error, abs=0.002)
    assert (found.trajectory_error, found.seed_deviation) == pytest.approx((0.1, 0.1))


def test_with_one_seed_the_trajectories_are_what_was_repeated():
    scores = np.repeat([[0.1], [0.2], [0.3]], 40, axis=1)
    found = hierarchical_bootstrap(scores, grid=[(0, 5), (1, 5), (2, 5)])
    assert found.interval == pytest.approx(hierarchical_bootstrap(scores).interval)
    assert (found.seeds, found.trajectories) == (1, 3)
    with pytest.raises(ValueError, match="2 names for 3 lines"):
        hierarchical_bootstrap(scores, grid=[(0, 5), (1, 5)])


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (5, 3)])
@pytest.mark.parametrize("effects", [(0, 0, 0), (0.05, 0, 0), (0, 0.05, 0), (0, 0, 0.05), (0.05, 0.05, 0.05)])
def test_intervals_cover_the_truth_over_trajectories(shape, effects):
    rng, held, grid = np.random.default_rng(7), 0, grid_of(*shape)
    for _ in range(300):
        low, high = hierarchical_bootstrap(crossed(*shape, 200, effects=effects, rng=rng), grid=grid).interval[1:]
        held += low <= 0 <= high
    most = (
        0.99 if effects == (0, 0, 0.05) else 0.98
    )  # what is in both parts is known too badly to be taken off as a whole
    assert 0.90 <= held / 300 <= most


def test_equal_methods_under_the_same_trajectories_are_told_apart_no_more_often_than_promised():
    rng, rejected, grid = np.random.default_rng(8), 0, grid_of(3, 3)
    for _ in range(300):
        shared = crossed(3, 3, 200, effects=(0.1, 0, 0), noise_sd=0, rng=rng)
        first, second = (shared + crossed(3, 3, 200, effects=(0.04, 0.04, 0.02), rng=rng) for _ in range(2))
        rejected += paired_difference(first, second, grid=grid).p_value <= 0.05
    assert 0.01 <= rejected / 300 <= 0.08


# --- two methods ---


def test_a_difference_is_paired_by_row_and_by_seed():
    # First is 0.1 better everywhere; rows and seeds differ widely. Nothing is left to chance.
    second = np.random.default_rng(0).normal(0, 5, (3, 1)) + np.random.default_rng(1).normal(0, 5, (3, 30))
    found = paired_difference(second + 0.1, second)
    assert found.interval == pytest.approx((0.1, 0.1, 0.1))
    assert (found.test, found.settled) == ("crossed_t", True)
    assert found.p_value < 0.002
    assert not paired_difference(second + 0.1, second, same_seeds=False).settled


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


def test_randomisation_of_a_statistic_swaps_whole_rows():
    # Two rows, F1 of 2 * 2 / 4 = 1 against 0: all four swaps but the two mixed ones (0.5 against 0.5) are as extreme.
    right, wrong = np.array([[1, 1, 1], [1, 1, 1]]), np.array([[0, 1, 1], [0, 1, 1]])
    assert randomisation_test(right, wrong, micro_f1, resamples=20_000) == pytest.approx(0.5, abs=0.015)


def test_a_fixed_teacher_is_compared_with_every_seed():
    # Students 0.6, 0.7, 0.8 on all rows against a teacher at 0.5: 0.2 -+ 0.248 as three values of deviation 0.1 have
    # it.
    found = paired_difference(np.repeat([[0.6], [0.7], [0.8]], 20, axis=1), np.full((1, 20), 0.5))
    assert found.interval == pytest.approx((0.2, -0.048, 0.448), abs=0.006)
    assert (found.seeds, found.test) == (3, "crossed_t")
    # t = 0.2 / (0.1 / sqrt(3)) = 3.46 with 2 degrees of freedom: p = 0.074
    assert found.p_value == pytest.approx(0.0742, abs=0.0005)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
@pytest.mark.parametrize("same_seeds", [True, False])
def test_equal_methods_are_told_apart_no_more_often_than_promised(seeds, seed_sd, same_seeds):
    rng, rejected = np.random.default_rng(seeds), 0
    for number in range(200):
        hardness = rng.normal(0, 1.5, 200)
        first, second = (answers_of(seeds, hardness, seed_sd=seed_sd, rng=rng) for _ in range(2))
        rejected += paired_difference(first, second, same_seeds=same_seeds, resamples=300, seed=number).p_value <= 0.05
    assert 0.02 <= rejected / 200 <= 0.08


def test_p_value_and_interval_agree():
    rng = np.random.default_rng(0)
    for number in range(40):
        first, second = rng.normal(0.05, 0.3, (3, 100)), rng.normal(0, 0.3, (3, 100))
        found = paired_difference(first, second, resamples=500, seed=number)
        assert found.settled == (found.p_value < 0.05)
