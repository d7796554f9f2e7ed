"""report: one self-contained HTML page out of what a run folder holds. Reads artefacts only: no model, no torch.

One function a section turns results into numbers and places; the templates word and draw them. A section whose files are not
there is left out, and the page says what is missing and which stage writes it.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.charts import decades, histogram, interval_plot, line_chart, scatter, staircase
from tutelage.methods import find_method, method_names
from tutelage.records import Interval
from tutelage.results import Results, Student, read_results
from tutelage.theory import gap_closed, interval, perfect_gate, split_risk

if TYPE_CHECKING:
    from tutelage.workspace import Workspace

INPUTS = (
    "recipe.yaml",
    "prepare/rows.jsonl",
    "teach/checkpoints.json",
    "evaluate/*.json*",
    "distill/*/*/stages.json",
    "distill/*/*/weights.jsonl",
    "distill/*/*/manifest.json",
    "*/manifest.json",
    "compare/index.html",
)
BINS, POINTS, SLICES, EXAMPLES = 20, 400, 30, 4
LEAST_NATS = 1e-3
"""Left end of the logarithmic axis on which losses are compared; smaller ones are drawn on it."""
NEEDS = {
    "scores": ("evaluate/scores.json", "evaluate"),
    "predictions": ("evaluate/predictions.jsonl", "evaluate"),
    "teacher": ("teach/checkpoints.json", "teach"),
    "schedule": ("distill/*/*/stages.json", "distill"),
    "weights": ("distill/*/*/weights.jsonl", "distill"),
    "rows": ("prepare/rows.jsonl", "prepare"),
}
"""What the sections are made of: the files, and the stage that writes them."""


def run(space: Workspace) -> None:
    """Do the stage."""
    with space.work("report", _inputs(space.folder), rebuild_stale=True) as work:
        if work is not None:
            build_report(space.folder, title=space.recipe.name)


def build_report(run: Path, *, title: str) -> Path:
    """Write run/report/index.html from the artefacts of a run folder and return its path.

    title: heading of the page; escaped, like everything that comes from data. Absent artefacts leave sections out. Raises
    DataError if an artefact is there but cannot be read.
    """
    from tutelage import __version__
    from tutelage.page import render

    results = read_results(run)
    students = sorted(results.students, key=lambda student: student.name != results.main)
    sections = {
        "missing": {part: need for part, need in NEEDS.items() if not any(run.glob(need[0]))},
        "verdict": verdict(results),
        "comparison": (run / "compare" / "index.html").is_file(),
        "scores": score_table(results),
        "gap": gap_table(results),
        "teacher": trajectory(results),
        "schedules": [schedule(results, student) for student in students if student.stages],
        "weights": [weight_histograms(student) for student in students if student.weights],
        "splits": splits(results),
        "slices": slices(results),
        "examples": examples(results),
        "made": how_it_was_made(results),
    }
    page = render(title=title, version=__version__, date=time.strftime("%Y-%m-%d"), run=results, **sections)
    path = run / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name("index.html.part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def _inputs(folder: Path) -> dict[str, str]:
    """Fingerprint of every file the page is made from, and the version that words it."""
    from tutelage import __version__

    paths = sorted({path for pattern in INPUTS for path in folder.glob(pattern) if path.parent.name != "report"})
    hashes = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in paths}
    return {"tutelage": __version__, **hashes}


# --- scores -----------------------------------------------------------------------------------------------------------------


def verdict(results: Results) -> dict[str, Any] | None:
    """The first paragraph in numbers; None without a scored student. `outcome` names the sentence that fits them."""
    main = results.main
    names = [name for name in (main, "teacher", "anchor") if name and results.score(name)]
    if main is None or main not in names:
        return None
    scores = {name: results.score(name) for name in names}
    pairs = {"gain": (main, "anchor"), "lead": (main, "teacher"), "gap": ("teacher", "anchor")}
    leads = {key: results.lead(*pair) if set(pair) <= scores.keys() else None for key, pair in pairs.items()}
    whole = len(names) == 3
    share = gap_closed(scores["anchor"].value, scores["teacher"].value, scores[main].value) if whole else None
    outcome = _outcome(share, leads["gain"], leads["lead"]) if whole else "partial"
    return {"main": main, "scores": scores, "share": share, "outcome": outcome, "by_rows": _metric_is_row_mean(results), **leads}


def _metric_is_row_mean(results: Results) -> bool:
    """Whether the metric is the mean of the rows' own scores (accuracy), or not (F1 over all entities, macro-F1)."""
    _, (scores,) = results.paired("score", results.main)
    return not len(scores) or abs(float(scores.mean()) - results.score(results.main).value) < 1e-6


def _outcome(share: float | None, gain: Interval | None, lead: Interval | None) -> str:
    """What can be claimed: differences whose interval holds 0 are not called a win or a loss."""
    if lead and lead.low > 0:
        return "beats"
    if gain and gain.high < 0:
        return "worse"
    if gain and gain.low <= 0 <= gain.high:
        return "unclear" if share is not None else "no_gap"
    if share is None:
        return "gain_without_gap"
    if share <= 0:  # no rows to test on, or a metric that disagrees with the rows' own scores
        return "unclear"
    return "level" if lead and lead.high >= 0 else "closes"


