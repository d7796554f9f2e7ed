"""Checks of the teacher's checkpoints after `teach`: do they differ, is the best one at an end, does it overfit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tutelage.doctor.checks import Check
from tutelage.errors import Kind, UserError
from tutelage.errors.wording import first_line
from tutelage.method.risk_split import interval
from tutelage.run import stage_inputs
from tutelage.run.artifacts import TeacherCheckpoints
from tutelage.training import recorded_losses as losses
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_jsonl

SAME_NATS = 1e-3
"""Mean difference of the losses of two checkpoints below which they are the same."""
CLEAR_CHANGE = 0.1
"""Relative change of the validation loss between checkpoints that is more than the noise of a fine-tuning run."""

Losses = dict[str, np.ndarray]
"""By checkpoint, oldest first: [rows] losses on the validation rows, nats per token."""


def check_trajectory(models: RunModels) -> list[Check]:
    """Read teach/ and check it."""
    path = models.run.folder / "teach" / "checkpoints.json"
    if not path.is_file():
        return [Check("trajectory", "trajectory", "skipped", Kind.CHECKPOINTS_MISSING)]
    try:
        stage_inputs.upstream(models.run, "teach")
        taught = models.run.teacher_checkpoints
        rows = validation_losses(models, [checkpoint["name"] for checkpoint in taught["checkpoints"]])
    except UserError as error:
        details = {"reason": first_line(error)}
        return [Check("trajectory", "trajectory", "skipped", Kind.CHECKPOINTS_NOT_JUDGED, details=details)]
    return [_distinct(models, taught, rows), _best(models, taught, rows), _overfitting(models, taught, rows)]


def validation_losses(models: RunModels, names: list[str]) -> Losses:
    """Losses of checkpoints on the validation rows. Raises StaleArtifactError where they were not written."""
    rows = models.encoded("validation")
    return {name: losses.of_checkpoint(models.run, name, rows) for name in names}


def _means(taught: TeacherCheckpoints) -> list[float]:
    return [checkpoint["nll"] for checkpoint in taught["checkpoints"]]


def _multiplied(models: RunModels, key: str, factor: float) -> str:
    """The line that multiplies a training argument of the teacher; the user's own checkpoints must be replaced."""
    if models.run.recipe.teach.checkpoints:
        return "teach.checkpoints=[OTHERS]"
    now = models.run.recipe.trainer_arguments("teach").get(key, 3.0)
    return f"teach.trainer.{key}={float(now) * factor:.2g}"


def _distinct(models: RunModels, taught: TeacherCheckpoints, rows: Losses) -> Check:
    """Checkpoints whose losses are the same teach the same."""
    names = list(rows)
    differences = {f"{a} to {b}": float(np.abs(rows[a] - rows[b]).mean()) for a, b in pairwise(names)}
    numbers = {"nll": dict(zip(names, _means(taught), strict=True)), "mean_difference": differences}
    same = [pair for pair, nats in differences.items() if nats < SAME_NATS]
    details = {"same": same, "same_nats": SAME_NATS}
    name, area = "distinct_checkpoints", "trajectory"
    if not same:
        return Check(name, area, "passed", numbers=numbers, details=details)
    fewer = f"teach.num_checkpoints={max(1, len(names) - len(same))}"
    change = "teach.checkpoints=[DISTINCT, ONES]" if models.run.recipe.teach.checkpoints else fewer
    return Check(name, area, "look", Kind.CHECKPOINTS_ALIKE, numbers, change, details=details)


def _best(models: RunModels, taught: TeacherCheckpoints, rows: Losses) -> Check:
    """T* at an end of the trajectory: training may have been too long, or stopped too early."""
    names, best, means = list(rows), taught["best"], _means(taught)
    index, last = names.index(best), len(names) - 1
    numbers: dict[str, Any] = {"best": best, "place": index + 1, "of": len(names), "by": taught["by"]}
    if last == 0:
        return Check("best_checkpoint", "trajectory", "passed", numbers=numbers)
    second = min((name for name in names if name != best), key=lambda name: means[names.index(name)])
    lead = interval(rows[best], rows[second]).difference
    numbers |= {"runner_up": second, "lead_nats": {"value": -lead.value, "low": -lead.high, "high": -lead.low}}
    if index == 0:
        change = _multiplied(models, "learning_rate", 0.3)
        return Check("best_checkpoint", "trajectory", "look", Kind.BEST_IS_FIRST, numbers, change)
    last_step = interval(rows[names[-1]], rows[names[-2]]).difference
    falling = means[-1] < (1 - CLEAR_CHANGE) * means[-2] and last_step.high < 0
    if index == last and falling:
        change, details = _multiplied(models, "num_train_epochs", 2), {"from": means[-2], "to": means[-1]}
        return Check("best_checkpoint", "trajectory", "look", Kind.BEST_IS_LAST, numbers, change, details=details)
    details = {"significant": lead.high < 0}
    return Check("best_checkpoint", "trajectory", "passed", numbers=numbers, details=details)


def _overfitting(models: RunModels, taught: TeacherCheckpoints, rows: Losses) -> Check:
    """Training loss falling while validation loss rises."""
    names, means = list(rows), _means(taught)
    lowest = int(np.argmin(means))
    train = _training_losses(models)
    numbers = {"validation_nll": means, "lowest": names[lowest], "training_ce": train}
    rise = means[-1] / means[lowest] - 1 if means[lowest] > 0 else 0.0
    significant = lowest < len(means) - 1 and interval(rows[names[-1]], rows[names[lowest]]).difference.low > 0
    details = {"rise": rise, "nats": means[lowest]}
    if rise > CLEAR_CHANGE / 2 and significant and (len(train) < 2 or train[-1] < train[0]):
        change = _multiplied(models, "num_train_epochs", (lowest + 1) / len(names))
        return Check("overfitting", "trajectory", "look", Kind.TEACHER_OVERFITS, numbers, change, details=details)
    return Check("overfitting", "trajectory", "passed", numbers=numbers, details=details)


def _training_losses(models: RunModels) -> list[float]:
    """Mean training loss in each quarter of the teacher's fine-tuning run; empty for the user's own checkpoints."""
    path = models.run.folder / "teach" / "log.jsonl"
    steps = [line["ce"] for line in read_jsonl(path) if "ce" in line] if path.is_file() else []
    return [float(part.mean()) for part in np.array_split(np.array(steps), 4)] if len(steps) >= 4 else []
