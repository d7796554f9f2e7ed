"""Intervals over rows, seeds and teacher trajectories: numbers derived by hand, and coverage of simulated truths."""

import math

import numpy as np
import pytest

from helpers.simulated_scores import answers_of, crossed, grid_of, mean, micro_f1, scores_of
from tutelage.analysis.crossed_intervals import score_runs, stack
from tutelage.analysis.significance import paired_difference, score_estimate

# --- one method ---


def test_constant_scores_have_an_interval_of_width_0():
    found = score_estimate(np.full((3, 50), 0.7), resamples=200)
    assert found.interval == pytest.approx((0.7, 0.7, 0.7))
    assert (found.seeds, found.rows) == (3, 50)
    assert found.row_error == pytest.approx(0, abs=1e-9)
    assert found.seed_deviation == pytest.approx(0, abs=1e-9)


def test_rows_that_all_seeds_answer_alike_have_the_width_of_one_seed():
    # Half of 400 right: standard error 0.5 / 20 = 0.025. Copies of a seed are no new rows: no narrower with three.
    row = np.repeat([0.0, 1.0], 200)
    one, three = score_estimate(row[None]), score_estimate(np.stack([row] * 3))
    assert one.interval == pytest.approx((0.5, 0.451, 0.549), abs=0.004)
    assert three.interval == pytest.approx(one.interval, abs=0.003)
    assert three.row_error == pytest.approx(0.025, rel=0.05)


def test_seeds_that_differ_on_every_row_alike_have_the_t_interval():
    # Values 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(2) = 4.303: 0.2 -+ 4.303 * 0.1 / sqrt(3) = 0.2 -+ 0.248.
    found = score_estimate(np.repeat([[0.1], [0.2], [0.3]], 40, axis=1))
    assert found.interval == pytest.approx((0.2, 0.2 - 0.248, 0.2 + 0.248), abs=0.006)
    assert found.seed_deviation == pytest.approx(0.1)
    assert found.row_error == pytest.approx(0, abs=1e-9)


def test_seeds_that_agree_by_chance_do_not_give_an_interval_of_width_0():
    rng = np.random.default_rng(0)
    # 0.5 three times, on different rows.
    scores = np.stack([rng.permutation(np.repeat([0.0, 1.0], 100)) for _ in range(3)])
    low, high = score_estimate(scores).interval[1:]
    assert high - low > 0.03


def test_the_interval_of_one_seed_is_over_rows_only():
    assert score_estimate(np.eye(1, 9)).rows_only
    assert score_estimate(np.eye(1, 9)).seed_deviation is None
    assert not score_estimate(np.eye(2, 9)).rows_only


def test_the_mean_as_a_statistic_equals_plain_scores():
    # The variance of plain scores is the limit of infinitely many resamples.
    scores = np.random.default_rng(0).random((4, 60))
    plain = score_estimate(scores)
    named = score_estimate(scores[..., None], mean, resamples=50_000)
    assert named.interval == pytest.approx(plain.interval, abs=0.001)
    assert named.row_error == pytest.approx(plain.row_error, rel=0.03)
    first, second = scores[:1], scores[1:2]
    both = paired_difference(first, second), paired_difference(first[..., None], second[..., None], mean)
    assert both[0].p_value == both[1].p_value


def test_a_statistic_that_is_not_a_mean_of_rows():
    # (matched, predicted, gold) of two rows. Seed 1: 2 * 3 / (4 + 4) = 0.75; seed 2: 2 * 2 / (4 + 4) = 0.5.
    counts = [[[1, 2, 1], [2, 2, 3]], [[1, 1, 1], [1, 3, 3]]]
    assert score_estimate(counts, micro_f1, resamples=100).interval.value == pytest.approx(0.625)


def test_results_are_reproducible_and_do_not_depend_on_the_batch_size(monkeypatch):
    scores = np.random.default_rng(1).random((3, 50, 1))
    whole = score_estimate(scores, mean, resamples=600, seed=2)
    assert score_estimate(scores, mean, resamples=600, seed=2) == whole
    assert score_estimate(scores, mean, resamples=600, seed=3) != whole
    monkeypatch.setattr("tutelage.utils.bootstrap.MAX_DRAWS", 50 * 7)
    assert score_estimate(scores, mean, resamples=600, seed=2).interval == pytest.approx(whole.interval)


def test_intervals_and_p_values_of_means_do_not_depend_on_the_seed():
    scores = np.random.default_rng(1).random((3, 50))
    assert score_estimate(scores, resamples=10, seed=2) == score_estimate(scores, resamples=2000, seed=3)
    first, second = np.random.default_rng(2).random((2, 3, 50))
    found = [paired_difference(first, second, seed=seed).p_value for seed in range(5)]
    assert len(set(found)) == 1


def test_run_scores_give_the_same_results_as_the_tables_they_are_made_of():
    # Tables of one seed each, stacked; all share their resamples.
    counts = np.random.default_rng(3).integers(0, 3, (4, 30, 3)) + np.array([0, 2, 2])
    single = score_runs({str(n): table[None] for n, table in enumerate(counts)}, micro_f1)
    first, second = stack(single[:2]), stack(single[2:])
    assert score_estimate(first).interval == pytest.approx(score_estimate(counts[:2], micro_f1).interval)
    found, expected = paired_difference(first, second), paired_difference(counts[:2], counts[2:], micro_f1)
    assert (*found.interval, found.p_value) == pytest.approx((*expected.interval, expected.p_value))
    assert paired_difference(single[0], single[2]) == paired_difference(counts[:1], counts[2:3], micro_f1)


