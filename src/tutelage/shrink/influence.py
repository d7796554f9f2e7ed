"""Block influence: how much a layer changes what passes through it (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.models.heads import answer_hidden
from tutelage.models.placement import device_of
from tutelage.shrink.layers import check_layers, layers_of

INFLUENCE_TOKENS = 1 << 17
"""Most tokens that layers are chosen on: the mean over so many positions no longer moves."""


@torch.no_grad()
def block_influence(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    *,
    pad_id: int,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[float]:
    """[layers] 1 - mean cosine similarity of a layer's input and output hidden states, over all token positions.

    0 for a layer that changes nothing but the length of the states. Rows are read in batches and nothing is kept of
    them but two sums for each layer. Raises ModelError if a layer's output is NaN or infinite.
    """
    layers = layers_of(model)
    total, positions = torch.zeros(len(layers), dtype=torch.float64), 0
    for batch in batches(model, rows, pad_id=pad_id, batch_size=batch_size):
        mask = batch["attention_mask"].bool()
        with _similarities(layers, mask) as sums:
            answer_hidden(model, batch)
        total += torch.stack([sums[index] for index in range(len(layers))]).cpu()
        positions += int(mask.sum())
        on_rows(len(mask))
    influence = (1 - total / positions).tolist()
    if wrong := [index for index, value in enumerate(influence) if value != value]:
        raise ModelError(
            f"layer {wrong[0]} gives NaN or infinite hidden states on this text, so no layer can be chosen by"
            " influence: take evenly spaced ones, --by even"
        )
    return influence


def batches(
    model: nn.Module, rows: Sequence[EncodedRow], *, pad_id: int, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """The rows as batches on the model's device. The model is in evaluation mode from the first one on."""
    model.eval()
    collate, device = Collator(pad_id), device_of(model)
    for start in range(0, len(rows), batch_size):
        numbers = range(start, min(start + batch_size, len(rows)))
        batch = collate([(index, rows[index]) for index in numbers])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def most_influential(influence: Sequence[float], layers: int) -> list[int]:
    """Indices of the layers to keep, ascending: the first, and of the others those with the largest influence (of
    equals the earlier). Raises ModelError as `kept_layers`."""
    check_layers(len(influence), layers)
    others = sorted(range(1, len(influence)), key=lambda index: (-influence[index], index))
    return sorted([0, *others[: layers - 1]])


@contextmanager
def _similarities(layers: Sequence[nn.Module], mask: Tensor) -> Iterator[dict[int, Tensor]]:
    """Inside, every forward pass writes each layer's sum of cosine similarities over the positions in `mask` [B, T]."""
    sums: dict[int, Tensor] = {}

    def hook(index: int) -> Callable[..., None]:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            similarity = F.cosine_similarity(before[mask].float(), after[mask].float(), dim=-1)
            sums[index] = similarity.double().sum()

        return record

    handles = [layer.register_forward_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
