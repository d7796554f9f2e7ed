"""The state of a run folder (running, stopped, stale, broken, ...), decided from its files alone.

Nothing here locks, writes or loads a model. Whether a result still fits the recipe that a user holds is decided by the
stages; here a result is stale if an earlier stage was rebuilt since, or if a data file has changed.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tutelage.errors import DamagedArtifactError
from tutelage.run.live_reader import DEPTHS, begun, newest_change, read_or_none, worker
from tutelage.run.manifest import MANIFEST, digest
from tutelage.utils import integrity
from tutelage.utils.console import visible

QUIET_SECONDS = 120
"""A run without a process on this machine may run on another one: it counts as running if a file has changed within so
many seconds."""
REQUIRED_FILES = {
    "prepare": ("rows.jsonl", "data.json"),
    "teach": ("checkpoints.json",),
    "anchor": ("config.json", "*.safetensors"),
    "cache": ("*/store.json",),
    "distill": ("config.json", "*.safetensors", "stages.json"),
    "evaluate": ("predictions.jsonl", "scores.json"),
    "report": ("index.html",),
}
"""Stage: glob patterns of the files without which its finished folder is broken."""

Manifests = dict[str, Any]
"""Manifest of every finished folder of a run, by the folder's name relative to the run (`distill/td/seed-0`); None
where it cannot be read."""


class RunState(NamedTuple):
    """What state a run is in."""

    kind: Literal["finished", "running", "stopped", "incomplete", "stale", "broken", "empty"]
    """`incomplete`: some stages are finished and the next one has not begun."""
    detail: str = ""
    """The stage that runs, was stopped or was finished last; for `stale` and `broken` the reason."""

    @property
    def text(self) -> str:
        """The state as a table shows it."""
        if self.kind == "incomplete":
            return f"finished up to {self.detail}"
        if self.kind == "stopped":
            return f"stopped in {self.detail}"
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def manifests_by_folder(run: Path) -> Manifests:
    """Manifest of every finished folder, in the order of their names; hidden folders are left out."""
    paths = sorted(path for depth in DEPTHS for path in run.glob(f"{depth}/{MANIFEST}"))
    by_name = {path.parent.relative_to(run).as_posix(): path for path in paths}
    return {name: read_or_none(path) for name, path in by_name.items() if not name.startswith(".")}


def state_of(run: Path, manifests: Manifests) -> RunState:
    """The state of a run. manifests: as `manifests_by_folder` returns them."""
    current = (begun(run) or [""])[-1]
    if worker(run) is not None or (current and time.time() - newest_change(run) < QUIET_SECONDS):
        return RunState("running", current)
    if reason := _broken(run, manifests):
        return RunState("broken", reason)
    if reason := _stale(manifests):
        return RunState("stale", reason)
    if current:
        return RunState("stopped", current)
    if "report" in manifests and any(name.startswith("distill/") for name in manifests):
        return RunState("finished")
    done = [name for name in manifests if name != "report"]  # an unfinished run can have a report, too
    if not done:
        return RunState("empty")
    last = max(done, key=lambda name: str(manifests[name].get("finished", "")))
    return RunState("incomplete", last.split("/")[0])


def _broken(run: Path, manifests: Manifests) -> str | None:
    """Why a finished folder cannot be used."""
    for name, manifest in manifests.items():
        if not isinstance(manifest, dict):
            return f"{name}/{MANIFEST} cannot be read"
        if path := integrity.resized(run / name):
            return f"{path.relative_to(run)} is missing or has another size than it was written with"
        for pattern in REQUIRED_FILES.get(name.split("/")[0], ()):
            if not any((run / name).glob(pattern)):
                return f"{name} has no {pattern}"
        keys = [key for key in manifest.get("inputs") or {} if key.startswith("stage ")]
        for folder in (*(key.removeprefix("stage ") for key in keys), "diagnose", "report"):
            if integrity.lost(run / folder):
                return f"{folder}/{MANIFEST} is missing"
    scored = {path.parent for path in run.glob("evaluate/**/predictions.jsonl")} - {run / "evaluate"}
    for folder in sorted(scored):
        if integrity.lost(folder):
            return f"{folder.relative_to(run).as_posix()}/{MANIFEST} is missing"
    scores = run / "evaluate/scores.json"
    try:
        return "evaluate/scores.json cannot be read" if scores.exists() and read_or_none(scores) is None else None
    except DamagedArtifactError as error:
        return str(error)


def _stale(manifests: Manifests) -> str | None:
    """Which finished folder was built from something that has changed since."""
    for name, manifest in manifests.items():
        inputs = manifest.get("inputs") or {}
        for key, recorded in inputs.items():
            stage = key.removeprefix("stage ")
            upstream = manifests.get(stage) if key.startswith("stage ") else None
            if upstream and recorded != digest(upstream.get("inputs")):
                return f"{name} was built before {stage} was rebuilt"
        for path, recorded in (inputs.get("data files") or {}).items():
            finished = str(manifest.get("finished", ""))
            if path != "hub" and Path(path).is_file() and _changed(Path(path), recorded, finished):
                return f"{visible(path)} has changed"
    return None


def _changed(path: Path, recorded: str, finished: str) -> bool:
    """Whether a data file has other contents than the recorded hash says; read only if it was written after the result.

    finished: when the result was finished, local time in ISO 8601.
    """
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(path.stat().st_mtime))
    return written > finished and hashlib.sha256(path.read_bytes()).hexdigest()[:16] != recorded
