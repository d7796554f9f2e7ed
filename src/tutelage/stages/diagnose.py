"""diagnose: when and where each student wins or loses against T*, from what the run folder holds. No model, no torch.

Writes diagnose/slices.json (two models on every slice), rows.jsonl (every test row: its slices, its scores) and
summary.json (calibration, cascades, what weighting and schedule did, losses on training rows and by stage).
docs/artifacts.md names every key.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.analysis.calibration import cascades, limits, reliability, router, sequence_probability
from tutelage.analysis.evaluated_rows import Scored, check_scored, parameters, read_scored
from tutelage.analysis.method_effects import contrasts, effect_of
from tutelage.analysis.slice_discovery import ALPHA, FEWEST_ROWS, Prompts, members, read_prompts, search
from tutelage.analysis.slices import MEASURES, MOST_VALUES, Answers, Slice, by_amount, by_value, measure_slices
from tutelage.analysis.training_dynamics import training
from tutelage.data.dataset import prompt_text
from tutelage.run.manifest import Work
from tutelage.tasks.metrics import entity_counts
from tutelage.utils.console import print_table
from tutelage.utils.files import read_json, write_json, write_jsonl

if TYPE_CHECKING:
    from tutelage.run.run_folder import RunFolder

INPUTS = (
    "prepare/rows.jsonl",
    "prepare/tokens/test.index.safetensors",
    "teach/checkpoints.json",
    "evaluate/**/predictions.jsonl",
    "distill/*/*/stages.json",
    "distill/*/*/weights.jsonl",
    "distill/*/*/validation_rows.jsonl",
    "anchor/sample_loss.jsonl",
    "cache/*/sample_loss.jsonl",
)
RESAMPLES = 1000
NO_CONFIDENCE = (
    "no `confidence`, the probability of a model's own answer, is recorded of %s: calibration is bounded, not measured, and"
    " cascades go by what prompts foretell; `tutelage evaluate RECIPE --force` scores all models again and records it"
)


def run_stage(run: RunFolder | Path) -> None:
    """Do the stage, on a run or on the folder of one. Raises DataError where there are no scored rows to compare."""
    folder = run if isinstance(run, Path) else run.folder
    check_scored(folder)
    if not isinstance(run, Path):
        with run.work("diagnose", _inputs(folder), rebuild_stale=True) as work:
            if work is not None:
                diagnose(folder)
        return
    work, began = Work(folder / "diagnose", _inputs(folder), rebuild_stale=True), time.monotonic()
    if work.prepare():
        diagnose(folder)
        work.finish(time.monotonic() - began)


def diagnose(folder: Path) -> None:
    """Write the three files, whatever is there already. Errors as in `run_stage`."""
    scored = read_scored(folder)
    texts = [prompt_text(row["prompt"]) for row in scored.rows]
    known = {key: [row.get(key) for row in scored.rows] for key in ("language", "subdomain")}
    prompts = read_prompts(texts, known) if len(texts) >= FEWEST_ROWS else None
    if prompts is None:
        scored.notes.append(f"no slices are looked for in {len(texts)} test rows; {FEWEST_ROWS} are needed")
    slices = given_slices(scored, texts)
    compared = compare(scored, slices, prompts)
    write_json(folder / "diagnose" / "slices.json", _about(scored, slices) | {"pairs": compared})
    write_jsonl(folder / "diagnose" / "rows.jsonl", row_lines(scored, slices, compared, prompts))
    write_json(folder / "diagnose" / "summary.json", summarise(folder, scored, compared, prompts))


def _inputs(folder: Path) -> dict[str, str]:
    from tutelage import __version__

    paths = sorted({path for pattern in INPUTS for path in folder.glob(pattern)})
    hashes = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in paths}
    return {"tutelage": __version__, **hashes}


# --- slices ---


def given_slices(scored: Scored, texts: Sequence[str]) -> list[Slice]:
    """Slices by everything that is known of a row before a student sees it."""
    found = []
    for key in ("subdomain", "language"):
        found += by_value(key, [row.get(key) for row in scored.rows])
    gold = [line["gold"] for line in scored.lines["teacher"]]
    if all(isinstance(one, str) for one in gold):
        found += by_value("label", gold)
    elif any(pair and not isinstance(pair, str) for one in gold for pair in one):
        found += _entity_slices(scored, gold)
    answers = scored.tokens.get("answers", [len(row["answer"]) for row in scored.rows])
    found += by_amount("answer_length", answers)
    found += by_amount("prompt_length", scored.tokens.get("prompts", [len(text) for text in texts]))
    sure = scored.confidence("teacher")
    if sure is not None:
        return found + by_amount("teacher_certainty", sure)
    # Where the teacher's loss is high a student easily has the lower one, whatever the two are: shown, and not tested.
    return found + by_amount("teacher_loss", scored.answers["teacher"].nll, tested=False)


def _entity_slices(scored: Scored, gold: Sequence[Sequence[Sequence[str]]]) -> list[Slice]:
    """Rows with gold entities of a type, scored by these entities alone; and the rows without any entity."""
    counts = {
        name: [entity_counts(line["prediction"] or [], line["gold"]) for line in lines]
        for name, lines in scored.lines.items()
    }
    seen = [{kind for kind, _ in one} for one in gold]
    kinds = [kind for kind, _ in Counter(kind for row in seen for kind in row).most_common(MOST_VALUES)]
    found = []
    for kind in kinds:
        places = np.array([place for place, row in enumerate(seen) if kind in row])
        scores = {name: np.array([_f1(table[place][kind]) for place in places]) for name, table in counts.items()}
        found.append(Slice("entity_type", kind, places, disjoint=False, scores=scores))
    without = np.array([place for place, row in enumerate(seen) if not row], dtype=int)
    return found + ([Slice("entity_type", None, without, disjoint=False)] if len(without) else [])


def _f1(counts: tuple[int, int, int]) -> float:
    matched, predicted, gold = counts
    return 2 * matched / (predicted + gold)


def compare(scored: Scored, slices: Sequence[Slice], prompts: Prompts | None) -> list[dict[str, Any]]:
    """Each student against T*: on all rows, on each given slice, and on those found in the prompts."""
    teacher, pairs = scored.answers["teacher"], []
    measured = measure_slices(scored.students, teacher, slices, resamples=RESAMPLES)
    for name, student in scored.students.items():
        searched = search(student, teacher, prompts, resamples=RESAMPLES) if prompts else {"found": [], "tried": []}
        pairs.append({"student": name, "teacher": "teacher", **measured[name], **searched})
    return pairs


def _about(scored: Scored, slices: Sequence[Slice]) -> dict[str, Any]:
    keys = list(dict.fromkeys(one.key for one in slices))
    unit = "tokens" if scored.tokens else "characters"
    units = {
        "answer_length": unit,
        "prompt_length": unit,
        "teacher_loss": "nats a token",
        "teacher_certainty": "probability",
    }
    partitions = []
    for key in keys:
        mine = [one for one in slices if one.key == key]
        disjoint, tested = all(one.disjoint for one in mine), all(one.tested for one in mine)
        partitions.append(
            {"key": key, "unit": units.get(key), "disjoint": disjoint, "tested": tested, "slices": len(mine)}
        )
    return {"rows": len(scored.rows), "split": "test", "resamples": RESAMPLES, "partitions": partitions}


def row_lines(
    scored: Scored, slices: Sequence[Slice], pairs: Sequence[Mapping[str, Any]], prompts: Prompts | None
) -> Iterator[dict[str, Any]]:
    """One line a test row: slices it is in, and every model's score, loss and, against the teacher, outcome."""
    own: list[dict[str, Any]] = [{} for _ in scored.rows]
    for one in slices:
        for place in one.places.tolist():
            if one.disjoint:
                own[place][one.key] = one.value
            elif one.value is not None:
                own[place].setdefault(one.key, []).append(one.value)
    found: list[dict[str, list[str]]] = [{} for _ in scored.rows]
    for pair in pairs:
        for line in pair["found"]:
            for place in np.flatnonzero(members(line, prompts)).tolist():
                found[place].setdefault(pair["student"], []).append(line["name"])
    sure = {name: scored.confidence(name) for name in scored.answers}
    for place, row in enumerate(scored.rows):
        half = None if prompts is None else "searched" if prompts.find[place] else "judged"
        models = {name: _row_of(name, place, scored.answers, sure[name]) for name in scored.answers}
        yield {"id": row["id"], "half": half, "slices": own[place], "found": found[place], "models": models}


