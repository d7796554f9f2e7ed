"""What the report says of scores, size, teacher, schedule and training: artefacts of a run turned into numbers and
places.

One function a section, each taking `Results`; templates/report/ words and draws what they return. None or an empty list
where the artefacts of a section are not there. Words never stand here: where a sentence depends on numbers, a key names
it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.analysis.run_results import Results, Student
from tutelage.method.methods import find_method, method_names
from tutelage.method.risk_split import gap_closed
from tutelage.records import Interval
from tutelage.report.charts import curves, interval_plot, line_chart, staircase
from tutelage.run.live_reader import parameters, read_log

MOST_POINTS = 160
"""Points of a learning curve; longer logs are averaged into as many."""


# --- scores ---


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
    return {
        "main": main,
        "scores": scores,
        "share": share,
        "outcome": outcome,
        "by_rows": _metric_is_row_mean(results),
        **leads,
    }


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


# --- size, speed, cost ---


def size(results: Results) -> dict[str, Any] | None:
    """The main student beside T*: `parameters`, `bytes` (weights on disk), `seconds` a test row, each (student,
    teacher).

    A pair is None where one of the two is not known: the models were deleted, or only adapters are there. `cost`: a
    call of the student in calls of the teacher, by parameters. `seconds` is the time to answer the test rows and take
    their losses, by row. None where nothing is known.
    """
    main = results.main
    if main is None:
        return None
    folders = [results.folder / "distill" / main, _best_teacher(results)]
    found = {
        "parameters": _both([parameters(folder) for folder in folders]),
        "bytes": _both([_weight_bytes(folder) for folder in folders]),
        "seconds": _both([_seconds_a_row(results, name) for name in (main, "teacher")]),
    }
    counts = found["parameters"]
    return {**found, "cost": counts[0] / counts[1] if counts else None} if any(found.values()) else None


def _best_teacher(results: Results) -> Path | None:
    """Folder of T*: in the run, or where it was recorded; None where it is in neither place."""
    best = results.taught.get("best")
    found = next((one.get("folder") for one in results.taught.get("checkpoints") or [] if one["name"] == best), None)
    places = [results.folder / "teach" / best, *([Path(found)] if found else [])] if best else []
    return next((place for place in places if place.is_dir()), None)


def _both(values: Sequence[float | None]) -> tuple[float, float] | None:
    return (values[0], values[1]) if all(values) else None


def _weight_bytes(folder: Path | None) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors")) if folder else 0


def _seconds_a_row(results: Results, model: str) -> float | None:
    seconds, rows = results.manifests.get(f"evaluate/{model}", {}).get("answering"), results.scores.get("rows")
    return seconds / rows if seconds and rows else None


# --- teacher, schedule ---


def trajectory(results: Results) -> dict[str, Any] | None:
    """The teacher's checkpoints on validation, in training order, and two line charts of them."""
    found = results.taught.get("checkpoints") or []
    if not found:
        return None
    best = results.taught["best"]
    marked = [row["name"] == best for row in found]
    charts = [
        {"key": key, **chart} for key in ("score", "nll") if (chart := _line([row.get(key) for row in found], marked))
    ]
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


# --- learning curves ---


def learning(results: Results) -> dict[str, Any] | None:
    """How losses fell: of every distilled student by stage (the main one first), of the teacher and of the anchor.

    `students`: `model`, `losses` (a chart of `ce` and `kd` over all steps, nats a token, stage borders marked),
    `validation` (line charts of `score` and `nll` after each stage), `stages`, `kept`. `others`: charts of `ce` by
    name. None without any log.
    """
    students = [
        {
            "model": student.name,
            "losses": _distilled(read_log(results.folder / "distill" / student.name / "log.jsonl")),
            "validation": _validated(student),
            "stages": [record["stage"] for record in student.stages],
            "kept": student.kept.get("stage"),
        }
        for student in ordered(results)
    ]
    others = {name: _plain(read_log(results.folder / part / "log.jsonl")) for name, part in OTHERS.items()}
    found = {
        "students": [one for one in students if one["losses"] or one["validation"]],
        "others": {name: chart for name, chart in others.items() if chart},
    }
    return found if any(found.values()) else None


OTHERS = {"teacher": "teach", "anchor": "anchor"}


def ordered(results: Results) -> list[Student]:
    """The distilled students with records, the main one first."""
    return sorted(results.students, key=lambda student: student.name != results.main)


def _distilled(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Cross-entropy and divergence over the steps of all stages in a row."""
    lines: dict[str, list[tuple[float, float]]] = {"ce": [], "kd": []}
    before, borders, last = 0, [], (None, 0)
    for record in log:
        if record.get("stage") != last[0] and last[0] is not None:
            before += last[1]
            borders.append(before)
        last = (record.get("stage"), record["step"])
        for key, points in lines.items():
            if _positive(record.get(key)):
                points.append((before + record["step"], record[key]))
    return _chart(lines, borders)


def _plain(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    return _chart({"ce": [(record["step"], record["ce"]) for record in log if _positive(record.get("ce"))]}, [])


def _chart(lines: dict[str, list[tuple[float, float]]], borders: list[int]) -> dict[str, Any] | None:
    drawn = {key: points for key, points in lines.items() if len(points) > 1}
    return curves(drawn, borders, height=190, most=MOST_POINTS) if drawn else None


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _validated(student: Student) -> list[dict[str, Any]]:
    """Line charts of what validation said after each stage."""
    seen = [record.get("validation") or {} for record in student.stages]
    kept = [record["stage"] == student.kept.get("stage") for record in student.stages]
    return [{"key": key, **chart} for key in ("score", "nll") if (chart := _line([one.get(key) for one in seen], kept))]


def _line(values: Sequence[float | None], marked: Sequence[bool]) -> dict[str, Any] | None:
    known = values and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return line_chart(values, marked, floor=0.0) if known else None


# --- how it was made ---


def how_it_was_made(results: Results) -> dict[str, Any]:
    """Seconds taken, versions, fingerprints, the command that repeats the run, and the recipe as resolved."""
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
        "prints": _fingerprints(results.manifests),
        "versions": versions,
        "command": command,
        "recipe": results.recipe_text,
    }


def _fingerprints(manifests: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Hashes of the data files and models that the run was made from, by file name or model."""
    made_from = manifests.get("prepare", {}).get("inputs") or {}
    files = {Path(name).name: found for name, found in (made_from.get("data files") or {}).items()}
    models = {name: made_from[name] for name in ("teacher model", "student model") if made_from.get(name)}
    return {**files, **models}