def score_table(results: Results) -> dict[str, Any] | None:
    """Every metric of every model, the chosen metric first, and the interval plot of that metric."""
    if not results.models:
        return None
    metric, tables = results.scores["metric"], results.scores["models"]
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    plain = sorted((name for name in names if "/" not in name), key=lambda name: (name != metric, name == "nll"))
    return {
        "metrics": plain,
        "rows": [(model, [results.score(model, name) for name in plain]) for model in results.models],
        "types": {name: [results.score(model, name) for model in results.models] for name in names if "/" in name},
        "plot": interval_plot({model: results.score(model) for model in results.models}, may_leave="student"),
    }


def gap_table(results: Results) -> list[dict[str, Any]]:
    """For every distilled student: share of the gap closed, and paired differences from anchor and teacher."""
    anchor, teacher = results.score("anchor"), results.score("teacher")
    rows = []
    for name in results.distilled if anchor and teacher else []:
        score = results.score(name)
        if score:
            share = gap_closed(anchor.value, teacher.value, score.value)
            gain, lead = results.lead(name, "anchor"), results.lead(name, "teacher")
            rows.append({"model": name, "score": score, "share": share, "gain": gain, "lead": lead})
    return rows


# --- teacher, schedule, weights ---------------------------------------------------------------------------------------------


def trajectory(results: Results) -> dict[str, Any] | None:
    """The teacher's checkpoints on validation, in training order, and two line charts of them."""
    found = results.taught.get("checkpoints") or []
    if not found:
        return None
    best = results.taught["best"]
    marked = [row["name"] == best for row in found]
    charts = []
    for key in ("score", "nll"):
        values = [row.get(key) for row in found]
        if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            charts.append({"key": key, **line_chart(values, marked, floor=0.0)})
    return {"best": best, "by": results.taught.get("by"), "rows": found, "charts": charts, "names": _short(found)}


def _short(checkpoints: list[dict[str, Any]]) -> list[str]:
    """Names for the foot of a small chart: the steps, or the places in the row where folders are named otherwise."""
    names = [row["name"] for row in checkpoints]
    steps = [name.removeprefix("checkpoint-") for name in names]
    return steps if all(step.isdigit() for step in steps) else [str(place) for place in range(1, len(names) + 1)]


def schedule(results: Results, student: Student) -> dict[str, Any]:
    """What a student followed: one record a stage with every candidate, and the path over the checkpoints."""
    totals = [c["total"] for record in student.stages for c in record["candidates"]]
    scale = 100 / (max(totals, default=0.0) or 1.0)
    stages = []
    for record in student.stages:
        bars = [{**c, "near": c["kl_best"] * scale, "far": c["kl_student"] * scale} for c in record["candidates"]]
        stages.append({**record, "bars": bars})
    section = results.recipe.get("distill") or {}
    options = section.get("schedule") or {}
    return {
        "model": student.name,
        "rule": _rule(student.method),
        "forward": options.get("reach") == "forward",
        "advance": bool(options.get("advance")),
        "stages": stages,
        "kept": student.kept["stage"],
        "stalls": [record["stage"] for record in student.stages if record.get("stall")],
        "path": _path(results, student),
    }


def _rule(method: str) -> str | None:
    """The schedule of a method by name; None for one that is not installed here."""
    rule = find_method(method).schedule if method in method_names() else None
    return rule.__name__ if callable(rule) else rule


def _path(results: Results, student: Student) -> dict[str, Any] | None:
    """Stages across, checkpoints upward, the chosen ones joined; None where the teacher's checkpoints are not known."""
    names = [c["name"] for c in results.taught.get("checkpoints") or []]
    chosen = [record["chosen"] for record in student.stages]
    if not names or any(name not in names for name in chosen):
        return None
    stalled = [bool(record.get("stall")) for record in student.stages]
    return {"best": results.taught.get("best"), **staircase(names, chosen, stalled)}


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


# --- who is better where ----------------------------------------------------------------------------------------------------


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


def slices(results: Results) -> list[dict[str, Any]]:
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
            language = results.rows.get(ids[place], {}).get("language")
            lines.append({"side": side, "student": mine, "teacher": theirs, "language": language})
    return lines


# --- how it was made --------------------------------------------------------------------------------------------------------


def how_it_was_made(results: Results) -> dict[str, Any]:
    """Seconds by piece of work, versions, the command that repeats the run, and the recipe as resolved."""
    versions: dict[str, list[str]] = {}
    for manifest in results.manifests.values():
        for name, version in (manifest.get("versions") or {}).items():
            seen = versions.setdefault(name, [])
            if version not in seen:
                seen.append(version)
    seconds = {name: manifest["seconds"] for name, manifest in results.manifests.items()}
    folder = results.recipe.get("output_dir")
    command = f"tutelage run {shlex.quote(f'{folder}/recipe.yaml')}" if folder else None
    return {
        "seconds": seconds,
        "total": sum(seconds.values()),
        "versions": versions,
        "command": command,
        "recipe": results.recipe_text,
    }
