"""Depth pruning: a student that is a model with fewer layers (`tutelage shrink`)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tutelage.errors import ModelError
from tutelage.models.load import load_model, load_tokenizer
from tutelage.models.save import save_student
from tutelage.recipe.schema import Model
from tutelage.utils.console import Screen
from tutelage.utils.disk import full_disk_as_user_error


def shrink_model(name: str, out: Path, layers: int) -> None:
    """Load `name`, keep `layers` of its layers, write model and tokenizer to `out`.

    Raises ModelError if `out` exists, DiskFullError if its disk is full.
    """
    if out.exists():
        raise ModelError(f"{out} exists already: name another folder, or delete it first")
    section = Model(model_name_or_path=name, dtype="auto")
    tokenizer, model = load_tokenizer(section), load_model(section)
    size_before = model.num_parameters()
    total = model.config.get_text_config().num_hidden_layers
    model = shrink(model, layers)
    with full_disk_as_user_error(out.parent):
        save_student(model, tokenizer, out)
    size = model.num_parameters()
    Screen().say(
        f"{out}: {layers} of {total} layers, {size / 1e6:,.1f} of {size_before / 1e6:,.1f} million parameters."
        " A pruned model predicts badly until it is fine-tuned or distilled"
    )


def shrink(model: nn.Module, layers: int) -> nn.Module:
    """The same model with `layers` of its layers; everything else is kept.

    Changes `model` in place and returns it. Raises ModelError if its layers are not in one plain list. Settings by
    layer in the config (`layer_types`) are cut along.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    kept = kept_layers(total, layers)
    parent, name = _layer_list(model, total)
    stack = nn.ModuleList(getattr(parent, name)[index] for index in kept)
    setattr(parent, name, stack)
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config.num_hidden_layers = layers
    for key, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == total and key.startswith("layer"):
            setattr(config, key, [value[index] for index in kept])
    return model


def kept_layers(total: int, layers: int) -> list[int]:
    """Indices of `layers` evenly spaced layers out of `total`, first and last included: 5 of 9 are 0, 2, 4, 6, 8."""
    if not 2 <= layers < total:
        raise ModelError(f"--layers must lie between 2 and {total - 1} for a model of {total} layers; got {layers}")
    return [round(index * (total - 1) / (layers - 1)) for index in range(layers)]


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
