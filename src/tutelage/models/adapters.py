"""PEFT adapters (LoRA): adding new ones, loading trained ones, folding them into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import ModelError
from tutelage.recipe.schema import Lora
from tutelage.utils.integrity import MODEL_FILES, check_folder, present


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """`model` with new adapters to train; the output head never gets one, so that all checkpoints share one head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
    )
    return get_peft_model(model, config)


def has_adapters(folder: Path) -> bool:
    """Whether a checkpoint folder holds PEFT adapters instead of full weights."""
    return present(folder / "adapter_config.json")


def load_adapter(base: nn.Module, folder: Path, *, trainable: bool = False) -> Any:
    """`base` with the adapters of `folder`; `.unload()` gives the base back unchanged.

    trainable: whether the adapters are to be trained further; otherwise the model is in eval mode. Raises ModelError if
    the adapters do not fit the base.
    """
    from peft import PeftModel

    check_folder(folder, *MODEL_FILES)
    try:
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the adapters in {folder} do not fit their base model: {first_line(error)}") from error
    return adapted if trainable else adapted.eval()


def merged(model: nn.Module) -> nn.Module:
    """The model with its adapters folded into the weights; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def first_line(error: BaseException) -> str:
    """First line of a library's error message; the error's type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
