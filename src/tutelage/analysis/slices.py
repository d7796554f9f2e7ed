"""Where a student wins and loses: slices of the rows by what is known of them, and two models on each slice.

A slice's numbers are the SFS/TFS split of `theory.py` on its rows, in nats and in score, so R(S) - R(T) = deficit -
advantage holds on each; the slices of a partition hold every row once, so their contributions add up to the whole.

Two questions are asked of a slice. Is the difference of the two models 0 on it (`p_value`)? Is it what it is on all
other rows (`against_rest`)? A student that is a little worse everywhere differs from its teacher on every slice and on
none from the rest.

Slices that nobody gave are looked for in `slice_search.py`. NumPy, and SciPy where called.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tutelage.analysis.statistics import holm, mcnemar_exact
from tutelage.method.risk_split import split_risk
from tutelage.utils.bootstrap import batch_sizes, percentile_interval, resampled_counts

LEAST_ROWS = 10
"""Slices of fewer rows are described and not tested."""
MOST_VALUES = 100
"""Values of one key with a slice of their own, the most frequent ones; the rest share one slice."""
OTHER = "(other)"
MEASURES = ("score", "nll")

_CHOICES, _CURVED = 20_000, 0.1


class Answers(NamedTuple):
    """One model on the rows."""

    score: np.ndarray
    """[rows] in [0, 1]."""
    nll: np.ndarray
    """[rows] nats an answer token, on gold."""

    def at(self, places: np.ndarray) -> Answers:
        """The same on some of the rows."""
        return Answers(self.score[places], self.nll[places])


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the rows."""

    key: str
    """What the rows were divided by: `language`, `label`, ..."""
    value: str | None
    """None: the rows that have none."""
    places: np.ndarray
    """[rows of the slice] places among all rows, ascending."""
    disjoint: bool = True
    """Whether a row is in one slice of this key only."""
    tested: bool = True
    """False: made of the very losses that are compared, so that a test would only repeat how it was made."""
    scores: Mapping[str, np.ndarray] | None = None
    """By model, [rows of the slice] scores in place of the rows' own: those of the entities of one type."""


# --- given slices ---


def by_value(key: str, values: Sequence[str | None]) -> list[Slice]:
    """A slice for each value of a key that the rows carry, the most frequent first; together they hold all rows.

    values: [rows]. Values beyond the `MOST_VALUES` most frequent share the slice `(other)`. Empty where all rows have
    the same.
    """
    counts = Counter(values)
    kept = {value for value, _ in counts.most_common(MOST_VALUES)}
    named = [value if value in kept else OTHER for value in values]
    order = [value for value, _ in Counter(named).most_common()]
    groups: dict[str | None, list[int]] = {value: [] for value in order}
    for place, value in enumerate(named):
        groups[value].append(place)
    return [Slice(key, value, np.array(places)) for value, places in groups.items()] if len(groups) > 1 else []


def by_amount(key: str, amounts: Sequence[float], *, tested: bool = True, parts: int = 4) -> list[Slice]:
    """Slices by quantiles of a number, ascending, named by their ends (`3-5`); fewer than `parts` where numbers repeat.

    amounts: [rows], finite. Empty where all are equal.
    """
    found = np.asarray(amounts, dtype=np.float64)
    edges = np.unique(np.quantile(found, np.linspace(0, 1, parts + 1)[1:-1], method="lower"))
    numbers = np.searchsorted(edges, found, side="left")
    slices = []
    for number in np.unique(numbers):
        places = np.flatnonzero(numbers == number)
        low, high = (
            f"{end:.0f}" if end == round(end) else f"{end:.3g}" for end in (found[places].min(), found[places].max())
        )
        slices.append(Slice(key, low if low == high else f"{low}-{high}", places, tested=tested))
    return slices if len(slices) > 1 else []


# --- two models on slices ---


