"""Adaptive weights and choices of checkpoints against numbers computed by hand."""

import math

import numpy as np
import pytest

from tutelage.method.schedule import Candidate, fixed, nearest
from tutelage.method.weighting import adaptive_weight, constant_weight


def test_weight_is_the_sigmoid_of_the_log_ratio():
    anchor, teacher = np.array([0.3, 2.0, 0.01]), np.array([0.6, 0.5, 0.01])
    by_formula = [1 / (1 + math.exp(-math.log(a / t))) for a, t in zip(anchor, teacher, strict=True)]
    assert adaptive_weight(anchor, teacher) == pytest.approx(by_formula)
    assert adaptive_weight(anchor, teacher) == pytest.approx([1 / 3, 0.8, 0.5])


def test_weights_where_a_loss_is_zero():
    assert adaptive_weight(np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])).tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_invalid_losses_are_refused(wrong):
    with pytest.raises(ValueError, match="teacher losses"):
        adaptive_weight(np.array([1.0]), np.array([wrong]))


def test_constant_weight_stays_in_range():
    assert constant_weight(2, 0.25).tolist() == [0.25, 0.25]
    with pytest.raises(ValueError, match="kd_ratio"):
        constant_weight(2, 1.5)


EARLY, MIDDLE, BEST = Candidate("c1", 0.9, 0.1), Candidate("c2", 0.3, 0.5), Candidate("c3", 0.0, 1.2)


def choose(candidates=(EARLY, MIDDLE, BEST), stage=1, **given):
    return nearest(candidates, stage=stage, num_stages=4, best="c3", **given)


def test_nearest_minimises_the_sum_of_both_distances():
    assert choose().chosen == "c2"  # 1.0, 0.8, 1.2
    assert "0.3000 + 0.5000 = 0.8000" in choose().reason


def test_the_older_checkpoint_wins_a_tie():
    assert choose((Candidate("c1", 0.5, 0.5), Candidate("c2", 0.25, 0.75), BEST)).chosen == "c1"


def test_a_stall_is_reported_with_numbers_and_remedy():
    far = Candidate("c1", 0.2, 0.4), Candidate("c2", 0.1, 0.9), Candidate("c3", 0.0, 1.5)
    choice = choose(far, stage=2, previous=Candidate("c1", 0.2, 0.5))
    assert choice.chosen == "c1"
    assert "0.400" in choice.stall and "0.500" in choice.stall and "advance=true" in choice.stall


def test_staying_with_the_best_or_with_a_reached_checkpoint_is_no_stall():
    best_again = choose(
        (EARLY, Candidate("c2", 0.3, 5.0), Candidate("c3", 0.0, 0.4)), stage=2, previous=Candidate("c3", 0, 0.6)
    )
    assert best_again.chosen == "c3" and best_again.stall is None
    reached = choose((Candidate("c1", 0.2, 0.01), MIDDLE, BEST), stage=2, previous=Candidate("c1", 0.2, 0.5))
    assert reached.chosen == "c1" and reached.stall is None


def test_advance_never_looks_back_and_ends_with_the_best():
    assert choose(advance=True, previous=EARLY, stage=2).chosen == "c2"
    assert choose((Candidate("c1", 0.0, 0.0), MIDDLE, BEST), advance=True, previous=EARLY, stage=2).chosen == "c2"
    assert choose(advance=True, previous=EARLY, stage=4).chosen == "c3"
    assert choose(advance=True, previous=BEST, stage=3).chosen == "c3"


@pytest.mark.parametrize(
    ("count", "stages", "expected"),
    [(4, 4, [1, 2, 3, 4]), (2, 4, [1, 1, 2, 2]), (4, 2, [2, 4]), (3, 4, [1, 2, 3, 3]), (1, 3, [1, 1, 1])],
)
def test_in_order_spreads_checkpoints_over_stages_and_ends_with_the_newest(count, stages, expected):
    names = list(range(1, count + 1))
    chosen = [
        fixed("in_order", names, stage=s, num_stages=stages, best=count, seed=0).chosen for s in range(1, stages + 1)
    ]
    assert chosen == expected


def test_random_is_the_same_on_every_call():
    names = ["a", "b", "c", "d"]
    draw = [fixed("random", names, stage=s, num_stages=8, best="d", seed=3).chosen for s in range(1, 9)]
    assert draw == [fixed("random", names, stage=s, num_stages=8, best="d", seed=3).chosen for s in range(1, 9)]
    assert len(set(draw)) > 1