def _row_of(name: str, place: int, answers: Mapping[str, Answers], sure: np.ndarray | None) -> dict[str, Any]:
    mine, teacher = answers[name], answers["teacher"]
    line: dict[str, Any] = {"score": float(mine.score[place]), "nll": float(mine.nll[place])}
    if sure is not None:
        line["confidence"] = float(sure[place])
    if name != "teacher":
        apart = mine.score[place] - teacher.score[place]
        line["outcome"] = "win" if apart > 0 else "loss" if apart < 0 else "tie"
        line["side"] = "sfs" if mine.nll[place] < teacher.nll[place] else "tfs"
    return line


# --- summary ---


def summarise(
    folder: Path, scored: Scored, pairs: Sequence[Mapping[str, Any]], prompts: Prompts | None
) -> dict[str, Any]:
    """summary.json: what is not a matter of slices, and the slices that tell most."""
    notes = list(scored.notes)
    unsure = [name for name in scored.answers if name != "student" and scored.confidence(name) is None]
    if unsure:
        notes.append(
            NO_CONFIDENCE % (", ".join(unsure[:3]) + (f" and {len(unsure) - 3} more models" if len(unsure) > 3 else ""))
        )
    return {
        "rows": len(scored.rows),
        "notes": notes,
        "calibration": {name: _calibration(scored, name) for name in scored.answers if name != "student"},
        "pairs": {pair["student"]: _outcome(pair) for pair in pairs},
        "cascades": _cascades(folder, scored, prompts),
        "effects": _effects(scored),
        "training": training(folder),
    }


