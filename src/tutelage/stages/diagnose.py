"""diagnose: when and where each student wins or loses against T*, from the files of a run. No model, no torch.

Writes diagnose/slices.json (each student against T* on every slice), rows.jsonl (every test row: its slices, its
scores) and summary.json (calibration, cascades, effects of weighting and schedule, training dynamics).
`analysis/run_results.py` types the files, docs/artifacts.md describes every key.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.analysis.calibration import cascades, reliability
from tutelage.analysis.evaluated_rows import EvaluatedRows, check_evaluated, parameter_count, read_evaluated
from tutelage.analysis.method_effects import MethodEffect, comparable_pairs, effect_of
from tutelage.analysis.run_results import (
    CascadeRecord,
    ModelOnRow,
    PairRecord,
    PairSummary,
    PartitionRecord,
    RowRecord,
    SlicesFile,
    SummaryFile,
)
from tutelage.analysis.significance import ALPHA
from tutelage.analysis.slice_discovery import FEWEST_ROWS, Discovery, Prompts, read_prompts, rows_inside, search
from tutelage.analysis.slices import (
    MEASURES,
    MOST_VALUES,
    Answers,
    MeasureRecord,
    Slice,
    by_amount,
    by_value,
    measure_slices,
)
from tutelage.analysis.training_dynamics import training_dynamics
from tutelage.data.contents.sameness import prompt_text
from tutelage.recipe.schema import row_metric
from tutelage.run.manifest import Work
from tutelage.tasks.metrics import entity_counts
from tutelage.utils.console import out, print_table
from tutelage.utils.files import read_json, write_json, write_jsonl
from tutelage.utils.format import metric_words
from tutelage.utils.integrity import check_run, content_hash, present

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
_NAMED_MODELS = 3


def run_stage(run: RunFolder | Path) -> None:
    """Run the stage, on a run or on the folder of one. Raises DataError without evaluated rows to compare."""
    folder = run if isinstance(run, Path) else run.folder
    check_run(folder, INPUTS)
    check_evaluated(folder)
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
    """Write the three files, replacing existing ones. Errors as in `run_stage`."""
    evaluated = read_evaluated(folder)
    texts = [prompt_text(row["prompt"]) for row in evaluated.rows]
    known = {key: [row.get(key) for row in evaluated.rows] for key in ("language", "subdomain")}
    prompts = read_prompts(texts, known) if len(texts) >= FEWEST_ROWS else None
    if prompts is None:
        evaluated.notes.append(f"slice discovery is skipped: {len(texts)} test rows, it needs {FEWEST_ROWS}")
    slices = given_slices(evaluated, texts)
    pairs = compare(evaluated, slices, prompts)
    write_json(folder / "diagnose" / "slices.json", _slices_file(evaluated, slices, pairs))
    write_jsonl(folder / "diagnose" / "rows.jsonl", row_records(evaluated, slices, pairs, prompts))
    write_json(folder / "diagnose" / "summary.json", summarise(folder, evaluated, pairs))


def _inputs(folder: Path) -> dict[str, str]:
    from tutelage import __version__

    paths = sorted({path for pattern in INPUTS for path in folder.glob(pattern)})
    hashes = {p.relative_to(folder).as_posix(): content_hash(p) for p in paths}
    return {"tutelage": __version__, **hashes}


# --- slices ---


def given_slices(evaluated: EvaluatedRows, texts: Sequence[str]) -> list[Slice]:
    """Slices by everything that is known of a row before a student answers it. texts: [rows] prompts."""
    slices = []
    for key in ("subdomain", "language"):
        slices += by_value(key, [row.get(key) for row in evaluated.rows])
    gold = [line["gold"] for line in evaluated.lines["teacher"]]
    if all(isinstance(answer, str) for answer in gold):
        slices += by_value("label", gold)
    elif any(entity and not isinstance(entity, str) for answer in gold for entity in answer):
        slices += _entity_slices(evaluated, gold)
    answers = evaluated.tokens.get("answers", [len(row["answer"]) for row in evaluated.rows])
    slices += by_amount("answer_length", answers)
    slices += by_amount("prompt_length", evaluated.tokens.get("prompts", [len(text) for text in texts]))
    confidence = evaluated.confidence("teacher")
    if confidence is not None:
        return slices + by_amount("teacher_certainty", confidence)
    # Where the teacher's loss is high a student easily has the lower one, whatever the two are: shown, not tested.
    return slices + by_amount("teacher_loss", evaluated.answers["teacher"].nll, tested=False)


def _entity_slices(evaluated: EvaluatedRows, gold: Sequence[Sequence[Sequence[str]]]) -> list[Slice]:
    """Rows with gold entities of a type, scored by these entities alone; and the rows without any entity."""
    counts = {
        name: [entity_counts(line["prediction"] or [], line["gold"]) for line in lines]
        for name, lines in evaluated.lines.items()
    }
    types_of_row = [{entity_type for entity_type, _ in entities} for entities in gold]
    frequent = Counter(entity_type for types in types_of_row for entity_type in types).most_common(MOST_VALUES)
    slices = []
    for entity_type, _ in frequent:
        indices = np.array([index for index, types in enumerate(types_of_row) if entity_type in types])
        scores = {name: np.array([_f1(rows[index][entity_type]) for index in indices]) for name, rows in counts.items()}
        slices.append(Slice("entity_type", entity_type, indices, disjoint=False, scores=scores))
    without = np.array([index for index, types in enumerate(types_of_row) if not types], dtype=int)
    return slices + ([Slice("entity_type", None, without, disjoint=False)] if len(without) else [])


def _f1(counts: tuple[int, int, int]) -> float:
    matched, predicted, gold = counts
    return 2 * matched / (predicted + gold)


def compare(evaluated: EvaluatedRows, slices: Sequence[Slice], prompts: Prompts | None) -> list[PairRecord]:
    """Each student against T*: on all rows, on each given slice, and on those discovered in the prompts."""
    teacher, pairs = evaluated.answers["teacher"], []
    measured = measure_slices(evaluated.students, teacher, slices, resamples=RESAMPLES)
    for name, student in evaluated.students.items():
        discovery: Discovery = {"found": [], "tried": []}
        if prompts is not None:
            discovery = search(student, teacher, prompts, resamples=RESAMPLES)
        pairs.append({"student": name, "teacher": "teacher", **measured[name], **discovery})
    return pairs


def _slices_file(evaluated: EvaluatedRows, slices: Sequence[Slice], pairs: list[PairRecord]) -> SlicesFile:
    units = dict.fromkeys(("answer_length", "prompt_length"), "tokens" if evaluated.tokens else "characters")
    units |= {"teacher_loss": "nats a token", "teacher_certainty": "probability"}
    counts, first_of_key = Counter(part.key for part in slices), {part.key: part for part in reversed(slices)}
    partitions: list[PartitionRecord] = [
        {"key": key, "unit": units.get(key), "disjoint": part.disjoint, "tested": part.tested, "slices": counts[key]}
        for key, part in ((key, first_of_key[key]) for key in counts)  # all parts of a key are of one kind
    ]
    rows = len(evaluated.rows)
    return {"rows": rows, "split": "test", "resamples": RESAMPLES, "partitions": partitions, "pairs": pairs}


# --- rows ---


def row_records(
    evaluated: EvaluatedRows, slices: Sequence[Slice], pairs: Sequence[PairRecord], prompts: Prompts | None
) -> Iterator[RowRecord]:
    """One record a test row: its slices, and every model's score, loss and, against the teacher, outcome."""
    values_of_row: list[dict[str, Any]] = [{} for _ in evaluated.rows]
    for part in slices:
        for index in part.indices.tolist():
            if part.disjoint:
                values_of_row[index][part.key] = part.value
            elif part.value is not None:
                values_of_row[index].setdefault(part.key, []).append(part.value)
    discovered_of_row: list[dict[str, list[str]]] = [{} for _ in evaluated.rows]
    for pair in pairs:
        for discovered in pair["found"]:
            for index in np.flatnonzero(rows_inside(discovered, prompts)).tolist():
                discovered_of_row[index].setdefault(pair["student"], []).append(discovered["name"])
    confidences = {name: evaluated.confidence(name) for name in evaluated.answers}
    for index, row in enumerate(evaluated.rows):
        half = None if prompts is None else "searched" if prompts.searched[index] else "judged"
        models = {name: _model_on_row(name, index, evaluated.answers, confidences[name]) for name in evaluated.answers}
        values, discovered = values_of_row[index], discovered_of_row[index]
        yield {"id": row["id"], "half": half, "slices": values, "found": discovered, "models": models}


