"""The loss of a batch: weight x divergence + (1 - weight) x cross-entropy.

    L = 1/n sum_i [ w_i KL(T_k || S)_i + (1 - w_i) CE(gold, S)_i ]          (arXiv 2601.10114)

KL_i and CE_i are means over the answer positions of example i, so a long answer counts as much as a short one. n is the
number of examples in the whole optimizer step, over all micro-batches and ranks. Each form of the loss (this one,
`training/fused_loss.py` without holding the logits, `bytes/loss.py` and `bytes/fused.py` over bytes) divides by n once,
and nothing divides again.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.method.divergences import Divergence, cross_entropy, divergence_function, forward_kl_top_k

CHUNK_ELEMENTS = 1 << 25
"""Positions x vocabulary of one chunk: 128 MB in float32. A larger batch is computed in chunks that the backward pass
recomputes, so that no second [positions, vocabulary] tensor is held."""


class Targets(Protocol):
    """A checkpoint's predictions at the answer positions of a batch; `teacher/sources.py` implements it."""

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, vocabulary]: the teacher's logits at these positions."""

    def top_k(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """(ids, log-probabilities), each [stop - start, k], if only the top k are known; otherwise None."""


class MixedLoss(NamedTuple):
    """The loss of a batch and its terms."""

    total: Tensor
    """Scalar, differentiable: the batch's contribution to the loss of the optimizer step."""
    cross_entropy: Tensor
    """[examples] token means in nats, detached."""
    divergence: Tensor
    """[examples] token means in nats, detached; zeros without a teacher."""


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
) -> MixedLoss:
    """The loss of a batch from the student's logits at its answer positions.

    student: [positions, vocabulary] logits; positions in row-major order of answer_mask. gold: [positions] token ids.
    answer_mask: [examples, answer columns] bool. weight: [examples] in [0, 1], the fraction that follows the teacher.
    denominator: examples in the optimizer step; default: those of this batch. temperature: divides both models' logits
    in the divergence, which is scaled by its square so that its gradient keeps its size (Hinton et al. 2015).
    """
    example = example_of_position(answer_mask, len(student))
    weight = weight.float()[example]
    scale = 1.0 / answer_mask.sum(1)[example]

    def chunk(logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        ce = cross_entropy(logits, gold[start:stop])
        kd = torch.zeros_like(ce)
        if targets is not None:
            kd = divergence_of(logits, targets, start, stop, divergence, temperature)
        w = weight[start:stop]
        return (scale[start:stop] * (w * kd + (1 - w) * ce)).sum(), ce.detach(), kd.detach()

    size = max(1, CHUNK_ELEMENTS // student.shape[-1])
    total, terms = student.sum() * 0, []
    for start in range(0, max(1, len(student)), size):  # one chunk of nothing where there are no positions
        stop = min(start + size, len(student))
        if len(student) <= size:
            loss, ce, kd = chunk(student, start, stop)
        else:
            loss, ce, kd = checkpoint(chunk, student[start:stop], start, stop, use_reentrant=False)
        total = total + loss
        terms.append((ce, kd))
    ce, kd = (example_means(torch.cat(values), answer_mask) for values in zip(*terms, strict=True))
    return MixedLoss(total / (len(answer_mask) if denominator is None else denominator), ce, kd)


def example_of_position(answer_mask: Tensor, positions: int) -> Tensor:
    """[positions] index of the example that each answer position belongs to. positions: their number, which the caller
    knows: a GPU would have to be waited for to count them."""
    counts = answer_mask.sum(1)
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=positions)


def example_means(values: Tensor, answer_mask: Tensor) -> Tensor:
    """[examples] means of [positions] values over each example's answer; 0 for an example without answer positions."""
    counts = answer_mask.sum(1)
    example = example_of_position(answer_mask, len(values))
    sums = torch.zeros(len(counts), device=values.device).index_add_(0, example, values)
    return sums / counts.clamp_min(1)


def divergence_of(
    student: Tensor, targets: Targets, start: int, stop: int, divergence: str | Divergence, temperature: float
) -> Tensor:
    """[stop - start] divergence of the student's logits there from the targets, scaled by temperature squared.

    Raises ValueError if the divergence needs full distributions and only the top k are known.
    """
    sparse = targets.top_k(start, stop)
    if sparse is None:
        values = divergence_function(divergence)(student, targets.logits(start, stop), temperature)
    elif divergence == "forward_kl":
        values = forward_kl_top_k(student, *sparse, temperature)
    else:
        raise ValueError(
            f"{divergence} needs full teacher distributions; this teacher's cache holds top-k entries only"
        )
    return values * temperature**2
