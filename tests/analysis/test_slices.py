"""Two models on slices of the rows: numbers derived by hand, the identity on every slice, and what tests detect."""

import numpy as np
import pytest

from tutelage.analysis.slices import (
    LEAST_ROWS,
    MOST_VALUES,
    OTHER,
    Answers,
    Slice,
    by_amount,
    by_value,
    measure_slices,
)

TEACHER = Answers(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.2, 0.1, 0.5, 2.0]))
STUDENT = Answers(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.1, 0.2, 1.0, 2.0]))


def simulated_answers(rows: int, seed: int, *, behind: float = 0.0) -> tuple[Answers, Answers]:
    """(student, teacher) whose probabilities of a right answer differ by `behind` on every row."""
    rng = np.random.default_rng(seed)
    ease = rng.random(rows)
    answers = []
    for skill in (0.8 - behind, 0.8):
        right = 0.7 * ease + 0.3 * rng.random(rows) < skill
        answers.append(
            Answers(right.astype(float), np.where(right, rng.gamma(0.5, 0.1, rows), rng.gamma(2.0, 0.8, rows)))
        )
    return answers[0], answers[1]


def two_slices(rows: int) -> list[Slice]:
    return by_value("side", ["left" if n % 2 else "right" for n in range(rows)])


# --- given slices ---


def test_every_row_is_in_one_slice_of_a_key_and_rows_without_a_value_have_their_own():
    slices = by_value("language", ["ko", None, "en", "ko"])
    assert [(part.value, part.indices.tolist()) for part in slices] == [("ko", [0, 3]), (None, [1]), ("en", [2])]


def test_a_key_with_one_value_for_all_rows_makes_no_slices():
    assert by_value("language", ["ko", "ko"]) == by_value("language", [None, None]) == []
    assert by_amount("length", [3, 3, 3]) == []


def test_values_beyond_the_most_frequent_share_a_slice():
    numbers = [*range(MOST_VALUES + 5), *range(MOST_VALUES)]
    slices = by_value("label", [f"label {n}" for n in numbers])
    assert len(slices) == MOST_VALUES + 1
    rest = next(part for part in slices if part.value == OTHER)
    assert rest.indices.tolist() == list(range(MOST_VALUES, MOST_VALUES + 5))


def test_amounts_are_cut_at_quantiles_and_named_by_their_ends():
    slices = by_amount("length", [5, 1, 2, 3, 4, 6, 7, 30])
    assert [(part.value, part.indices.tolist()) for part in slices] == [
        ("1-2", [1, 2]),
        ("3-4", [3, 4]),
        ("5-6", [0, 5]),
        ("7-30", [6, 7]),
    ]
    assert [part.value for part in by_amount("length", [1, 1, 1, 1, 1, 9])] == ["1", "9"]


# --- numbers ---


def test_numbers_of_a_slice_by_hand():
    slices = [Slice("side", "left", np.array([0, 1])), Slice("side", "right", np.array([2, 3]))]
    left, right = measure_slices({"s": STUDENT}, TEACHER, slices)["s"]["slices"]
    assert (left["rows"], left["share"]) == (2, 0.5)
    assert (left["score"]["student"], left["score"]["teacher"], left["score"]["difference"]) == (1.0, 0.5, 0.5)
    assert (left["score"]["wins"], left["score"]["losses"], left["score"]["ties"]) == (1, 0, 1)
    assert (right["score"]["wins"], right["score"]["losses"], right["score"]["difference"]) == (0, 1, -0.5)
    assert left["nll"]["advantage"]["value"] == pytest.approx(0.05)
    assert left["nll"]["deficit"]["value"] == pytest.approx(0.05)
    assert (left["nll"]["sfs_mass"], left["nll"]["tfs_mass"], left["nll"]["wins"]) == (0.5, 0.5, 1)
    assert right["nll"]["difference"] == pytest.approx(0.25)
    assert right["nll"]["contribution"] == pytest.approx(0.125)
    assert (right["nll"]["sfs_mass"], right["nll"]["ties"]) == (0.0, 1)  # equal losses are in TFS and nobody's win
    assert right["nll"]["against_rest"]["difference"] == pytest.approx(0.25)
    assert right["score"]["against_rest"]["difference"] == -1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_identity_holds_on_every_slice_and_slices_add_up_to_the_whole(seed):
    student, teacher = simulated_answers(997, seed)
    rng = np.random.default_rng(seed)
    keys = {"language": rng.choice(["ko", "ja", "en"], 997), "label": rng.choice([f"l{n}" for n in range(300)], 997)}
    slices = [part for key, values in keys.items() for part in by_value(key, values.tolist())]
    slices += by_amount("length", rng.integers(1, 90, 997))
    compared = measure_slices({"s": student}, teacher, slices, resamples=20)["s"]
    for line in [compared["whole"], *compared["slices"]]:
        for measure, sign in (("nll", 1), ("score", -1)):
            record = line[measure]
            split = record["deficit"]["value"] - record["advantage"]["value"]
            assert record["difference"] == pytest.approx(sign * split, abs=1e-9)
            assert record["difference"] == pytest.approx(record["student"] - record["teacher"], abs=1e-9)
            assert record["wins"] + record["losses"] + record["ties"] == line["rows"]
    for key in ("language", "label", "length"):
        partition = [line for line in compared["slices"] if line["key"] == key]
        for measure in ("nll", "score"):
            total, whole = sum(line[measure]["contribution"] for line in partition), compared["whole"][measure]
            assert total == pytest.approx(whole["difference"], abs=1e-9)
            for side in ("advantage", "deficit"):
                parts = sum(line["share"] * line[measure][side]["value"] for line in partition)
                assert parts == pytest.approx(whole[side]["value"], abs=1e-9)