def _model_on_row(name: str, index: int, answers: Mapping[str, Answers], confidence: np.ndarray | None) -> ModelOnRow:
    model, teacher = answers[name], answers["teacher"]
    record: ModelOnRow = {"score": float(model.score[index]), "nll": float(model.nll[index])}
    if confidence is not None:
        record["confidence"] = float(confidence[index])
    if name != "teacher":
        difference = model.score[index] - teacher.score[index]
        record["outcome"] = "win" if difference > 0 else "loss" if difference < 0 else "tie"
        record["side"] = "sfs" if model.nll[index] < teacher.nll[index] else "tfs"
    return record


# --- summary ---


def summarise(folder: Path, evaluated: EvaluatedRows, pairs: Sequence[PairRecord]) -> SummaryFile:
    """summary.json: what is not about slices, and the slices with significant differences."""
    models = [name for name in evaluated.answers if name != "student"]
    confidences = {name: evaluated.confidence(name) for name in models}
    without = [name for name in models if confidences[name] is None]
    calibration = {
        name: None if confidence is None else reliability(confidence, evaluated.answers[name].score >= 1.0)
        for name, confidence in confidences.items()
    }
    return {
        "rows": len(evaluated.rows),
        "notes": evaluated.notes + ([_confidence_note(without)] if without else []),
        "calibration": calibration,
        "pairs": {pair["student"]: _pair_summary(pair) for pair in pairs},
        "cascades": _cascades(folder, evaluated),
        "effects": _effects(evaluated),
        "training": training_dynamics(folder),
    }


