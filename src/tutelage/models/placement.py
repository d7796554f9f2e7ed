"""Where and in which form the weights of a teacher are held that does not fit on one device: in 4 or 8 bits
(bitsandbytes), or spread over all devices of the machine (accelerate's `device_map`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.errors.extras import missing_package
from tutelage.recipe.schema import Model

# It tells of every product that it casts its input, and of kernels that it would like to have from the Hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
BITS = {"4bit": 4, "8bit": 8}
"""Bits of a weight, by `teacher.quantization`."""


def device() -> torch.device:
    """The first accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs. Weights that wait in memory or on disk for their turn are on no device."""
    return next((weight.device for weight in model.parameters() if not weight.is_meta), device())


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes no gradients. Frozen weights, as of a model with merged adapters, are marked as
    requiring some meanwhile, which torch looks at although there are none:

    - `linear` of some positions of a sequence (the last ones, for the output head) copies a weight that requires no
      gradient once for every row: 264 times the time of a bfloat16 head of 49,152 entries and 16 rows;
    - autocast keeps the cast of a weight, and casts the others at every use; in inference mode, all.
    """
    frozen = [w for w in model.parameters() if not w.requires_grad and w.is_floating_point() and not w.is_meta]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.no_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def held(layer: nn.Module, name: str) -> Tensor | None:
    """A weight of a layer by name, also where accelerate keeps it elsewhere until the layer is run; None without it."""
    weight = getattr(layer, name, None)
    return layer._hf_hook.weights_map[name] if weight is not None and weight.is_meta else weight


@contextmanager
def staying_in_place(model: nn.Module) -> Iterator[bool]:
    """Inside, PEFT leaves the weights where they are: a model of which a part waits in memory or on disk it would
    spread anew, which fails. Gives whether the model is spread out."""
    places = model.__dict__.pop("hf_device_map", None)
    try:
        yield places is not None
    finally:
        if places is not None:
            model.hf_device_map = places


def settle_adapters(adapted: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Bring adapters to where their layers are run. saved: their values by the names in their file; PEFT has put none
    to layers whose weights are not here yet."""
    for name, layer in adapted.named_modules():
        inner = getattr(layer, "base_layer", None)
        if inner is None:
            continue
        where = getattr(getattr(inner, "_hf_hook", None), "execution_device", None)
        for key, weight in list(layer.named_parameters()):
            if not key.startswith("base_layer."):
                value = saved[f"{name}.{key}".replace(".default.", ".")] if weight.is_meta else weight.detach()
                placed = value.to(inner.weight.device if where is None else where)
                owner, _, field = key.rpartition(".")
                setattr(layer.get_submodule(owner), field, nn.Parameter(placed, requires_grad=weight.requires_grad))


def is_held_apart(model: Model) -> bool:
    """Whether the weights are held as they are loaded: not moved to another device, and no adapters folded into them,
    which would round both to 4 or 8 bits again."""
    return model.quantization is not None or model.device_map is not None


def loading_options(model: Model, dtype: torch.dtype | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` for how the weights are held.

    dtype: of products with weights in 4 bits. Raises ModelError if bitsandbytes is missing.
    """
    options: dict[str, Any] = {"device_map": model.device_map} if model.device_map else {}
    if model.quantization is None:
        return options
    check_quantizer(model)
    from transformers import BitsAndBytesConfig

    if model.quantization == "8bit":
        quantized = BitsAndBytesConfig(load_in_8bit=True)
    else:  # as in QLoRA (arXiv 2305.14314): NormalFloat, and the constants quantized too
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype or torch.float32,
        )
    return {"device_map": {"": device()}} | options | {"quantization_config": quantized}


def check_quantizer(model: Model) -> None:
    """Raises ModelError if the recipe asks for quantized weights and bitsandbytes is not installed."""
    purpose, key = f"teacher.quantization: {model.quantization}", "teacher.quantization"
    if model.quantization and (problem := missing_package("bitsandbytes", "quantization", purpose, key)):
        raise ModelError(problem)


def read_as_trained(model: nn.Module) -> nn.Module:
    """The model, whose 4-bit layers on a CPU compute the same when they read and when they are trained.

    bitsandbytes would repack weights for CPUs with bfloat16 units at the first pass without gradients: rounded to
    bfloat16, for layers of certain sizes only, and for good.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def bytes_of_weights(model: Model, weights: int) -> int:
    """Least bytes that this many weights take."""
    if model.quantization:
        return weights * BITS[model.quantization] // 8
    return weights * (2 if model.dtype in ("float16", "bfloat16") else 4)
