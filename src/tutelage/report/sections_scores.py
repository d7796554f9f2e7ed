"""Sections of the report on scores: the verdict, every metric, the gap closed, effects of weighting and schedule.

Here and in the other `sections_*` modules: one function per section, from `Results` to a typed record that a template
in templates/report/ puts into words and draws. None, or an empty list, if the files of a section are missing. Sentences
stand in the templates only: where a sentence depends on numbers, a field of the record names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tutelage.analysis.method_effects import MethodEffect
from tutelage.analysis.run_results import Results, StudentRecords, as_interval, is_plain, read_lines
from tutelage.analysis.significance import ALPHA
from tutelage.analysis.worth import Skill, skill_on_test
from tutelage.method.risk_split import gap_closed, score_lead
from tutelage.records import TEXT_BASELINE, Interval
from tutelage.report.charts import IntervalPlot, interval_plot

Outcome = Literal[
    *("unreadable", "teacher_nothing", "student_nothing"),
    *("beats", "level", "closes", "gain_without_gap", "gain", "no_gap", "unclear", "worse", "plain", "partial"),
]


@dataclass(frozen=True, slots=True)
class OverBaseline:
    """A model's mean row score minus that of TF-IDF with logistic regression on the same rows."""

    lead: Interval
    p_value: float
    result: Literal["better", "worse", "not_significant"]
    """`better`: the model is, by the test."""


def over_baseline(results: Results, model: str) -> OverBaseline | None:
    """The test that `evaluate` recorded; None without one."""
    test = results.scores.get("against_baseline", {}).get(model)
    lead = as_interval(test)
    if test is None or lead is None:
        return None
    significant = test["p_value"] < ALPHA
    result = "not_significant" if not significant else "better" if lead.value > 0 else "worse"
    return OverBaseline(lead, test["p_value"], result)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The main student in numbers, as far as teacher and anchor are scored."""

    main: str
    scores: dict[str, Interval]
    """Of the main student, `teacher`, `anchor` and `other`."""
    gap_closed: float | None
    """Fraction of the gap between anchor and teacher; None without a gap or without all three scores, and for `plain`:
    a student without a teacher closes nothing."""
    outcome: Outcome
    """Names the headline; `partial`: a score is missing, or the rows to compare it on; `gain`: over the anchor, while
    the gap itself may be chance; `plain`: the main student is plain fine-tuning. The first three come before what a
    comparison says: a student with many invalid answers, a teacher or a student that learned nothing."""
    skills: dict[str, Skill]
    """Of the main student and `teacher`, as far as the run tells."""
    by_rows: bool
    """Whether the metric is the mean of the rows' own scores, as accuracy is and F1 is not."""
    over_anchor: Interval | None
    """Mean row score of the student minus the anchor's, paired by row; None without shared rows, and for `plain`."""
    over_teacher: Interval | None
    gap: Interval | None
    """Teacher minus anchor, likewise."""
    over_baseline: OverBaseline | None
    other: str | None = None
    """Beside plain fine-tuning: the best distilled student on validation. None for a main student with a teacher."""
    over_main: Interval | None = None
    """`other` minus the main student, likewise."""

    @property
    def is_plain(self) -> bool:
        """Whether the main student is plain fine-tuning."""
        return is_plain(self.main)

    @property
    def names_fraction(self) -> bool:
        """Whether the fraction of the gap is worth naming: neither the gap nor what was closed of it may be chance."""
        return self.outcome in ("level", "closes", "worse") and self.gap is not None and self.gap.low > 0


def verdict(results: Results) -> Verdict | None:
    """The main student against anchor and teacher; None without a scored student."""
    main = results.main
    names = [name for name in (main, "teacher", "anchor") if name and results.score(name)]
    if main is None or main not in names:
        return None
    other = results.best_with_teacher if is_plain(main) else None
    leads = _leads(results, main, names)
    found = {name: skill_on_test(results, name) for name in names if name != "anchor"}
    skills = {name: skill for name, skill in found.items() if skill}
    scores = {name: results.score(name) for name in [*names, *([other] if other else [])]}
    closed = None
    if len(names) == 3 and not is_plain(main):
        closed = gap_closed(scores["anchor"].value, scores["teacher"].value, scores[main].value)
    compared = "plain" if is_plain(main) else _outcome(closed, **leads) if len(names) == 3 else "partial"
    return Verdict(
        main=main,
        scores=scores,
        gap_closed=closed,
        outcome=_not_worth_praise(skills.get(main), skills.get("teacher")) or compared,
        skills=skills,
        by_rows=_metric_is_row_mean(results),
        over_baseline=over_baseline(results, main),
        other=other,
        over_main=results.lead(other, main) if other else None,
        **leads,
    )


def _leads(results: Results, main: str, scored: list[str]) -> dict[str, Interval | None]:
    """`over_anchor`, `over_teacher` and `gap` of a verdict, as far as both models of a pair are scored."""
    pairs = {"over_teacher": (main, "teacher"), "gap": ("teacher", "anchor")}
    leads = {key: results.lead(*pair) if set(pair) <= set(scored) else None for key, pair in pairs.items()}
    # Two ways to fine-tune: their difference says nothing about distillation.
    comparable = "anchor" in scored and not is_plain(main)
    return leads | {"over_anchor": results.lead(main, "anchor") if comparable else None}


def _metric_is_row_mean(results: Results) -> bool:
    """Whether the metric is the mean of the rows' own scores (accuracy), or not (F1 over all entities, macro-F1)."""
    _, (scores,) = results.paired("score", results.main)
    return not len(scores) or abs(float(scores.mean()) - results.score(results.main).value) < 1e-6


