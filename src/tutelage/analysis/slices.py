"""Where a student wins and loses: slices of the test rows, and two models on each slice.

A slice's numbers are the SFS/TFS split of `risk_split` on its rows, in nats and in score, so R(S) - R(T) = deficit -
advantage holds on each; the slices of a partition hold every row once, so their contributions add up to the whole.

Two questions are tested on a slice. Is the difference of the two models 0 (`p_value`)? Is it the same as on all other
rows (`against_rest`)? A student that is slightly worse everywhere differs from its teacher on every slice, and no slice
differs from the rest.

Slices here are given by what is known of the rows; `slice_discovery` finds further ones in the prompts. NumPy; SciPy
when called.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from tutelage.analysis.significance import holm, membership_test, sign_flip_test
from tutelage.method.risk_split import split_risk
from tutelage.records import IntervalRecord
from tutelage.utils.bootstrap import percentile_interval, resampled_counts, widened

LEAST_ROWS = 10
"""Slices of fewer rows are described and not tested."""
MOST_VALUES = 100
"""Values of one key with a slice of their own, the most frequent ones; the others share one slice."""
OTHER = "(other)"
Measure = Literal["score", "nll"]
"""`score`: the task's metric, higher is better; `nll`: loss in nats per answer token, lower is better."""
MEASURES: tuple[Measure, ...] = ("score", "nll")


class Answers(NamedTuple):
    """One model on the rows."""

    score: np.ndarray
    """[rows] in [0, 1]."""
    nll: np.ndarray
    """[rows] nats an answer token, on gold."""

    def at(self, indices: np.ndarray) -> Answers:
        """The same on some of the rows."""
        return Answers(self.score[indices], self.nll[indices])


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the rows."""

    key: str
    """What the rows were divided by: `language`, `label`, ..."""
    value: str | None
    """None: the rows without a value."""
    indices: np.ndarray
    """[rows of the slice] indices among all rows, ascending."""
    disjoint: bool = True
    """Whether a row is in one slice of this key only."""
    tested: bool = True
    """False: made from the losses that are compared, so that a test would only repeat how the slice was made."""
    scores: Mapping[str, np.ndarray] | None = None
    """By model, [rows of the slice] scores in place of the rows' own: those of the entities of one type."""


# --- what is recorded of a slice ---


class RestRecord(TypedDict):
    """Difference of the two models on a slice minus that on all other rows."""

    difference: float
    low: float
    high: float
    """Ends of the 95 % percentile interval of a paired bootstrap over rows."""
    p_value: float | None
    """That the slice's rows are any rows; None for a slice that is not tested."""
    p_holm: float | None
    """Corrected over the slices of the student."""


class MeasureRecord(RestRecord):
    """Two models on a slice by one measure; the difference is student - teacher, its p-value that on these rows the
    models are exchangeable."""

    student: float
    teacher: float
    """Means over the rows."""
    wins: int
    losses: int
    ties: int
    """Rows on which the student is better, worse, equal."""
    sfs_mass: float
    tfs_mass: float
    """Fractions of the slice's rows in SFS (student strictly better) and TFS."""
    advantage: IntervalRecord
    deficit: IntervalRecord
    contribution: float | None
    """share x difference; those of a disjoint partition add up to the whole's difference. None if not disjoint."""
    against_rest: RestRecord | None
    """None without other rows, or if the slice has scores of its own."""


class SliceRecord(TypedDict):
    """A student against the teacher on a slice."""

    key: str
    value: str | None
    rows: int
    share: float
    """Fraction of all rows."""
    score: MeasureRecord
    nll: MeasureRecord


class SlicedComparison(TypedDict):
    """A student against the teacher on all rows and on each slice."""

    whole: SliceRecord
    slices: list[SliceRecord]


# --- given slices ---


def by_value(key: str, values: Sequence[str | None]) -> list[Slice]:
    """A slice for each value of a key of the rows, the most frequent first; together they hold all rows.

    values: [rows]. Values beyond the `MOST_VALUES` most frequent share the slice `(other)`. Empty if all rows have the
    same value.
    """
    kept = {value for value, _ in Counter(values).most_common(MOST_VALUES)}
    named = [value if value in kept else OTHER for value in values]
    indices = {value: array("q") for value, _ in Counter(named).most_common()}
    for index, value in enumerate(named):
        indices[value].append(index)
    return [Slice(key, value, np.asarray(rows)) for value, rows in indices.items()] if len(indices) > 1 else []


