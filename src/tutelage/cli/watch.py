"""`tutelage watch`: a run at work, seen from its files alone, so that it can run on another machine and share its
folder.

`look` reads a run folder while it is being written: a file that is absent, half there or about to vanish is no error.
`draw` makes a frame of what was seen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.analysis.run_results import as_interval
from tutelage.errors import DataError
from tutelage.recipe.schema import TRAINER_DEFAULTS
from tutelage.records import BASE_MODELS
from tutelage.report.page import duration, number, percent, span
from tutelage.run.live_reader import (
    DEPTHS,
    ORDER,
    begun,
    dig,
    is_run,
    newest_change,
    pieces,
    read_log,
    read_or_none,
    recipe_of,
    sparkline,
    weight,
    worker,
    written,
)
from tutelage.run.manifest import MANIFEST, STARTED
from tutelage.utils.console import visible

if TYPE_CHECKING:
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.text import Text

STALLED_SECONDS = 300
"""After so long without a change, and no process on this machine, a run is said to have perhaps been stopped."""
PARTS = {"ce": "CE, gold answers", "kd": "KL, to the teacher"}
"""What a training log holds of the loss, in nats an answer token, and how it is called."""


# --- what is to be seen ---


@dataclass
class Training:
    """One training, finished or not."""

    name: str
    log: list[dict[str, Any]]
    """Its records with a loss, in order; of distillation with `stage`."""
    share: float
    """Done of the stage in progress (of distillation) or of the whole training, 0 to 1."""
    left: float | None
    """Seconds that it still takes, of distillation with all its stages; None before that can be told."""
    doing: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Records of stages.json, and of a stage in progress what its choice says."""
    kept: int | None = None
    whole: float | None = None
    """Seconds that all stages take together, where one was timed."""


@dataclass
class Look:
    """A run as its files tell it."""

    run: Path
    recipe: dict[str, Any]
    pieces: dict[str, float | None]
    """Pieces of work that the recipe asks for, in order: seconds of those that are done."""
    working: list[str]
    training: Training | None
    note: str
    """What the piece at work is doing, where it is no training."""
    left: float | None
    """Seconds for the students that are still to be trained and scored."""
    finished: bool
    quiet: float
    """Seconds since anything was written."""
    process: tuple[int, int, int] | None
    """Number of the process on this machine, how many it is with its children, and their memory in bytes."""
    scores: dict[str, Any]


def look(run: Path) -> Look:
    """Read a run folder as it is now."""
    with contextlib.suppress(DataError):
        recipe = recipe_of(run)
        return _look(run, recipe)
    return _look(run, {})


def _look(run: Path, recipe: dict[str, Any]) -> Look:
    found = {
        path.parent.relative_to(run).as_posix(): path
        for depth in DEPTHS
        for path in sorted(run.glob(f"{depth}/{MANIFEST}"))
    }
    seconds = {name: dig(read_or_none(path), "seconds", default=0.0) for name, path in found.items() if name[0] != "."}
    wanted, working = pieces(recipe), begun(run)
    names = list(dict.fromkeys([*wanted, *(name for name in (*seconds, *working) if name.split("/")[0] in ORDER)]))
    names.sort(key=lambda name: ORDER.index(name.split("/")[0]))
    done = {name: seconds.get(name) for name in names}
    ends = [
        n for n in wanted if n.startswith(("distill", "evaluate")) or (n == "report" and not (run / "compare").is_dir())
    ]
    training, note = _at_work(run, recipe, working[-1] if working else _to_show(run), done)
    return Look(
        run=run,
        recipe=recipe,
        pieces=done,
        working=working,
        training=training,
        note=note,
        left=_left(training, done, working),
        finished=bool(ends) and not working and all(done[name] is not None for name in ends),
        quiet=max(0.0, time.time() - newest_change(run / working[-1] if working else run)),
        process=_memory(run),
        scores=read_or_none(run / "evaluate" / "scores.json") or {},
    )


def _to_show(run: Path) -> str:
    """What to show when nothing is at work: of the distilled students with a teacher the best on validation."""
    found = [(read_or_none(path), path.parent) for path in sorted(run.glob("distill/*/*/stages.json"))]
    seen = [(stages[-1], folder) for stages, folder in found if isinstance(stages, list) and stages]
    taught = [(last, folder) for last, folder in seen if last.get("chosen")] or seen
    best = max(taught, key=lambda one: dig(one[0], "validation", "score", default=0.0), default=None)
    return best[1].relative_to(run).as_posix() if best else ""


