"""Manifests of a run folder: fingerprints, and whether a result is up to date, stale (and why) or unfinished.

A folder's *inputs* are a flat dict: the recipe's values it depends on, fingerprints of files, and fingerprints of the
stages before it. `started.json` records them when work begins, `manifest.json` when it ends: a manifest means finished.
The manifest also lists the folder's files, see `utils/integrity.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tutelage.errors import ConfigError, DamagedArtifactError, RunLockedError, StaleArtifactError
from tutelage.recipe.renamed import translate_flat
from tutelage.recipe.reserved import CHANGES_NOTHING
from tutelage.run.artifacts import Manifest
from tutelage.run.own_files import RESUME_ONLY, clear, foreign_files, refusal, refuse_foreign
from tutelage.utils import integrity, ranks
from tutelage.utils.checksums import CHECKSUMS, MANIFEST, STARTED, file_record, records_of
from tutelage.utils.disk import full_disk_as_user_error
from tutelage.utils.files import discard, discard_remains, write_json
from tutelage.utils.progress import PROGRESS

NOT_RECORDED = (
    *RESUME_ONLY,
    *("trainer", "trainer-*", "fold-*", "optimizer-*", "stage-*-start", "stage-*-end"),
    *("*.part", ".*", "README.md", PROGRESS),
)
"""Patterns of names in a finished folder that no later step reads, or that users may change."""
EMPTY = (STARTED, PROGRESS)
"""Files of a folder in which nothing has been done yet."""
TRAININGS = ("teach", "anchor", "cross_fit", "distill/*/*")
"""Folders of a run whose results depend on the size of a batch, in the order of the stages."""
VERSIONS_OF = ("tutelage", "torch", "transformers", "peft", "datasets")


def digest(value: Any) -> str:
    """Short stable hash of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_fingerprint(name: str, revision: str | None = None) -> str:
    """Fingerprint of a model: contents of a local folder's config, tokenizer and weight files; id and revision on the
    hub."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    parts = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in integrity.MODEL_FILES and path.name not in (MANIFEST, STARTED):
            stat = path.stat()
            parts[path.name] = _sha256(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return digest(parts)


@cache
def _sha256(path: Path, inode: int, size: int, written: int) -> str:
    """inode, size, written: only so that a file that was replaced is hashed again, as in a notebook."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path, expected: dict[str, Any]) -> str:
    """Fingerprint of a finished folder: of the inputs it was made from.

    Raises StaleArtifactError if it is not finished, or was made from other inputs than `expected`.
    """
    if not (folder / MANIFEST).exists():
        integrity.check_not_lost(folder)
        raise StaleArtifactError(
            f"{folder} is missing or unfinished, and this stage needs it: `tutelage run RECIPE` runs all stages"
        )
    inputs = _inputs_in(folder / MANIFEST)
    if changed := differences(inputs, _plain(expected)):
        raise StaleArtifactError(
            _stale_message(
                folder, changed, "a result", Advice(rebuild="tutelage run RECIPE --force rebuilds all stages")
            )
        )
    return digest(inputs)


def finished_inputs(folder: Path) -> dict[str, Any]:
    """The inputs that a finished folder was made from; empty if it is not finished."""
    return _inputs_in(folder / MANIFEST) if (folder / MANIFEST).exists() else {}


def recorded_processes(run: Path) -> int | None:
    """Number of processes that shared the batches of a run's first training, begun or finished; None without one."""
    for name in TRAININGS:
        for folder in sorted(run.glob(name)):
            record = next((folder / file for file in (MANIFEST, STARTED) if (folder / file).exists()), None)
            if record is not None:
                return int(_inputs_in(record).get("processes", 1))
    return None