def by_amount(key: str, amounts: Sequence[float], *, tested: bool = True, parts: int = 4) -> list[Slice]:
    """Slices by quantiles of a number, ascending, named by their ends (`3-5`); fewer than `parts` if numbers repeat.

    amounts: [rows], finite. Empty if all are equal.
    """
    numbers = np.asarray(amounts, dtype=np.float64)
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, parts + 1)[1:-1], method="lower"))
    part_of_row = np.searchsorted(edges, numbers, side="left")
    slices = []
    for part in np.unique(part_of_row):
        indices = np.flatnonzero(part_of_row == part)
        inside = numbers[indices]
        low, high = (f"{end:.0f}" if end == round(end) else f"{end:.3g}" for end in (inside.min(), inside.max()))
        slices.append(Slice(key, low if low == high else f"{low}-{high}", indices, tested=tested))
    return slices if len(slices) > 1 else []


# --- two models on slices ---


def measure_slices(
    students: Mapping[str, Answers], teacher: Answers, slices: Sequence[Slice], *, resamples: int = 1000
) -> dict[str, SlicedComparison]:
    """Every student against the teacher on all rows (`whole`) and on each slice (`slices`, in order).

    All intervals come from one seeded paired bootstrap of the rows. `p_holm` is corrected over the slices of a student,
    by measure and question. Raises ValueError for losses that are not finite.
    """
    with_whole = [Slice("all", None, np.arange(len(teacher.score))), *slices]
    for student in students.values():  # refuses losses that are not finite before they spread
        split_risk(student.nll, teacher.nll)
    gains = np.concatenate([_gains(student, teacher) for student in students.values()], axis=1)
    slice_gains = [_slice_gains(part, gains, list(students)) for part in with_whole]
    sums = _resampled_sums(len(gains), with_whole, slice_gains, resamples)
    compared: dict[str, SlicedComparison] = {}
    for number, (name, student) in enumerate(students.items()):
        columns = [*range(4 * number, 4 * number + 4), -1]
        sums_of_all = sums[0][:, columns]
        records = [
            _record(part, name, student, teacher, part_sums[:, columns], sums_of_all)
            for part, part_sums in zip(with_whole, sums, strict=True)
        ]
        add_holm(records[1:])
        compared[name] = {"whole": records[0], "slices": records[1:]}
    return compared


def add_holm(slices: Sequence[SliceRecord]) -> None:
    """Set `p_holm` beside every `p_value`: Holm's correction over the slices, by measure and question."""
    for measure in MEASURES:
        for records in ([line[measure] for line in slices], [line[measure]["against_rest"] for line in slices]):
            tested = [record for record in records if record and record["p_value"] is not None]
            for record, adjusted in zip(tested, holm([record["p_value"] for record in tested]), strict=True):
                record["p_holm"] = float(adjusted)


def _gains(student: Answers, teacher: Answers) -> np.ndarray:
    """[rows, 4] advantage and deficit of each row, in score and in nats."""
    gains = (student.score - teacher.score, teacher.nll - student.nll)
    return np.stack([side for gain in gains for side in (np.maximum(gain, 0.0), np.maximum(-gain, 0.0))], axis=1)