def measure_slices(
    students: Mapping[str, Answers], teacher: Answers, slices: Sequence[Slice], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Every student against the teacher on all rows (`whole`) and on each slice (`slices`, in order); JSON-able.

    Of each measure: the values of both models, `difference` student - teacher (in score above 0, in nll below 0 is good
    for the student), the split, `contribution` (share of the rows x difference: those of disjoint slices add up to the
    whole), and 95 % percentile intervals of one seeded paired bootstrap of the rows for everything. p-values: `p_value`
    that the difference is 0,
    `against_rest.p_value` that it is that of the other rows; `p_holm` are corrected over the slices of this student, by
    measure and question. Raises ValueError for losses that are not finite.
    """
    everything = [Slice("all", None, np.arange(len(teacher.score))), *slices]
    names = list(students)
    for student in students.values():  # refuses losses that are not finite, before they spread
        split_risk(student.nll, teacher.nll)
    table = np.concatenate([_gains(students[name], teacher) for name in names], axis=1)
    own = [_own_gains(one, table, names) for one in everything]
    drawn = _bootstrap(table, everything, own, resamples, seed)
    found = {}
    for place, name in enumerate(names):
        columns = [*range(4 * place, 4 * place + 4), -1]
        whole = drawn[0][:, columns]
        lines = [
            _record(one, name, students[name], teacher, sums[:, columns], whole)
            for one, sums in zip(everything, drawn, strict=True)
        ]
        correct(lines[1:])
        found[name] = {"whole": lines[0], "slices": lines[1:]}
    return found


def correct(lines: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` beside every `p_value` of these slices: Holm's correction over the slices, by measure and
    question."""
    for measure in MEASURES:
        for records in ([line[measure] for line in lines], [line[measure]["against_rest"] for line in lines]):
            tested = [record for record in records if record and record["p_value"] is not None]
            for record, value in zip(tested, holm([record["p_value"] for record in tested]), strict=True):
                record["p_holm"] = float(value)


def _gains(student: Answers, teacher: Answers) -> np.ndarray:
    """[rows, 4] advantage and deficit of each row, in score and in nats."""
    gains = (student.score - teacher.score, teacher.nll - student.nll)
    return np.stack([side for gain in gains for side in (np.maximum(gain, 0.0), np.maximum(-gain, 0.0))], axis=1)


def _own_gains(one: Slice, table: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[rows of the slice, 4 x students] of the table, advantage and deficit in score by the slice's own scores if it
    has any."""
    mine = table[one.places]
    for place, name in enumerate(names if one.scores is not None else ()):
        gain = one.scores[name] - one.scores["teacher"]
        mine[:, 4 * place], mine[:, 4 * place + 1] = np.maximum(gain, 0.0), np.maximum(-gain, 0.0)
    return mine.astype(np.float32)


def _bootstrap(
    table: np.ndarray, slices: Sequence[Slice], gains: Sequence[np.ndarray], resamples: int, seed: int
) -> list[np.ndarray]:
    """For each slice [resamples, columns + 1]: sums of its gains over the drawn rows, and how many rows of it were
    drawn.

    All slices and students share the draws. Sums are float32: they tell intervals, not values.
    """
    chunks: list[list[np.ndarray]] = [[] for _ in slices]
    for counts in resampled_counts(len(table), resamples, seed, np.float32):
        for one, values, parts in zip(slices, gains, chunks, strict=True):
            mine = counts[:, one.places]
            parts.append(np.concatenate([mine @ values, mine.sum(axis=1, keepdims=True)], axis=1))
    return [np.concatenate(parts) for parts in chunks]


def _record(
    one: Slice, name: str, student: Answers, teacher: Answers, sums: np.ndarray, whole: np.ndarray
) -> dict[str, Any]:
    """A slice in numbers. sums, whole: [resamples, 5] gains and rows drawn, of the slice and of all rows."""
    rows, places = len(teacher.score), one.places
    line: dict[str, Any] = {"key": one.key, "value": one.value, "rows": len(places), "share": len(places) / rows}
    tested = one.tested and len(places) >= LEAST_ROWS
    for number, measure in enumerate(MEASURES):
        own = one.scores is not None and measure == "score"
        mine, theirs = getattr(student, measure), getattr(teacher, measure)
        inside = (one.scores[name], one.scores["teacher"]) if own else (mine[places], theirs[places])
        columns = [2 * number, 2 * number + 1, 4]
        record = _measured(measure, *inside, sums[:, columns])
        record["p_value"] = paired_p(inside[0] - inside[1]) if tested else None
        record["p_holm"] = None
        record["contribution"] = line["share"] * record["difference"] if one.disjoint else None
        record["against_rest"] = None
        if len(places) < rows and not own:
            rest = _against_rest(measure, mine - theirs, places, sums[:, columns], whole[:, columns])
            known = tested and rows - len(places) >= LEAST_ROWS
            rest["p_value"] = membership_p(mine - theirs, places) if known else None
            record["against_rest"] = rest | {"p_holm": None}
        line[measure] = record
    return line


def _measured(measure: str, student: np.ndarray, teacher: np.ndarray, sums: np.ndarray) -> dict[str, Any]:
    """Both models on the rows of a slice; in nats the values are risks, in score 1 - risk."""
    score = measure == "score"
    split = split_risk(1.0 - student, 1.0 - teacher) if score else split_risk(student, teacher)
    values = (split.risk_student, split.risk_teacher)
    sign = -1.0 if score else 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        advantage, deficit = (sums[:, :2] / sums[:, 2:]).T
    _, low, high = percentile_interval(split.difference, sign * (deficit - advantage))
    wins, losses = int((sign * (student - teacher) < 0).sum()), int((sign * (student - teacher) > 0).sum())
    return {
        "student": 1.0 - values[0] if score else values[0], "teacher": 1.0 - values[1] if score else values[1],
        "difference": 0.0 + sign * split.difference, "low": low, "high": high,
        "wins": wins, "losses": losses, "ties": len(student) - wins - losses,
        "sfs_mass": split.sfs_mass, "tfs_mass": split.tfs_mass,
        "advantage": _valued(split.advantage, advantage), "deficit": _valued(split.deficit, deficit),
    }  # fmt: skip


def _against_rest(
    measure: str, apart: np.ndarray, places: np.ndarray, sums: np.ndarray, whole: np.ndarray
) -> dict[str, float]:
    """Mean of student - teacher, [rows] in the measure, on a slice minus that on all other rows."""
    sign = 1.0 if measure == "score" else -1.0  # advantage - deficit is teacher - student in nats
    others = whole - sums
    with np.errstate(invalid="ignore", divide="ignore"):
        inside, outside = ((part[:, 0] - part[:, 1]) / part[:, 2] for part in (sums, others))
    value = math.fsum(apart[places]) / len(places) - math.fsum(np.delete(apart, places)) / (len(apart) - len(places))
    _, low, high = percentile_interval(value, sign * (inside - outside))
    return {"difference": value, "low": low, "high": high}


def _valued(value: float, draws: np.ndarray) -> dict[str, float]:
    return percentile_interval(value, draws)._asdict()


# --- tests ---


def paired_p(differences: np.ndarray) -> float:
    """Two-sided p-value that two models are alike on rows with these differences [rows]: their signs could be any.

    McNemar's exact test where every difference is -1, 0 or 1; all signs tried where at most 12 differ; otherwise the
    normal limit of the randomisation of signs, sum / sqrt(sum of squares), whose tails are no lighter than the exact
    ones (Efron 1969). A draw of random signs could not tell p-values as small as a correction over many slices asks
    for.
    """
    apart = differences[differences != 0]
    if not len(apart):
        return 1.0
    if (np.abs(apart) == 1).all():
        return mcnemar_exact(int((apart > 0).sum()), int((apart < 0).sum()))
    total = abs(float(apart.sum()))
    if len(apart) <= 12:
        signs = 1 - 2 * (np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart)) & 1)
        return float((np.abs(signs @ apart) >= total - 1e-12).mean())
    return math.erfc(total / math.sqrt(2 * float(apart @ apart)))


def membership_p(values: np.ndarray, places: np.ndarray) -> float:
    """Two-sided p-value that the rows at `places` are any others: their mean of `values` [rows] against that of random
    choices.

    The permutation distribution of the sum over m of n rows has known moments; a Pearson curve of type III with the
    first three of them stands for it, skew included (Winkler et al. 2016), so that p-values may be as small as many
    slices ask for. Where few rows hold most of the differences, as losses do, that curve ends too soon: then choices
    are drawn, and p is at least 1e-4.
    """
    from scipy.special import gammainc, gammaincc, ndtr

    n, m = len(values), len(places)
    centred = values - values.mean()
    variance = m * (n - m) / (n * (n - 1)) * float(centred @ centred) if n > 2 else 0.0
    if not 0 < m < n or variance <= 1e-24:
        return 1.0
    total = float(centred[places].sum())
    third = m * (n - m) * (n - 2 * m) / (n * (n - 1) * (n - 2)) * float((centred**3).sum())
    z, skew = total / math.sqrt(variance), third / variance**1.5
    z, skew = (-z, -skew) if skew < 0 else (z, skew)
    if skew < 1e-4:
        p_value = min(1.0, 2 * float(ndtr(-abs(z))))
    else:
        shape = 4 / skew**2
        point = max(shape + z * math.sqrt(shape), 0.0)
        p_value = min(1.0, 2 * min(float(gammainc(shape, point)), float(gammaincc(shape, point))))
    kurtosis = n * float((centred**4).sum()) / float(centred @ centred) ** 2 - 3
    doubtful = kurtosis > _CURVED * min(m, n - m)
    return _drawn_p(centred, min(m, n - m), total if 2 * m <= n else -total) if doubtful and p_value < 0.3 else p_value


def _drawn_p(centred: np.ndarray, size: int, total: float) -> float:
    """Two-sided p-value of the sum over `size` rows among random choices of as many, twice the smaller tail.

    All stretches of a shuffled circle of the rows are choices; those that do not overlap count as draws of their own.
    """
    rng, n = np.random.default_rng(0), len(centred)
    apart = n // size
    rounds = -(-_CHOICES // apart)
    above, below = 0, 0
    for number in batch_sizes(rounds, 4 * n):
        order = rng.permuted(np.tile(centred, (number, 1)), axis=1)
        sums = np.cumsum(np.concatenate([np.zeros((len(order), 1)), order, order[:, :size]], axis=1), axis=1)
        stretches = sums[:, size : size + n] - sums[:, :n]
        above += int((stretches >= total - 1e-9).sum())
        below += int((stretches <= total + 1e-9).sum())
    draws = rounds * apart
    return min(1.0, 2 * (min(above, below) / n * apart + 1) / (draws + 1))
