"""What may be claimed from summary.json. A method is called better or worse only if a test over several training runs
says so after Holm's correction and the interval excludes 0; otherwise the difference is not significant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.analysis.crossed_intervals import ROUNDING
from tutelage.analysis.method_comparison import PredictionTable
from tutelage.analysis.significance import ALPHA, SeedsNeeded
from tutelage.analysis.slices import Measure
from tutelage.compare.summary.recipe_section import AgainstBestSummary, IntervalSummary, MethodSummary, RecipeSummary
from tutelage.compare.summary.student_section import StudentSummary
from tutelage.records import Interval

# --- methods against each other ---


PairVerdict = Literal["behind", "ahead", "differs_here", "not_significant", "one_run", "no_common_run"]
State = Literal["ahead_of_all", "ahead_of_some", "ahead_of_none", "one_seed", "alone"]


@dataclass(frozen=True)
class PairClaim:
    """A method's difference from the chosen one, and what may be said of it."""

    verdict: PairVerdict
    """`behind`, `ahead`: significantly worse or better than the chosen one. `differs_here`: significant for the trained
    models, with one training run each. `one_run`: one training run in common, where others have several; not tested.
    `no_common_run`: nothing to compare."""
    rows_only: bool
    """The interval is about other test rows alone."""
    difference: Interval | None = None
    p: float | None = None
    """After Holm's correction."""
    seeds_needed: SeedsNeeded | None = None

    @property
    def same(self) -> bool:
        """Whether both have the same value."""
        return self.difference is not None and abs(self.difference.value) <= ROUNDING


@dataclass(frozen=True)
class SeedsClaim:
    """What would make the differences significant that are not."""

    more: int | None
    """Number of seeds for those where seeds suffice; None if there are none."""
    last: str | None
    """The method that needs the most."""
    same: list[str]
    """Methods without any difference so far."""
    rows: list[str]
    """Methods for which no number of seeds suffices on these rows."""
    unknown: list[str]
    """Methods with one seed."""
    corrected: list[str]
    """Methods whose seeds suffice for one comparison alone."""


@dataclass(frozen=True)
class Standing:
    """How the method that validation chose stands on test, by score or by loss."""

    chosen: str
    """Without a choice, the first on test."""
    rank: float
    order: list[str]
    """All methods, the best on test first."""
    pairs: dict[str, PairClaim]
    """By method, without the chosen one; best on test first."""
    state: State
    """`one_seed`: only one training run of each was tested. `alone`: there is one method."""
    seeds: SeedsClaim

    def having(self, verdict: PairVerdict) -> list[str]:
        """The methods with this verdict."""
        return [name for name, pair in self.pairs.items() if pair.verdict == verdict]

    @property
    def others(self) -> list[str]:
        """All methods but the chosen one."""
        return list(self.pairs)

    @property
    def smallest_p(self) -> float | None:
        """Of the pairs that were tested."""
        return min((pair.p for pair in self.pairs.values() if pair.p is not None), default=None)


def standing(methods: Mapping[str, MethodSummary], measure: Measure, chosen: str | None) -> Standing:
    """methods: at least one. chosen: by validation; None if it says nothing."""
    ranks = {name: method[f"{measure}_rank"] for name, method in methods.items()}
    order = sorted(methods, key=ranks.__getitem__)
    chosen = chosen or order[0]
    pairs = {name: _pair(methods[name].get(f"{measure}_against_best"), measure) for name in order if name != chosen}
    not_significant = {name: pair for name, pair in pairs.items() if pair.verdict == "not_significant"}
    return Standing(chosen, ranks[chosen], order, pairs, _state(list(pairs.values())), _seeds(not_significant))


def _state(pairs: Sequence[PairClaim]) -> State:
    if not pairs:
        return "alone"
    tested = [pair for pair in pairs if pair.verdict not in ("one_run", "no_common_run")]
    if tested and all(pair.rows_only for pair in tested):
        return "one_seed"
    behind = sum(pair.verdict == "behind" for pair in pairs)
    return "ahead_of_all" if behind == len(pairs) else "ahead_of_some" if behind else "ahead_of_none"


def baseline_claim(recipe: RecipeSummary) -> PairClaim | None:
    """TF-IDF with logistic regression against the method that validation chose by score; None without a test."""
    against = recipe.get("text_baseline", {}).get("score_against_best")
    return _pair(against, "score") if against else None


def _pair(against: AgainstBestSummary | None, measure: Measure) -> PairClaim:
    if against is None:
        return PairClaim("no_common_run", rows_only=True)
    difference, rows_only, p = interval(against["difference"]), against["difference"]["rows_only"], against["p_holm"]
    if p is None:
        return PairClaim("one_run", rows_only, difference)
    verdict: PairVerdict = "ahead" if gain(difference, measure).value > 0 else "behind"
    if p >= ALPHA or not (difference.low > 0 or difference.high < 0):
        verdict = "not_significant"
    elif rows_only:
        verdict = "differs_here"
    return PairClaim(verdict, rows_only, difference, p, against["seeds_needed"])