def _outcome(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair in short: all rows, and the slices on which one of the two is surely ahead, the greatest differences
    first."""
    found: dict[str, Any] = {"whole": pair["whole"], "found": [line["name"] for line in pair["found"]]}
    for measure in MEASURES:
        sign = 1 if measure == "score" else -1
        sure = [line for line in pair["slices"] if _sure(line[measure])]
        sure.sort(key=lambda line: -abs(line[measure]["difference"]))
        for name, side in (("student_ahead", 1), ("teacher_ahead", -1)):
            mine = [line for line in sure if side * sign * line[measure]["difference"] > 0]
            found.setdefault(name, {})[measure] = [{"key": line["key"], "value": line["value"]} for line in mine]
    return found


def _sure(record: Mapping[str, Any]) -> bool:
    """Whether student and teacher surely differ; a p-value too small for a number is 0."""
    return record["p_holm"] is not None and record["p_holm"] <= ALPHA


def _calibration(scored: Scored, name: str) -> dict[str, Any] | None:
    """Measured where confidences were recorded, bounded where they were not; None where answers' lengths are unknown as
    well."""
    right, sure = scored.answers[name].score >= 1.0, scored.confidence(name)
    if sure is not None:
        return reliability(sure, right)
    if "answers" not in scored.tokens:
        return None
    same = [
        line["raw"].strip() == row["answer"].strip() for line, row in zip(scored.lines[name], scored.rows, strict=True)
    ]
    return limits(sequence_probability(scored.answers[name].nll, scored.tokens["answers"]), right, np.array(same))


def _cascades(folder: Path, scored: Scored, prompts: Prompts | None) -> dict[str, Any]:
    """Each student in front of the teacher. The signal is its confidence, or else what prompts foretell of the two
    scores."""
    teacher, students = scored.answers["teacher"].score, {name: one.score for name, one in scored.students.items()}
    sure = {name: scored.confidence(name) for name in students}
    signals = {name: values for name, values in sure.items() if values is not None}
    others = [name for name in students if name not in signals]
    if others and prompts is not None:
        gains = np.stack([students[name] - teacher for name in others], axis=1)
        signals |= dict(zip(others, router(prompts.topics, gains).T, strict=True))
    if not signals:
        return {}
    asked = parameters(folder, "teacher")
    costs = {name: mine / asked if asked and (mine := parameters(folder, name)) else None for name in signals}
    found = cascades({name: students[name] for name in signals}, teacher, signals, costs, resamples=RESAMPLES)
    return {
        name: {"signal": "prompts" if sure[name] is None else "confidence", "student_cost": costs[name], **one}
        for name, one in found.items()
    }


def _effects(scored: Scored) -> list[dict[str, Any]]:
    """What adaptive weights and schedules did, for every two methods of the run that differ in that alone."""
    by_method: dict[str, dict[int, Answers]] = {}
    for name, answers in scored.students.items():
        method, _, seed = name.rpartition("/seed-")
        if method and seed.isdecimal():
            by_method.setdefault(method, {})[int(seed)] = answers
    found = []
    for contrast in contrasts(list(by_method)):
        plain, changed = by_method[contrast.plain], by_method[contrast.changed]
        pairs = {seed: (plain[seed], changed[seed]) for seed in plain.keys() & changed.keys()}
        if pairs:
            teacher, anchor = scored.answers["teacher"], scored.answers.get("anchor")
            found.append(effect_of(contrast, pairs, anchor, teacher, scored.ids))
    return found


def show(folder: Path) -> None:
    """Print diagnose/: every student against T*, the slices on which they surely differ, and what was found in the
    prompts."""
    result = read_json(folder / "diagnose" / "slices.json")
    head = ["student", "score", "teacher", "difference", "wins", "losses", "loss (nats)", "advantage", "deficit"]
    print_table(f"{result['rows']:,} test rows, 95 % intervals", head, [_whole_line(pair) for pair in result["pairs"]])
    lines = [line for pair in result["pairs"] for line in _slice_lines(pair)]
    if lines:
        print_table(
            "slices on which a student and T* surely differ (Holm)",
            ["student", "slice", "rows", "score", "nats"],
            lines,
        )
    for note in read_json(folder / "diagnose" / "summary.json")["notes"]:
        print(note)


def _whole_line(pair: Mapping[str, Any]) -> list[str]:
    score, nll = pair["whole"]["score"], pair["whole"]["nll"]
    values = [
        f"{score['student']:.3f}",
        f"{score['teacher']:.3f}",
        _span(score),
        str(score["wins"]),
        str(score["losses"]),
    ]
    return [pair["student"], *values, _span(nll), f"{nll['advantage']['value']:.3f}", f"{nll['deficit']['value']:.3f}"]


def _slice_lines(pair: Mapping[str, Any]) -> list[list[str]]:
    sure = [line for line in pair["slices"] if any(_sure(line[key]) for key in MEASURES)]
    named = [(f"{line['key']} {line['value'] if line['value'] is not None else '(none)'}", line) for line in sure]
    named += [(f"found: {line['name']}", line) for line in pair["found"]]
    return [
        [pair["student"], name, str(line["rows"]), _span(line["score"]), _span(line["nll"])] for name, line in named
    ]


def _span(record: Mapping[str, float]) -> str:
    return f"{record['difference']:+.3f} [{record['low']:+.3f}, {record['high']:+.3f}]"
