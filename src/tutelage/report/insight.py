"""What the report says of where and why: the split of the risk, slices, weights, calibration, a cascade, effects.

One function a section, each taking `Results`; templates/report/ words and draws what they return. None or an empty list
where the artefacts of a section are not there. Most of it was measured by `diagnose`; here it is put in order and into
places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from tutelage.analysis.calibration import TOLERANCE
from tutelage.analysis.run_results import Results, Student, read_lines
from tutelage.analysis.slice_discovery import ALPHA
from tutelage.analysis.slices import LEAST_ROWS, MEASURES
from tutelage.data.dataset import prompt_text
from tutelage.method.risk_split import interval, perfect_gate, split_risk
from tutelage.report.charts import Axis, cascade_chart, decades, histogram, reliability_diagram, scatter
from tutelage.report.page import slice_value

BINS, POINTS, SLICES, EXAMPLES = 20, 400, 30, 4
LEAST_NATS = 1e-3
"""Left end of the logarithmic axis on which losses are compared; smaller ones are drawn on it."""

# --- the split of the risk ---


def splits(results: Results) -> dict[str, Any] | None:
    """The SFS/TFS split of every student and of the anchor against the teacher, in nats and in score."""
    others = [name for name in ["anchor", *results.distilled] if name in results.predictions]
    tables = {key: [row for name in others if (row := _compared(results, key, name))] for key in ("nll", "score")}
    if not any(tables.values()):
        return None
    return {
        "nats": _with_bars(tables["nll"]),
        "answers": _with_bars(tables["score"]),
        "gates": {key: _gate(results, key) for key in ("nll", "score")},
        "scatters": _scatters(results, [name for name in ("anchor", results.main) if name in others]),
    }


def _compared(results: Results, key: str, name: str) -> dict[str, Any] | None:
    ids, (student, teacher) = results.paired(key, name, "teacher")
    if not ids:
        return None
    losses = (student, teacher) if key == "nll" else (1.0 - student, 1.0 - teacher)
    skipped = len(results.predictions[name].keys() | results.predictions["teacher"].keys()) - len(ids)
    return {"model": name, "split": split_risk(*losses), "interval": interval(*losses), "skipped": skipped}


def _with_bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Advantage and deficit as bars to both sides of a middle, on one scale for all rows."""
    most = max((max(row["split"].advantage, row["split"].deficit) for row in rows), default=0.0) or 1.0
    return [{**row, "up": 48 * row["split"].advantage / most, "down": 48 * row["split"].deficit / most} for row in rows]


def _gate(results: Results, key: str) -> dict[str, float] | None:
    """What an oracle that asks the better of anchor and teacher would reach, beside both: nats, or mean row score."""
    ids, (anchor, teacher) = results.paired(key, "anchor", "teacher")
    if not ids:
        return None
    gate = perfect_gate(anchor, teacher) if key == "nll" else 1.0 - perfect_gate(1.0 - anchor, 1.0 - teacher)
    return {"gate": gate, "anchor": float(anchor.mean()), "teacher": float(teacher.mean())}


def _scatters(results: Results, names: list[str]) -> list[dict[str, Any]]:
    """Losses of each student against the teacher's for the same seeded sample of the rows, on the same axes."""
    ids, (teacher, *students) = results.paired("nll", "teacher", *names)
    if not ids or not students:
        return []
    ends = decades(np.concatenate([teacher, *students]), LEAST_NATS)
    places = np.sort(np.random.default_rng(0).permutation(len(ids))[:POINTS])
    return [
        {"model": name, "rows": len(ids), **scatter(teacher[places], student[places], ends, height=280)}
        for name, student in zip(names, students, strict=True)
    ]


def examples(results: Results) -> list[dict[str, Any]]:
    """Rows that show the split: where the student's loss is furthest below the teacher's, and furthest above it."""
    main = results.main
    if main not in results.predictions:
        return []
    ids, (student, teacher) = results.paired("nll", main, "teacher")
    gain = teacher - student
    order = np.argsort(-gain, kind="stable")
    groups = (("student", order[:EXAMPLES]), ("teacher", order[::-1][:EXAMPLES]))
    lines = []
    for side, places in groups:
        for place in places:
            if (gain[place] > 0) != (side == "student") or gain[place] == 0:
                continue
            mine, theirs = results.predictions[main][ids[place]], results.predictions["teacher"][ids[place]]
            row = results.rows.get(ids[place], {})
            prompt = prompt_text(row.get("prompt") or "")
            lines.append(
                {"side": side, "student": mine, "teacher": theirs, "language": row.get("language"), "prompt": prompt}
            )
    return lines


