"""Run folders seen from outside: which there are, what state each is in, what takes room in it and can be made again.

`tutelage ls` and `tutelage clean`. Everything follows from files; no model and no prediction is read. A recipe says
what a result should be made from: whether it still is, only the stages know; what can be told here is told by
`state_of`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.analysis.run_results import Results, Student
from tutelage.errors import DataError
from tutelage.method.risk_split import gap_closed
from tutelage.records import Interval
from tutelage.run.live_reader import DEPTHS, begun, dig, is_run, newest_change, read_or_none, recipe_of, weight, worker
from tutelage.run.manifest import MANIFEST, digest, locked
from tutelage.utils.console import print_table, visible

NO_VALUE = "–"
QUIET_SECONDS = 120
"""A run that no process of this machine holds is at work, on another one, if a file in it has changed since so long."""
RESTART_ONLY = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin", "scaler.pt", "whole")
"""What a saved step of a teacher needs to go on training, and a finished teacher does not; as `stages/teach.py` has
it."""
NEEDED = {
    "prepare": ("rows.jsonl", "data.json"),
    "teach": ("checkpoints.json",),
    "anchor": ("config.json", "*.safetensors"),
    "cache": ("*/store.json",),
    "distill": ("config.json", "*.safetensors", "stages.json"),
    "evaluate": ("predictions.jsonl", "scores.json"),
    "report": ("index.html",),
}
"""Files without which a finished piece of work is broken, by its first folder."""

_DOOMED = ".clean-"


# --- which runs there are ---


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in a line."""

    folder: Path
    task: str
    teacher: str
    student: str
    method: str
    """The student to speak of first, METHOD/seed-K; empty before there is one."""
    students: int
    """Distilled students that are finished."""
    metric: str
    score: Interval | None
    """On the test rows."""
    teacher_score: Interval | None
    share: float | None
    """Share of the gap between plain fine-tuning and the teacher that it closes."""
    date: str
    """When a piece of work was last finished; local time, ISO 8601; empty before the first."""
    state: str
    size: int
    """Bytes of everything in the folder."""


