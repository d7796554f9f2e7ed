"""Width pruning: feed-forward blocks with fewer units, chosen by activation (Minitron, arXiv 2407.14679)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.encode import EncodedRow
from tutelage.errors import ModelError
from tutelage.models.heads import answer_hidden
from tutelage.shrink.influence import batches
from tutelage.shrink.layers import layers_of


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of a layer."""

    up: tuple[nn.Linear, ...]
    """[units, hidden] each: what the units are computed from, with the gate if there is one."""
    down: nn.Linear
    """[hidden, units]."""


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward block of each layer. Raises ModelError if a layer has no single plain one: mixtures of experts,
    fused gates, and norms between the projections are not pruned."""
    units = unit_count(model)
    return [_feed_forward(model, index, layer, units) for index, layer in enumerate(layers_of(model))]


def unit_count(model: nn.Module) -> int:
    """Feed-forward units of each layer, by the config. Raises ModelError if it names no single number."""
    units = getattr(model.config.get_text_config(), "intermediate_size", None)
    if not isinstance(units, int):
        raise ModelError(
            f"the config of {type(model).__name__} names no single intermediate_size, so its feed-forward blocks cannot"
            " be made narrower: leave --width out, and keep fewer --layers"
        )
    return units


def check_width(units: int, width: int) -> None:
    """Raises ModelError for a number of units to keep that a model of `units` cannot have."""
    if not 1 <= width < units:
        raise ModelError(
            f"--width must lie between 1 and {units - 1:,} for a model of {units:,} feed-forward units; got {width:,}"
        )


@torch.no_grad()
def unit_activation(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    *,
    pad_id: int,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[Tensor]:
    """By layer, [units] in float64: the mean |activation| of each feed-forward unit over all token positions.

    Raises ModelError as `feed_forwards`, and if an activation is NaN or infinite.
    """
    blocks = feed_forwards(model)
    total, positions = [torch.zeros(block.down.in_features, dtype=torch.float64) for block in blocks], 0
    for batch in batches(model, rows, pad_id=pad_id, batch_size=batch_size):
        mask = batch["attention_mask"].bool()
        with _summed(blocks, mask, total):
            answer_hidden(model, batch)
        positions += int(mask.sum())
        on_rows(len(mask))
    if wrong := [index for index, own in enumerate(total) if not own.isfinite().all()]:
        raise ModelError(
            f"layer {wrong[0]} has NaN or infinite activations on this text, so no units can be chosen: leave --width"
            " out, and keep fewer --layers"
        )
    return [own / positions for own in total]


@contextmanager
def _summed(blocks: Sequence[FeedForward], mask: Tensor, total: Sequence[Tensor]) -> Iterator[None]:
    """Inside, every forward pass adds |activation| of each block's units over the positions in `mask` [B, T]."""

    def hook(own: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            own.add_(args[0][mask].float().abs().sum(dim=0).cpu())

        return record

    handles = [block.down.register_forward_pre_hook(hook(own)) for block, own in zip(blocks, total, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def most_active(activation: Sequence[Tensor], width: int) -> list[list[int]]:
    """By layer, the indices of the `width` units with the largest activation, ascending (of equals the earlier)."""
    return [sorted(torch.sort(own, descending=True, stable=True).indices[:width].tolist()) for own in activation]


@torch.no_grad()
def prune_units(model: nn.Module, kept: Sequence[Sequence[int]]) -> nn.Module:
    """The same model with these feed-forward units of each layer alone, as many in each. It gives what the unpruned one
    gives whose other units are 0. Changes `model` in place and returns it."""
    for block, indices in zip(feed_forwards(model), kept, strict=True):
        units = torch.tensor(indices, device=block.down.weight.device)
        for linear in block.up:
            linear.weight = nn.Parameter(linear.weight[units].clone())
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[units].clone())
            linear.out_features = len(units)
        block.down.weight = nn.Parameter(block.down.weight[:, units].clone())
        block.down.in_features = len(units)
    model.config.get_text_config().intermediate_size = len(kept[0])
    return model


def _feed_forward(model: nn.Module, index: int, layer: nn.Module, units: int) -> FeedForward:
    found = []
    for parent in layer.modules():
        children = dict(parent.named_children())
        down = [one for one in children.values() if isinstance(one, nn.Linear) and one.in_features == units]
        up = [one for one in children.values() if isinstance(one, nn.Linear) and one.out_features == units]
        weighted = [one for one in children.values() if any(True for _ in one.parameters())]
        if len(down) == 1 and up and len(weighted) == 1 + len(up) and not list(parent.parameters(recurse=False)):
            found.append(FeedForward(tuple(up), down[0]))
    if len(found) != 1 or found[0].down in found[0].up:
        raise ModelError(
            f"layer {index} of {type(model).__name__} has no single plain feed-forward block of {units:,} units, so it"
            " cannot be made narrower: leave --width out, and keep fewer --layers"
        )
    return found[0]
