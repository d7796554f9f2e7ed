"""Reliability, limits where confidences were not recorded, and cascades: numbers worked out by hand."""

import numpy as np
import pytest

from tutelage.analysis.calibration import SHARES, auroc, cascades, limits, reliability, router, sequence_probability


def test_a_whole_answer_is_as_probable_as_all_its_tokens_together():
    # two tokens of probability 1/2 and 1/8: mean loss (ln 2 + ln 8) / 2
    assert sequence_probability(np.array([(np.log(2) + np.log(8)) / 2]), np.array([2])) == pytest.approx([1 / 16])


def test_reliability_by_hand():
    # bin 0.6 to 0.7: two rows, one right, confidence 0.65; bin 0.9 to 1: two rows, both right, confidence 0.95
    found = reliability(np.array([0.65, 0.65, 0.95, 0.95]), np.array([True, False, True, True]), bins=10)
    assert found["ece"] == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    assert (found["accuracy"], found["confidence"], found["rows"]) == (0.75, pytest.approx(0.8), 4)
    assert found["brier"] == pytest.approx((0.35**2 + 0.65**2 + 2 * 0.05**2) / 4)
    assert [(one["rows"], one["accuracy"]["value"]) for one in found["bins"]] == [(2, 0.5), (2, 1.0)]
    assert found["bins"][0]["low"] == pytest.approx(0.6) and found["bins"][1]["high"] == 1.0


def test_confidence_1_is_in_the_last_bin():
    assert reliability(np.array([1.0, 0.0]), np.array([True, False]))["ece"] == 0.0


def test_a_model_that_knows_how_sure_to_be_is_within_chance_and_an_overconfident_one_is_not():
    rng = np.random.default_rng(0)
    sure = rng.beta(5, 1, 3000)
    honest, boastful = reliability(sure, rng.random(3000) < sure), reliability(sure, rng.random(3000) < sure - 0.1)
    assert honest["ece"] <= honest["ece_by_chance"] < 0.04
    assert boastful["ece"] > 2 * boastful["ece_by_chance"]


def test_auroc_by_hand():
    right = np.array([True, True, False, False])
    assert auroc(np.array([0.9, 0.4, 0.4, 0.1]), right) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert auroc(np.array([0.9, 0.4]), np.array([True, True])) is None


@pytest.mark.parametrize(("sure", "right"), [([1.2], [True]), ([], []), ([0.5, 0.5], [True]), ([np.nan], [True])])
def test_confidences_that_are_none_are_refused(sure, right):
    with pytest.raises(ValueError, match="confidence"):
        reliability(np.array(sure), np.array(right))


def test_limits_by_hand():
    # The first row was answered with the gold text; of the others only what gold left over is known.
    found = limits(np.array([0.9, 0.3, 0.2]), np.array([True, False, True]), np.array([True, False, False]))
    assert found["confidence"] == {"low": pytest.approx(0.3), "high": pytest.approx((0.9 + 0.7 + 0.8) / 3)}
    assert (found["accuracy"], found["sure_when_right"]) == (pytest.approx(2 / 3), 0.9)


def test_limits_hold_whatever_the_confidences_were():
    rng = np.random.default_rng(0)
    gold = rng.random(500)
    same = rng.random(500) < 0.6
    sure = np.where(same, gold, rng.random(500) * (1 - gold))
    found = limits(gold, same, same)["confidence"]
    assert found["low"] <= sure.mean() <= found["high"]


STUDENT, TEACHER = np.array([1.0, 0.0, 1.0, 0.0] * 10), np.array([1.0, 1.0, 0.0, 1.0] * 10)


def cascade(signal, student=STUDENT, teacher=TEACHER, cost=0.25):
    return cascades({"s": student}, teacher, {"s": signal}, {"s": cost}, resamples=50)["s"]


def test_a_cascade_goes_from_student_to_teacher():
    points = cascade(np.arange(40.0))["points"]
    assert [point["share"] for point in points] == pytest.approx(list(SHARES))
    assert (points[0]["score"], points[-1]["score"]) == (0.5, 0.75)
    assert (points[0]["cost"], points[-1]["cost"]) == (0.25, 1.25)
    assert points[-1]["against_teacher"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert points[0]["threshold"] == 0.0 and points[-1]["threshold"] is None
    assert points[10]["threshold"] == 20.0  # half of the rows, those below, were sent on


def test_a_signal_that_knows_reaches_what_is_possible_and_its_reverse_does_not():
    knows, wrong = cascade(STUDENT - TEACHER), cascade(TEACHER - STUDENT)
    half = knows["points"][10]
    assert half["score"] == half["perfect"] == 1.0  # 20 rows gain by the teacher, none of the others is sent
    assert wrong["points"][10]["score"] == pytest.approx(0.25)
    assert (knows["level"], knows["surely_level"]) == (0.25, pytest.approx(0.4, abs=0.11))
    assert wrong["level"] is None and wrong["surely_level"] is None


def test_the_perfect_gate_never_falls_with_more_calls():
    best = [point["perfect"] for point in cascade(np.arange(40.0))["points"]]
    assert best == sorted(best) and best[0] == 0.5 and best[-1] == 1.0


def test_a_student_that_is_better_needs_no_calls_and_unknown_costs_stay_unknown():
    found = cascade(np.arange(40.0), student=np.ones(40), cost=None)
    assert found["level"] == found["surely_level"] == 0.0
    assert {point["cost"] for point in found["points"]} == {None}


def test_the_router_foretells_from_prompts_where_the_student_loses():
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(600, 5))
    gains = np.stack([-(topics[:, 0] > 1.0).astype(float), np.zeros(600)], axis=1)
    foretold = router(topics, gains)
    assert np.corrcoef(foretold[:, 0], gains[:, 0])[0, 1] > 0.5
    assert np.abs(foretold[:, 1]).max() < 1e-9


def test_the_router_has_not_seen_the_row_it_foretells():
    rng = np.random.default_rng(0)
    topics, noise = rng.normal(size=(60, 30)), rng.choice([-1.0, 0.0, 1.0], (60, 1))
    seen = np.linalg.lstsq(topics, noise, rcond=None)[0]
    fitted, foretold = np.corrcoef((topics @ seen).ravel(), noise.ravel())[0, 1], router(topics, noise)
    assert fitted > 0.6 and abs(np.corrcoef(foretold.ravel(), noise.ravel())[0, 1]) < 0.4