def _not_worth_praise(student: Skill | None, teacher: Skill | None) -> Outcome | None:
    """What makes every comparison of the two pointless."""
    if student and student.many_unreadable:
        return "unreadable"
    if teacher and teacher.nothing:
        return "teacher_nothing"
    return "student_nothing" if student and student.nothing else None


def _outcome(
    closed: float | None, over_anchor: Interval | None, over_teacher: Interval | None, gap: Interval | None
) -> Outcome:
    """The claim that the intervals support: a difference whose interval contains 0 is neither a gain nor a loss."""
    if over_anchor is None or over_teacher is None or gap is None:
        return "partial"
    if over_teacher.low > 0:
        return "beats"
    if over_anchor.high < 0:
        return "worse"
    if over_anchor.low <= 0:
        return "unclear" if closed is not None else "no_gap"
    if closed is None:
        return "gain_without_gap"
    if closed <= 0:  # a metric that disagrees with the rows' own scores
        return "unclear"
    if gap.low <= 0:
        return "gain"
    return "level" if over_teacher.high >= 0 else "closes"


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Every metric of every model."""

    metrics: list[str]
    """The recipe's metric first."""
    rows: list[tuple[str, list[Interval | None]]]
    """Model and its values, in the order of `metrics`; TF-IDF with logistic regression last."""
    types: dict[str, list[Interval | None]]
    """Metrics by entity type (`f1/drug`), a value per row of `rows`."""
    plot: IntervalPlot
    """Of the recipe's metric."""
    over_baseline: dict[str, OverBaseline]
    """By model, in the order of the rows; empty without TF-IDF with logistic regression."""


def score_table(results: Results) -> ScoreTable | None:
    """Scores of all models with their intervals; None without scores."""
    if not results.models:
        return None
    metric, tables = results.scores["metric"], results.scores["models"]
    baseline = results.scores.get("baseline") or {}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    plain = sorted((name for name in names if "/" not in name), key=lambda name: (name != metric, name == "nll"))

    models = [*results.models, *([TEXT_BASELINE] if baseline else [])]

    def score(model: str, name: str) -> Interval | None:
        return as_interval(baseline.get(name)) if model == TEXT_BASELINE else results.score(model, name)

    return ScoreTable(
        metrics=plain,
        rows=[(model, [score(model, name) for name in plain]) for model in models],
        types={name: [score(model, name) for model in models] for name in names if "/" in name},
        plot=interval_plot({model: score(model, metric) for model in models}, may_leave="student"),
        over_baseline={model: found for model in results.models if (found := over_baseline(results, model))},
    )


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """A student that competes on validation."""

    model: str
    score: float
    """The task's metric."""
    nll: float
    """Nats per answer token."""
    over_sft: Interval | None
    """Mean row score minus that of plain fine-tuning, paired by row; None for plain fine-tuning itself, and before it
    is finished."""
    is_plain: bool
    """Whether it is plain fine-tuning."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which student `distill.select: auto` takes."""

    chosen: SelectionRow
    rows: int
    """Validation rows."""
    students: list[SelectionRow]


def selection(results: Results) -> Selection | None:
    """The students on validation, as far as they are finished; None if the recipe takes none by itself."""
    by_row = {student.name: _validation_scores(results, student) for student in results.students}
    finished = {name: scores for name, scores in by_row.items() if scores and name in results.distilled}
    if not results.selects or results.main not in finished:
        return None
    rows = []
    for student in (student for student in results.students if student.name in finished):
        name, validation = student.name, student.kept["validation"]
        plain = f"sft/{name.rpartition('/')[2]}"
        lead = None
        if name != plain and plain in finished:
            shared = [row for row in finished[name] if row in finished[plain]]
            pair = ([finished[model][row] for row in shared] for model in (name, plain))
            lead = score_lead(*pair) if shared else None
        rows.append(SelectionRow(name, validation["score"], validation["nll"], lead, name == plain))
    chosen = next(row for row in rows if row.model == results.main)
    return Selection(chosen, len(finished[results.main]), sorted(rows, key=lambda row: (-row.score, row.nll)))


def _validation_scores(results: Results, student: StudentRecords) -> dict[str, float]:
    """Row scores of the kept student by validation row."""
    path, stage = results.folder / "distill" / student.name / "validation_rows.jsonl", student.kept.get("stage")
    lines = (line for line in read_lines(path) if line["stage"] == stage and line["score"] is not None)
    return {line["id"]: line["score"] for line in lines}


@dataclass(frozen=True, slots=True)
class GapRow:
    """A student between anchor and teacher."""

    model: str
    score: Interval
    gap_closed: float | None
    """None without a gap, and for plain fine-tuning."""
    over_anchor: Interval | None
    over_teacher: Interval | None


def gap_table(results: Results) -> list[GapRow]:
    """For every student: the fraction of the gap closed, and paired differences from anchor and teacher."""
    anchor, teacher = results.score("anchor"), results.score("teacher")
    rows = []
    for name in results.distilled if anchor and teacher else []:
        if score := results.score(name):
            closed = None if is_plain(name) else gap_closed(anchor.value, teacher.value, score.value)
            rows.append(GapRow(name, score, closed, results.lead(name, "anchor"), results.lead(name, "teacher")))
    return rows


def effects(results: Results) -> list[MethodEffect]:
    """Pairs of methods of the run that differ in weighting alone, then those that differ in schedule alone."""
    return sorted(results.summary.get("effects") or [], key=lambda effect: effect["effect"] != "weighting")
