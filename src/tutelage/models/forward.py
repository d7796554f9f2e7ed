"""One forward pass without gradients: hidden states, logits and losses at the answer positions of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.collate import IGNORED
from tutelage.method.divergences import cross_entropy
from tutelage.method.mixed_loss import example_means
from tutelage.models.heads import answer_states


@torch.no_grad()
def read_batch(model: nn.Module, batch: dict[str, Tensor], vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [N, H], logits [N, V], nll [rows]) of a model at the answer positions of a batch.

    nll: mean negative log-likelihood of each row's answer tokens in nats, float32 on the CPU.
    """
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    hidden, logits = answer_states(model, batch)
    logits = logits[:, :vocabulary]
    mask = batch["targets"] != IGNORED
    nll = example_means(cross_entropy(logits, batch["targets"][mask]), mask)
    return hidden, logits, nll.cpu()
