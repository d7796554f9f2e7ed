"""Kills a small run at every file operation, and at random moments: `python -m benchmarks.kills [--json FILE]`.

    operations  the process of a command ends before its n-th file operation (open for writing, rename, unlink, rmdir,
                mkdir, truncate, fsync), for every n of every stage, of rebuilding it with --force, and of `clean`,
                `card`, `compare`, `predict`, `shrink` and `init`; a file about to be synced loses its second half
    moments     SIGKILL at a random moment of `tutelage run` until the run ends, then a new run

After each kill the same command is typed until it ends. Then the folder must hold the files of an undisturbed one, bit
by bit: weights, predictions, losses, records and manifests, without durations, dates and training logs. `stuck` counts
commands that did not end, `different` those with another result. Processes are forked from one that has imported
everything, so this needs Linux.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn
from unittest.mock import patch

import numpy as np
import torch
import typer
import yaml

from benchmarks import command_line
from benchmarks.endtoend import random_words, save_models, write_rows
from benchmarks.machine import machine_class, versions
from benchmarks.shapes import Shape
from tutelage.cli.main import MAY_STOP
from tutelage.cli.main import main as tutelage
from tutelage.compare import cell_runs
from tutelage.compare.executors import Outcome
from tutelage.stages import STAGES

TEACHER = Shape(hidden=32, layers=3, heads=2, kv_heads=1, intermediate=64, vocabulary=256)
STUDENT = Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=256)
METHODS = ["scd-aw", "taid", "td+stage_reset=false", "td-aw-cf", "seqkd"]
"""Together they use every stage, and everything that an interrupted one continues from."""
TRIES = 3
"""Times that a command is typed after a kill before it counts as stuck."""
KILLED = 137
TIMES = ("seconds", "finished", "memory", "answering", "files", "checksum")
"""Keys of JSON files that hold durations, dates and what follows from them."""
WITHOUT = (".lock", "log.jsonl", "index.html")
"""Names of files that hold times in other ways."""


# --- a project and its commands ---


def make_project(folder: Path, methods: Sequence[str]) -> Path:
    """Rows, two models and a recipe; returns the recipe."""
    draw, vocabulary = np.random.default_rng(0), STUDENT.vocabulary
    labels = [random_words(draw, 2, vocabulary) for _ in range(3)]
    for seed, (split, count) in enumerate({"train": 8, "validation": 4, "test": 4}.items(), start=1):
        write_rows(folder / "data" / f"{split}.jsonl", split, draw.integers(6, 12, count), labels, vocabulary, seed)
    save_models(folder / "models", TEACHER, STUDENT, 1)
    recipe = {
        "output_dir": str(folder / "run"),
        "task": {"type": "classification", "max_new_tokens": 2},
        "data": {"dataset": str(folder / "data"), "template": "{text}"},
        "teacher": {"model_name_or_path": str(folder / "models" / "checkpoint-1")},
        "student": {"model_name_or_path": str(folder / "models" / "student")},
        "trainer": {"per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 0.003, "bf16": False},
        "teach": {"num_checkpoints": 2, "spacing": "loss", "trainer": {"num_train_epochs": 2}},
        "cache": {"dtype": "float32", "shard_rows": 4},
        "cross_fit": {"folds": 2, "teacher": False},
        "distill": {
            "methods": [*methods],
            "select": None,
            "num_stages": 2,
            "epochs_per_stage": 1.0,
            "probe_rows": 4,
            "save_steps": 1,
        },
        "evaluate": {"resamples": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


class Command(NamedTuple):
    """A command that is killed."""

    name: str
    words: list[str]
    folder: Path
    """Whose file operations count, and whose files are compared."""


def stage_commands(recipe: Path, methods: Sequence[str]) -> Iterator[Command]:
    """Every stage, in order; one student after the other, so that what is typed again takes no longer than it must."""
    run = recipe.parent / "run"
    for stage in STAGES:
        words = [stage.replace("_", "-"), str(run if stage == "diagnose" else recipe)]
        words += ["--anyway"] * (stage in MAY_STOP)  # these models learn nothing
        for method in methods if stage in ("distill", "evaluate") else ():
            yield Command(f"{stage} {method}", [*words, f"distill.methods=['{method}']"], run)
        if stage != "distill":
            yield Command(stage, words, run)


def more_commands(recipe: Path) -> Iterator[Command]:
    """Rebuilding every stage of a finished run, and the commands that write other files."""
    here, run = recipe.parent, recipe.parent / "run"
    for command in stage_commands(recipe, METHODS[:1]):
        if command.name != "diagnose":
            yield command._replace(name=f"{command.name} --force", words=[*command.words, "--force"])
    student, rows, new = str(run / "distill" / METHODS[0] / "seed-0"), str(here / "data" / "test.jsonl"), here / "new"
    shrink, fewer = ["shrink", str(here / "models" / "checkpoint-1")], ["--layers", "2"]
    healing = ["--heal", "--text", rows, "--tokens", "1200", "--block-length", "16", "--batch-size", "4"]
    for words in (
        ["clean", str(run), "--yes"],
        ["card", str(run)],
        ["compare", str(recipe), "--methods", f"sft,{METHODS[0]}", "--seeds", "1", "--teacher-seeds", "2", "--anyway"],
        ["predict", student, "--input", rows, "--output", str(new / "answers.jsonl")],
        [*shrink, str(new / "small"), *fewer],
        [*shrink, str(new / "healed"), *fewer, *healing],
        ["init", str(here / "data" / "train.jsonl"), "--output", str(new / "recipe.yaml")],
    ):
        yield Command(words[0], words, here)


class Inline:
    """In place of `executors.LocalExecutor`: the cells of a comparison in this process, whose end is theirs."""

    threads = 1

    def __init__(self, task: Any, logs: Path, jobs: int = 1) -> None:
        self.task = task

    def run(self, cells: Sequence[Any]) -> Iterator[Outcome]:
        """One after another."""
        for cell in cells:
            self.task(cell)
            yield Outcome(cell, 0.0)


# --- a process, and its end ---


class FileOperations:
    """Counts this process's file operations below a folder, and ends it before one of them."""

    def __init__(self, folder: Path, at: int | None) -> None:
        """at: the operation, counted from 1."""
        self.folder, self.at, self.count, self._fsync = os.path.realpath(folder), at, 0, os.fsync

    def install(self) -> None:
        """Listen to Python's audit events; there is none for fsync. Operations of compiled libraries are not seen."""
        sys.addaudithook(self._on_event)
        os.fsync = self._on_fsync

    def _on_event(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            if values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(values[0], str | bytes | os.PathLike):
                self._step(os.fspath(values[0]), -1)
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            self._step(values[0], values[2 if event in ("os.rename", "os.mkdir") else -1])

    def _on_fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self._step(path, -1, end=False):
            if os.path.isfile(path):  # what was not synced may be lost
                with open(path, "r+b") as file:
                    file.truncate(os.path.getsize(path) // 2)
            os._exit(KILLED)
        self._fsync(descriptor)

    def _step(self, path: str | bytes, folder: Any, end: bool = True) -> bool:
        """Count an operation on a path, relative to a folder's descriptor if that is no -1; whether it is the last."""
        parent, name = os.path.split(os.fsdecode(path))
        if isinstance(folder, int) and folder >= 0:
            parent = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), parent)
        if not f"{os.path.join(os.path.realpath(parent or '.'), name)}/".startswith(f"{self.folder}/"):
            return False
        self.count += 1
        if self.count == self.at and end:
            os._exit(KILLED)
        return self.count == self.at


