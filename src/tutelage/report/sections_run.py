"""Sections of the report on the run: size and speed of the student, its exports, next steps, time taken, versions,
fingerprints, recipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.analysis.calibration import CascadePoint
from tutelage.analysis.run_results import Results, is_plain
from tutelage.records import Interval
from tutelage.report.sections_confidence import CascadeSection
from tutelage.report.sections_scores import Outcome, Verdict
from tutelage.run.artifacts import Manifest
from tutelage.run.live_reader import best_checkpoint, dig, parameters, read_or_none
from tutelage.run.manifest import folder_fingerprint
from tutelage.utils.files import read_json
from tutelage.utils.integrity import present

Pair = tuple[float, float]
"""Of the student and of its teacher."""


@dataclass(frozen=True, slots=True)
class Size:
    """The main student beside T*; None where one of the two is unknown: deleted models, or adapters alone."""

    parameters: Pair | None
    bytes: Pair | None
    """Weights on disk."""
    seconds: Pair | None
    """Per test row, to answer it and take its loss, in batches and without loading."""
    cost: float | None
    """A call of the student in calls of the teacher, by parameters."""


def size(results: Results) -> Size | None:
    """Size, speed and cost of the main student; None where nothing is known."""
    main = results.main
    if main is None:
        return None
    folders = [results.folder / "distill" / main, best_checkpoint(results.folder)]
    counts = _pair([parameters(folder) for folder in folders])
    measured = Size(
        parameters=counts,
        bytes=_pair([_weight_bytes(folder) for folder in folders]),
        seconds=_pair([_seconds_per_row(results, name) for name in (main, "teacher")]),
        cost=counts[0] / counts[1] if counts else None,
    )
    return measured if measured.parameters or measured.bytes or measured.seconds else None


def _pair(values: Sequence[float | None]) -> Pair | None:
    return (values[0], values[1]) if all(values) else None


def _weight_bytes(folder: Path | None) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors")) if folder else 0


def _seconds_per_row(results: Results, model: str) -> float | None:
    seconds, rows = results.manifests.get(f"evaluate/{model}", {}).get("answering"), results.scores.get("rows")
    return seconds / rows if seconds and rows else None


# --- exports ---


@dataclass(frozen=True, slots=True)
class InRuntime:
    """A student, or an export of it, in the runtime that answered the test rows with it."""

    name: str
    """Format and precision; empty for the student itself."""
    runtime: str
    score: Interval
    """Of the task's metric."""
    same: int
    """Rows that it answers as the student does."""
    difference: Interval | None
    """Export minus student in the mean score of a row; None for the student itself."""
    bytes: int
    """Of the files of weights."""
    seconds: float
    """Median of a row that is answered alone."""
    seconds_together: float
    """Of a row, when `Deployed.at_once` are answered together."""
    memory: int
    """Bytes of the process at most, one row at a time."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A student and its exports, on the same test rows."""

    model: str
    """METHOD/seed-K."""
    metric: str
    rows: int
    threads: int
    at_once: int
    formats: list[str]
    lines: list[InRuntime]
    """The student first."""


def verified_exports(run: Path, student: str) -> list[dict[str, Any]]:
    """What `tutelage export --verify` has written about exports of a student (METHOD/seed-K), by format; those of a
    student that has been trained again since are left out."""
    found = [record for path in sorted((run / "export" / student).glob("*.json")) if (record := read_or_none(path))]
    own = folder_fingerprint(str(run / "distill" / student)) if found else ""
    return [record for record in found if dig(record, "student") == own]


def deployed(results: Results) -> list[Deployed]:
    """Every student with verified exports, the main one first."""
    folder = results.folder
    names = {path.parent.relative_to(folder / "export").as_posix() for path in folder.glob("export/*/*/*.json")}
    names = {name for name in names if (folder / "distill" / name).is_dir()}
    found = {name: verified_exports(folder, name) for name in sorted(names, key=lambda name: name != results.main)}
    return [_deployed(name, records) for name, records in found.items() if records]


def _deployed(name: str, records: Sequence[dict[str, Any]]) -> Deployed:
    first = records[0]
    formats = [f"{record['format']} {record['precision']}" for record in records]
    lines = [_in_runtime("", first, first["original"], first["rows"])]
    lines += [
        _in_runtime(title, record, record["exported"], record["same_answers"], record["difference"])
        for title, record in zip(formats, records, strict=True)
    ]
    return Deployed(name, first["metric"], first["rows"], first["threads"], first["at_once"], formats, lines)


def _in_runtime(
    name: str, record: dict[str, Any], served: dict[str, Any], same: int, difference: dict[str, float] | None = None
) -> InRuntime:
    return InRuntime(
        name=name,
        runtime=served["runtime"],
        score=_interval(served["scores"][record["metric"]]),
        same=same,
        difference=_interval(difference) if difference else None,
        bytes=served["bytes"],
        seconds=served["row_ms"]["median"] / 1000,
        seconds_together=served["row_ms_together"] / 1000,
        memory=served["peak_memory"],
    )


def _interval(record: Mapping[str, float]) -> Interval:
    return Interval(record["value"], record["low"], record["high"])


# --- what to do next ---

Advice = Literal[
    *("teacher", "invalid", "student"),
    *("baseline", "use", "anchor", "seeds", "cascade", "export", "serve", "deploy", "stall", "unlabelled", "share"),
]
"""What a step is about; the template has its words. The first three take the place of all others."""
INSTEAD: dict[Outcome, Advice] = {"teacher_nothing": "teacher", "unreadable": "invalid", "student_nothing": "student"}
MAY_BE_CHANCE = ("unclear", "no_gap", "gain", "gain_without_gap", "plain")
"""Outcomes that another seed may turn."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do after the run."""

    what: Advice
    command: str | None = None
    service: str | None = None
    """The command that serves the same over HTTP."""
    point: CascadePoint | None = None
    """Of `cascade`: with these rows passed on the student is as good as the teacher."""


