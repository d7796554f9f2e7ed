"""Damaged run folders under every command: `python -m benchmarks.damage [--quick] [--share 0.1] [--log FILE]`.

A finished run of tiny models (every stage, full weights or LoRA adapters, and a comparison) is copied; in the copy one
file is damaged, and one command is run on it in this process. What came of it, by the first line that applies:

    traceback   an exception that is no user error
    refused     the command or its output names the file as damaged or missing
    same        it prints what it prints of the sound run and writes the same files: the damage does not matter to it
    rebuilt     the file was written again, and everything else is the same
    stopped     a user error that does not name the file
    silent      anything else: other numbers and not a word

The goal is none of `traceback` and `silent`. The full benchmark takes every kind of file, every fault and every command
of both runs; `--quick` takes the cheap commands and three faults. Seconds, dates and memory are no numbers here. With
--log the same command continues after an interruption: each outcome is a line of that file. Name another file after a
change of the code.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import typer
import yaml

from benchmarks import command_line
from benchmarks.endtoend import save_models, write_rows
from benchmarks.shapes import Shape
from tutelage.utils.checksums import SEALED

TEACHER = Shape(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=64)
STUDENT = Shape(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=32, vocabulary=64)
METHODS = ["scd-aw", "td-aw-cf", "seqkd"]
STUDENT_FOLDER = "distill/scd-aw/seed-0"

COMMANDS: dict[str, tuple[str, ...]] = {
    "show": ("show", "RUN"),
    "ls": ("ls", "."),
    "watch": ("watch", "RUN", "--once"),
    "explain": ("explain", "ROW", "--run", "RUN"),
    "clean": ("clean", "RUN"),
    "card": ("card", "RUN", f"--student={METHODS[0]}/seed-0"),
    "push": ("push", "RUN", "owner/name", "--dry-run"),
    "predict": ("predict", f"RUN/{STUDENT_FOLDER}", "--input", "data/test.jsonl"),
    "diagnose": ("diagnose", "RUN"),
    "report": ("report", "RUN", "--force"),
    "doctor": ("doctor", "RUN"),
    "prepare": ("prepare", "RUN"),
    "run": ("run", "RUN"),
    "compare": ("compare", "RUN", "--methods", ",".join(METHODS[:1]), "--seeds", "2"),
    "cross-fit": ("cross-fit", "RUN", "--force"),
    "teach": ("teach", "RUN", "--force"),
    "anchor": ("anchor", "RUN", "--force"),
    "cache": ("cache", "RUN", "--force"),
    "distill": ("distill", "RUN", "--force"),
    "evaluate": ("evaluate", "RUN", "--force"),
    "export": ("export", f"RUN/{STUDENT_FOLDER}", "--to", "lm-eval", "--output", "RUN/exported"),
}
"""Words of every command; stages are forced, since one that is up to date reads nothing."""
PROJECTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"teacher": {"lora": {"r": 2}}, "student": {"lora": {"r": 2}}},
}
CHEAP = ("show", "ls", "watch", "explain", "clean", "card", "predict", "report")

IGNORED = ("seconds", "finished", "memory", "answering", "files", "checksum", "versions", "*_runtime", "*_per_second")
"""Keys of JSON that differ between two equal runs."""
UNCOMPARED = (".lock", "logs", "trainer_state.json", "training_args.bin", "README.md", "index.html")
"""Names of files that hold dates or seconds as text; of the pages, `index.html`, standard output says what was made."""


class Outcome(NamedTuple):
    """What came of one command on one damaged file."""

    file: str
    fault: str
    command: str
    what: str
    detail: str = ""


class Result(NamedTuple):
    """A command that ran to its end."""

    code: int | None
    """None after an exception that is no user error."""
    out: str
    err: str
    files: dict[str, Any]
    """What the run folder holds afterwards, by path."""


# --- faults ---


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def apply(path: Path, other: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return apply


def _flip(content: bytes) -> bytes:
    """One bit of a digit in the middle, or of the byte there: a file that still reads well, with another number."""
    middle = len(content) // 2
    digits = [place.start() for place in re.finditer(rb"[0-8]", content[middle : middle + 400])]
    place = middle + digits[0] if digits and content[:1] in b"{[" else middle
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] if content else b"\0"


def _delete(path: Path, other: Path) -> None:
    path.unlink()


def _folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _swap(path: Path, other: Path) -> None:
    path.unlink()
    shutil.copyfile(other, path)


FAULTS: dict[str, Callable[[Path, Path], None]] = {
    "flip": _rewrite(_flip),
    "halve": _rewrite(lambda content: content[: len(content) // 2]),
    "empty": _rewrite(lambda content: b""),
    "delete": _delete,
    "folder": _folder,
    "unreadable": lambda path, other: None,
    "cut": _rewrite(lambda content: content[:-1]),
    "longer": _rewrite(lambda content: content + b"\n{}\n"),
    "other run": _swap,
}
"""Each is called with the file and the same file of another run. `unreadable` is done where the command runs."""


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Reading this file is refused, also for a superuser, whom the mode of a file does not stop."""
    path.chmod(0)
    opened, at = io.open, path.absolute()

    def guarded(file: Any, *args: Any, **kwargs: Any) -> Any:
        reads = isinstance(file, str | os.PathLike) and "r" in (args[0] if args else "r")
        if reads and Path(file).absolute() == at and at.exists() and not at.stat().st_mode & 0o777:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **kwargs)

    with mock.patch("builtins.open", guarded), mock.patch("io.open", guarded):
        yield