def _slice_gains(part: Slice, gains: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[rows of the slice, 4 x students] float32 gains, those in score from the slice's own scores if it has any."""
    inside = gains[part.indices]
    for number, name in enumerate(names if part.scores is not None else ()):
        gain = part.scores[name] - part.scores["teacher"]
        inside[:, 4 * number], inside[:, 4 * number + 1] = np.maximum(gain, 0.0), np.maximum(-gain, 0.0)
    return inside.astype(np.float32)


def _resampled_sums(
    rows: int, slices: Sequence[Slice], slice_gains: Sequence[np.ndarray], resamples: int
) -> list[np.ndarray]:
    """For each slice [resamples, columns + 1]: sums of its gains over the drawn rows, and the number of its drawn rows.

    All slices and students share the resamples. float32, since only intervals are made of these sums.
    """
    chunks: list[list[np.ndarray]] = [[] for _ in slices]
    for counts in resampled_counts(rows, resamples, dtype=np.float32):
        for part, gains, part_chunks in zip(slices, slice_gains, chunks, strict=True):
            inside = counts[:, part.indices]
            part_chunks.append(np.concatenate([inside @ gains, inside.sum(axis=1, keepdims=True)], axis=1))
    return [np.concatenate(part_chunks) for part_chunks in chunks]


def _record(
    part: Slice, name: str, student: Answers, teacher: Answers, sums: np.ndarray, sums_of_all: np.ndarray
) -> SliceRecord:
    """A slice in numbers. sums, sums_of_all: [resamples, 5] gains and rows drawn, of the slice and of all rows."""
    count, fraction = len(part.indices), len(part.indices) / len(teacher.score)
    measures = {}
    for number, measure in enumerate(MEASURES):
        columns = [2 * number, 2 * number + 1, 4]
        record = _two_models(part, measure, name, student, teacher, sums[:, columns])
        record["contribution"] = fraction * record["difference"] if part.disjoint else None
        if count < len(teacher.score) and not (part.scores is not None and measure == "score"):
            differences = getattr(student, measure) - getattr(teacher, measure)
            rest = (sums_of_all - sums)[:, columns]
            record["against_rest"] = _against_rest(part, measure, differences, sums[:, columns], rest)
        measures[measure] = record
    return {"key": part.key, "value": part.value, "rows": count, "share": fraction, **measures}


def _two_models(
    part: Slice, measure: Measure, name: str, student: Answers, teacher: Answers, sums: np.ndarray
) -> MeasureRecord:
    """Both models on the rows of a slice. sums: [resamples, 3] advantage, deficit and rows drawn."""
    if part.scores is not None and measure == "score":
        ours, theirs = part.scores[name], part.scores["teacher"]
    else:
        ours, theirs = (getattr(answers, measure)[part.indices] for answers in (student, teacher))
    # Of the score, 1 - score is the loss.
    split = split_risk(1.0 - ours, 1.0 - theirs) if measure == "score" else split_risk(ours, theirs)
    sign = -1.0 if measure == "score" else 1.0
    difference = 0.0 + sign * split.difference
    with np.errstate(invalid="ignore", divide="ignore"):
        advantage, deficit = (sums[:, :2] / sums[:, 2:]).T
    interval = percentile_interval(difference, sign * (deficit - advantage))
    if measure == "score":
        interval = widened(interval, len(ours), low=-1.0)
    wins, losses = (int((side * sign * (ours - theirs) < 0).sum()) for side in (1.0, -1.0))
    risks = (split.risk_student, split.risk_teacher)
    student_mean, teacher_mean = (1.0 - risk if measure == "score" else risk for risk in risks)
    return {
        "student": student_mean,
        "teacher": teacher_mean,
        "difference": difference,
        "low": interval.low,
        "high": interval.high,
        "wins": wins,
        "losses": losses,
        "ties": len(ours) - wins - losses,
        "sfs_mass": split.sfs_mass,
        "tfs_mass": split.tfs_mass,
        "advantage": percentile_interval(split.advantage, advantage).as_record(),
        "deficit": percentile_interval(split.deficit, deficit).as_record(),
        "p_value": sign_flip_test(ours - theirs) if part.tested and len(ours) >= LEAST_ROWS else None,
        "p_holm": None,
        "contribution": None,
        "against_rest": None,
    }


def _against_rest(
    part: Slice, measure: Measure, differences: np.ndarray, sums: np.ndarray, sums_of_rest: np.ndarray
) -> RestRecord:
    """The mean of student - teacher on a slice minus that on all other rows. differences: [rows], in the measure."""
    count, others = len(part.indices), len(differences) - len(part.indices)
    sign = 1.0 if measure == "score" else -1.0  # advantage - deficit is teacher - student in nats
    with np.errstate(invalid="ignore", divide="ignore"):
        inside, outside = ((side[:, 0] - side[:, 1]) / side[:, 2] for side in (sums, sums_of_rest))
    elsewhere = np.delete(differences, part.indices)
    value = math.fsum(differences[part.indices]) / count - math.fsum(elsewhere) / others
    interval = percentile_interval(value, sign * (inside - outside))
    tested = part.tested and min(count, others) >= LEAST_ROWS
    p_value = membership_test(differences, part.indices) if tested else None
    return {"difference": value, "low": interval.low, "high": interval.high, "p_value": p_value, "p_holm": None}