class Ended(NamedTuple):
    """How a command's process ended."""

    code: int
    operations: int
    """File operations; 0 if the process was killed."""
    output: str


def run_command(command: Command, at: int | None = None, seconds: float | None = None) -> Ended:
    """Run a command in a forked process; it ends before its file operation `at`, or is killed after `seconds`."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            _work(command, at, output.fileno(), theirs)
        os.close(theirs)
        if seconds is not None and not select.select([ours], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        count = int(os.read(ours, 20) or 0)  # empty once the process is gone
        os.close(ours)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return Ended(code, count, output.read())


def _work(command: Command, at: int | None, output: int, count: int) -> NoReturn:
    """In the forked process: the command. output, count: descriptors for what it prints, and for its operations."""
    code, operations = 70, FileOperations(command.folder, at)
    try:
        # torch makes its thread pool anew after a fork, and fails if two threads that load weights ask for it at once.
        torch.set_num_threads(1)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv, cell_runs.LocalExecutor = command_line(command.words), Inline
        operations.install()
        tutelage()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(count, str(operations.count).encode())
        os._exit(code)


# --- what a folder holds ---


def contents(folder: Path) -> dict[str, str]:
    """What must be the same in every file: a hash by path; JSON without durations and dates."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name not in WITHOUT)
    return {path.relative_to(folder).as_posix(): _content(path) for path in paths}


