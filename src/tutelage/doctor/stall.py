"""Stalls of the schedule: in finished stages, or predicted from the untrained and the fine-tuned student."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tutelage.analysis.run_results import read_results
from tutelage.doctor.checks import Check
from tutelage.errors import DamagedArtifactError, Kind, UserError
from tutelage.method.methods import find_method
from tutelage.method.schedule import Candidate, nearest
from tutelage.run import stage_inputs
from tutelage.training.probe import Probe
from tutelage.training.run_models import RunModels

PROBE_ROWS = 64
ADVANCE = "distill.schedule.advance=true"


def recorded_stalls(models: RunModels) -> Check | None:
    """Stages of the run that kept a checkpoint which the student had not reached; None without such stages."""
    stages = [
        (student.name, stage)
        for student in read_results(models.run.folder).students
        for stage in student.stages
        if stage.get("candidates")
    ]
    if not stages:
        return None
    stalled = [(name, stage) for name, stage in stages if stage.get("stall")]
    chosen: dict[str, list[str]] = {}
    for name, stage in stages:
        chosen.setdefault(name, []).append(stage["chosen"])
    numbers = {"stages": len(stages), "stalled": len(stalled), "chosen": chosen}
    if not stalled:
        return Check("stall", "payoff", "passed", numbers=numbers)
    name, stage = stalled[0]
    details = {"student": name, "stage": stage["stage"], "reason": stage["stall"]}
    return Check("stall", "payoff", "look", Kind.STAGES_STALLED, numbers, ADVANCE, details=details)


class _Distances(NamedTuple):
    """Distances of both students from every checkpoint, as the schedule measures them."""

    untrained: list[Candidate]
    anchor: list[Candidate]
    best: str
    checkpoints: list[str]


def predict_stall(models: RunModels) -> Check | None:
    """What the published schedule chooses for the untrained student and for the anchor, before any student is trained.

    The anchor has had as many steps on gold as the student gets. A schedule that gives it the same checkpoint as the
    untrained student, while it is still far from it, would hardly move on. None where there is nothing to judge by.
    """
    section = models.run.recipe.distill.schedule
    compares = any(find_method(name).schedule == "nearest" for name in models.run.recipe.distill.methods)
    if not compares or section.advance or not (models.run.folder / "cache" / "manifest.json").is_file():
        return None
    try:
        stage_inputs.upstream(models.run, "teach", "cache", "anchor")
        distances = _distances(models)
    except DamagedArtifactError:
        raise
    except UserError:
        return None  # other checks say what is missing
    options = {"num_stages": models.run.recipe.distill.num_stages, "best": distances.best}
    first = nearest(distances.untrained, stage=1, **options)
    previous = next(candidate for candidate in distances.untrained if candidate.checkpoint == first.chosen)
    second = nearest(distances.anchor, stage=2, previous=previous, **options)
    numbers = {
        "untrained": first.chosen,
        "anchor": second.chosen,
        "checkpoints": distances.checkpoints,
        "best": distances.best,
        "kl_student": {candidate.checkpoint: candidate.kl_student for candidate in distances.anchor},
    }
    if second.stall:
        details = {"reason": second.stall}
        return Check("stall", "payoff", "look", Kind.STALL_PREDICTED, numbers, ADVANCE, details=details)
    return Check("stall", "payoff", "passed", numbers=numbers)


def _distances(models: RunModels) -> _Distances:
    taught, rows = models.run.teacher_checkpoints, models.encoded("train")
    names = [checkpoint["name"] for checkpoint in taught["checkpoints"]]
    indices = np.sort(np.random.default_rng(0).permutation(len(rows))[:PROBE_ROWS])
    probe = Probe(
        [(int(index), rows[index]) for index in indices],
        models.cached_teacher(names, rows),
        taught["best"],
        models.vocabulary,
        models.pad_id,
        models.run.recipe.distill.schedule.student_kl,
    )
    folders = (None, models.run.folder / "anchor")
    with models.autocast():
        untrained, anchor = (probe.compare(models.load(models.run.recipe.student, folder)) for folder in folders)
    return _Distances(untrained, anchor, taught["best"], names)
