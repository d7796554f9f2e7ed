"""Checks of the teacher's checkpoints, once `teach` is done: are they distinct, is T* one by accident, was it trained
too long."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tutelage.doctor.checks import Check
from tutelage.errors import UserError
from tutelage.method.risk_split import interval
from tutelage.run import stage_inputs
from tutelage.training import recorded_losses as losses
from tutelage.training.mixtures import row_means
from tutelage.training.run_models import RunModels
from tutelage.utils.files import read_json, read_jsonl

SAME_NATS = 1e-3
"""Mean difference of two checkpoints' losses, token by token, below which they say the same."""
CLEARLY = 0.1
"""Relative change of the validation loss between checkpoints that means something: the last tenth of a training is its
noise."""

Losses = dict[str, np.ndarray]
"""By checkpoint, oldest first: [rows] losses on the validation rows, nats a token."""


def check_trajectory(models: RunModels) -> list[Check]:
    """Read teach/ and judge it."""
    path = models.run.folder / "teach" / "checkpoints.json"
    if not path.is_file():
        return [
            Check(
                "trajectory",
                "trajectory",
                "skipped",
                "the teacher has no checkpoints yet: `tutelage teach RECIPE` makes them",
            )
        ]
    try:
        stage_inputs.upstream(models.run, "teach")
        taught = read_json(path)
        rows = validation_losses(models, [c["name"] for c in taught["checkpoints"]])
    except UserError as error:
        return [Check("trajectory", "trajectory", "skipped", f"the checkpoints cannot be judged: {error}")]
    checks = [_distinct(models, taught, rows), _best(models, taught, rows), _overfitted(models, taught, rows)]
    return [check for check in checks if check]


def validation_losses(models: RunModels, names: list[str]) -> Losses:
    """Losses of checkpoints on the validation rows. Raises StaleArtifactError where they were not written."""
    lengths = losses.validation_lengths(models)
    return {name: row_means(losses.validation_tokens(models, name), lengths) for name in names}


def _means(taught: dict[str, Any]) -> list[float]:
    return [checkpoint["nll"] for checkpoint in taught["checkpoints"]]


def _slower(models: RunModels, key: str, factor: float) -> str:
    """A line that multiplies one of the teacher's training arguments; a user's own checkpoints are chosen anew."""
    if models.run.recipe.teach.checkpoints:
        return "teach.checkpoints=[OTHERS]"
    now = models.run.recipe.trainer_arguments("teach").get(key, 3.0)
    return f"teach.trainer.{key}={float(now) * factor:.2g}"


def _distinct(models: RunModels, taught: dict[str, Any], rows: Losses) -> Check:
    names = list(rows)
    apart = {f"{one} to {other}": float(np.abs(rows[one] - rows[other]).mean()) for one, other in pairwise(names)}
    numbers = {"nll": dict(zip(names, _means(taught), strict=True)), "mean_difference": apart}
    same = [pair for pair, nats in apart.items() if nats < SAME_NATS]
    if not same:
        listed = ", ".join(f"{nats:.3f}" for nats in apart.values())
        text = f"{len(names)} checkpoints; losses of the rows differ from one to the next by {listed or 'nothing to compare'} nats"
        return Check("distinct", "trajectory", "passed", text, numbers)
    text = (
        f"{', '.join(same)}: losses on validation rows differ by less than {SAME_NATS} nats, so these checkpoints teach the same."
        " The training had ended before (or its learning rate is next to nothing): fewer checkpoints, or a shorter training"
    )
    change = (
        "teach.checkpoints=[DISTINCT, ONES]"
        if models.run.recipe.teach.checkpoints
        else f"teach.num_checkpoints={max(1, len(names) - len(same))}"
    )
    return Check("distinct", "trajectory", "look", text, numbers, change)


def _best(models: RunModels, taught: dict[str, Any], rows: Losses) -> Check:
    """T* at an end of the trajectory: is the trajectory cut off there?"""
    names, best, means = list(rows), taught["best"], _means(taught)
    place = names.index(best)
    second = min((name for name in names if name != best), key=lambda name: means[names.index(name)], default=None)
    numbers: dict[str, Any] = {"best": best, "place": place + 1, "of": len(names), "by": taught["by"]}
    if second is None:
        return Check("T*", "trajectory", "passed", "there is one checkpoint", numbers)
    lead = interval(rows[best], rows[second]).difference
    numbers |= {"runner_up": second, "lead_nats": {"value": -lead.value, "low": -lead.high, "high": -lead.low}}
    if place == 0:
        text = (
            f"the best checkpoint (T*) is the first of {len(names)}: training on from there made the teacher no better, so there is"
            " no road to follow. A lower learning rate or a shorter training would show one"
        )
        return Check("T*", "trajectory", "look", text, numbers, _slower(models, "learning_rate", 0.3))
    before = interval(rows[names[-1]], rows[names[-2]]).difference
    falling = means[-1] < (1 - CLEARLY) * means[-2] and before.high < 0
    if place == len(names) - 1 and falling:
        text = (
            f"the best checkpoint (T*) is the last, and its loss is still falling ({means[-2]:.3f} to {means[-1]:.3f} nats): the"
            " teacher was stopped on its way. Train it longer"
        )
        return Check("T*", "trajectory", "look", text, numbers, _slower(models, "num_train_epochs", 2))
    luck = (
        ""
        if lead.high < 0
        else f"; by loss it is not apart from {second} (which of the two is chosen is luck, and matters little)"
    )
    return Check(
        "T*",
        "trajectory",
        "passed",
        f"the best checkpoint is {best}, number {place + 1} of {len(names)} by validation {taught['by']}{luck}",
        numbers,
    )


def _overfitted(models: RunModels, taught: dict[str, Any], rows: Losses) -> Check:
    """Training loss falling while validation loss rises."""
    names, means = list(rows), _means(taught)
    lowest = int(np.argmin(means))
    train = _training_losses(models)
    numbers = {"validation_nll": means, "lowest": names[lowest], "training_ce": train}
    rise = means[-1] / means[lowest] - 1 if means[lowest] > 0 else 0.0
    surely = lowest < len(means) - 1 and interval(rows[names[-1]], rows[names[lowest]]).difference.low > 0
    if rise > CLEARLY / 2 and surely and (len(train) < 2 or train[-1] < train[0]):
        fell = f", while the training loss falls from {train[0]:.3f} to {train[-1]:.3f}" if len(train) > 1 else ""
        text = (
            f"the validation loss is lowest at {names[lowest]} ({means[lowest]:.3f} nats) and {rise:.0%} higher at the end"
            f"{fell}: the teacher learns"
            " its rows by heart, and its last checkpoints are surer than they are right"
        )
        return Check(
            "overfitting",
            "trajectory",
            "look",
            text,
            numbers,
            _slower(models, "num_train_epochs", (lowest + 1) / len(names)),
        )
    return Check(
        "overfitting", "trajectory", "passed", f"the validation loss ends {rise:.0%} above its lowest", numbers
    )


def _training_losses(models: RunModels) -> list[float]:
    """Mean training loss in each quarter of the teacher's training; empty for a user's own checkpoints."""
    path = models.run.folder / "teach" / "log.jsonl"
    found = [line["ce"] for line in read_jsonl(path) if "ce" in line] if path.is_file() else []
    return [float(part.mean()) for part in np.array_split(np.array(found), 4)] if len(found) >= 4 else []