def _confidence_note(models: Sequence[str]) -> str:
    more = f" and {len(models) - _NAMED_MODELS} more models" if len(models) > _NAMED_MODELS else ""
    return (
        f"confidences of {', '.join(models[:_NAMED_MODELS])}{more} were not recorded: no calibration and no cascade;"
        " `tutelage evaluate RECIPE --force` evaluates all models again and records them"
    )


def _pair_summary(pair: PairRecord) -> PairSummary:
    names = [discovered["name"] for discovered in pair["found"]]
    summary: PairSummary = {"whole": pair["whole"], "found": names, "student_ahead": {}, "teacher_ahead": {}}
    for measure in MEASURES:
        sign = 1 if measure == "score" else -1
        lines = [line for line in pair["slices"] if _is_significant(line[measure])]
        lines.sort(key=lambda line: -abs(line[measure]["difference"]))
        for side, direction in (("student_ahead", sign), ("teacher_ahead", -sign)):
            ahead = [line for line in lines if direction * line[measure]["difference"] > 0]
            summary[side][measure] = [{"key": line["key"], "value": line["value"]} for line in ahead]
    return summary


def _is_significant(record: MeasureRecord) -> bool:
    return record["p_holm"] is not None and record["p_holm"] <= ALPHA


def _cascades(folder: Path, evaluated: EvaluatedRows) -> dict[str, CascadeRecord]:
    """Each student with recorded confidences in front of the teacher."""
    confidences = {name: evaluated.confidence(name) for name in evaluated.students}
    known = {name: values for name, values in confidences.items() if values is not None}
    if not known:
        return {}
    scores = {name: evaluated.students[name].score for name in known}
    teacher_size, sizes = parameter_count(folder, "teacher"), {name: parameter_count(folder, name) for name in known}
    costs = {name: size / teacher_size if size and teacher_size else None for name, size in sizes.items()}
    teacher, unreadable = evaluated.answers["teacher"].score, {name: evaluated.unreadable(name) for name in known}
    made = cascades(scores, teacher, known, costs, always=unreadable, resamples=RESAMPLES)
    return {name: {"signal": "confidence", "student_cost": costs[name], **made[name]} for name in made}


