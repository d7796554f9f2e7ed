"""Output head and loss over bytes computed together, as in `training/fused_loss.py`: no [positions, vocabulary] tensor
but a chunk is held.

A byte's distribution may need several positions, so a chunk's gradient is known only after all chunks were read once: a
batch of more than one chunk has its logits computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
    head = _Head(hidden.to(dtype), weight[:vocabulary].to(dtype), None if bias is None else bias[:vocabulary].to(dtype))
    parts = list(chunks(lookups, hidden.device, vocabulary))
    masses, exact, ce, held = _masses(head, parts, inputs.gold)
    kd_weight, counts = inputs.weight.float(), inputs.mask.sum(1)
    denominator = len(counts) if inputs.denominator is None else inputs.denominator
    with torch.enable_grad():
        for tensor in (masses, exact):
            tensor.requires_grad_()
        kd = divergence(combined(masses, exact, lookups))
        weighted = (kd_weight * kd).sum() / denominator
    ce_means, kd = example_means(ce, inputs.mask), kd.detach()
    total = weighted.detach() + ((1 - kd_weight) * ce_means).sum() / denominator
    grads = list(empty_gradients(hidden, weight, bias, dtype, wanted))
    if any(wanted):
        of_masses, of_exact = torch.autograd.grad(weighted, (masses, exact))
        scale = ((1 - kd_weight) / counts / denominator)[example_of_position(inputs.mask, len(hidden))]
        # float16 has no small numbers: gradients are computed in units of the largest scale, see `fused_loss.py`
        unit = (1.0 / counts / denominator).max() if dtype is torch.float16 else None

        def of_logits(part: Chunk) -> Tensor:
            at, of, logits = part.positions, part.lookups, head.logits(part) if held is None else held
            grad = part.gradient(logits, masses.detach()[of], exact.detach()[at], of_masses[of], of_exact[at])
            grad.addcmul_(logits.softmax(-1), scale[at, None])
            grad.scatter_add_(1, inputs.gold[at, None], -scale[at, None])
            return (grad if unit is None else grad / unit).to(dtype)

        for part in parts:
            head.add_gradients(part, of_logits(part), grads)
        if unit is not None:
            for gradient in grads:
                if gradient is not None:
                    gradient *= unit
    return total, ce_means, kd, [grads[0], *(g if g is None else g.to(weight.dtype) for g in grads[1:])]


class _Head(NamedTuple):
    """Hidden states and output head of a batch, in the type of the matrix products."""

    hidden: Tensor
    """[N, H]."""
    weight: Tensor
    """[V, H]."""
    bias: Tensor | None

    def logits(self, part: Chunk) -> Tensor:
        """[n, V] in float32."""
        return vocabulary_product(self.hidden[part.positions], self.weight, self.bias).float()

    def add_gradients(self, part: Chunk, of_logits: Tensor, grads: list[Tensor | None]) -> None:
        """Add a chunk's part to the gradients of hidden states, weight and bias. of_logits: [n, V]."""
        of_hidden, of_weight, of_bias = grads
        vocabulary = len(self.weight)
        if of_hidden is not None:
            of_hidden[part.positions] = of_logits @ self.weight
        if of_weight is not None:
            add_product(of_weight[:vocabulary], of_logits, self.hidden[part.positions])
        if of_bias is not None:
            of_bias[:vocabulary] += of_logits.sum(0)


def _masses(head: _Head, parts: Sequence[Chunk], gold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What `masses.RangeMasses` returns, the cross-entropy of each position, and the logits if there is one chunk."""
    ce = head.hidden.new_zeros(len(head.hidden), dtype=torch.float32)
    pieces, logits = [], None
    for part in parts:
        logits = head.logits(part)
        pieces.append(part.masses(logits))
        ce[part.positions] = cross_entropy(logits, gold[part.positions])
    masses, exact = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
    return masses, exact, ce, logits if len(parts) == 1 else None
