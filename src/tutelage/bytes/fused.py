"""Output head and loss over bytes computed together, as in `training/fused_loss.py`: no [positions, vocabulary] tensor
but a chunk is held.

A byte's distribution may need several positions, so a chunk's gradient is known only after all chunks were read once: a
batch of more than one chunk has its logits computed twice.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tutelage.bytes.alphabet import combined
from tutelage.bytes.loss import ByteDivergence
from tutelage.bytes.masses import Chunk, chunks
from tutelage.method.divergences import cross_entropy
from tutelage.method.mixed_loss import example_means, example_of_position
from tutelage.models.heads import add_product, empty_gradients, vocabulary_product


class Inputs(Protocol):
    """What the loss of a batch is computed from; see `training.fused_loss.LossInputs`."""

    gold: Tensor
    mask: Tensor
    weight: Tensor
    vocabulary: int
    denominator: float | Tensor | None


def byte_head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Inputs,
    divergence: ByteDivergence,
    dtype: torch.dtype,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """Loss, cross-entropy and divergence by example, and the wanted gradients of hidden states, weight and bias.

    hidden: [N, H]. weight: [V, H] or more rows. bias: [V] or None. dtype: that of the matrix products.
    """
    lookups, vocabulary = divergence.targets.lookups, inputs.vocabulary
    head = weight[:vocabulary].to(dtype)
    offset = None if bias is None else bias[:vocabulary].to(dtype)
    parts = list(chunks(lookups, hidden.device, vocabulary))
    held: Tensor | None = None

    def logits_of(part: Chunk) -> Tensor:
        return vocabulary_product(hidden[part.positions].to(dtype), head, offset).float()

    ce = hidden.new_zeros(len(hidden), dtype=torch.float32)
    pieces = []
    for part in parts:
        held = logits_of(part)
        pieces.append(part.masses(held))
        ce[part.positions] = cross_entropy(held, inputs.gold[part.positions])
    masses, exact = (torch.cat(tensors).requires_grad_() for tensors in zip(*pieces, strict=True))
    kd_weight, counts = inputs.weight.float(), inputs.mask.sum(1)
    denominator = len(counts) if inputs.denominator is None else inputs.denominator
    with torch.enable_grad():
        kd = divergence(combined(masses, exact, lookups))
        weighted = (kd_weight * kd).sum() / denominator
    ce_means, kd = example_means(ce, inputs.mask), kd.detach()
    total = weighted.detach() + ((1 - kd_weight) * ce_means).sum() / denominator
    grads = empty_gradients(hidden, weight, bias, dtype, wanted)
    if not any(wanted):
        return total, ce_means, kd, list(grads)
    of_masses, of_exact = torch.autograd.grad(weighted, (masses, exact))
    scale = ((1 - kd_weight) / counts / denominator)[example_of_position(inputs.mask)]
    # float16 has no small numbers: gradients are computed in units of the largest scale, see `fused_loss.py`
    unit = (1.0 / counts / denominator).max() if dtype is torch.float16 else 1.0
    of_hidden, of_weight, of_bias = grads
    for part in parts:
        at, of = part.positions, part.lookups
        logits = held if held is not None and len(parts) == 1 else logits_of(part)
        grad = part.gradient(logits, masses.detach()[of], exact.detach()[at], of_masses[of], of_exact[at])
        grad.addcmul_(logits.softmax(-1), scale[at, None])
        grad.scatter_add_(1, inputs.gold[at, None], -scale[at, None])
        grad = (grad / unit).to(dtype)
        if of_hidden is not None:
            of_hidden[at] = grad @ head
        if of_weight is not None:
            add_product(of_weight[:vocabulary], grad, hidden[at].to(dtype))
        if of_bias is not None:
            of_bias[:vocabulary] += grad.sum(0)
    if dtype is torch.float16:
        for gradient in grads:
            if gradient is not None:
                gradient *= unit
    return total, ce_means, kd, [of_hidden, *(g if g is None else g.to(weight.dtype) for g in (of_weight, of_bias))]
