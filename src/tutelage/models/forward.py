"""One forward pass without gradients: hidden states, logits and losses at the answer positions of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data.collate import IGNORED
from tutelage.method.divergences import cross_entropy
from tutelage.method.mixed_loss import example_means
from tutelage.models.heads import answer_states
from tutelage.models.placement import device_of


class BatchReading(NamedTuple):
    """A model's output at the N answer positions of a batch, in row-major order."""

    hidden: Tensor
    """[N, H] what enters the output head, on the model's device."""
    logits: Tensor
    """[N, V] over the tokenizer's entries, on the model's device."""
    row_losses: Tensor
    """[B] mean cross-entropy with the gold tokens of each row in nats, float32 on the CPU."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; on exit every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def read_batch(model: nn.Module, batch: dict[str, Tensor], vocabulary: int) -> BatchReading:
    """Run the model on a collated batch. vocabulary: number of the tokenizer's entries."""
    device = device_of(model)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    hidden, logits = answer_states(model, batch)
    logits = logits[:, :vocabulary]
    mask = batch["targets"] != IGNORED
    row_losses = example_means(cross_entropy(logits, batch["targets"][mask]), mask)
    return BatchReading(hidden, logits, row_losses.cpu())