def _at_work(
    run: Path, recipe: dict[str, Any], name: str, done: dict[str, float | None]
) -> tuple[Training | None, str]:
    """The piece of work `name`: as a training, or in words."""
    part = name.split("/")[0]
    if part == "distill":
        return _distillation(run, recipe, name, done), ""
    if part in ("teach", "anchor", "cross_fit"):
        logs = run.glob("cross_fit/fold-*/*/log.jsonl" if part == "cross_fit" else f"{part}/log.jsonl")
        if log := max(logs, key=written, default=None):
            return _fine_tuning(run, recipe, name, log), ""
    if part == "cache":
        return None, _cached(run, recipe)
    return None, ""


def _fine_tuning(run: Path, recipe: dict[str, Any], name: str, log: Path) -> Training:
    """Training of a teacher, an anchor, or one of either for a fold."""
    records = read_log(log)
    teacher = log.parent.name in ("teach", "teacher")
    stages, each = (dig(recipe, "distill", key, default=float("nan")) for key in ("num_stages", "epochs_per_stage"))
    share = _share(records, recipe, ["teach"] if teacher else ["distill", "anchor"], None if teacher else stages * each)
    spent = written(log) - written(run / name / STARTED)
    left = spent * (1 - share) / share if share and name != "cross_fit" and spent > 0 else None
    where = name if name != "cross_fit" else log.parent.relative_to(run).as_posix()
    after = "validating its checkpoints" if teacher else "reading the rows"
    return Training(where, records, share, left, after if share >= 1 else "training")


def _distillation(run: Path, recipe: dict[str, Any], name: str, done: dict[str, float | None]) -> Training:
    folder = run / name
    records = [record for record in read_or_none(folder / "stages.json") or [] if isinstance(record, dict)]
    total = int(dig(recipe, "distill", "num_stages", default=len(records)))
    log, stage = read_log(folder / "log.jsonl"), len(records) + 1
    kept = dig(read_or_none(folder / MANIFEST), "kept_stage")
    if done.get(name) is not None or stage > total:
        finished = done.get(name) is not None
        return Training(name, log, 1.0, 0.0, "finished" if finished else "writing the student", records, kept)
    choice = folder / f"trainer-{stage}" / "choice.json"
    chosen = read_or_none(choice)
    mine = [record for record in log if record.get("stage") == stage]
    share = _share(mine, recipe, ["distill"], dig(recipe, "distill", "epochs_per_stage"))
    others = [seconds / total for other, seconds in done.items() if other.startswith("distill/") and seconds]
    known = [seconds for record in records if (seconds := record.get("seconds"))] or others
    spent = written(folder / "log.jsonl") - max(written(choice), written(folder / STARTED))
    each = sum(known) / len(known) if known else spent / share if share and spent > 0 else None
    left = None if each is None else each * (total - len(records) - share)
    doing = "choosing a checkpoint" if chosen is None else "validating" if share >= 1 else "training"
    shown = [*records, {"stage": stage, **chosen}] if isinstance(chosen, dict) else records
    whole = None if each is None else each * total
    return Training(name, log, share, left, f"stage {stage} of {total}, {doing}", shown, whole=whole)


def _share(
    log: Sequence[dict[str, Any]], recipe: dict[str, Any], sections: Sequence[str], epochs: float | None
) -> float:
    """How much of a training its last record is: steps or epochs done of those that the recipe asks for."""
    given = TRAINER_DEFAULTS | dig(recipe, "trainer", default={})
    for section in sections:
        given |= dig(recipe, section, "trainer", default={})
    steps = given.get("max_steps") or 0
    done, whole = ("step", steps) if steps > 0 else ("epoch", epochs or given.get("num_train_epochs") or 3.0)
    share = (log[-1].get(done) or 0.0) / whole if log else 0.0
    return min(1.0, share) if math.isfinite(share) else 0.0