def test_resamples_on_which_a_statistic_is_undefined_are_left_out():
    def fraction_of_first(draws, rows):
        return np.where(draws[:, 1] > 0, 1.0, np.nan)

    assert score_estimate(np.zeros((1, 2, 1)), fraction_of_first, resamples=50).interval == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no value on all rows"):
        score_estimate(np.zeros((1, 2, 1)), lambda draws, rows: np.full(len(draws), np.nan))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.1, 0.2], [0.1, 0.2], r"must be \[seeds, rows\]"),
        (np.ones((2, 3)), np.ones((2, 4)), "same rows"),
        (np.ones((2, 0)), np.ones((2, 0)), "at least one seed and one row"),
        (np.ones((2, 3)), np.ones((3, 3)), "must have the same seeds"),
        (np.ones((1, 2)), [[0.5, math.nan]], "second must be finite; found nan at seed 0, row 1"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(first, second)


def test_tables_of_the_wrong_shape_for_a_statistic_are_refused():
    with pytest.raises(ValueError, match=r"\[seeds, rows, k\]"):
        score_estimate(np.ones((2, 3)), mean)
    with pytest.raises(ValueError, match="found 0"):
        score_estimate(np.ones((2, 3)), resamples=0)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_intervals_cover_the_truth_of_normal_scores(seeds, seed_sd):
    rng, covered = np.random.default_rng(seeds), 0
    for number in range(200):
        scores = scores_of(seeds, 200, seed_sd=seed_sd, row_sd=0.3, noise_sd=0.3, rng=rng)
        interval = score_estimate(scores, resamples=300, seed=number).interval
        covered += interval.low <= 0 <= interval.high
    assert 0.90 <= covered / 200 <= 0.98


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_intervals_cover_the_truth_of_right_and_wrong_answers(seeds, seed_sd):
    rng, covered = np.random.default_rng(seeds), 0
    truth = 0.5 * math.erfc(-1 / math.sqrt(2 * (2 + seed_sd**2)))  # Phi(1 / sqrt(1 + hardness + seed variance))
    for number in range(200):
        scores = answers_of(seeds, rng.normal(size=200), seed_sd=seed_sd, rng=rng)
        interval = score_estimate(scores, resamples=300, seed=number).interval
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 200 <= 0.98


# --- teacher trajectories ---


def test_copies_of_a_model_under_several_trajectories_change_nothing():
    # A method without a teacher, copied to three trajectories: the interval is that of its seeds.
    scores = np.random.default_rng(0).random((3, 1)) + np.random.default_rng(1).random((3, 40))
    once, copied = score_estimate(scores), score_estimate(np.tile(scores, (3, 1)), grid=grid_of(3, 3))
    assert copied.interval == pytest.approx(once.interval)
    assert (copied.seeds, copied.trajectories) == (3, 3)


def test_trajectories_and_seeds_by_hand():
    # Level of trajectories 0.2, 0.4, of seeds -0.1, 0, 0.1; rows all alike. Variances of the mean: 0.02 / 2 and 0.01 /
    # 3, so the error is sqrt(0.01333). Shares 0.75 and 0.25, degrees of freedom 1 / (0.75^(2 - 1/1) / 1 + 0.25^(2 -
    # 1/2) / 2) = 1 / 0.8125, 1.231; t(1.231) = 8.254.
    levels = np.array([[0.2], [0.4]]) + np.array([[-0.1, 0.0, 0.1]])
    found = score_estimate(np.repeat(levels.reshape(-1, 1), 30, axis=1), grid=grid_of(2, 3))
    assert found.interval.value == pytest.approx(0.3)
    assert found.error == pytest.approx(math.sqrt(0.01 + 0.01 / 3))
    assert found.freedom == pytest.approx(1 / 0.8125)
    assert found.interval.high == pytest.approx(0.3 + 8.254 * found.error, abs=0.002)
    assert (found.trajectory_error, found.seed_deviation) == pytest.approx((0.1, 0.1))


def test_with_one_seed_the_trajectories_are_what_was_repeated():
    scores = np.repeat([[0.1], [0.2], [0.3]], 40, axis=1)
    found = score_estimate(scores, grid=[(0, 5), (1, 5), (2, 5)])
    assert found.interval == pytest.approx(score_estimate(scores).interval)
    assert (found.seeds, found.trajectories) == (1, 3)
    with pytest.raises(ValueError, match="2 names for 3 lines"):
        score_estimate(scores, grid=[(0, 5), (1, 5)])


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (5, 3)])
@pytest.mark.parametrize("effects", [(0, 0, 0), (0.05, 0, 0), (0, 0.05, 0), (0, 0, 0.05), (0.05, 0.05, 0.05)])
def test_intervals_cover_the_truth_over_trajectories(shape, effects):
    rng, covered, grid = np.random.default_rng(7), 0, grid_of(*shape)
    for _ in range(300):
        low, high = score_estimate(crossed(*shape, 200, effects=effects, rng=rng), grid=grid).interval[1:]
        covered += low <= 0 <= high
    # What both parts contain is estimated too badly to be subtracted as a whole.
    most = 0.99 if effects == (0, 0, 0.05) else 0.98
    assert 0.90 <= covered / 300 <= most


def test_the_false_positive_rate_of_equal_methods_under_the_same_trajectories():
    rng, rejected, grid = np.random.default_rng(8), 0, grid_of(3, 3)
    for _ in range(300):
        shared = crossed(3, 3, 200, effects=(0.1, 0, 0), noise_sd=0, rng=rng)
        first, second = (shared + crossed(3, 3, 200, effects=(0.04, 0.04, 0.02), rng=rng) for _ in range(2))
        rejected += paired_difference(first, second, grid=grid).p_value <= 0.05
    assert 0.01 <= rejected / 300 <= 0.08