# --- a run, and commands on copies of it ---


class Bench:
    """A finished run, another one to swap files with, and commands on damaged copies."""

    def __init__(self, folder: Path, recipe: Path, *, whole: bool = True) -> None:
        """recipe: of the run, whose output_dir is `run` beside it. whole: with a comparison, and another run."""
        self.run, self.sound, self.other = recipe.parent / "run", folder / "sound", folder / "other"
        os.chdir(recipe.parent)
        for seed, kept in ((1, self.other), (0, self.sound)) if whole else ((0, self.sound),):
            for name in ("compare", "run") if whole else ("run",):
                words = [word.replace("RUN", str(recipe)) for word in COMMANDS[name]] + [f"seed={seed}"]
                result = self.command(words)
                if result.code or result.code is None:
                    raise SystemExit(f"{' '.join(words)}: {result.out}{result.err}")
            self.run.rename(kept)
        self.row = json.loads((self.sound / "prepare/rows.jsonl").read_text(encoding="utf-8").splitlines()[0])["id"]
        self._sound_results: dict[str, Result] = {}

    def kinds_of_files(self) -> list[str]:
        """One path of every kind of file; of checkpoints, shards and scored models the first, of students the one that
        `predict` and `card` are asked about."""
        kinds: dict[str, str] = {}
        for path in sorted(path for path in self.sound.rglob("*") if path.is_file()):
            name = path.relative_to(self.sound).as_posix()
            kind = re.sub(r"checkpoint-\d+|head-\w+|seed-\d+|shard-\d+", "*", name)
            kind = re.sub(r"^(distill|evaluate)/(?:[\w.+=-]+/\*|teacher|student|anchor)/", r"\1/*/", kind)
            if not any(part in ("logs", ".lock", "README.md") for part in path.relative_to(self.sound).parts):
                kinds.setdefault(kind, name)
        return [re.sub(r"^distill/[^/]+/seed-\d+", STUDENT_FOLDER, name) for name in kinds.values()]

    def outcome(self, file: str, fault: str, command: str) -> Outcome:
        """Damage a copy, run the command, and judge."""
        before = self._sound_result(command)
        self.copy(command, keep=file)
        path, twin = self.run / file, self.other / file
        if not path.is_file():
            return Outcome(file, fault, command, "same", "the file is not there")
        if fault == "other run" and (not twin.is_file() or twin.read_bytes() == path.read_bytes()):
            return Outcome(file, fault, command, "same", "both runs have the same file")
        sound = _content(path)
        FAULTS[fault](path, twin)
        with unreadable(path) if fault == "unreadable" else contextlib.nullcontext():
            after = self.command(self.words(command))
        what, detail = self._judge(file, sound, before, after)
        return Outcome(file, fault, command, what, detail)

    def _judge(self, file: str, sound: Any, before: Result, after: Result) -> tuple[str, str]:
        if after.code is None:
            return "traceback", after.err.strip().splitlines()[-1]
        text = after.out + after.err
        if self._named(file, text) and not self._named(file, before.out + before.err):
            return "refused", ""
        if after.code == 2:
            return "stopped", after.err.strip().splitlines()[-1] if after.err.strip() else ""
        names = (before.files.keys() | after.files.keys()) - {file}
        others = [name for name in names if _apart(before.files.get(name), file) != _apart(after.files.get(name), file)]
        if after.code == before.code and _timeless(after.out) == _timeless(before.out) and not others:
            again = file in before.files and after.files.get(file) == before.files[file]
            return ("rebuilt" if again and before.files[file] == sound else "same"), ""
        return "silent", f"code {after.code}, other files: {sorted(others)[:5]}"

    def _named(self, file: str, text: str) -> bool:
        joined = "".join(text.split())  # tables break long paths
        folder, _, name = file.rpartition("/")
        # The manifest of another run contradicts every file, and the recipe.
        if name in SEALED and any(words in joined for words in ("isdamaged", "broken:", "resultofotherinputs")):
            return True
        missing = (f"{folder}hasno{name}", f"afolderwithout{file}", f"kept:{file}", f"kept:{Path(folder).name},which")
        return any(
            words in joined for words in (*(f"{file}{rest}" for rest in ("is", ",line", "cannot", ":cannot")), *missing)
        )

    def _sound_result(self, command: str) -> Result:
        if command not in self._sound_results:
            self.copy(command)
            self._sound_results[command] = self.command(self.words(command))
            code = self._sound_results[command].code
            if code is None or (code and command != "doctor"):
                raise SystemExit(f"{command} fails on the sound run: {self._sound_results[command].err}")
        return self._sound_results[command]

    def copy(self, command: str, keep: str = "") -> None:
        """A fresh copy; without the result of `diagnose` for that command, which has no --force."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.sound, self.run)
        if command == "diagnose" and not keep.startswith("diagnose/"):
            shutil.rmtree(self.run / "diagnose")

    def words(self, command: str) -> list[str]:
        """What is typed after `tutelage`."""
        return [word.replace("RUN", str(self.run)).replace("ROW", self.row) for word in COMMANDS[command]]

    def command(self, words: Sequence[str]) -> Result:
        """Run `tutelage WORDS` in this process."""
        from tutelage.cli.main import main
        from tutelage.compare import cell_runs

        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.object(sys, "argv", command_line(words)),
            mock.patch.object(cell_runs, "LocalExecutor", _Inline),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as leaving:
                code = leaving.code or 0
            except BaseException:
                code = None
                err.write(traceback.format_exc())
        files = {p.relative_to(self.run).as_posix(): _content(p) for p in sorted(self.run.rglob("*")) if _compared(p)}
        return Result(code, out.getvalue(), err.getvalue(), files)


class _Inline:
    """In place of `executors.LocalExecutor`: the cells of a comparison in this process."""

    threads = 1

    def __init__(self, task: Callable[..., object], logs: Path, jobs: int = 1) -> None:
        self.task = task

    def run(self, cells: Sequence[Any]) -> Iterator[Any]:
        from tutelage.compare.executors import Outcome as CellOutcome
        from tutelage.errors import UserError

        for cell in cells:
            try:
                self.task(cell)
                yield CellOutcome(cell, 0.0)
            except UserError as error:
                yield CellOutcome(cell, 0.0, f"{type(error).__name__}: {error}")


def _compared(path: Path) -> bool:
    return path.is_file() and not any(part in UNCOMPARED for part in path.parts)


def _content(path: Path) -> Any:
    """What a file says, without what differs between two equal runs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return str(error)
    try:
        if path.suffix == ".json":
            value = _without_times(json.loads(content))
            if path.name == "manifest.json" and path.parent.name in ("report", "diagnose"):
                value["inputs"] = sorted(value["inputs"])  # hashes of files that hold times
            return value
        if path.suffix == ".jsonl":
            return [_without_times(json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError, KeyError):
        pass
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if not any(fnmatch(key, pattern) for pattern in IGNORED)}
        return {key: _without_times(entry) for key, entry in kept.items()}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