def next_steps(
    results: Results, verdict: Verdict | None, cascade: CascadeSection | None, *, stalled: bool, gguf: str | None = None
) -> list[Step]:
    """What the verdict asks for, the most urgent first; empty without a scored student.

    stalled: whether the schedule of the main student stalled. gguf: the precision to propose for a GGUF file of it;
    None if none can hold it.
    """
    if verdict is None:
        return []
    run = shlex.quote(str(results.recipe.get("output_dir") or results.folder))
    doctor, predict = f"tutelage doctor {run}", f"tutelage predict {run} --input rows.jsonl --output answers.jsonl"
    if instead := INSTEAD.get(verdict.outcome):
        command = {"teacher": doctor, "student": f"tutelage compare {run} --tune"}.get(instead)
        return [Step(instead, command)]
    steps = []
    if verdict.over_baseline and verdict.over_baseline.result == "worse":
        steps.append(Step("baseline", doctor))
    if verdict.outcome in MAY_BE_CHANCE:
        steps.append(Step("seeds", _more_seeds(results, run)))
    serve, worse = f"tutelage serve {run}", verdict.outcome == "worse"
    with_anchor = Step("anchor", f"{predict} --model anchor", f"{serve} --model anchor")
    steps.append(with_anchor if worse else Step("use", predict))
    behind = verdict.over_teacher is not None and verdict.over_teacher.high < 0
    point = cascade and (cascade.surely_level or cascade.level)
    if behind and point and point["share"] > 0 and point["threshold"] is not None:
        below = f"{predict} --defer-below {point['threshold']:.6g}"
        steps.append(Step("cascade", below, f"{serve} --defer-below auto", point))
    if not worse and steps[0].what != "baseline":
        steps.append(_deployment(results, verdict.main, run, gguf))
    if stalled:
        steps.append(Step("stall"))
    if behind and not verdict.is_plain and not present(results.folder / "silver" / "silver.json"):
        steps.append(Step("unlabelled", doctor))
    if verdict.outcome in ("beats", "level", "closes", "gain"):
        steps.append(Step("share", f"tutelage card {run}"))
    return steps


def _deployment(results: Results, main: str, run: str, gguf: str | None) -> Step:
    """An export whose score is measured; once there is one, the service."""
    if verified_exports(results.folder, main):
        return Step("serve", f"tutelage serve {run}")
    if gguf:
        return Step("export", f"tutelage export {run} --to gguf --quantize {gguf} --verify {run}")
    return Step("deploy")


def _more_seeds(results: Results, run: str) -> str:
    """The main student's method, plain fine-tuning, and where these are one, the other methods of the run."""
    main = (results.main or "").partition("/")[0]
    others = [name.partition("/")[0] for name in results.distilled]
    methods = list(dict.fromkeys(["sft", main, *(others if is_plain(main) else [])]))
    return f"tutelage compare {run} --methods {','.join(methods)} --seeds 3"


# --- rows without gold ---


@dataclass(frozen=True, slots=True)
class SilverRows:
    """The rows without gold that the students were trained on."""

    gold: int
    """Training rows with gold."""
    kept: int
    left_out: int
    """Answers of T* that cannot be used."""
    teacher: str
    """Name of T*."""
    confidence: float | None
    """Mean over the kept answers, in [0, 1]."""
    shared: int
    """Unlabelled rows whose prompt is also a validation or test row (`data.unlabelled_overlap: keep`)."""


def silver_rows(folder: Path) -> SilverRows | None:
    """The rows without gold of a run; None for a run without any."""
    if not present(folder / "silver" / "silver.json"):
        return None
    counts = read_json(folder / "silver" / "silver.json")
    prepared = read_json(folder / "prepare" / "data.json")["unlabelled"]
    return SilverRows(
        gold=counts["gold"],
        kept=counts["kept"],
        left_out=counts["rows"] - counts["kept"],
        teacher=counts["teacher"],
        confidence=counts["confidence"],
        shared=prepared.get("shared", 0),
    )


# --- how the run was made ---


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the run was made."""

    seconds: dict[str, float]
    """By finished piece of work."""
    versions: dict[str, list[str]]
    """By package, in the order in which they were used."""
    fingerprints: dict[str, str]
    """Hashes of data files and models, by file name or model."""
    command: str | None
    """Repeats the run."""
    recipe: str
    """As resolved, in YAML."""


def provenance(results: Results) -> Provenance:
    """Time, versions, fingerprints and the recipe, from the manifests of the run folder."""
    folder = results.recipe.get("output_dir")
    return Provenance(
        seconds={name: manifest["seconds"] for name, manifest in results.manifests.items()},
        versions=_versions(results.manifests),
        fingerprints=_fingerprints(results.manifests),
        command=f"tutelage run {shlex.quote(f'{folder}/recipe.yaml')}" if folder else None,
        recipe=results.recipe_text,
    )


def _versions(manifests: Mapping[str, Manifest]) -> dict[str, list[str]]:
    versions: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for name, version in (manifest.get("versions") or {}).items():
            versions.setdefault(name, {})[version] = None
    return {name: list(used) for name, used in versions.items()}


def _fingerprints(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    inputs = manifests.get("prepare", {}).get("inputs") or {}
    files = {Path(name).name: digest for name, digest in (inputs.get("data files") or {}).items()}
    models = {name: inputs[name] for name in ("teacher model", "student model") if inputs.get(name)}
    return {**files, **models}