def _cached(run: Path, recipe: dict[str, Any]) -> str:
    """How far the cache is, in shards, and its time left."""
    rows = dig(read_or_none(run / "prepare/data.json"), "lengths", "train", "rows", default=0)
    checkpoints = len(dig(read_or_none(run / "teach/checkpoints.json"), "checkpoints", default=[]))
    whole = checkpoints * -(-rows // dig(recipe, "cache", "shard_rows", default=1024))
    shards = list(run.glob("cache/*/shard-*.safetensors"))
    began = written(run / "cache" / STARTED)
    new = [when for when in map(written, shards) if when > began]
    left = (max(new) - began) / len(new) * (whole - len(shards)) if new else None
    return f"{len(shards)} of {whole or '?'} shards" + (f", {duration(left)} left" if left else "")


def _left(training: Training | None, done: dict[str, float | None], working: Sequence[str]) -> float | None:
    """Seconds until all students are trained and scored, where at least one of them, or a stage of one, was timed."""
    total, known = 0.0, False
    for part in ("distill", "evaluate"):
        mine = {name: seconds for name, seconds in done.items() if name.startswith(f"{part}/")}
        spent = [seconds for seconds in mine.values() if seconds is not None]
        spent = spent or [training.whole] if part == "distill" and training and training.whole else spent
        waiting = [name for name, seconds in mine.items() if seconds is None and name not in working]
        at_once = max(1, sum(name in working for name in mine))
        if spent:
            total, known = total + sum(spent) / len(spent) * len(waiting) / at_once, True
    if training and training.left is not None and training.name.startswith("distill") and training.name in working:
        return total + training.left
    return total if known and working else None


def _memory(run: Path) -> tuple[int, int, int] | None:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        if process := worker(run):
            family = [process, *process.children(recursive=True)]
            sizes = []
            for member in family:
                with contextlib.suppress(psutil.Error):
                    sizes.append(member.memory_info().rss)
            return process.pid, len(sizes), sum(sizes)
    return None


# --- a frame ---


def watch(folder: Path, once: bool = False, interval: float = 1.0, console: Console | None = None) -> None:
    """Show a run on the terminal until it is finished; one frame with `once`, or where standard output is no terminal.

    interval: seconds between two looks. Raises DataError if the folder is no run.
    """
    from rich.console import Console
    from rich.live import Live

    if not is_run(folder):
        near = (
            f": its run is {folder.parent}"
            if is_run(folder.parent)
            else ", or its run has not begun; `tutelage ls` lists runs"
        )
        raise DataError(f"{folder} is no run folder{near}")
    console = console or Console(highlight=False)
    if once or not console.is_terminal:
        console.print(draw(look(folder)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = look(folder)
            live.update(draw(seen), refresh=True)
            if seen.finished:
                return
            time.sleep(interval)


def draw(seen: Look) -> Group:
    """A frame of a terminal."""
    from rich.console import Group

    parts = [_head(seen), _road(seen), _now(seen)]
    if seen.training:
        parts += [*_losses(seen.training.log), *_stages(seen.training)]
    parts += [*_scores(seen), _machine(seen)]
    return Group(*parts)


def _line(*pieces: str | tuple[str, str]) -> Text:
    """A line of text, or of (text, style); nothing in it is markup, and control characters are symbols."""
    from rich.text import Text

    line = Text()
    for piece in pieces:
        text, style = (piece, "") if isinstance(piece, str) else piece
        line.append(visible(text), style)
    return line


def _head(seen: Look) -> Text:
    recipe = seen.recipe
    models = [Path(str(dig(recipe, role, "model_name_or_path", default=role))).name for role in ("teacher", "student")]
    name = str(dig(recipe, "name", default=seen.run.resolve().name))
    return _line((name, "bold"), f"  {dig(recipe, 'task', 'type', default='')}  {' → '.join(models)}  ({seen.run})")


def _road(seen: Look) -> Columns:
    """All pieces of work side by side: done with their seconds, at work, still to come; students and scores are
    counted."""
    from rich.columns import Columns

    groups: dict[str, list[str]] = {}
    for name in seen.pieces:
        groups.setdefault(name.split("/")[0], []).append(name)
    words = []
    for part, names in groups.items():
        spent = [seconds for name in names if (seconds := seen.pieces[name]) is not None]
        working = any(name in seen.working for name in names)
        count = f" {len(spent)}/{len(names)}" if len(names) > 1 else ""
        whole = len(spent) == len(names)
        mark, style = ("▶", "bold yellow") if working else ("✓", "green") if whole else ("·", "dim")
        words.append(_line((f"{mark} {part}{count}{' ' + duration(sum(spent)) if spent else ''}", style)))
    return Columns(words, padding=(0, 2))


def _now(seen: Look) -> Text:
    if seen.finished:
        return _line(("finished", "bold green"))
    if not seen.working:
        return _line(("nothing is at work", "yellow"), f"; last change {duration(seen.quiet)} ago")
    what: list[str | tuple[str, str]] = ["at work: ", (", ".join(seen.working[-3:]), "bold")]
    if training := seen.training:
        step = f", step {training.log[-1]['step']:,}" if training.log else ""
        what.append(f"; {training.doing}{step}, {percent(training.share)}")
        what.append(f"; {_still(training.left, seen)}" if training.left is not None else "")
    elif seen.note:
        what.append(f"; {seen.note}")
    if seen.left is not None and (not seen.training or seen.left != seen.training.left):
        what.append(f"; students and scores: {_still(seen.left, seen)}")
    return _line(*what)


def _still(left: float, seen: Look) -> str:
    """What was left when the log was last written, less the time since: a record may be minutes old."""
    return (
        f"{duration(left - seen.quiet)} left"
        if seen.quiet < left
        else f"overdue, nothing written for {duration(seen.quiet)}"
    )


def _losses(log: Sequence[dict[str, Any]], width: int = 36) -> list[Text]:
    """A curve of each part of the loss, first and last value beside it; stages of distillation are set apart."""
    stages = list(dict.fromkeys(record.get("stage") for record in log))
    lines = []
    for key, name in PARTS.items():
        values = [record[key] for record in log if isinstance(record.get(key), int | float)]
        if not values:
            continue
        curves = [
            [r[key] for r in log if r.get("stage") == stage and isinstance(r.get(key), int | float)] for stage in stages
        ]
        curve = "│".join(sparkline(part, max(4, width // len(stages)), values) for part in curves)
        lines.append(_line(f"{name:18} ", (curve, "cyan"), f"  {number(values[0])} → {number(values[-1])} nats"))
    return lines


def _stages(training: Training) -> list[Any]:
    """The stages as a table, and the reason of each choice."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if not training.stages:
        return []
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=visible(training.name), title_justify="left")
    for name in ("stage", "follows", "KL T*", "KL S", "CE", "KL", "score", "loss", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in training.stages:
        chosen, log = record.get("chosen"), [line for line in training.log if line.get("stage") == record.get("stage")]
        near = next((c for c in record.get("candidates") or [] if c.get("checkpoint") == chosen), {})
        last, kept = log[-1] if log else {}, record.get("stage") == training.kept
        cells = (
            f"{record.get('stage')}{' kept' if kept else ''}", str(chosen or "gold").removeprefix("checkpoint-"),
            *(number(value) for value in (near.get("kl_best"), near.get("kl_student"), last.get("ce"), last.get("kd"))),
            number(dig(record, "validation", "score")), number(dig(record, "validation", "nll")),
            duration(record["seconds"]) if record.get("seconds") else "",
        )  # fmt: skip
        table.add_row(*map(_line, cells), style="bold" if kept else "")
    lines = [_line(f"stage {record.get('stage')}: {record.get('reason') or ''}") for record in training.stages]
    stalls = [_line((f"! stage {r.get('stage')}: {r['stall']}", "yellow")) for r in training.stages if r.get("stall")]
    return [table, *lines, *stalls]


def _scores(seen: Look) -> list[Text]:
    """Test scores, when they are there: the models that a reader compares, and the best few of the distilled ones."""
    models, metric = dig(seen.scores, "models", default={}), str(seen.scores.get("metric"))
    known = {name: score for name, table in models.items() if (score := as_interval(dig(table, metric)))}
    if not known:
        return []
    base = [name for name in BASE_MODELS if name in known]
    ours = sorted((name for name in known if name not in base), key=lambda name: -known[name].value)
    words = [f"{name} {span(known[name])}" for name in (*base, *ours[:6])]
    more = f", and {len(ours) - 6} more" if len(ours) > 6 else ""
    return [_line((f"test {metric}: ", "bold"), ", ".join(words) + more)]


def _machine(seen: Look) -> Text:
    if seen.process:
        pid, family, size = seen.process
        children = f" and {family - 1} of its children" if family > 1 else ""
        return _line((f"memory {weight(size)}: process {pid}{children}, on this machine", "dim"))
    if seen.finished or not seen.working:
        return _line("")
    stopped = "; it may have been stopped: the same command continues it" if seen.quiet > STALLED_SECONDS else ""
    return _line((f"no process of this machine holds the run; last change {duration(seen.quiet)} ago{stopped}", "dim"))