# --- slices ---


def slice_table(results: Results) -> dict[str, Any] | None:
    """All slices of the main student against T* as `diagnose` measured them, the greatest gain in score first, or the
    greatest loss where the student is surely behind on more of them than ahead (`worst_first`).

    `rows`: slices with `bar` (places of value, low and high) and `marks`; `found`: the same of slices found in the
    prompts, of
    `tried` candidates; `tested`: slices with a test, of which the student is surely `ahead` or `behind` on so many, and
    `odd` ones are surely unlike the rest.
    """
    pair = next((one for one in results.slices.get("pairs", []) if one["student"] == results.main), None)
    if pair is None:
        return None
    lines = [*pair["slices"], *pair["found"]]
    axis = _axis_of(lines)
    rows = [_slice(line, axis) for line in pair["slices"]]
    rows.sort(key=lambda line: (-line["score"]["difference"], line["nll"]["difference"]))
    own = [{mark["side"] for mark in line["marks"] if mark["question"] == "own"} for line in rows]
    ahead, behind = (sum(sides == {side} for sides in own) for side in ("student", "teacher"))
    return {
        "whole": pair["whole"],
        "rows": rows[::-1] if behind > ahead else rows,
        "worst_first": behind > ahead,
        "units": {one["key"]: one["unit"] for one in results.slices["partitions"] if one["unit"]},
        "untested": [one["key"] for one in results.slices["partitions"] if not one["tested"]],
        "tested": sum(line["score"]["p_value"] is not None for line in rows),
        "ahead": ahead,
        "behind": behind,
        "odd": sum(line["odd"] for line in rows),
        "found": [{**_slice(line, axis), **_how(line)} for line in pair["found"]],
        "tried": len(pair["tried"]),
    }


def _axis_of(slices: list[Mapping[str, Any]]) -> Axis:
    """An axis that holds every interval, except those of slices of so few rows that they would squeeze the others."""
    scores = [line["score"] for line in slices if line["rows"] >= LEAST_ROWS] or [line["score"] for line in slices]
    most = max((abs(score[end]) for score in scores for end in ("low", "high")), default=0.0) or 1.0
    return Axis(-most, most, 1, 99)


def _slice(line: Mapping[str, Any], axis: Axis) -> dict[str, Any]:
    score = line["score"]
    bar = {end: axis.at(score[key]) for end, key in (("value", "difference"), ("low", "low"), ("high", "high"))}
    bar["cut"] = score["low"] < axis.low or score["high"] > axis.high
    marks = _marks(line)
    return {
        **line,
        "value": slice_value(line["key"], line["value"]),
        "bar": bar,
        "marks": marks,
        "odd": any(mark["question"] == "rest" for mark in marks),
    }


