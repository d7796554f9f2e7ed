"""How much of a sample's loss follows the teacher: adaptive weighting (AW), its refinements, and constant weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tutelage.errors import ModelError
from tutelage.recipe.schema import Weighting

PUBLISHED = Weighting()
"""No refinement: w = l(S_0) / (l(S_0) + l(T_k))."""


def adaptive_weight(
    anchor_nll: np.ndarray, teacher_nll: np.ndarray, gamma: float = 1.0, bias: float = 0.0
) -> np.ndarray:
    """Weight of the teacher on each sample; the rest of the sample's loss is cross-entropy on the gold answer.

        w_i = sigmoid(log(l_i(S_0) / l_i(T_k))) = l_i(S_0) / (l_i(S_0) + l_i(T_k))          (arXiv 2601.10114, AW)

    Above 0.5 the checkpoint explains the gold answer better than the fine-tuned student did (teacher-favoured sample);
    below 0.5 the student was better and keeps its own view by learning from gold.

    anchor_nll, teacher_nll: [rows] mean negative log-likelihood in nats per answer token, >= 0 and finite; the anchor
    S_0 is the student after plain fine-tuning, frozen. Returns [rows] float64 in [0, 1]. Where both are 0 nobody is
    better: 0.5. gamma >= 0 and bias: sigmoid(gamma x log-ratio + bias); 1 and 0 are the published weight. The quotient
    form is exact where the logarithm is not (a loss of 0). Raises ValueError for negative or non-finite losses.
    """
    anchor = np.asarray(anchor_nll, dtype=np.float64)
    teacher = np.asarray(teacher_nll, dtype=np.float64)
    for name, losses in (("anchor", anchor), ("teacher", teacher)):
        if not np.all(np.isfinite(losses)) or np.any(losses < 0):
            raise ValueError(f"{name} losses must be finite and not negative; found {losses.min()} to {losses.max()}")
    both_zero = (anchor == 0) & (teacher == 0)
    anchor, teacher = (
        np.where(both_zero, 1.0, anchor) ** gamma * np.exp(bias),
        np.where(both_zero, 1.0, teacher) ** gamma,
    )
    return anchor / (anchor + teacher)


class Calibration(NamedTuple):
    """sigmoid(gamma x log-ratio + bias) for training rows."""

    gamma: float
    bias: float


def calibrated(
    training: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
) -> Calibration:
    """gamma and bias with which the log-ratios of training rows get the median and the spread of those of held-out
    rows.

    Models have memorised their training rows, each as far as its steps and size allow, and the ratio of two such losses
    says who memorised better. Held-out rows say how often, and by how much, anchor and checkpoint are really better.

    training, held_out: (anchor's, checkpoint's) losses in nats, [rows] each. The spread is that between the outer
    quantiles, which a few rows with a loss of almost 0 do not move. Where training ratios have no spread, gamma is 0.
    """
    low, middle, high = np.quantile(_log_ratio(*training), quantiles)
    wanted_low, wanted_middle, wanted_high = np.quantile(_log_ratio(*held_out), quantiles)
    gamma = float((wanted_high - wanted_low) / (high - low)) if high > low else 0.0
    return Calibration(gamma, float(wanted_middle - gamma * middle))


def _log_ratio(anchor: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float32).tiny
    return np.log(np.maximum(anchor, tiny)) - np.log(np.maximum(teacher, tiny))


def smoothed(losses: np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """[rows] losses of which `share` is the mean over the row's group. groups: [rows] numbers from 0."""
    means = np.bincount(groups, weights=losses) / np.maximum(np.bincount(groups), 1)
    return (1 - share) * losses + share * means[groups]


def constant_weight(rows: int, kd_ratio: float) -> np.ndarray:
    """The same weight on every sample: [rows] float64 of `kd_ratio` in [0, 1]; 0 is plain fine-tuning, 1 pure
    distillation."""
    if not 0 <= kd_ratio <= 1:
        raise ValueError(f"kd_ratio must lie in [0, 1]; found {kd_ratio}")
    return np.full(rows, float(kd_ratio))


def checked_weight(rule: Callable[..., np.ndarray], anchor_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """[rows] weights of a function of the user's own. Raises ModelError for anything but one number in [0, 1] a row."""
    weight = np.asarray(rule(anchor_nll, teacher_nll), dtype=np.float64)
    if weight.shape != anchor_nll.shape or not np.all((weight >= 0) & (weight <= 1)):
        raise ModelError(
            f"the weighting {rule.__name__} must return {len(anchor_nll)} weights in [0, 1], one a row; found shape {weight.shape}"
            + (f", {np.nanmin(weight):.3g} to {np.nanmax(weight):.3g}" if weight.size else "")
        )
    return weight


@dataclass(frozen=True)
class AdaptiveWeighting:
    """Adaptive weights of all training rows for any checkpoint: the losses that are compared, and how."""

    anchor: np.ndarray
    """[rows] losses of the anchor in nats."""
    teacher: Callable[[str], np.ndarray]
    """[rows] losses of a checkpoint."""
    how: Weighting = PUBLISHED
    rule: Callable[..., np.ndarray] | None = None
    """A function of the user's own in place of `adaptive_weight`."""
    groups: np.ndarray | None = None
    """[rows] number of each row's subdomain, for `smooth`."""
    held_out: Callable[[str], tuple[np.ndarray, np.ndarray]] | None = None
    """Losses of the anchor and a checkpoint on validation rows, for `calibrate`."""
    tokens: tuple[np.ndarray, Callable[[str], np.ndarray]] | None = None
    """[positions] losses of the anchor and of a checkpoint, for `per_token`."""

    def weights(self, checkpoint: str) -> np.ndarray:
        """[rows], or with `per_token` [positions], in [0, 1]. Raises ModelError for losses that no model should
        have."""
        if self.rule is not None:
            return checked_weight(self.rule, self.anchor, self.teacher(checkpoint))
        how, losses = self.how, (self.anchor, self.teacher(checkpoint))
        if how.per_token:
            losses = self.tokens[0], self.tokens[1](checkpoint)
        if how.smooth:
            losses = tuple(smoothed(values, self.groups, how.smooth) for values in losses)
        scale = calibrated(losses, self.held_out(checkpoint)) if how.calibrate else Calibration(how.gamma, how.bias)
        try:
            return adaptive_weight(*losses, *scale)
        except ValueError as error:
            raise ModelError(
                f"{error}: a training has diverged. Lower its learning_rate and make that stage again"
            ) from error