def _effects(evaluated: EvaluatedRows) -> list[MethodEffect]:
    """Effects of weighting and schedule, for every two methods of the run that differ in that alone."""
    by_method: dict[str, dict[int, Answers]] = {}
    for name, answers in evaluated.students.items():
        method, _, seed = name.rpartition("/seed-")
        if method and seed.isdecimal():
            by_method.setdefault(method, {})[int(seed)] = answers
    teacher, anchor = evaluated.answers["teacher"], evaluated.answers.get("anchor")
    effects = []
    for pair in comparable_pairs(list(by_method)):
        plain, changed = by_method[pair.plain], by_method[pair.changed]
        by_seed = {seed: (plain[seed], changed[seed]) for seed in plain.keys() & changed.keys()}
        if by_seed:
            effects.append(effect_of(pair, by_seed, anchor, teacher, evaluated.ids))
    return effects


# --- printed output ---


def show(folder: Path) -> None:
    """Print diagnose/: every student against T*, and the slices with significant differences."""
    slices: SlicesFile = read_json(folder / "diagnose" / "slices.json")
    scores = folder / "evaluate" / "scores.json"
    metric = metric_words(row_metric(read_json(scores)["metric"] if present(scores) else None))
    head = ["student", metric, "teacher", "difference", "wins", "losses", "loss (nats)", "advantage", "deficit"]
    pairs = slices["pairs"]
    print_table(f"{slices['rows']:,} test rows, 95 % intervals", head, [_whole_cells(pair) for pair in pairs])
    lines = [cells for pair in pairs for cells in _slice_cells(pair)]
    if lines:
        title = "slices with a significant difference between student and T* (Holm)"
        print_table(title, ["student", "slice", "rows", metric, "nats"], lines)
    summary: SummaryFile = read_json(folder / "diagnose" / "summary.json")
    for note in summary["notes"]:
        out(note)


def _whole_cells(pair: PairRecord) -> list[str]:
    score, nll = pair["whole"]["score"], pair["whole"]["nll"]
    values = [f"{score['student']:.3f}", f"{score['teacher']:.3f}", _span(score)]
    nats = [_span(nll), f"{nll['advantage']['value']:.3f}", f"{nll['deficit']['value']:.3f}"]
    return [pair["student"], *values, str(score["wins"]), str(score["losses"]), *nats]


def _slice_cells(pair: PairRecord) -> list[list[str]]:
    significant = [line for line in pair["slices"] if any(_is_significant(line[measure]) for measure in MEASURES)]
    names = [f"{line['key']} {'(none)' if line['value'] is None else line['value']}" for line in significant]
    names += [f"discovered: {line['name']}" for line in pair["found"]]
    lines = zip(names, [*significant, *pair["found"]], strict=True)
    return [
        [pair["student"], name, str(line["rows"]), _span(line["score"]), _span(line["nll"])] for name, line in lines
    ]


def _span(record: MeasureRecord) -> str:
    return f"{record['difference']:+.3f} [{record['low']:+.3f}, {record['high']:+.3f}]"