def _apart(content: Any, file: str) -> Any:
    """The content of a manifest without this file in the list of what was read."""
    listed = isinstance(content, dict) and isinstance(content.get("inputs"), list)
    return {**content, "inputs": [name for name in content["inputs"] if name != file]} if listed else content


def _timeless(text: str) -> str:
    """Printed text without seconds, ages, dates and sizes."""
    return re.sub(r"[\d.,]+ (?:s|min|h|MB|kB|B|GB)\b|\d+ (?:seconds?|minutes?) ago|\d{4}-\d\d-\d\d[ T\d:]*", "#", text)


# --- the benchmark ---


def make_project(folder: Path, **sections: Any) -> Path:
    """Data, models and recipe; returns the recipe."""
    labels = ["w5 w6", "w7 w8", "w9 w10"]
    for seed, (split, count) in enumerate({"train": 12, "validation": 6, "test": 9}.items()):
        lengths = [6] * count
        write_rows(folder / "data" / f"{split}.jsonl", split, lengths, labels, STUDENT.vocabulary, seed)
    save_models(folder / "models", TEACHER, STUDENT, 1)
    recipe = {
        "output_dir": str(folder / "run"),
        "task": {"type": "classification", "max_new_tokens": 3},
        "data": {"dataset": str(folder / "data"), "template": "{text}"},
        "teacher": {"model_name_or_path": str(folder / "models/checkpoint-1")},
        "student": {"model_name_or_path": str(folder / "models/student")},
        "trainer": {"per_device_train_batch_size": 6, "use_cpu": True, "learning_rate": 0.01, "bf16": False},
        "teach": {"num_checkpoints": 2, "trainer": {"num_train_epochs": 2}},
        "cache": {"dtype": "float32", "shard_rows": 8},
        "cross_fit": {"folds": 2},
        "distill": {"methods": METHODS, "select": None, "seeds": [0], "num_stages": 2, "epochs_per_stage": 1.0},
        "evaluate": {"resamples": 100},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe[section], **values}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Cheap commands, three faults, full weights only.")] = False,
    share: Annotated[float, typer.Option(help="Try this share of all commands, drawn at random.")] = 1.0,
    log: Annotated[Path | None, typer.Option(help="Write each outcome to this file; skip what it holds.")] = None,
) -> None:
    """Damage every kind of file in every way under every command, and count what came of it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    log = log and log.absolute()
    counts: Counter[str] = Counter()
    for name, sections in list(PROJECTS.items())[: 1 if quick else 2]:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), make_project(Path(folder) / "project", **sections))
            files = bench.kinds_of_files()
            faults, commands = (("flip", "halve", "delete"), CHEAP) if quick else (tuple(FAULTS), tuple(COMMANDS))
            print(f"{name}: {len(files)} kinds of files, {len(faults)} faults, {len(commands)} commands", flush=True)
            draw = random.Random(0)
            trials = [trial for trial in itertools.product(files, faults, commands) if draw.random() < share]
            draw.shuffle(trials)  # what was tried when it is stopped early is a fair sample
            for outcome in _tried(bench, trials, log, name):
                counts[outcome.what] += 1
                if outcome.what in ("traceback", "silent", "stopped"):
                    print(*outcome, sep=" | ", flush=True)
                if counts.total() % 50 == 0:
                    print(_counted(counts), flush=True)
            os.chdir("/")
    print(_counted(counts))


def _tried(bench: Bench, trials: Sequence[tuple[str, str, str]], log: Path | None, project: str) -> Iterator[Outcome]:
    """The outcome of each trial, from the log where it stands there."""
    lines = log.read_text(encoding="utf-8").splitlines() if log and log.exists() else []
    known = {tuple(record[1:4]): Outcome(*record[1:]) for record in map(json.loads, lines) if record[0] == project}
    for trial in trials:
        if trial in known:
            yield known[trial]
            continue
        outcome = bench.outcome(*trial)
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps([project, *outcome]) + "\n")
        yield outcome


def _counted(counts: Counter[str]) -> str:
    return f"{counts.total()} commands: {', '.join(f'{count} {what}' for what, count in counts.most_common())}"


if __name__ == "__main__":
    typer.run(main)
