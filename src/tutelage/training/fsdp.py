"""FSDP2 (torch's `fully_shard`, by accelerate): in a training run each process holds a part of every weight, of its
gradient and of the optimizer's state.

Only training is divided. Checkpoints are written whole, in the layout of a run of one process, and the student that a
stage leaves is whole in every process: all that reads, compares, saves or continues is the same with and without FSDP.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigError
from tutelage.recipe.schema import Recipe
from tutelage.utils import ranks

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Names of optimizers whose state has the shapes of the weights, or is a number."""


def check(recipe: Recipe) -> None:
    """Raises ConfigError for quantized weights, which FSDP would not divide, for batches in parts, and for an optimizer
    whose state cannot be put together and divided again."""
    if recipe.teacher.quantization:
        raise ConfigError(
            f"teacher.quantization: {recipe.teacher.quantization} and FSDP do not go together here: train the adapters"
            " without FSDP, each process with the whole quantized teacher, or set teacher.quantization=null"
        )
    if recipe.max_tokens_per_batch:
        raise ConfigError(
            f"max_tokens_per_batch: {recipe.max_tokens_per_batch} and FSDP do not go together: all processes run each"
            " layer together, and they would have different numbers of parts. Set max_tokens_per_batch=null, and lower"
            " trainer.per_device_train_batch_size"
        )
    for section in ("teach", "anchor", "distill"):
        name = recipe.trainer_arguments(section).get("optim", OPTIMIZERS[0])
        if name not in OPTIMIZERS:
            raise ConfigError(f"trainer.optim: {name} cannot be divided by FSDP; write {' or '.join(OPTIMIZERS)}")


def to_be_divided(model: nn.Module) -> nn.Module:
    """A copy of a whole model, which waits in memory meanwhile. Both have one config, as transformers changes it."""
    return copy.deepcopy(model.to("cpu"), {id(model.config): model.config})


def use_plugin(accelerator: Any) -> None:
    """Let accelerate divide the next model by the user's settings. It keeps those that it made for the layers of the
    last model, and leaves FSDP out on CPUs, where torch has it as well."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin


def whole(value: Any) -> Any:
    """A tensor put together from the parts of all processes, which all must come here; other values as they are."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a divided model by name, in the main process; nothing in the others. Of a model with adapters those
    that are trained. All must come here."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {}
    for name, value in model.state_dict().items():
        if not hasattr(model, "peft_config") or name in trained:
            value = whole(value)
            if ranks.is_main():
                weights[name] = value.cpu()
    return weights


@torch.no_grad()
def put_together(divided: nn.Module, model: nn.Module) -> None:
    """Copy what was trained into the whole model that `to_be_divided` made a copy of. All must come here."""
    weights = dict(model.named_parameters())
    for name, weight in divided.named_parameters():
        if weight.requires_grad:
            weights[name.replace("_checkpoint_wrapped_module.", "")].copy_(whole(weight))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimizer over divided weights, as one process has it; in the main process. All must come here."""
    state = optimizer.state_dict()
    values: dict[int, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        found = {name: whole(value) for name, value in entries.items()}
        if ranks.is_main():
            values[index] = {name: value.cpu() if torch.is_tensor(value) else value for name, value in found.items()}
    return {**state, "state": values}


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Divide a state that `whole_state`, or one process, wrote. All must come here."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not torch.is_tensor(value) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    divided = {
        index: {name: part(value, weights[index]) for name, value in entries.items()}
        for index, entries in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": divided})


class WholeOptimizer:
    """State of an optimizer over divided weights, out and in as that of one process."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """All must come here."""
        self._optimizer, self._state = optimizer, whole_state(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in the main process."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Divide a whole state."""
        load_state(self._optimizer, state)
