"""How much of an example's loss follows the teacher: adaptive weighting (AW) and constant weights. NumPy only.

    w_i = sigmoid(log(l_i(S_0) / l_i(T_k))) = l_i(S_0) / (l_i(S_0) + l_i(T_k))          (arXiv 2601.10114, AW)
    L_i = w_i KL(T_k || S) + (1 - w_i) CE(gold, S)

S_0 is the anchor: the student after plain fine-tuning, frozen. T_k is the checkpoint of the stage. l_i(M) is the mean
negative log-likelihood of example i's answer tokens under model M, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tutelage.errors import ModelError


def adaptive_weight(anchor_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """Weight of the teacher on each example; see the formula above.

    Above 0.5 the checkpoint explains the gold answer better than the anchor does (teacher-favoured example); below 0.5
    the anchor does, and the student learns more from gold.

    anchor_nll, teacher_nll: [rows] losses in nats per answer token, finite and not negative. Returns [rows] float64 in
    [0, 1]; 0.5 where both losses are 0. The quotient is exact where the logarithm is not defined (a loss of 0). Raises
    ValueError for negative or non-finite losses.
    """
    anchor = np.asarray(anchor_nll, dtype=np.float64)
    teacher = np.asarray(teacher_nll, dtype=np.float64)
    for name, losses in (("anchor", anchor), ("teacher", teacher)):
        if not np.all(np.isfinite(losses)) or np.any(losses < 0):
            raise ValueError(f"{name} losses must be finite and not negative; found {losses.min()} to {losses.max()}")
    both_zero = (anchor == 0) & (teacher == 0)
    anchor, teacher = np.where(both_zero, 1.0, anchor), np.where(both_zero, 1.0, teacher)
    return anchor / (anchor + teacher)


def constant_weight(rows: int, kd_ratio: float) -> np.ndarray:
    """[rows] float64, each `kd_ratio` in [0, 1]: 0 is plain fine-tuning, 1 is distillation without gold."""
    if not 0 <= kd_ratio <= 1:
        raise ValueError(f"kd_ratio must lie in [0, 1]; found {kd_ratio}")
    return np.full(rows, float(kd_ratio))


Weighting = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(anchor losses, checkpoint losses), both [rows] in nats, -> [rows] weights in [0, 1]."""


def weighting_function(weighting: str | Weighting) -> Weighting:
    """The function that computes a method's weights: a user's own, or `adaptive_weight` for a name."""
    return weighting if callable(weighting) else adaptive_weight


@dataclass(frozen=True)
class AdaptiveWeighting:
    """Weights of all training rows for any checkpoint, computed from two loss tables."""

    anchor: np.ndarray
    """[rows] losses of the anchor in nats."""
    teacher: Callable[[str], np.ndarray]
    """Checkpoint name -> [rows] losses of that checkpoint in nats."""
    rule: Weighting = adaptive_weight
    """`adaptive_weight`, or a function of the user's own."""

    def weights(self, checkpoint: str) -> np.ndarray:
        """[rows] weights in [0, 1]. Raises ModelError for losses of a diverged model or weights out of range."""
        losses = self.anchor, self.teacher(checkpoint)
        if self.rule is not adaptive_weight:
            return _checked(self.rule, *losses)
        try:
            return adaptive_weight(*losses)
        except ValueError as error:
            raise ModelError(
                f"{error}: a fine-tuning run has diverged. Lower its learning_rate and rerun that stage"
            ) from error


def _checked(rule: Weighting, anchor_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """[rows] weights of a user's function. Raises ModelError unless they are one number in [0, 1] per row."""
    weight = np.asarray(rule(anchor_nll, teacher_nll), dtype=np.float64)
    if weight.shape != anchor_nll.shape or not np.all((weight >= 0) & (weight <= 1)):
        values = f", values {np.nanmin(weight):.3g} to {np.nanmax(weight):.3g}" if weight.size else ""
        raise ModelError(
            f"the weighting {rule.__name__} must return {len(anchor_nll)} weights in [0, 1], one per row;"
            f" found shape {weight.shape}{values}"
        )
    return weight
