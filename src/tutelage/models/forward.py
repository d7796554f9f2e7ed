"""One forward pass without gradients: hidden states, logits and losses at the answer positions of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.collate import IGNORED
from tutelage.method.divergences import cross_entropy
from tutelage.models.heads import answer_states


@torch.no_grad()
def read_batch(
    model: nn.Module, batch: dict[str, Tensor], vocabulary: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((hidden [N, H], logits [N, V]), (losses [N], nll [B])) of a model at the answer positions of a batch.

    Losses of tokens and their means over rows are in float32 on the CPU.
    """
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    hidden, logits = answer_states(model, batch)
    logits = logits[:, :vocabulary]
    mask = batch["targets"] != IGNORED
    sample = torch.repeat_interleave(torch.arange(len(mask), device=device), mask.sum(1))
    losses = cross_entropy(logits, batch["targets"][mask])
    nll = torch.zeros(len(mask), device=device).index_add_(0, sample, losses) / mask.sum(1)
    return (hidden, logits), (losses.cpu(), nll.cpu())
