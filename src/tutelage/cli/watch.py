"""`tutelage watch`: a run's progress, live in the terminal.

Reads the run's files only, so it also works from another machine that shares the folder, and bears files that are
missing or half written.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from tutelage.errors import DamagedArtifactError, DataError
from tutelage.recipe.schema import Recipe
from tutelage.records import BASE_MODELS
from tutelage.run.live_reader import begun, dig, newest_change, read_log, read_or_none, recipe_of, written
from tutelage.run.manifest import STARTED, is_run
from tutelage.run.run_state import RunState, manifests_by_folder, state_of
from tutelage.stages import STAGES
from tutelage.utils.console import out_frame, visible
from tutelage.utils.format import duration, number, percent

SHOWN = [name for name in STAGES if name not in ("cross_fit", "silver")]  # which few runs need


@dataclass
class Snapshot:
    """A run at one moment."""

    run: Path
    recipe: Recipe | None
    """None while recipe.yaml is missing or half written."""
    state: RunState
    finished: set[str]
    """Folders of the run whose work is finished: `teach`, `distill/td/seed-0`."""
    current: str
    """The folder at work; if none is, the student that was trained last."""
    step: str = ""
    """Where the work is: `stage 3 of 4, step 50`."""
    fraction: float | None = None
    """Done of the current folder's work, in [0, 1]; None where it is unknown."""
    seconds_left: float | None = None
    """For the rest of it, at the speed so far."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """Records of the current training with their losses in nats per answer token."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Records of stages.json, and the choice of the stage in progress."""


def take_snapshot(run: Path) -> Snapshot:
    """Read a run folder as it is now. Raises DamagedArtifactError for a file of a finished stage that was changed."""
    try:
        recipe = Recipe(**recipe_of(run))
    except DamagedArtifactError:
        raise
    except (DataError, ValidationError, TypeError):
        recipe = None
    manifests, unfinished = manifests_by_folder(run), begun(run)
    last = max(run.glob("distill/*/*/stages.json"), key=written, default=None)
    current = unfinished[-1] if unfinished else last.parent.relative_to(run).as_posix() if last else ""
    shot = Snapshot(run, recipe, state_of(run, manifests), set(manifests), current)
    stage = current.split("/")[0]
    if stage == "distill":
        _read_student(shot)
    elif stage in ("teach", "anchor") and recipe:
        _read_fine_tuning(shot, recipe, stage)
    elif stage == "cache" and recipe:
        _read_cache(shot, recipe)
    return shot


def _read_student(shot: Snapshot) -> None:
    folder = shot.run / shot.current
    records = [record for record in read_or_none(folder / "stages.json") or [] if isinstance(record, dict)]
    shot.log, shot.stages = read_log(folder / "log.jsonl"), records
    if shot.current in shot.finished or shot.recipe is None:
        return
    stage, total = len(records) + 1, shot.recipe.distill.num_stages
    shot.step = f"stage {min(stage, total)} of {total}"
    done, seconds = float(len(records)), sum(record.get("seconds") or 0.0 for record in records)
    choice = folder / f"trainer-{stage}" / "choice.json"
    if shot.log and shot.log[-1].get("stage") == stage:
        shot.step += f", step {shot.log[-1]['step']:,}"
        done += _fraction_trained(shot, shot.recipe.trainer_arguments("distill"), shot.recipe.distill.epochs_per_stage)
        since = max(written(choice), written(folder / STARTED))
        seconds += _seconds_of_steps(shot, folder / "log.jsonl", since, choice.parent)
    _set_progress(shot, done / total, seconds)
    if isinstance(chosen := read_or_none(choice), dict):
        shot.stages = [*records, {"stage": stage, **chosen}]


def _read_fine_tuning(shot: Snapshot, recipe: Recipe, stage: str) -> None:
    path = shot.run / stage / "log.jsonl"
    if log := read_log(path):
        shot.log, shot.step = log, f"step {log[-1]['step']:,}"
        arguments = recipe.trainer_arguments(*(["teach"] if stage == "teach" else ["distill", "anchor"]))
        epochs = None if stage == "teach" else recipe.distill.num_stages * recipe.distill.epochs_per_stage
        seconds = _seconds_of_steps(shot, path, written(path.with_name(STARTED)), path.parent)
        _set_progress(shot, _fraction_trained(shot, arguments, epochs), seconds)


def _seconds_of_steps(shot: Snapshot, log: Path, since: float, folder: Path) -> float:
    """What the steps up to the last log record take at the speed of the process that works now: an interrupted training
    run has stood still for any length of time.

    since: when that process began. folder: where resume checkpoints are; it continued from the last one before.
    """
    marks = (path.parent.name for path in folder.glob("**/checkpoint-*/whole") if written(path) < since)
    resumed = max((int(name.rpartition("-")[2]) for name in marks), default=0)
    step = shot.log[-1]["step"]
    return (written(log) - since) * step / (step - resumed) if step > resumed else 0.0


