"""The mixed loss of a batch: weight x divergence + (1 - weight) x cross-entropy, token means over answers, mean over
samples.

    L = 1/n sum_i [ w_i KL(T_k || S)_i + (1 - w_i) CE(gold, S)_i ]        KL_i, CE_i: means over the answer positions of
    sample i

The unit of averaging is the sample: a long answer weighs as much as a short one, as adaptive weighting asks. n is the
number of samples in the whole optimizer step, over all micro-batches and ranks; it is applied here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.method.divergences import Divergence, cross_entropy, divergence_function, forward_kl_top_k

CHUNK_ELEMENTS = 1 << 25
"""Positions x vocabulary handled at a time: 128 MB in float32. Above it the loss is computed in chunks, each recomputed
in the backward pass, so that no second [positions, vocabulary] tensor is ever held whole."""


class Targets(Protocol):
    """What a checkpoint says at the answer positions of a batch; see `teachers.py` for where it comes from."""

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, vocabulary]: the teacher's logits at these positions."""

    def top_k(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """(ids, log-probabilities), each [stop - start, k], where only those are known; otherwise None."""


class Losses(NamedTuple):
    """Parts of a batch's loss."""

    total: Tensor
    """Scalar, differentiable: the batch's share of the optimizer step's loss."""
    cross_entropy: Tensor
    """[samples] token means, detached."""
    divergence: Tensor
    """[samples] token means, detached; zeros without a teacher."""


@dataclass(frozen=True)
class Interpolated:
    """Targets between student and teacher: (1 - share) x student + share x teacher in logits, the student's held
    constant."""

    targets: Targets
    student: Tensor
    """[positions, V] logits."""
    share: float

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V] in float32."""
        return torch.lerp(
            self.student[start:stop].detach().float(), self.targets.logits(start, stop).float(), self.share
        )

    def top_k(self, start: int, stop: int) -> None:
        """Needs full distributions; a source that has only the top k says so in `logits`."""


def mixed_loss(
    student: Tensor,
    gold: Tensor,
    answer_mask: Tensor,
    weight: Tensor,
    targets: Targets | None,
    *,
    divergence: str | Divergence = "forward_kl",
    temperature: float = 1.0,
    denominator: float | Tensor | None = None,
) -> Losses:
    """The loss of a batch from the student's logits at its answer positions.

    student: [positions, vocabulary], positions in row-major order of answer_mask. gold: [positions] token ids.
    answer_mask: [samples, answer columns] bool. weight: [samples] in [0, 1], the share that follows the teacher, or of
    every token [samples, answer columns]. denominator:
    samples in the optimizer step; default: those of this batch. temperature scales the divergence by its square, once,
    so that its gradient keeps its size beside the cross-entropy (Hinton et al. 2015).
    """
    counts = answer_mask.sum(1)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    kd_weight = weight_of_positions(weight, answer_mask, sample)
    share = 1.0 / counts[sample].clamp_min(1)

    def chunk(rows: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        ce = cross_entropy(rows, gold[start:stop])
        kd = (
            divergence_of(rows, targets, start, stop, divergence, temperature)
            if targets is not None
            else torch.zeros_like(ce)
        )
        w = kd_weight[start:stop]
        return (share[start:stop] * (w * kd + (1 - w) * ce)).sum(), ce.detach(), kd.detach()

    size = max(1, CHUNK_ELEMENTS // student.shape[-1])
    total, parts = student.sum() * 0, []
    for start in range(0, len(student), size):
        stop = min(start + size, len(student))
        rows = student[start:stop]
        one_piece = len(student) <= size
        loss, ce, kd = (
            chunk(rows, start, stop) if one_piece else checkpoint(chunk, rows, start, stop, use_reentrant=False)
        )
        total = total + loss
        parts.append((ce, kd))
    ce, kd = (sample_means(torch.cat(values), answer_mask) for values in zip(*parts, strict=True))
    return Losses(total / (len(counts) if denominator is None else denominator), ce, kd)


def weight_of_positions(weight: Tensor, answer_mask: Tensor, sample: Tensor) -> Tensor:
    """[positions] float32. weight: [samples], or [samples, answer columns]; sample: [positions] number of each one's
    sample."""
    return weight.float()[sample] if weight.ndim == 1 else weight.float()[answer_mask]


def sample_means(values: Tensor, answer_mask: Tensor) -> Tensor:
    """[samples] means of [positions] values over each sample's answer; 0 for a sample without answer positions."""
    counts = answer_mask.sum(1)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts)
    sums = torch.zeros(len(counts), device=values.device).index_add_(0, sample, values)
    return sums / counts.clamp_min(1)


def divergence_of(
    rows: Tensor, targets: Targets, start: int, stop: int, divergence: str | Divergence, temperature: float
) -> Tensor:
    """[positions] divergence, scaled by temperature squared."""
    sparse = targets.top_k(start, stop)
    if sparse is None:
        values = divergence_function(divergence)(rows, targets.logits(start, stop), temperature)
    elif divergence == "forward_kl":
        values = forward_kl_top_k(rows, *sparse, temperature)
    else:
        raise ValueError(
            f"{divergence} needs full teacher distributions; this teacher's cache holds top-k entries only"
        )
    return values * temperature**2
