"""Sections of the report on where the student wins and loses: the split of the risk, examples, slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tutelage.analysis.run_results import Results
from tutelage.analysis.significance import ALPHA
from tutelage.analysis.slice_discovery import ConditionRecord, DiscoveredSlice
from tutelage.analysis.slices import MEASURES, Measure, MeasureRecord, RestRecord, SliceRecord
from tutelage.data.contents.sameness import prompt_text
from tutelage.method.risk_split import Split, SplitInterval, interval, oracle_risk, split_risk
from tutelage.report.axes import Axis, decades
from tutelage.report.charts import Scatter, scatter
from tutelage.report.page import slice_value
from tutelage.report.row_browser import outcome_of

POINTS, SLICES, EXAMPLES, TOP = 400, 30, 4, 5
FEW_ROWS = 20
"""Slices of fewer rows say little: they stand apart, and are never among the first that are shown."""
LEAST_NATS = 1e-3
"""Left end of the logarithmic axis on which losses are compared; smaller losses are drawn on it."""

Side = Literal["student", "teacher"]
Question = Literal["own", "rest"]

# --- the split of the risk ---


@dataclass(frozen=True, slots=True)
class SplitRow:
    """A model against the teacher; bar widths in percent, at most 48."""

    model: str
    split: Split
    interval: SplitInterval
    skipped: int
    """Rows without a value for both models."""
    up: float
    """Bar of the advantage, to the left."""
    down: float
    """Bar of the deficit, to the right."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """An oracle router between anchor and teacher, beside both: nats, or mean row score."""

    router: float
    anchor: float
    teacher: float


@dataclass(frozen=True, slots=True)
class RiskSplit:
    """SFS and TFS of anchor and students against the teacher."""

    nats: list[SplitRow]
    answers: list[SplitRow]
    """With 1 - score as the loss."""
    oracle_nll: Oracle | None
    oracle_score: Oracle | None
    scatters: list[ModelScatter]


@dataclass(frozen=True, slots=True)
class ModelScatter:
    """A model's losses against the teacher's, for some of the rows."""

    model: str
    rows: int
    chart: Scatter


def splits(results: Results) -> RiskSplit | None:
    """The SFS/TFS split of every student and of the anchor against the teacher, in nats and in score."""
    others = [name for name in ["anchor", *results.distilled] if name in results.predictions]
    nats, answers = (_split_rows(results, key, others) for key in ("nll", "score"))
    if not nats and not answers:
        return None
    scatters = _scatters(results, [name for name in ("anchor", results.main) if name in others])
    return RiskSplit(nats, answers, _oracle(results, "nll"), _oracle(results, "score"), scatters)


def _split_rows(results: Results, key: str, models: Sequence[str]) -> list[SplitRow]:
    losses = {}
    for name in models:
        ids, (student, teacher) = results.paired(key, name, "teacher")
        if ids:
            losses[name] = (student, teacher) if key == "nll" else (1.0 - student, 1.0 - teacher)
    parts = {name: split_risk(*pair) for name, pair in losses.items()}
    scale = 48 / (max((max(part.advantage, part.deficit) for part in parts.values()), default=0.0) or 1.0)
    everything = {name: results.predictions[name].keys() | results.predictions["teacher"].keys() for name in losses}
    return [
        SplitRow(
            model=name,
            split=part,
            interval=interval(*losses[name]),
            skipped=len(everything[name]) - len(losses[name][0]),
            up=round(part.advantage * scale, 3),
            down=round(part.deficit * scale, 3),
        )
        for name, part in parts.items()
    ]


def _oracle(results: Results, key: str) -> Oracle | None:
    ids, (anchor, teacher) = results.paired(key, "anchor", "teacher")
    if not ids:
        return None
    best = oracle_risk(anchor, teacher) if key == "nll" else 1.0 - oracle_risk(1.0 - anchor, 1.0 - teacher)
    return Oracle(best, float(anchor.mean()), float(teacher.mean()))


def _scatters(results: Results, names: list[str]) -> list[ModelScatter]:
    """Losses of each model against the teacher's for the same seeded sample of the rows, on the same axes."""
    ids, (teacher, *students) = results.paired("nll", "teacher", *names)
    if not ids or not students:
        return []
    ends = decades(np.concatenate([teacher, *students]), LEAST_NATS)
    sample = np.sort(np.random.default_rng(0).permutation(len(ids))[:POINTS])
    return [
        ModelScatter(name, len(ids), scatter(teacher[sample], student[sample], ends, height=280))
        for name, student in zip(names, students, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A test row with the answers of the main student and its teacher: lines of predictions.jsonl."""

    side: Side
    """Whose loss is much lower."""
    prompt: str
    language: str | None
    student: dict[str, Any]
    teacher: dict[str, Any]


def examples(results: Results) -> list[ExampleRow]:
    """Rows on which the student's loss is furthest below the teacher's, then those on which it is furthest above."""
    main = results.main
    if main not in results.predictions:
        return []
    ids, (student, teacher) = results.paired("nll", main, "teacher")
    gain = teacher - student
    order = np.argsort(-gain, kind="stable")
    ahead = [("student", index) for index in order[:EXAMPLES] if gain[index] > 0]
    behind = [("teacher", index) for index in order[::-1][:EXAMPLES] if gain[index] < 0]
    lines = []
    for side, index in ahead + behind:
        row = results.rows.get(ids[index], {})
        answers = (results.predictions[model][ids[index]] for model in (main, "teacher"))
        lines.append(ExampleRow(side, prompt_text(row.get("prompt") or ""), row.get("language"), *answers))
    return lines


# --- slices ---


@dataclass(frozen=True, slots=True)
class DifferenceBar:
    """Positions of a difference and the ends of its interval; `cut` where the interval leaves the axis."""

    value: float
    low: float
    high: float
    cut: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A difference that is significant after Holm's correction, in favour of `side`."""

    question: Question
    """`own`: one model is better on the slice; `rest`: the difference is not that of the other rows."""
    side: Side
    measures: list[Measure]


@dataclass(frozen=True, slots=True)
class SliceRow:
    """A slice of the test rows, as in diagnose/slices.json."""

    key: str
    value: str | None
    rows: int
    score: MeasureRecord
    nll: MeasureRecord
    bar: DifferenceBar
    marks: list[Mark]

    @property
    def differs(self) -> bool:
        """Whether the slice differs significantly from the other rows."""
        return any(mark.question == "rest" for mark in self.marks)


@dataclass(frozen=True, slots=True)
class DiscoveredRow:
    """A slice found in the prompts, and how it differs from the other rows."""

    row: SliceRow
    rule: list[ConditionRecord]
    terms: str | None
    """The words that a cluster of prompts is rich in; None for a rule."""
    measure: Measure
    """In which it differs."""
    side: Side
    against_rest: RestRecord


@dataclass(frozen=True, slots=True)
class SliceTable:
    """All slices of the main student against T*."""

    rows: list[SliceRow]
    worst_first: bool
    units: dict[str, str]
    """Unit of the keys that are quantities."""
    untested: list[str]
    """Keys whose slices are not tested."""
    tested: int
    ahead: int
    """Slices on which the student is significantly better, and not significantly worse in the other measure."""
    behind: int
    differing: int
    """Slices that differ significantly from the other rows."""
    discovered: list[DiscoveredRow]
    candidates: int
    """Slices of prompts that were tested."""

    @property
    def large(self) -> list[SliceRow]:
        """Slices of at least FEW_ROWS rows."""
        return [row for row in self.rows if row.rows >= FEW_ROWS]

    @property
    def small(self) -> list[SliceRow]:
        """Slices of fewer rows."""
        return [row for row in self.rows if row.rows < FEW_ROWS]

    @property
    def first(self) -> dict[Side, list[SliceRow]]:
        """At most TOP large slices on which the student's score is higher, and as many on which the teacher's is.

        Ordered by the end of the interval that is nearer to the other side: a difference that is sure comes before one
        that is only large. Their bars share an axis of their own. Slices that are not tested are left out: their rows
        were chosen by the losses compared.
        """
        rows = [row for row in self.large if row.key not in self.untested]
        ahead = sorted((row for row in rows if row.score["difference"] > 0), key=lambda row: -row.score["low"])[:TOP]
        behind = sorted((row for row in rows if row.score["difference"] < 0), key=lambda row: row.score["high"])[:TOP]
        axis = _axis_of([row.score for row in ahead + behind])
        drawn = {"student": ahead, "teacher": behind}
        return {side: [replace(row, bar=_bar(row.score, axis)) for row in rows] for side, rows in drawn.items()}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Test rows by which of two models is right; together they are all rows with a score of both."""

    rows: int
    both: int
    """Rows on which both have the full score."""
    student: int
    """Rows on which the student's score is higher."""
    teacher: int
    equal: int
    """Rows on which both have the same score between 0 and 1."""
    neither: int
    """Rows on which both score 0."""


def outcomes(results: Results) -> Outcomes | None:
    """The main student beside its teacher; None without rows that both answered."""
    if results.main not in results.predictions:
        return None
    ids, pairs = results.paired("score", results.main, "teacher")
    found = Counter(outcome_of(*pair) for pair in zip(*(scores.tolist() for scores in pairs), strict=True))
    return Outcomes(len(ids), *(found[letter] for letter in "rwltn")) if ids else None


def slice_table(results: Results) -> SliceTable | None:
    """Slices as `diagnose` measured them; the largest gain in score first, or the largest loss where the student is
    behind on more slices than ahead. None without a diagnosis of the main student."""
    pair = next((pair for pair in results.slices.get("pairs", []) if pair["student"] == results.main), None)
    if pair is None:
        return None
    partitions, axis = results.slices["partitions"], _difference_axis([*pair["slices"], *pair["found"]])
    rows = [_slice_row(line, axis) for line in pair["slices"]]
    rows.sort(key=lambda row: (-row.score["difference"], row.nll["difference"]))
    sides = [{mark.side for mark in row.marks if mark.question == "own"} for row in rows]
    ahead, behind = sides.count({"student"}), sides.count({"teacher"})
    return SliceTable(
        rows=rows[::-1] if behind > ahead else rows,
        worst_first=behind > ahead,
        units={partition["key"]: partition["unit"] for partition in partitions if partition["unit"]},
        untested=[partition["key"] for partition in partitions if not partition["tested"]],
        tested=sum(row.score["p_value"] is not None for row in rows),
        ahead=ahead,
        behind=behind,
        differing=sum(row.differs for row in rows),
        discovered=[_discovered(line, axis) for line in pair["found"]],
        candidates=len(pair["tried"]),
    )


def _difference_axis(slices: Sequence[SliceRecord]) -> Axis:
    """An axis that holds every interval except those of small slices, which would squeeze the others."""
    scores = [line["score"] for line in slices if line["rows"] >= FEW_ROWS] or [line["score"] for line in slices]
    return _axis_of(scores)


def _axis_of(scores: Sequence[MeasureRecord]) -> Axis:
    most = max((abs(score[end]) for score in scores for end in ("low", "high")), default=0.0) or 1.0
    return Axis(-most, most, 1, 99)


def _bar(score: MeasureRecord, axis: Axis) -> DifferenceBar:
    ends = (axis.at(score[key]) for key in ("difference", "low", "high"))
    return DifferenceBar(*ends, cut=score["low"] < axis.low or score["high"] > axis.high)


def _slice_row(line: SliceRecord, axis: Axis) -> SliceRow:
    score, value = line["score"], slice_value(line["key"], line["value"])
    return SliceRow(line["key"], value, line["rows"], score, line["nll"], _bar(score, axis), _marks(line))


def _marks(line: SliceRecord) -> list[Mark]:
    measures: dict[tuple[Question, Side], list[Measure]] = {}
    for measure in MEASURES:
        for question, record in (("own", line[measure]), ("rest", line[measure]["against_rest"])):
            if record and record.get("p_holm") is not None and record["p_holm"] <= ALPHA:
                measures.setdefault((question, _better(record, measure)), []).append(measure)
    return [Mark(question, side, names) for (question, side), names in measures.items()]


def _better(record: MeasureRecord | RestRecord, measure: Measure) -> Side:
    """Who is better by a difference student - teacher: a higher score, a lower loss."""
    return "student" if (record["difference"] > 0) == (measure == "score") else "teacher"


def _discovered(line: DiscoveredSlice, axis: Axis) -> DiscoveredRow:
    rest = line[line["by"]]["against_rest"]
    terms = ", ".join(line.get("terms", [line["name"]])) if line["how"] == "cluster" else None
    return DiscoveredRow(_slice_row(line, axis), line["rule"], terms, line["by"], _better(rest, line["by"]), rest)


@dataclass(frozen=True, slots=True)
class KnownSlices:
    """Mean row scores by a key that the rows carry."""

    key: str
    models: list[str]
    rows: list[tuple[str, int, list[float]]]
    """Value, number of rows, a score for each model."""
    left_out: int
    """Smaller slices that are not shown."""


def known_slices(results: Results) -> list[KnownSlices]:
    """Scores of teacher, anchor and student by `language` and `subdomain`, for a run that was not diagnosed."""
    models = [name for name in ("teacher", "anchor", results.main) if name in results.predictions]
    if not models:
        return []
    ids, scores = results.paired("score", *models)
    tables = []
    for key in ("language", "subdomain"):
        values = np.array([str(results.rows.get(id, {}).get(key) or "") for id in ids])
        counts = Counter(value for value in values.tolist() if value)
        if len(counts) < 2:
            continue
        rows = [
            (value, count, [float(column[values == value].mean()) for column in scores])
            for value, count in counts.most_common(SLICES)
        ]
        tables.append(KnownSlices(key, models, rows, len(counts) - len(rows)))
    return tables
