"""What a trial foretold of a run, kept in its folder and shown beside the truth once stages are done. No torch.

Time of every stage; what stays on disk of those that leave models or states; memory of those that train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tutelage.analysis.run_results import read_manifests
from tutelage.records import BASE_MODELS
from tutelage.run.live_reader import read_or_none
from tutelage.utils.files import size_on_disk, write_json

FILE = Path("doctor") / "foretold.json"
STAGES = ("prepare", "teach", "anchor", "cache", "cross_fit", "distill", "evaluate")
"""Stages whose time is foretold, in the order of a run."""


class Told(NamedTuple):
    """One measure of a stage: seconds, bytes on disk, or bytes of memory at the most."""

    stage: str
    foretold: float
    true: float | None
    """None until the whole of it is done, or where it was not recorded."""


def keep(folder: Path, **told: dict[str, float]) -> None:
    """Write what was foretold into a run folder: `seconds`, `disk` and `memory`, each by stage."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path, {measure: {stage: own[stage] for stage in STAGES if own.get(stage)} for measure, own in told.items()}
    )


def beside_truth(folder: Path, students: Sequence[str]) -> dict[str, list[Told]]:
    """What `keep` kept, by measure and stage, with what is so; empty where nothing was foretold. students:
    METHOD/seed-K, ..."""
    said = read_or_none(folder / FILE) or {}
    truth = {
        "seconds": lambda: taken(folder, students),
        "disk": lambda: {
            stage: sum(size_on_disk(folder / part) for part in own) for stage, own in _done(folder, students).items()
        },
        "memory": lambda: _peaks(folder, students),
    }
    found = {}
    for measure, own in said.items():
        true = truth[measure]()
        found[measure] = [Told(stage, value, true.get(stage)) for stage, value in own.items()]
    return found


def taken(folder: Path, students: Sequence[str]) -> dict[str, float]:
    """Seconds of every stage that is done as a whole, from the manifests; those of models added up. Students as
    above."""
    manifests = read_manifests(folder)
    return {
        stage: round(sum(manifests[name]["seconds"] for name in own), 2)
        for stage, own in _done(folder, students).items()
    }


def _peaks(folder: Path, students: Sequence[str]) -> dict[str, int]:
    """Most memory of every stage that is done; left out where it was not recorded."""
    manifests = read_manifests(folder)
    peaks = {stage: [manifests[name].get("memory") for name in own] for stage, own in _done(folder, students).items()}
    return {stage: max(own) for stage, own in peaks.items() if None not in own}


def _done(folder: Path, students: Sequence[str]) -> dict[str, list[str]]:
    """Stages that are done as a whole, with the folders of their pieces."""
    manifests = read_manifests(folder)
    parts = {name: [name] for name in STAGES} | {"distill": [f"distill/{name}" for name in students]}
    parts |= {"evaluate": [f"evaluate/{name}" for name in (*BASE_MODELS, *students)]}
    return {stage: own for stage, own in parts.items() if own and all(name in manifests for name in own)}


def in_words(told: Sequence[Told]) -> str:
    """`foretold 3 min, took 4 min (teach 60 s for 71 s, ...)`, of the seconds of stages that are done."""
    done = [one for one in told if one.true is not None]
    each = ", ".join(f"{one.stage} {duration(one.true)} for {duration(one.foretold)}" for one in done)
    foretold, true = sum(one.foretold for one in done), sum(one.true for one in done)
    return f"foretold {duration(foretold)}, took {duration(true)} ({each})"


def duration(seconds: float) -> str:
    """8 s, 3 min, 1 h 12 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