def find_runs(folder: Path) -> list[Run]:
    """Every run in a folder and its subfolders, the folder itself included, by name.

    Raises DataError for a folder that is not there. A run with files that cannot be read is listed as broken.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the one that your runs are in, such as runs")
    return [describe(place) for place in sorted(_run_folders(folder))]


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, inside, _ in os.walk(folder):
        if is_run(Path(place)):
            inside.clear()
            yield Path(place)
        inside[:] = [name for name in inside if not name.startswith(".")]
        yield from (link for name in inside if (link := Path(place, name)).is_symlink() and is_run(link))


def describe(folder: Path) -> Run:
    """A run folder in a line; one with files that cannot be read is broken."""
    scores, manifests = read_or_none(folder / "evaluate/scores.json"), read_manifests(folder)
    students = [_student(folder, name) for name in manifests if name.startswith("distill/")]
    try:
        recipe, wrong = recipe_of(folder), None
    except DataError as error:
        recipe, wrong = {}, str(error)
    seen = Results(folder, recipe, "", scores if isinstance(scores, dict) else {}, {}, {}, students, {}, manifests)
    main = seen.main or (students[0].name if len(students) == 1 else "")
    ours, teacher, plain = (seen.score(name) for name in (main, "teacher", "anchor"))
    dates = [str(found.get("finished", "")) for found in manifests.values() if isinstance(found, dict)]
    return Run(
        folder=folder,
        task=str(seen.scores.get("task") or dig(recipe, "task", "type") or ""),
        teacher=_last(dig(recipe, "teacher", "model_name_or_path")),
        student=_last(dig(recipe, "student", "model_name_or_path")),
        method=main,
        students=len(students),
        metric=str(seen.scores.get("metric") or ""),
        score=ours,
        teacher_score=teacher,
        share=gap_closed(plain.value, teacher.value, ours.value) if ours and teacher and plain else None,
        date=max(dates, default="")[:16],
        state=f"broken: {wrong}" if wrong else state_of(folder, manifests),
        size=size_of(folder),
    )


def read_manifests(run: Path) -> dict[str, Any]:
    """Manifest by folder of every finished piece of work; None for one that cannot be read."""
    found = sorted(path for depth in DEPTHS for path in run.glob(f"{depth}/{MANIFEST}"))
    names = {path.parent.relative_to(run).as_posix(): path for path in found}
    return {name: read_or_none(path) for name, path in names.items() if not name.startswith(".")}


def _student(run: Path, name: str) -> Student:
    stages, manifest = read_or_none(run / name / "stages.json"), read_or_none(run / name / MANIFEST)
    kept = manifest.get("kept_stage") if isinstance(manifest, dict) else None
    return Student(name.removeprefix("distill/"), stages if isinstance(stages, list) else [], {}, kept)


def _last(name: Any) -> str:
    """The part of a model's name that tells it from others: SmolLM2-135M for a hub id and for a folder."""
    return Path(str(name)).name if name else ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed, and what vanishes meanwhile counts
    nothing."""
    total = 0
    with contextlib.suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


# --- what state a run is in ---


def state_of(run: Path, manifests: dict[str, Any]) -> str:
    """`finished`, `at work: STAGE`, `stopped in STAGE`, `done up to STAGE` (the next has not begun), `stale: WHY`,
    `broken: WHY`.

    Stale means here: made from an earlier stage that was made anew since, or from data files that have changed. Whether
    the recipe that you hold asks for the same is known to the stages alone.
    """
    name = (begun(run) or [""])[-1]
    if worker(run) is not None or (name and time.time() - newest_change(run) < QUIET_SECONDS):
        return f"at work: {name}" if name else "at work"
    if wrong := _broken(run, manifests):
        return f"broken: {wrong}"
    if old := _stale(manifests):
        return f"stale: {old}"
    if name:
        return f"stopped in {name}"
    if "report" in manifests and any(done.startswith("distill/") for done in manifests):
        return "finished"
    done = [done for done in manifests if done != "report"]  # of an unfinished run, too, there can be a page
    if not done:
        return "nothing is done"
    last = max(done, key=lambda done: str(manifests[done].get("finished", "")))
    return f"done up to {last.split('/')[0]}"


def _broken(run: Path, manifests: dict[str, Any]) -> str | None:
    for name, manifest in manifests.items():
        if not isinstance(manifest, dict):
            return f"{name}/{MANIFEST} cannot be read"
        for pattern in NEEDED.get(name.split("/")[0], ()):
            if not any((run / name).glob(pattern)):
                return f"{name} has no {pattern}"
    scores = run / "evaluate/scores.json"
    return "evaluate/scores.json cannot be read" if scores.is_file() and read_or_none(scores) is None else None


def _stale(manifests: dict[str, Any]) -> str | None:
    for name, manifest in manifests.items():
        inputs = manifest.get("inputs") or {}
        for key, value in inputs.items():
            before = manifests.get(key.removeprefix("stage ")) if key.startswith("stage ") else None
            if before and value != digest(before.get("inputs")):
                return f"{name} was made before {key.removeprefix('stage ')} was made anew"
        for path, value in (inputs.get("data files") or {}).items():
            if (
                path != "hub"
                and Path(path).is_file()
                and _changed(Path(path), value, str(manifest.get("finished", "")))
            ):
                return f"{visible(path)} has changed"
    return None


def _changed(path: Path, fingerprint: str, finished: str) -> bool:
    """Whether a data file is another than it was; its contents are read only where it was written later than the
    result."""
    import hashlib

    written = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(path.stat().st_mtime))
    return written > finished and hashlib.sha256(path.read_bytes()).hexdigest()[:16] != fingerprint


# --- as a table ---


def show_runs(folder: Path, form: str = "table") -> None:
    """Print the runs in a folder. form: table, markdown, latex, csv or json. Raises as `find_runs`."""
    runs = find_runs(folder)
    if form == "json":
        print(json.dumps([_plain(run) for run in runs], indent=2, ensure_ascii=False))
        return
    if not runs and form == "table":
        print(f"no runs in {visible(folder)}: name the folder that your runs are in; `tutelage run RECIPE` makes one")
        return
    head = ["run", "task", "teacher → student", "method", "score", "gap closed", "date", "size", "state"]
    lines = [_cells(run, folder) for run in runs]
    if form == "csv":
        lines = [[f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for cell in line] for line in lines]
    print_table(f"{len(runs)} runs in {visible(folder)}", head, lines, form)


def _plain(run: Run) -> dict[str, Any]:
    values = asdict(run) | {"folder": str(run.folder)}
    return values | {key: value._asdict() for key in ("score", "teacher_score") if (value := getattr(run, key))}


def _cells(run: Run, folder: Path) -> list[str]:
    name = run.folder.relative_to(folder).as_posix()
    more = f" (+{run.students - 1})" if run.students > 1 else ""
    return [
        name if name != "." else run.folder.resolve().name,
        run.task,
        f"{run.teacher} → {run.student}" if run.teacher else NO_VALUE,
        (run.method or NO_VALUE) + more,
        f"{run.metric} {run.score.value:.3f}" if run.score else NO_VALUE,
        f"{run.share:.0%}".replace("%", " %").replace("-", "−") if run.share is not None else NO_VALUE,
        run.date.replace("T", " "),
        weight(run.size),
        run.state,
    ]


# --- what can be made again ---


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a run that takes room."""

    what: str
    paths: tuple[Path, ...]
    size: int
    """Bytes."""
    again: str
    """How it comes back."""
    kept: str | None = None
    """Why it is not deleted; None if it is."""


