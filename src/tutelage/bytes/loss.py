"""The divergence of a batch over bytes, from the divergences of `method/` on the alphabet of 257.

An example's divergence is the sum over the bytes of its answer, the end included, divided by the number of the
student's tokens: nats per answer token, as the cross-entropy beside it, whatever the teacher's tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.bytes.alphabet import byte_log_probs, finite
from tutelage.bytes.lookups import Lookups
from tutelage.method.divergences import Divergence, divergence_function
from tutelage.method.mixed_loss import MixedLoss, mixed_loss


@dataclass(frozen=True)
class ByteTargets:
    """A checkpoint's distributions over the next byte of the answers of a batch, and what the student's take."""

    log_probs: Tensor
    """[B, 257], on the batch's device."""
    lookups: Lookups
    """Of the student's tokens of the same texts."""

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, 257] logits over the alphabet at these bytes, counted over the batch."""
        return finite(self.log_probs[start:stop].float(), 1.0)

    def top_k(self, start: int, stop: int) -> None:
        """None: full distributions are known."""


@dataclass(frozen=True)
class ByteDivergence:
    """The divergence of examples from a teacher's distributions over bytes."""

    targets: ByteTargets
    mask: Tensor
    """[examples, answer columns] bool: the student's answer positions."""
    divergence: str | Divergence = "forward_kl"
    temperature: float = 1.0
    teacher_share: float = 1.0
    """TAID's t; below 1 the target lies between student and teacher."""

    def __call__(self, student: Tensor) -> Tensor:
        """[examples] in nats per token of the student, differentiable. student: [B, 257] log-probabilities."""
        student = finite(student, self.temperature)
        teacher = finite(self.targets.log_probs.float(), self.temperature)
        if self.teacher_share < 1:
            teacher = torch.lerp(student.detach(), teacher, self.teacher_share)
        values = divergence_function(self.divergence)(student, teacher, self.temperature) * self.temperature**2
        rows = torch.from_numpy(self.targets.lookups.rows).to(values.device)
        return torch.segment_reduce(values, "sum", lengths=rows, unsafe=True) / self.mask.sum(1)


def byte_mixed_loss(
    logits: Tensor, gold: Tensor, weight: Tensor, divergence: ByteDivergence, denominator: float | Tensor | None = None
) -> MixedLoss:
    """`method.mixed_loss.mixed_loss` with the divergence over bytes: the reference of `fused.py`.

    logits: [N, V] at the student's answer positions. gold: [N] token ids. weight: [examples] in [0, 1].
    """
    without = mixed_loss(logits, gold, divergence.mask, weight, None, denominator=denominator)
    values = divergence(byte_log_probs(logits, divergence.targets.lookups))
    total = (weight.float() * values).sum() / (len(values) if denominator is None else denominator)
    return MixedLoss(without.total + total, without.cross_entropy, values.detach())