def _marks(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is sure of a slice after Holm's correction: that one side is ahead (`own`), or more so than elsewhere
    (`rest`)."""
    found: dict[tuple[str, str], list[str]] = {}
    for measure in MEASURES:
        for question, record in (("own", line[measure]), ("rest", line[measure]["against_rest"])):
            if record and record.get("p_holm") is not None and record["p_holm"] <= ALPHA:
                better = (record["difference"] > 0) == (measure == "score")
                found.setdefault((question, "student" if better else "teacher"), []).append(measure)
    return [{"question": question, "side": side, "measures": measures} for (question, side), measures in found.items()]


def _how(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a found slice was found by; `terms`: the words that a cluster of prompts is rich in."""
    rest = line[line["by"]]["against_rest"]
    better = (rest["difference"] > 0) == (line["by"] == "score")
    terms = line["name"].partition(": ")[2] if line["how"] == "cluster" else None
    return {"side": "student" if better else "teacher", "rest": rest, "terms": terms}


def known_slices(results: Results) -> list[dict[str, Any]]:
    """Mean row score of teacher, anchor and student by `language` and `subdomain`, where rows carry several of them."""
    models = [name for name in ("teacher", "anchor", results.main) if name in results.predictions]
    if not models:
        return []
    ids, scores = results.paired("score", *models)
    tables = []
    for key in ("language", "subdomain"):
        labels = np.array([str(results.rows.get(id, {}).get(key) or "") for id in ids])
        counts = Counter(label for label in labels.tolist() if label)
        if len(counts) < 2:
            continue
        rows = [
            {"slice": label, "rows": count, "scores": [float(values[labels == label].mean()) for values in scores]}
            for label, count in counts.most_common(SLICES)
        ]
        tables.append({"key": key, "models": models, "rows": rows, "more": len(counts) - len(rows)})
    return tables


# --- weights ---


def weights(results: Results, student: Student) -> dict[str, Any]:
    """How far a student followed its teacher: histograms by stage, and mean weights by slice of the training rows."""
    told = (results.summary.get("training") or {}).get("students", {}).get(student.name) or {}
    rows = sorted(told.get("weights") or [], key=lambda line: -_mean(line["by_stage"]))
    lines = [{**line, "mean": _mean(line["by_stage"])} for line in rows]
    return {**weight_histograms(student), "slices": lines}


def _mean(by_stage: Mapping[str, float]) -> float:
    return sum(by_stage.values()) / len(by_stage)


def weight_histograms(student: Student) -> dict[str, Any]:
    """How far the teacher was followed, stage by stage: a histogram of w over the training rows."""
    chosen = {record["stage"]: record["chosen"] for record in student.stages}
    stages = [
        {
            "stage": stage,
            "checkpoint": chosen.get(stage),
            "mean": float(weights.mean()),
            "teacher_share": float((weights > 0.5).mean()),
            "rows": len(weights),
            "bars": histogram(weights, bins=BINS, height=84),
        }
        for stage, weights in student.weights.items()
    ]
    values = np.concatenate(list(student.weights.values()))
    constant = float(values[0]) if np.ptp(values) == 0 else None
    return {"model": student.name, "stages": stages, "mean": float(values.mean()), "constant": constant}


def weight_ends(results: Results, student: Student) -> dict[str, Any] | None:
    """Training rows with the highest and the lowest weights of the stage whose student was kept; None for constant
    weights."""
    stage, lines = student.kept.get("stage"), []
    for line in read_lines(results.folder / "distill" / student.name / "weights.jsonl"):
        if line["anchor_nll"] is None:
            return None
        if line["stage"] == stage:
            lines.append(line)
    lines.sort(key=lambda line: (-line["weight"], line["id"]))
    count = min(EXAMPLES, len(lines) // 2)
    chosen = [("teacher", line) for line in lines[:count]] + [("anchor", line) for line in lines[len(lines) - count :]]
    wanted, about = {line["id"] for _, line in chosen}, {}
    for row in read_lines(results.folder / "prepare" / "rows.jsonl") if chosen else ():
        if row["id"] in wanted and row["split"] == "train":
            about[row["id"]] = row | {"prompt": prompt_text(row["prompt"])}
    rows = [{"side": side, **line, "row": about[line["id"]]} for side, line in chosen if line["id"] in about]
    return {"model": student.name, "stage": stage, "rows": rows} if rows else None


# --- calibration, cascade, effects ---


def calibration(results: Results) -> dict[str, Any] | None:
    """Calibration of main student, teacher and anchor as `diagnose` measured it; None if no confidences were
    recorded."""
    measured = results.summary.get("calibration") or {}
    names = [name for name in (results.main, "teacher", "anchor") if _is_measured(measured.get(name))]
    rows = [{"model": name, **measured[name], "verdict": _verdict(measured[name])} for name in names]
    diagrams = [
        {"model": row["model"], "rows": row["rows"], **reliability_diagram(row["bins"], height=240)}
        for row in rows
        if row["model"] != "anchor"
    ]
    return {"rows": rows, "diagrams": diagrams} if rows else None


def _verdict(one: Mapping[str, Any]) -> str:
    """`over` or `under` confident, or `calibrated` as far as the rows can tell."""
    if one["ece"] <= one["ece_by_chance"]:
        return "calibrated"
    return "over" if one["confidence"] > one["accuracy"] else "under"


def _is_measured(record: Mapping[str, Any] | None) -> bool:
    """Whether a record of summary.json was made from recorded confidences."""
    return bool(record) and record.get("from", "confidence") == "confidence"


def cascade(results: Results) -> dict[str, Any] | None:
    """The main student in front of the teacher: what is scored, and what it costs, by the share of rows passed on."""
    told = (results.summary.get("cascades") or {}).get(results.main)
    if not told or told["signal"] != "confidence":
        return None
    shares = {one["share"]: one for one in told["points"]}
    marks = {key: shares[told[key]] for key in ("level", "surely_level") if told[key] is not None}
    return {
        **told,
        "marks": marks,
        "tolerance": TOLERANCE,
        "teacher": told["points"][-1]["score"],
        "alone": told["points"][0],
        "chart": cascade_chart(told["points"], list(dict.fromkeys(one["share"] for one in marks.values())), height=240),
    }


def effects(results: Results) -> list[dict[str, Any]]:
    """Pairs of methods of the run that differ in weighting alone or in schedule alone, weighting first."""
    return sorted(results.summary.get("effects") or [], key=lambda one: one["effect"] != "weighting")