def _seeds(pairs: Mapping[str, PairClaim]) -> SeedsClaim:
    def needing(verdict: str) -> list[str]:
        return [name for name, pair in pairs.items() if pair.seeds_needed["verdict"] == verdict]

    more = {name: pairs[name].seeds_needed["more"] for name in needing("more_seeds")}
    last = max(more, key=more.__getitem__, default=None)
    return SeedsClaim(
        more=more.get(last),
        last=last,
        same=[name for name, pair in pairs.items() if pair.same],
        rows=[name for name in needing("rows_too_few") if not pairs[name].same],
        unknown=needing("seed_variance_unknown"),
        corrected=needing("settled"),
    )


# --- a method against its teacher ---


@dataclass(frozen=True)
class TeacherClaim:
    """Whether a method beats its teacher."""

    verdict: Literal["above", "below", "not_significant"]
    by: Literal["gap", "apart"]
    """`gap`: the fraction of the gap closed, whose interval excludes 1 exactly if that of the paired difference
    excludes 0. `apart`: two intervals, significant only if they do not overlap."""
    student: Interval
    teacher: Interval
    gap_closed: Interval | None
    """With `gap`."""
    rows_only: bool
    """The claim rests on one training run."""


def against_teacher(
    recipe: RecipeSummary, method: str, measure: Measure, students: Sequence[StudentSummary]
) -> TeacherClaim:
    """students: those of the recipe."""
    numbers, gap = recipe["methods"][method], recipe["methods"][method]["gap_closed"]
    student, teacher = interval(numbers[measure]), interval(recipe["base"]["teacher"][measure])
    if measure == "score" and gap and None not in (gap["share"], gap["low"], gap["high"]):
        closed = Interval(gap["share"], gap["low"], gap["high"])
        rows_only = _runs_in_common(students, method, gap["from"]) < 2
        return TeacherClaim(_side(closed.low - 1, closed.high - 1), "gap", student, teacher, closed, rows_only)
    lead = Interval(student.value - teacher.value, student.low - teacher.high, student.high - teacher.low)
    verdict = _side(*gain(lead, measure)[1:])
    return TeacherClaim(verdict, "apart", student, teacher, None, numbers[measure]["rows_only"])


def _side(low: float, high: float) -> Literal["above", "below", "not_significant"]:
    return "above" if low > 0 else "below" if high < 0 else "not_significant"


def _runs_in_common(students: Sequence[StudentSummary], method: str, baseline: Literal["sft", "anchor"]) -> int:
    """Training runs that a fraction of the gap rests on: those in common with the baseline, or all from the anchor."""
    names = (method, baseline if baseline == "sft" else method)
    keys = [{(s["teacher_seed"], s["seed"]) for s in students if s["method"] == name} for name in names]
    return len(keys[0] & keys[1])


# --- effects and predictions ---


def effect_verdict(effect: Interval, measure: Measure) -> Literal["helps", "hurts", "not_significant"]:
    """Of an effect of the 2 x 2."""
    low, high = gain(effect, measure)[1:]
    return "helps" if low > 0 else "hurts" if high < 0 else "not_significant"


@dataclass(frozen=True)
class PredictionClaim:
    """Whether validation predicts wins on test better than the more frequent outcome does."""

    right: int
    students: int
    wins: int
    accuracy: Interval
    guess: float
    """Accuracy of always predicting the more frequent outcome."""
    verdict: Literal["better", "worse", "not_significant"]


def prediction_claim(table: PredictionTable) -> PredictionClaim:
    """table: with at least one student."""
    wins, right = table["true_wins"] + table["false_losses"], table["true_wins"] + table["true_losses"]
    students = wins + table["false_wins"] + table["true_losses"]
    accuracy, guess = interval(table["accuracy"]), max(wins, students - wins) / students
    verdict = "better" if accuracy.low > guess else "worse" if accuracy.high < guess else "not_significant"
    return PredictionClaim(right, students, wins, accuracy, guess, verdict)


# --- intervals ---


def interval(numbers: IntervalSummary | Mapping[str, Any]) -> Interval:
    """The interval from numbers of summary.json; None becomes NaN."""
    return Interval(*(math.nan if numbers[key] is None else float(numbers[key]) for key in ("value", "low", "high")))


def gain(difference: Interval, measure: Measure) -> Interval:
    """The difference with its sign turned if lower is better: above 0 is good."""
    return difference if measure == "score" else Interval(-difference.value, -difference.high, -difference.low)