def test_a_slice_with_scores_of_its_own_keeps_the_losses_of_the_rows():
    scores = {"s": np.array([0.5, 0.0]), "teacher": np.array([1.0, 1.0])}
    slices = [Slice("entity_type", "drug", np.array([0, 1]), disjoint=False, scores=scores)]
    line = measure_slices({"s": STUDENT}, TEACHER, slices)["s"]["slices"][0]
    assert (line["score"]["student"], line["score"]["teacher"], line["score"]["losses"]) == (0.25, 1.0, 2)
    assert line["score"]["low"] >= -1.0 and line["score"]["high"] <= -0.5
    assert line["score"]["against_rest"] is None and line["score"]["contribution"] is None
    assert line["nll"]["student"] == pytest.approx(0.15)


def test_intervals_cover_the_true_difference():
    covered = 0
    for seed in range(40):
        student, teacher = simulated_answers(400, seed, behind=0.1)
        line = measure_slices({"s": student}, teacher, two_slices(400), resamples=200)["s"]["slices"][0]["score"]
        covered += line["low"] <= -0.1 <= line["high"]
    assert covered >= 34


def test_losses_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        measure_slices({"s": Answers(STUDENT.score, np.array([0.1, np.inf, 0.1, 0.1]))}, TEACHER, two_slices(4))


# --- tests of a slice ---


def test_a_student_worse_everywhere_differs_on_every_slice_and_no_slice_from_the_rest():
    student, teacher = simulated_answers(4000, 0, behind=0.2)
    slices = by_value("group", [f"g{n % 5}" for n in range(4000)])
    lines = measure_slices({"s": student}, teacher, slices, resamples=50)["s"]["slices"]
    assert max(line["score"]["p_holm"] for line in lines) < 1e-6
    assert min(line["score"]["against_rest"]["p_holm"] for line in lines) > 0.05


def test_a_planted_slice_differs_from_the_rest():
    student, teacher = simulated_answers(2000, 1)
    student.score[:200] *= np.random.default_rng(0).random(200) < 0.6
    slices = by_value("group", ["planted" if n < 200 else f"g{n % 4}" for n in range(2000)])
    lines = measure_slices({"s": student}, teacher, slices, resamples=50)["s"]["slices"]
    tests = {line["value"]: line["score"]["against_rest"] for line in lines}
    assert min(tests, key=lambda value: tests[value]["p_holm"]) == "planted" and tests["planted"]["p_holm"] < 1e-9
    assert [value for value, test in tests.items() if test["difference"] < 0 and test["p_holm"] <= 0.05] == ["planted"]


def test_small_slices_and_slices_made_from_the_losses_are_described_and_not_tested():
    student, teacher = simulated_answers(100, 0)
    slices = [Slice("few", "x", np.arange(LEAST_ROWS - 1)), Slice("loss", "high", np.arange(50), tested=False)]
    for line in measure_slices({"s": student}, teacher, slices, resamples=20)["s"]["slices"]:
        assert line["nll"]["p_value"] is line["nll"]["p_holm"] is line["nll"]["against_rest"]["p_value"] is None
