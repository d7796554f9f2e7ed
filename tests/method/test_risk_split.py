"""The split of the risk against numbers derived by hand."""

import numpy as np
import pytest

from tutelage.method.risk_split import gap_closed, interval, oracle_risk, split_risk

# Five rows. gain = l(T) - l(S) = 0.3, 0.1, -0.2, 0.0, -0.6: SFS holds rows 1 and 2, TFS rows 3 to 5 (row 4 is a tie).
STUDENT = [0.2, 0.4, 0.5, 0.7, 1.2]
TEACHER = [0.5, 0.5, 0.3, 0.7, 0.6]


def test_split_by_hand():
    split = split_risk(np.array(STUDENT), np.array(TEACHER))
    assert (split.rows, split.sfs_mass, split.tfs_mass) == (5, 0.4, 0.6)
    assert split.advantage == pytest.approx(0.08)  # 2/5 * mean(0.3, 0.1) = 0.4 * 0.2
    assert split.deficit == pytest.approx(0.16)  # 3/5 * mean(0.2, 0.0, 0.6) = 0.6 * 0.8/3
    assert split.risk_student == pytest.approx(0.60)  # 3.0 / 5
    assert split.risk_teacher == pytest.approx(0.52)  # 2.6 / 5
    assert split.difference == pytest.approx(0.08)  # 0.60 - 0.52 = 0.16 - 0.08: the teacher wins


@pytest.mark.parametrize("rows", [1, 7, 20_000])
def test_identity_holds_to_the_last_digits(rows):
    rng = np.random.default_rng(rows)
    split = split_risk(rng.gamma(0.3, 5.0, rows), rng.gamma(0.3, 4.0, rows))
    assert abs(split.difference - (split.deficit - split.advantage)) < 1e-12
    assert abs(split.difference - (split.risk_student - split.risk_teacher)) < 1e-12
    assert split.sfs_mass + split.tfs_mass == pytest.approx(1.0, abs=1e-15)


def test_empty_sfs():
    split = split_risk([0.5, 0.9], [0.1, 0.3])  # deficit = mean(0.4, 0.6)
    assert (split.sfs_mass, split.tfs_mass, split.advantage) == (0.0, 1.0, 0.0)
    assert split.difference == split.deficit == pytest.approx(0.5)


def test_empty_tfs():
    split = split_risk([0.1, 0.3], [0.5, 0.9])  # advantage = mean(0.4, 0.6)
    assert (split.sfs_mass, split.tfs_mass, split.deficit) == (1.0, 0.0, 0.0)
    assert split.difference == pytest.approx(-0.5)
    assert split.advantage == pytest.approx(0.5)


def test_equal_rows_belong_to_the_teacher():
    split = split_risk([0.25, 0.5], [0.25, 0.5])
    assert (split.sfs_mass, split.tfs_mass) == (0.0, 1.0)
    assert (split.advantage, split.deficit, split.difference) == (0.0, 0.0, 0.0)


def test_interval_holds_the_value_and_repeats_with_its_seed():
    rng = np.random.default_rng(3)
    teacher = rng.gamma(0.5, 1.0, 400)
    student = teacher + rng.normal(0.1, 0.3, 400)
    found, split = interval(student, teacher), split_risk(student, teacher)
    for name in ("difference", "advantage", "deficit"):
        band = getattr(found, name)
        assert band.value == getattr(split, name)
        assert band.low < band.value < band.high
    # The mean of 400 paired differences of deviation 0.3 has a standard error of 0.015: a 95 % interval 4 x 0.015 wide.
    assert found.difference.high - found.difference.low == pytest.approx(0.06, rel=0.15)
    assert found == interval(student, teacher)
    assert found != interval(student, teacher, seed=1)


def test_interval_is_paired():
    # Every row: student 0.1 above its teacher. Losses differ widely between rows, but they cancel in the difference.
    teacher = np.array([0.0, 1.0, 5.0, 20.0])
    found = interval(teacher + 0.1, teacher, resamples=200)
    assert found.difference == pytest.approx((0.1, 0.1, 0.1))
    assert found.advantage == (0.0, 0.0, 0.0)


def test_interval_in_several_batches(monkeypatch):
    monkeypatch.setattr("tutelage.utils.bootstrap.MAX_DRAWS", 12)  # 5 rows: 2 resamples at a time
    found = interval(STUDENT, TEACHER, resamples=501)
    # Means of five draws of l(S) - l(T) lie between its smallest (-0.3) and largest (0.6) value.
    assert -0.3 <= found.difference.low <= 0.08 <= found.difference.high <= 0.6


@pytest.mark.parametrize("call", [split_risk, interval, oracle_risk])
@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([0.1, float("nan")], [0.1, 0.2], "row 1"),
        ([0.1, 0.2], [float("inf"), 0.2], "teacher must be finite; found inf at row 0"),
        ([0.1, 0.2], [0.1], "same rows"),
        ([[0.1]], [[0.1]], "same rows"),
        ([], [], "no rows"),
    ],
)
def test_losses_that_cannot_be_compared_are_refused(call, left, right, message):
    with pytest.raises(ValueError, match=message):
        call(left, right)


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="found 0"):
        interval(STUDENT, TEACHER, resamples=0)


@pytest.mark.parametrize(
    ("sft", "teacher", "student", "fraction"),
    [
        (0.70, 0.80, 0.75, 0.5),  # 0.05 of 0.10
        (0.70, 0.80, 0.80, 1.0),
        (0.70, 0.80, 0.82, 1.2),  # better than its teacher
        (0.70, 0.80, 0.68, -0.2),  # distillation lost
        (0.70, 0.70, 0.75, None),  # no gap
        (0.80, 0.70, 0.75, None),  # the teacher is behind
        (0.700, 0.704, 0.702, None),  # 0.4 points: too little to divide by
    ],
)
def test_gap_closed(sft, teacher, student, fraction):
    found = gap_closed(sft, teacher, student)
    assert found is None if fraction is None else found == pytest.approx(fraction)


def test_gap_closed_refuses_nan():
    with pytest.raises(ValueError, match="teacher"):
        gap_closed(0.7, float("nan"), 0.7)


def test_oracle_risk_by_hand():
    # min per row = 0.2, 0.4, 0.3, 0.7, 0.6: 2.2 / 5
    assert oracle_risk(STUDENT, TEACHER) == pytest.approx(0.44)