def _content(path: Path) -> str:
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    value = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    if path.name == "manifest.json" and path.parent.name in ("report", "diagnose"):  # made from files that hold times
        value["inputs"] = sorted(value["inputs"])
    return json.dumps(_timeless(value))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that only one of two folders has, or that differ."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


# --- kills ---


class Verdict(NamedTuple):
    """What came of a kill."""

    kind: str
    """same, different, or stuck."""
    detail: str = ""


def type_again(command: Command, expected: dict[str, str]) -> Verdict:
    """Type a killed command until it ends, and compare what it left."""
    for _ in range(TRIES):
        ended = run_command(command)
        # A command that never overwrites a file refuses to, if it was killed when the file was there already.
        if ended.code == 0 or not differences(contents(command.folder), expected):
            break
    else:
        return Verdict("stuck", ended.output[-2000:])
    others = differences(contents(command.folder), expected)
    return Verdict("different", ", ".join(others)) if others else Verdict("same")


def restore(copy: Path, folder: Path) -> None:
    """Put a folder back as it was."""
    shutil.rmtree(folder, ignore_errors=True)
    if copy.exists():
        shutil.copytree(copy, folder)


def killed_at_operations(
    command: Command, copy: Path, chosen: Callable[[int], Iterable[int]] = lambda count: range(1, count + 1)
) -> list[Verdict]:
    """Kill a command at its file operations, one run for each, from the folder as it is; leave it as the command does.

    copy: where to keep the folder. chosen: from the number of operations to those at which to kill; default: all.
    """
    shutil.rmtree(copy, ignore_errors=True)
    if command.folder.exists():
        shutil.copytree(command.folder, copy)
    undisturbed = run_command(command)
    if undisturbed.code:
        raise SystemExit(f"{command.name} failed undisturbed:\n{undisturbed.output}")
    expected, verdicts = contents(command.folder), []
    for number in chosen(undisturbed.operations):
        restore(copy, command.folder)
        run_command(command, at=number)
        verdict = type_again(command, expected)
        verdicts.append(verdict._replace(detail=f"{command.name}, operation {number}: {verdict.detail}"))
    return verdicts


def killed_at_moments(command: Command, kills: int) -> Iterator[Verdict]:
    """SIGKILL a whole run at random moments until there were `kills`: again and again until it ends, then a new run."""
    draw, left = random.Random(0), kills
    shutil.rmtree(command.folder, ignore_errors=True)
    began = time.monotonic()
    run_command(command)
    usual, expected = time.monotonic() - began, contents(command.folder)
    while left > 0:
        shutil.rmtree(command.folder)
        killed = 0
        while killed < left and run_command(command, seconds=draw.uniform(0, usual)).code == -signal.SIGKILL:
            killed += 1
        left -= killed
        verdict = type_again(command, expected)
        yield from [verdict._replace(detail=f"after {killed} kills: {verdict.detail}")] * killed


def warm_up(folder: Path, methods: Sequence[str]) -> None:
    """Run everything once in this process, so that the forked ones have imported all that they need."""
    torch.set_num_threads(1)
    recipe = make_project(folder, methods)
    for command in stage_commands(recipe, methods):
        quiet = (redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()))
        with suppress(SystemExit), quiet[0], quiet[1], patch.object(sys, "argv", command_line(command.words)):
            tutelage()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")] = None,
    moments: Annotated[int, typer.Option(min=0, help="Kills at random moments.")] = 100,
    every: Annotated[int, typer.Option(min=1, help="Kill at every N-th file operation only.")] = 1,
) -> None:
    """Kills a small run at every file operation, and at random moments."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder, "warm"), METHODS)
        recipe, copy = make_project(Path(folder, "project"), METHODS), Path(folder, "copy")
        run = Command(
            "moments", ["run", str(recipe), f"distill.methods={METHODS[:1]}", "--anyway"], recipe.parent / "run"
        )
        draw = random.Random(0)
        for command in [*stage_commands(recipe, METHODS), *more_commands(recipe), run]:
            if command is run:
                verdicts = list(killed_at_moments(run, moments))
            else:
                verdicts = killed_at_operations(
                    command, copy, lambda count: range(1 + draw.randrange(min(every, count)), count + 1, every)
                )
            found[command.name] = Counter(verdict.kind for verdict in verdicts)
            print(f"{command.name:28}", dict(found[command.name]), flush=True)
            for verdict in verdicts:
                if verdict.kind != "same":
                    print(f"  {verdict.kind}: {verdict.detail}", flush=True)
    print(f"{'all':20}", dict(sum(found.values(), Counter())))
    if json_file:
        record = {"every": every, "machine": machine_class(), "versions": versions(), "kills": found}
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
