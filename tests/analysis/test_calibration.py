"""Calibration and cascades: numbers derived by hand."""

import numpy as np
import pytest

from tutelage.analysis.calibration import FRACTIONS, cascades, reliability


def test_reliability_by_hand():
    # bin 0.6 to 0.7: two rows, one right, confidence 0.65; bin 0.9 to 1: two rows, both right, confidence 0.95
    measured = reliability(np.array([0.65, 0.65, 0.95, 0.95]), np.array([True, False, True, True]), bins=10)
    assert measured["ece"] == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    assert (measured["accuracy"], measured["confidence"], measured["rows"]) == (0.75, pytest.approx(0.8), 4)
    assert measured["brier"] == pytest.approx((0.35**2 + 0.65**2 + 2 * 0.05**2) / 4)
    assert [(line["rows"], line["accuracy"]["value"]) for line in measured["bins"]] == [(2, 0.5), (2, 1.0)]
    assert measured["bins"][0]["low"] == pytest.approx(0.6) and measured["bins"][1]["high"] == 1.0


def test_confidence_1_is_in_the_last_bin():
    assert reliability(np.array([1.0, 0.0]), np.array([True, False]))["ece"] == 0.0


def test_the_ece_of_a_calibrated_model_is_within_chance_and_of_an_overconfident_one_is_not():
    rng = np.random.default_rng(0)
    confidence = rng.beta(5, 1, 3000)
    calibrated = reliability(confidence, rng.random(3000) < confidence)
    overconfident = reliability(confidence, rng.random(3000) < confidence - 0.1)
    assert calibrated["ece"] <= calibrated["ece_by_chance"] < 0.04
    assert overconfident["ece"] > 2 * overconfident["ece_by_chance"]


def test_auroc_by_hand():
    correct = np.array([True, True, False, False])
    measured = reliability(np.array([0.9, 0.4, 0.4, 0.1]), correct)
    assert measured["auroc"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # ties count half
    assert reliability(np.array([0.9, 0.4]), np.array([True, True]))["auroc"] is None


@pytest.mark.parametrize(
    ("confidence", "correct"), [([1.2], [True]), ([], []), ([0.5, 0.5], [True]), ([np.nan], [True])]
)
def test_values_that_are_no_confidences_are_refused(confidence, correct):
    with pytest.raises(ValueError, match="confidence"):
        reliability(np.array(confidence), np.array(correct))


STUDENT, TEACHER = np.array([1.0, 0.0, 1.0, 0.0] * 10), np.array([1.0, 1.0, 0.0, 1.0] * 10)


def cascade(confidence, student=STUDENT, teacher=TEACHER, cost=0.25):
    return cascades({"s": student}, teacher, {"s": confidence}, {"s": cost}, resamples=50)["s"]


def test_a_cascade_goes_from_student_to_teacher():
    points = cascade(np.arange(40.0))["points"]
    assert [point["share"] for point in points] == pytest.approx(list(FRACTIONS))
    assert (points[0]["score"], points[-1]["score"]) == (0.5, 0.75)
    assert (points[0]["cost"], points[-1]["cost"]) == (0.25, 1.25)
    assert points[-1]["against_teacher"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert points[0]["threshold"] == 0.0 and points[-1]["threshold"] is None
    assert points[10]["threshold"] == 20.0  # half of the rows, those below, were passed on


def test_rows_that_always_go_to_the_teacher_are_the_first_at_every_threshold():
    """The surest six rows cannot be parsed: a cascade of fewer does not happen, and the student alone is no cascade."""
    always = np.arange(40) >= 34
    made = cascades(
        {"s": STUDENT}, TEACHER, {"s": np.arange(40.0) / 40}, {"s": 0.25}, always={"s": always}, resamples=50
    )["s"]
    shares = [0.0, *(n / 20 for n in range(3, 21))]
    assert [point["share"] for point in made["points"]] == pytest.approx(shares)
    alone, fewest, more = made["points"][:3]
    assert (alone["score"], alone["threshold"]) == (0.5, None)
    assert fewest["threshold"] == 0.0 and fewest["score"] == np.where(always, TEACHER, STUDENT).mean()
    assert more["share"] == 0.2 and more["threshold"] == 2 / 40
    assert made["points"][-1]["threshold"] is None and made["points"][-2]["threshold"] == 32 / 40


def test_no_threshold_below_the_lowest_confidence_passes_on_a_new_row():
    points = cascade(np.linspace(0.2, 1.0, 40))["points"]
    assert points[0]["threshold"] == 0.0 and points[1]["threshold"] == pytest.approx(0.2 + 2 * 0.8 / 39)


def test_an_ideal_confidence_reaches_the_oracle_router_and_its_reverse_does_not():
    ideal, reverse = cascade(STUDENT - TEACHER), cascade(TEACHER - STUDENT)
    half = ideal["points"][10]
    assert half["score"] == half["perfect"] == 1.0  # 20 rows gain by the teacher, and no other row is passed on
    assert reverse["points"][10]["score"] == pytest.approx(0.25)
    assert (ideal["level"], ideal["surely_level"]) == (0.25, pytest.approx(0.4, abs=0.11))
    assert reverse["level"] is None and reverse["surely_level"] is None


def test_the_oracle_router_never_falls_with_more_calls():
    best = [point["perfect"] for point in cascade(np.arange(40.0))["points"]]
    assert best == sorted(best) and best[0] == 0.5 and best[-1] == 1.0


def test_a_student_that_is_better_needs_no_calls_and_unknown_costs_stay_unknown():
    made = cascade(np.arange(40.0), student=np.ones(40), cost=None)
    assert made["level"] == made["surely_level"] == 0.0
    assert {point["cost"] for point in made["points"]} == {None}
