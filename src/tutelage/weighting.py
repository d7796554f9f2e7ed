"""How much of a sample's loss follows the teacher: adaptive weighting (AW) and the constant it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tutelage.errors import ModelError


def adaptive_weight(anchor_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """Weight of the teacher on each sample; the rest of the sample's loss is cross-entropy on the gold answer.

        w_i = sigmoid(log(l_i(S_0) / l_i(T_k))) = l_i(S_0) / (l_i(S_0) + l_i(T_k))          (arXiv 2601.10114, AW)

    Above 0.5 the checkpoint explains the gold answer better than the fine-tuned student did (teacher-favoured sample); below
    0.5 the student was better and keeps its own view by learning from gold.

    anchor_nll, teacher_nll: [rows] mean negative log-likelihood in nats per answer token, >= 0 and finite; the anchor S_0 is
    the student after plain fine-tuning, frozen. Returns [rows] float64 in [0, 1]. Where both are 0 nobody is better: 0.5.
    The quotient form is exact where the logarithm is not (a loss of 0). Raises ValueError for negative or non-finite losses.
    """
    anchor = np.asarray(anchor_nll, dtype=np.float64)
    teacher = np.asarray(teacher_nll, dtype=np.float64)
    for name, losses in (("anchor", anchor), ("teacher", teacher)):
        if not np.all(np.isfinite(losses)) or np.any(losses < 0):
            raise ValueError(f"{name} losses must be finite and not negative; found {losses.min()} to {losses.max()}")
    total = anchor + teacher
    return np.divide(anchor, total, out=np.full_like(total, 0.5), where=total > 0)


def constant_weight(rows: int, kd_ratio: float) -> np.ndarray:
    """The same weight on every sample: [rows] float64 of `kd_ratio` in [0, 1]; 0 is plain fine-tuning, 1 pure distillation."""
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
