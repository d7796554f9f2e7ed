"""Depth pruning: a model with fewer of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tutelage.errors import ModelError


def prune(model: nn.Module, kept: Sequence[int]) -> nn.Module:
    """The same model with these of its layers (indices, ascending); everything else is kept.

    Changes `model` in place and returns it. Raises ModelError if its layers are not in one plain list. Settings by
    layer in the config (`layer_types`) are cut along.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    parent, name = _layer_list(model, total)
    stack = nn.ModuleList(getattr(parent, name)[index] for index in kept)
    setattr(parent, name, stack)
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config.num_hidden_layers = len(kept)
    for key, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == total and key.startswith("layer"):
            setattr(config, key, [value[index] for index in kept])
    return model


def kept_layers(total: int, layers: int) -> list[int]:
    """Indices of `layers` evenly spaced layers out of `total`, first and last included: 5 of 9 are 0, 2, 4, 6, 8."""
    check_layers(total, layers)
    return [round(index * (total - 1) / (layers - 1)) for index in range(layers)]


def check_layers(total: int, layers: int) -> None:
    """Raises ModelError for a number of layers to keep that a model of `total` layers cannot have."""
    if not 2 <= layers < total:
        raise ModelError(f"--layers must lie between 2 and {total - 1} for a model of {total} layers; got {layers}")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """All layers of a model. Raises ModelError if they are not in one plain list."""
    parent, name = _layer_list(model, model.config.get_text_config().num_hidden_layers)
    return getattr(parent, name)


def _layer_list(model: nn.Module, total: int) -> tuple[nn.Module, str]:
    """The module that holds the list of all layers, and the list's name in it."""
    lists = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(lists) != 1:
        raise ModelError(f"{type(model).__name__} has no single list of {total} layers to prune")
    return lists[0]
