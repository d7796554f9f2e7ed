"""PEFT adapters (LoRA): adding new ones, loading trained ones, folding them into the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from tutelage.errors import ConfigError, Kind, ModelError, Problem
from tutelage.errors.wording import first_line
from tutelage.models.placement import settle_adapters, staying_in_place
from tutelage.models.weights import Found, check_finite, check_stored_types
from tutelage.recipe.schema import Lora
from tutelage.recipe.values import wrong
from tutelage.utils.integrity import MODEL_FILES, check_folder, present

WEIGHTS = "adapter_model.safetensors"
NEUTRAL = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "fan_in_fan_out", "runtime_config", "megatron_core"),
}
"""Fields of `peft.LoraConfig` that say what it is for, or that PEFT sets by the model."""


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """`model` with new adapters to train; the output head never gets one, so that all checkpoints share one head.

    Raises ModelError if the target modules are none of the model's, or the output head is among them.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
    )
    tied = _tied(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is an error below
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(first_line(error)) from error
    _refuse_tied(adapted, tied, "lora.target_modules")
    return adapted


def lora_of(config: Any) -> Lora | None:
    """The settings of a `peft.LoraConfig`, None if there is none. `target_modules=None` means all linear layers.

    Raises ConfigError for another kind of adapters, for fields that a recipe does not have, which would be left out,
    and for wrong values.
    """
    from peft import LoraConfig, PeftType

    if config is None:
        return None
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        raise ConfigError(
            f"peft_config is of type {type(config).__name__}, and students are trained by LoRA alone: give a"
            " peft.LoraConfig, or leave peft_config out to train all weights"
        )
    values, plain = vars(config), vars(LoraConfig())
    own = {name: values[name] for name in Lora.model_fields}
    if others := sorted(name for name in plain.keys() - own.keys() - NEUTRAL if values[name] != plain[name]):
        raise ConfigError(
            f"peft_config sets {', '.join(others)}, and adapters are made from r, lora_alpha, lora_dropout and"
            " target_modules alone, so the student would be another one: leave these fields out of the LoraConfig"
        )
    modules = own["target_modules"] or "all-linear"
    own["target_modules"] = modules if isinstance(modules, str) else sorted(modules)
    try:
        return Lora(**own)
    except ValidationError as error:
        names = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
        texts = {name: wrong(Lora.model_fields[name], own[name]) for name in names}
        problems = (Problem(Kind.VALUE_INVALID, key=f"peft_config.{n}", values={"text": t}) for n, t in texts.items())
        raise ConfigError(*problems, subject="SCDTrainer") from error


def has_adapters(folder: Path) -> bool:
    """Whether a checkpoint folder holds PEFT adapters instead of full weights."""
    return present(folder / "adapter_config.json")


def load_adapter(base: nn.Module, folder: Path, *, trainable: bool = False) -> Any:
    """`base` with the adapters of `folder`.

    `.unload()` need not give the base back: PEFT leaves layers that were trained whole, biases and, with PiSSA or
    OLoRA, changed weights in it. So each checkpoint is read on a base of its own.

    trainable: whether the adapters are to be trained further; otherwise the model is in eval mode. Only safetensors are
    read. Raises ModelError if the adapters do not fit the base: weights that are missing, match nothing, have another
    shape, are NaN or infinite; or if merging them would change more than they do.
    """
    from peft import PeftConfig, PeftModel

    check_folder(folder, *MODEL_FILES)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(Problem(Kind.WEIGHTS_NOT_SAFETENSORS, values={"name": str(folder), "file": WEIGHTS}))
    tied = _tied(base)
    try:
        with warnings.catch_warnings(), staying_in_place(base) as spread_out:
            warnings.simplefilter("ignore")  # what they are about is an error below
            config = PeftConfig.from_pretrained(str(folder))
            if next(base.parameters()).is_meta and hasattr(config, "init_lora_weights"):
                config.init_lora_weights = False  # PiSSA and OLoRA begin by taking the base's weights apart
            adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, config=config)
            found = adapted.load_adapter(str(folder), "default", is_trainable=trainable)
    except Exception as error:  # PEFT raises whatever a wrong config leads to
        raise ModelError(f"the adapters in {folder} do not fit their base model: {first_line(error)}") from error
    if spread_out:
        settle_adapters(adapted, load_file(folder / WEIGHTS))
    keys = {"missing_keys": found.missing_keys, "unexpected_keys": found.unexpected_keys}
    Found({**keys, "mismatched_keys": [], "error_msgs": []}).refuse(str(folder))
    check_stored_types(folder, adapted)
    check_finite(((name, weight) for name, weight in adapted.named_parameters() if "lora_" in name), str(folder))
    _refuse_tied(adapted, tied, str(folder))
    return adapted if trainable else adapted.eval()


def merged(model: nn.Module) -> nn.Module:
    """The model with its adapters folded into the weights; as it is without adapters, or with adapters on weights that
    are quantized (both would be rounded again) or spread over devices."""
    apart = getattr(model, "is_quantized", False) or hasattr(model, "hf_device_map")
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") and not apart else model


def _tied(model: nn.Module) -> bool:
    """Whether input embedding and output head are one weight."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _refuse_tied(adapted: nn.Module, tied: bool, name: str) -> None:
    """Raises ModelError for adapters on a tied output head or embedding: merged into one, they would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = adapted.get_base_model().get_output_embeddings(), adapted.get_base_model().get_input_embeddings()
    if tied and any(isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper) for layer in layers):
        raise ModelError(Problem(Kind.ADAPTERS_ON_TIED_HEAD, values={"name": name}))
