"""Would the schedule stall: what it would choose for the untrained student, and for the one that fine-tuning has made
of it."""

from __future__ import annotations

import numpy as np

from tutelage.data.encode import pad_id_of
from tutelage.doctor.checks import Check
from tutelage.errors import UserError
from tutelage.method.methods import find_method
from tutelage.method.schedule import nearest
from tutelage.run import stage_inputs
from tutelage.teacher.sources import CachedTeacher
from tutelage.training.probe import Probe
from tutelage.training.run_models import RunModels

ROWS = 64


def foresee_stall(models: RunModels) -> Check | None:
    """The published choice at both ends of the student's road, once teacher, cache and anchor are there and no student
    is yet.

    The anchor has had as many steps on gold as the student gets. A schedule that gives it the checkpoint it gave the
    untrained student, and has it still far from there, would hardly move on. None where there is nothing to judge.
    """
    section = models.run.recipe.distill.schedule
    looks = any(find_method(name).schedule == "nearest" for name in models.run.recipe.distill.methods)
    if not looks or section.advance or not (models.run.folder / "cache" / "manifest.json").is_file():
        return None
    try:
        stage_inputs.upstream(models.run, "teach", "cache", "anchor")
        start, end, best, names = _seen(models)
    except UserError:
        return None  # other checks say what is missing
    options = {"num_stages": models.run.recipe.distill.num_stages, "best": best, "trust": section.trust}
    first = nearest(start, stage=1, **options)
    before = next(candidate for candidate in start if candidate.checkpoint == first.chosen)
    second = nearest(end, stage=2, previous=before, **options)
    numbers = {"untrained": first.chosen, "anchor": second.chosen, "checkpoints": names, "best": best}
    numbers["kl_student"] = {c.checkpoint: c.kl_student for c in end}
    if second.stall:
        text = f"the schedule would stall, as it gives untrained and fine-tuned student the same checkpoint: {second.stall}"
        return Check("stall", "payoff", "look", text, numbers, "distill.schedule.advance=true")
    text = f"the schedule would give the untrained student {first.chosen} and the fine-tuned one {second.chosen}"
    return Check("stall", "payoff", "passed", text, numbers)


def _seen(models: RunModels) -> tuple[list, list, str, list[str]]:
    """Candidates as the untrained student and as the anchor see them; T*; names of all checkpoints."""
    from tutelage.utils.files import read_json

    taught, rows = read_json(models.run.folder / "teach" / "checkpoints.json"), models.encoded("train")
    names = [checkpoint["name"] for checkpoint in taught["checkpoints"]]
    places = np.sort(np.random.default_rng(0).permutation(len(rows))[:ROWS])
    probe = Probe(
        [(int(place), rows[place]) for place in places],
        CachedTeacher(models.run.folder / "cache", names, rows, bf16=models.run.bf16),
        taught["best"],
        models.run.prepared["vocabulary"],
        pad_id_of(models.tokenizer),
        models.run.recipe.distill.schedule.reach,
    )
    with models.autocast():
        seen = [
            probe.compare(models.load(models.run.recipe.student, folder))
            for folder in (None, models.run.folder / "anchor")
        ]
    return *seen, taught["best"], names
