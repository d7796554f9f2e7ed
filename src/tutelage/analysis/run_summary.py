"""One line about a run folder: models, best student, score, gap closed, state, size. Loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.analysis.run_results import Results, StudentRecords, is_plain
from tutelage.errors import DataError
from tutelage.method.risk_split import gap_closed
from tutelage.records import Interval
from tutelage.run.live_reader import dig, read_or_none, recipe_of
from tutelage.run.manifest import MANIFEST
from tutelage.run.run_state import RunState, manifests_by_folder, state_of
from tutelage.utils.files import size_on_disk


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run folder in one line."""

    folder: Path
    task: str
    teacher: str
    student: str
    method: str
    """The best student on validation, METHOD/seed-K; empty before there is one."""
    students: int
    """Number of finished distilled students."""
    metric: str
    score: Interval | None
    """Of that student, on the test set."""
    teacher_score: Interval | None
    gap_closed: float | None
    """Fraction of the gap from plain fine-tuning to the teacher that the student closes; below 0 if it is worse. None
    also for a student that is plain fine-tuning itself."""
    date: str
    """When a stage was last finished, local time in ISO 8601 to the minute; empty before the first."""
    state: RunState
    size: int
    """Bytes of all files in the folder."""


def summarise_run(folder: Path) -> RunSummary:
    """Summary of a run folder; a run whose files cannot be read is `broken`."""
    manifests = manifests_by_folder(folder)
    recipe, scores, students, state = {}, None, [], None
    try:
        recipe, scores = recipe_of(folder), read_or_none(folder / "evaluate/scores.json")
        students = [_student(folder, name) for name in manifests if name.startswith("distill/")]
    except DataError as error:
        state = RunState("broken", str(error))
    results = Results(folder, recipe, scores if isinstance(scores, dict) else {}, students, manifests)
    best = results.main or (students[0].name if len(students) == 1 else "")
    score, teacher, plain = (results.score(name) for name in (best, "teacher", "anchor"))
    dates = [str(manifest.get("finished", "")) for manifest in manifests.values() if isinstance(manifest, dict)]
    return RunSummary(
        folder=folder,
        task=str(results.scores.get("task") or dig(recipe, "task", "type") or ""),
        teacher=_short_name(dig(recipe, "teacher", "model_name_or_path")),
        student=_short_name(dig(recipe, "student", "model_name_or_path")),
        method=best,
        students=len(students),
        metric=str(results.scores.get("metric") or ""),
        score=score,
        teacher_score=teacher,
        gap_closed=gap_closed(plain.value, teacher.value, score.value)
        if score and teacher and plain and not is_plain(best)
        else None,
        date=max(dates, default="")[:16],
        state=state or state_of(folder, manifests),
        size=size_on_disk(folder),
    )


def _student(run: Path, name: str) -> StudentRecords:
    """The student in a folder `distill/METHOD/seed-K`, without its weights by row."""
    stages, manifest = read_or_none(run / name / "stages.json"), read_or_none(run / name / MANIFEST)
    kept = manifest.get("kept_stage") if isinstance(manifest, dict) else None
    return StudentRecords(name.removeprefix("distill/"), stages if isinstance(stages, list) else [], {}, kept)


def _short_name(name: Any) -> str:
    """The last part of a hub id or path: SmolLM2-135M."""
    return Path(str(name)).name if name else ""