def clean(run: Path, do: bool = False) -> list[Item]:
    """Print what can be deleted from a run and made again, with sizes; with `do` delete it. Returns the items.

    Only the library's own intermediate files are ever named: students, anchors, checkpoints, losses, predictions,
    reports and the recipe stay. Raises RunLockedError while a process works in the run, DataError if the folder is no
    run.
    """
    if not is_run(run):
        near = ", ".join(str(place) for place in sorted(_run_folders(run))[:3]) if run.is_dir() else ""
        raise DataError(
            f"{run} is no run folder: name one{f', such as {near}' if near else ''}; `tutelage ls` lists them"
        )
    with locked(run):
        items = list(removable(run))
        doomed = [item for item in items if item.kept is None]
        if not items:
            print(f"{visible(run)}: nothing in it can be deleted and made again")
            return items
        lines = [[i.what, weight(i.size), i.again if i.kept is None else f"stays: {i.kept}"] for i in items]
        total = weight(sum(item.size for item in doomed))
        print_table(
            f"{visible(run)}: can be made again", ["what", "size", "comes back by"], [*lines, ["in all", total, ""]]
        )
        if do:
            for item in doomed:
                for path in item.paths:
                    _delete(run, path)
            print(f"deleted: {total}")
        elif doomed:
            print(f"nothing was deleted: `tutelage clean {visible(shlex.quote(str(run)))} --yes` does it")
    return items


def removable(run: Path) -> Iterator[Item]:
    """What in a run is only an aid to what comes after it: caches, restart points, optimizer states, remains of a
    cleaning."""
    recipe, manifests = recipe_of(run), read_manifests(run)
    taught = [c for c in dig(read_or_none(run / "teach/checkpoints.json"), "checkpoints") or [] if isinstance(c, dict)]
    seconds = dig(manifests.get("cache"), "seconds")
    again = f"`tutelage cache RECIPE`, or `run`{f'; took {seconds:.0f} s' if seconds else ''}"
    yield from _item("cache", [run / "cache"], again, recipe, _lost_checkpoint(run, taught))
    folds = sorted(run.glob("cross_fit/fold-*"))
    yield from _item("cross_fit folds", folds, "`tutelage cross-fit RECIPE`, from its first fold", recipe)
    yield from _item(
        "anchor restart points", [run / "anchor/trainer"], "`tutelage anchor RECIPE`, from its first step", recipe
    )
    for student in sorted(run.glob("distill/*/*")):
        points = sorted(student.glob("trainer-*"))
        name = student.relative_to(run).as_posix()
        yield from _item(
            f"{name} restart points", points, "`tutelage distill RECIPE`, from the start of its stage", recipe
        )
    if "teach" in manifests and not dig(recipe, "teach", "checkpoints"):
        states = sorted(path for pattern in RESTART_ONLY for path in run.glob(f"teach/checkpoint-*/{pattern}"))
        yield from _item("teacher optimizer states", states, "not needed: the teacher is finished", recipe)
    yield from _item("remains of a cleaning", sorted(run.glob(f"{_DOOMED}*")), "not needed", recipe)


def _item(what: str, paths: list[Path], again: str, recipe: dict[str, Any], lost: str | None = None) -> Iterator[Item]:
    there = tuple(path for path in paths if path.exists() or path.is_symlink())
    if there:
        linked = next(
            (f"{path.name} is a link, and what it leads to is not ours" for path in there if path.is_symlink()), None
        )
        given = next(
            (f"the recipe takes {name} from there" for path in there for name in _named_by(recipe, path)), None
        )
        yield Item(what, there, sum(map(size_of, there)), again, lost or linked or given)


def _named_by(recipe: Any, path: Path) -> Iterator[str]:
    """Files and folders that the recipe names and that are, or lie in, `path`: the user's own."""
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key != "output_dir":
                yield from _named_by(value, path)
    elif isinstance(recipe, list):
        for value in recipe:
            yield from _named_by(value, path)
    elif isinstance(recipe, str) and recipe and "\n" not in recipe and len(recipe) < 1000 and os.path.lexists(recipe):
        named, own = Path(recipe).resolve(), path.resolve()
        if own == named or own in named.parents:
            yield recipe


def _lost_checkpoint(run: Path, taught: list[dict[str, Any]]) -> str | None:
    """Why the cache could not be made again: a checkpoint that it was made from is gone."""
    for checkpoint in taught:
        places = (Path(str(checkpoint.get("folder"))), run / "teach" / str(checkpoint.get("name")))
        if not any(place.is_dir() and any(place.glob("*.safetensors")) for place in places):
            return f"{checkpoint.get('name')}, which it was made from, is gone"
    return None if taught else "teach/checkpoints.json, which says what it was made from, is gone"


def _delete(run: Path, path: Path) -> None:
    """Take a folder out of the run in one step, then delete it: a cleaning that is killed leaves nothing half there."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = run / f"{_DOOMED}{path.relative_to(run).as_posix().replace('/', '-')}-{os.getpid()}"
    if path.name.startswith(_DOOMED):
        aside = path
    else:
        path.replace(aside)
    try:
        shutil.rmtree(aside)
    except OSError as error:
        raise DataError(
            f"{aside} could not be deleted ({error.strerror}); nothing needs it, so it may go by other means"
        ) from error
