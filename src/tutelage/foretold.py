"""What a trial foretold of a run's time, kept in its folder and shown beside the truth once stages are done. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tutelage.artifacts import write_json
from tutelage.outside import read_or_none
from tutelage.results import BASE_MODELS, read_manifests

FILE = Path("doctor") / "foretold.json"
STAGES = ("prepare", "teach", "anchor", "cache", "cross_fit", "distill", "evaluate")
"""Stages whose time is foretold, in the order of a run."""


class Told(NamedTuple):
    """Seconds of a stage."""

    stage: str
    foretold: float
    true: float | None
    """None until the whole of it is done."""


def keep(folder: Path, seconds: dict[str, float]) -> None:
    """Write what was foretold, by stage, into a run folder."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"seconds": seconds})


def beside_truth(folder: Path, students: Sequence[str]) -> list[Told]:
    """What `keep` kept, stage by stage, with what the stages took; empty where nothing was foretold. Students as in `taken`."""
    said = (read_or_none(folder / FILE) or {}).get("seconds", {})
    truth = taken(folder, students) if said else {}
    return [Told(stage, said[stage], truth.get(stage)) for stage in STAGES if said.get(stage)]


def taken(folder: Path, students: Sequence[str]) -> dict[str, float]:
    """Seconds of every stage that is done as a whole, from the manifests; those of models added up. students: METHOD/seed-K, ..."""
    manifests = read_manifests(folder)
    parts = {name: [name] for name in STAGES} | {"distill": [f"distill/{name}" for name in students]}
    parts |= {"evaluate": [f"evaluate/{name}" for name in (*BASE_MODELS, *students)]}
    whole = {stage: own for stage, own in parts.items() if all(name in manifests for name in own)}
    return {stage: round(sum(manifests[name]["seconds"] for name in own), 2) for stage, own in whole.items()}


def in_words(told: Sequence[Told]) -> str:
    """`foretold 3 min, took 4 min (teach 60 s for 71 s, ...)` over the stages that are done."""
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