def _inputs_in(record: Path) -> dict[str, Any]:
    """The inputs in a manifest or started.json."""
    content = integrity.read_sealed(record)
    if "inputs" not in content:
        raise integrity.damaged(record, "none", "`inputs`")
    return content["inputs"]


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs as they read back from JSON."""
    return json.loads(json.dumps(inputs, default=str))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two sets of inputs, one line each. before: as recorded; its keys may be older names."""
    before = translate_flat(before)
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new and not CHANGES_NOTHING.search(key):
            upstream = key.startswith("stage ")
            lines.append(f"{key} was rebuilt" if upstream else f"{key}: {_short(old)} -> {_short(new)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Advice:
    """What an error about stale work says to whom it is told."""

    asked: str = "the recipe asks for"
    rebuild: str = "add --force to this command"
    elsewhere: str = "output_dir=runs/ANOTHER_NAME"


IN_PYTHON = Advice(
    "the arguments of SCDTrainer ask for",
    "delete that folder, and call train() again",
    "another output_dir of SCDConfig",
)
"""To users of `SCDTrainer`."""


@dataclass
class Work:
    """The work on one folder of the run: up to date, or to be done, perhaps from where a killed run stopped."""

    folder: Path
    inputs: dict[str, Any]
    force: bool = False
    rebuild_stale: bool = False
    """Rebuild instead of refusing: for results that cost little and lose nothing (scores, report)."""
    about: dict[str, Any] = field(default_factory=dict)
    """Further keys of the manifest."""
    notes: list[str] = field(default_factory=list)
    """What `prepare` decided, for the user."""
    seconds_before: float = 0.0
    """Seconds of training by interrupted processes that this one does not have to repeat."""
    restart_only: Callable[[Path], Iterable[Path]] = lambda folder: ()
    """What in the folder only a restart needs; deleted once the result is finished."""
    aside: Path | None = None
    """Where the folder goes to be deleted, see `files.discard`."""
    advice: Advice = Advice()
    unrecorded: Collection[str] = ()
    """Inputs that earlier versions did not record: a folder of theirs counts as made from the present ones."""

    def prepare(self) -> bool:
        """True if there is work to do. Clears the folder if it must be rebuilt.

        Raises StaleArtifactError if the folder holds a result, finished or begun, of other inputs, and neither
        `force` nor `rebuild_stale` is set; DataError if it is not the tool's own, or would be deleted and holds files
        that are not.
        """
        self.inputs = _plain(self.inputs)
        finished = (self.folder / MANIFEST).exists()
        record = self._record()
        if not record.exists() and self.rebuild_stale:
            self._clear()
        elif not record.exists():
            found = f"has no {MANIFEST} that says what its files were made from:"
            refuse_foreign(self.folder, lambda name: False, found=found)
        nothing_yet = not finished and record.is_file() and not any(foreign_files(self.folder, EMPTY.__contains__))
        if self.force or nothing_yet:
            self._clear()
        elif changed := self._changed_or_damaged():
            if not self.rebuild_stale:
                what = "a result" if finished else "unfinished work"
                raise StaleArtifactError(_stale_message(self.folder, changed, what, self.advice))
            self.notes.append(f"{self.folder.name} is rebuilt: {changed[0]}{' ...' if len(changed) > 1 else ''}")
            self._clear()
        elif record.exists():
            if finished:  # its process may have been killed before it had tidied up
                self.tidy()
            else:
                record.touch()  # when the process that works now began
                (self.folder / PROGRESS).touch()
            return not finished
        write_json(self.folder / STARTED, {"inputs": self.inputs})
        (self.folder / PROGRESS).touch()
        return True

    def changed(self) -> list[str]:
        """What changed since the folder's result, finished or begun, was made, a line each; empty if nothing did."""
        record = self._record()
        if not record.exists():
            return []
        before = _inputs_in(record)
        now = {key: value for key, value in self.inputs.items() if key in before or key not in self.unrecorded}
        return differences(before, _plain(now))

    def _changed_or_damaged(self) -> list[str]:
        """`changed`; with `rebuild_stale` also what is damaged, which is then rebuilt. Otherwise that is an error."""
        try:
            if changed := self.changed():
                return changed
            if self.rebuild_stale:
                integrity.check_all(self.folder)
        except DamagedArtifactError as error:
            if not self.rebuild_stale:
                raise
            return [f"{error.problems[0].values['path']} is damaged"]
        return []

    def fingerprint(self) -> str:
        """Fingerprint of the inputs. If the folder holds work with these inputs, as it recorded them: the keys may be
        older names."""
        record = self._record()
        recorded = record.exists() and not self.changed()
        return digest(_inputs_in(record) if recorded else _plain(self.inputs))

    def _record(self) -> Path:
        finished = self.folder / MANIFEST
        return finished if finished.exists() else self.folder / STARTED

    def finish(self, seconds: float) -> None:
        """Write the manifest; from here on the folder counts as finished. seconds: by this process."""
        spent, now = round(self.seconds_before + seconds, 3), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        manifest: Manifest = {
            "inputs": self.inputs,
            "seconds": spent,
            "finished": now,
            "versions": versions(),
            "files": records_of(self.folder, NOT_RECORDED, self.restart_only(self.folder)),
            **self.about,
        }
        write_json(self.folder / MANIFEST, manifest)
        self.tidy()

    def tidy(self) -> None:
        """Delete what a finished result does not need, unless it holds files that are not the tool's own."""
        for path in [*self.restart_only(self.folder), self.folder / STARTED, self.folder / PROGRESS]:
            if not any(foreign_files(self.folder, within=path)):
                discard(path)

    def _clear(self) -> None:
        clear(self.folder, self.aside)


@contextmanager
def rewriting(folder: Path, *names: str) -> Iterator[None]:
    """Record these files of a folder that has no manifest, in checksums.json, after they are written inside."""
    discard(folder / CHECKSUMS)
    yield
    write_json(folder / CHECKSUMS, {"files": {name: file_record(folder / name) for name in names}})


def _stale_message(folder: Path, changed: list[str], what: str, advice: Advice) -> str:
    """What changed since a folder was made, and what the user can do."""
    lines = [f"{folder} holds {what} of other inputs than {advice.asked} now:"]
    lines += [f"  - {line}" for line in changed[:12]]
    lines += [f"  ... and {len(changed) - 12} more"] if len(changed) > 12 else []
    lines += [
        f"  delete and rebuild it:          {advice.rebuild}",
        f"  keep it and use another folder: {advice.elsewhere}",
    ]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    numbers = {"python": sys.version.split()[0]}
    for name in VERSIONS_OF:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # the package may be run from a source tree
            numbers[name] = "source"
    return numbers


def one_process() -> None:
    """Raises ConfigError in one of several processes of a launcher, for what only a single one can do."""
    if (count := ranks.started()) > 1:
        raise ConfigError(
            f"a launcher started {count} processes, which share the work of `tutelage run` and of single stages; this"
            " command is for one: start it without `accelerate launch` or `torchrun`. With several GPUs, train several"
            " students at a time: `tutelage compare RECIPE --jobs GPUS`"
        )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder: `prepare` has begun in it, or it holds scores."""
    names = (f"prepare/{STARTED}", f"prepare/{MANIFEST}", "evaluate/scores.json")
    return any((folder / name).exists() for name in names)


@contextmanager
def locked(
    folder: Path,
    elsewhere: str = Advice.elsewhere,
    is_own: Callable[[Path], bool] = is_run,
    *,
    several: bool = False,
) -> Iterator[None]:
    """Hold a folder for this process, and delete what killed processes left half written or half deleted in it.

    Raises RunLockedError if another one has it, DiskFullError if its disk runs full, ConfigError as in `one_process`,
    DataError for a folder that is neither new nor the tool's own.

    elsewhere: the setting that names another folder. is_own: whether the folder was written by an earlier command.
    several: whether this process is the main one of several, which write nothing at the same time.
    """
    if not several:
        one_process()
    if not is_own(folder):
        _refuse_place(folder, f"name a folder of its own, {elsewhere}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunLockedError(
            f"another process is working in {folder}: wait for it, or use another folder: {elsewhere}"
        ) from None
    except OSError as error:
        if not os.path.lexists(folder / ".lock"):
            raise
        raise integrity.damaged(folder / ".lock", error, again="Delete it, and repeat the command") from error
    try:
        with full_disk_as_user_error(folder):
            discard_remains(folder)
            yield
    finally:
        lock.release()


def _refuse_place(folder: Path, remedy: str) -> None:
    """Raises DataError unless a folder is new or empty, and no folder that people work in."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise refusal(folder, "is no folder", remedy)
    for place in (Path.cwd(), Path(os.path.expanduser("~"))):
        if folder.resolve() in (place.resolve(), *place.resolve().parents):
            raise refusal(folder, f"is {place} or holds it", remedy)
    if first := next(foreign_files(folder, re.compile(r"(compare/)?(\.lock|\.visible-.+|logs/.+)").fullmatch), None):
        raise refusal(folder, f"is no run folder, and holds {first}", remedy)