def _fraction_trained(shot: Snapshot, arguments: dict[str, Any], epochs: float | None) -> float:
    """Steps or epochs of the last log record, divided by those to train. epochs: None for the trainer's own."""
    if (steps := arguments.get("max_steps") or 0) > 0:
        return min(1.0, shot.log[-1]["step"] / steps)
    return min(1.0, (shot.log[-1].get("epoch") or 0.0) / (epochs or arguments.get("num_train_epochs") or 3.0))


def _read_cache(shot: Snapshot, recipe: Recipe) -> None:
    rows = dig(read_or_none(shot.run / "prepare/data.json"), "lengths", "train", "rows", default=0)
    checkpoints = dig(read_or_none(shot.run / "teach/checkpoints.json"), "checkpoints", default=[])
    if total := len(checkpoints) * -(-rows // recipe.cache.shard_rows):
        shards = [written(path) for path in shot.run.glob("cache/*/shard-*.safetensors")]
        shot.step, since = f"{len(shards)} of {total} shards", written(shot.run / "cache" / STARTED)
        new = sum(at >= since for at in shards)
        _set_progress(shot, len(shards) / total, (max(shards) - since) * len(shards) / new if new else 0.0)


def _set_progress(shot: Snapshot, fraction: float, seconds: float) -> None:
    """seconds: spent on this fraction of the work."""
    shot.fraction = fraction
    shot.seconds_left = seconds * (1 / fraction - 1) if fraction > 0 and seconds > 0 else None


def watch(folder: Path, once: bool = False, interval: float = 1.0, console: Console | None = None) -> None:
    """Show a run until it is finished; print one frame with `once`, or where standard output is not a terminal.

    interval: seconds between two reads of the folder. Raises DataError if the folder is not a run.
    """
    if not is_run(folder):
        hint = f": the run is {folder.parent}" if is_run(folder.parent) else "; `tutelage ls` lists runs"
        raise DataError(f"{folder} is not a run folder{hint}")
    console = console or Console(highlight=False)
    if once or not console.is_terminal:
        return out_frame(draw(take_snapshot(folder)), console)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shot = take_snapshot(folder)
            live.update(draw(shot), refresh=True)
            if shot.state.kind == "finished":
                return None
            time.sleep(interval)


def draw(shot: Snapshot) -> Group:
    """A frame: state, stages, progress bar, and the losses: of a student in a table of its stages."""
    age = (
        "" if shot.state.kind == "finished" else f"; last change {duration(time.time() - newest_change(shot.run))} ago"
    )
    parts: list[Any] = [_text(f"{shot.run}: {shot.state.text}{age}"), _stage_line(shot)]
    if shot.fraction is not None:
        parts.append(_bar(shot.fraction, shot))
    if shot.log and not shot.stages:
        first, last = (number(record.get("loss")) for record in (shot.log[0], shot.log[-1]))
        parts.append(_text(f"training loss {first} → {last} nats per answer token"))
    return Group(*parts, *([_stage_table(shot)] if shot.stages else []))


def _text(text: str) -> Text:
    """Text that may hold names from data: no markup, control characters made visible."""
    return Text(visible(text))


def _stage_line(shot: Snapshot) -> Text:
    """Every stage with a mark: ✓ finished, ▶ at work, · not begun; students and scored models are counted."""
    counts, marks = Counter(name.split("/")[0] for name in shot.finished), []
    students = len(shot.recipe.distill.students) if shot.recipe else 1
    for stage in SHOWN:
        total = {"distill": students, "evaluate": students + len(BASE_MODELS)}.get(stage, 1)
        at_work = shot.state.kind == "running" and shot.state.detail.split("/")[0] == stage
        mark = "▶" if at_work else "✓" if counts[stage] >= total else "·"
        marks.append(f"{mark} {stage}" + (f" {counts[stage]}/{total}" if total > 1 else ""))
    return _text("  ".join(marks))


def _bar(fraction: float, shot: Snapshot) -> Progress:
    left = f", about {duration(shot.seconds_left)} left" if shot.seconds_left else ""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn(percent(fraction) + left))
    bar = Progress(*columns)
    bar.add_task(visible(f"{shot.current}: {shot.step}"), total=1.0, completed=fraction)
    return bar


def _stage_table(shot: Snapshot) -> Table:
    """The student's stages: checkpoint followed, last training losses, validation score and loss."""
    table = Table(box=None, title=_text(shot.current), title_justify="left")
    for name in ("stage", "follows", "CE", "KL", "validation score", "validation loss"):
        table.add_column(name, justify="right")
    for record in shot.stages:
        last = next((line for line in reversed(shot.log) if line.get("stage") == record.get("stage")), {})
        numbers = (last.get("ce"), last.get("kd"), *(dig(record, "validation", key) for key in ("score", "nll")))
        cells = (str(record.get("stage")), str(record.get("chosen") or "gold"), *map(number, numbers))
        table.add_row(*map(_text, cells))
    return table
