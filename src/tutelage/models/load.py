"""Models and tokenizers: loading, adapters, comparing vocabularies, checkpoints folders, depth-pruned students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import Kind, ModelError, Problem
from tutelage.recipe.schema import Lora, Model


def load_tokenizer(model: Model) -> Any:
    """Tokenizer of a model. Raises ModelError if there is none, or if it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    name = model.model_name_or_path
    _check_local(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no tokenizer could be read from {name!r}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-sequence token, so no answer would ever end")
    return tokenizer


def load_model(model: Model, path: Path | str | None = None) -> nn.Module:
    """A causal language model in eval mode.

    path: a folder of fine-tuned weights to load in place of `model.model_name_or_path`: full weights, or PEFT adapters,
    which are merged into their base. The model is put on the machine's accelerator, if there is one. Only safetensors
    are read. Raises ModelError for a folder that holds no model.
    """
    folder = Path(path) if path is not None else None
    if folder is not None and (folder / "adapter_config.json").is_file():
        return load_adapter(load_model(model), folder).merge_and_unload().eval()
    return _load_full(model, str(path or model.model_name_or_path)).to(device()).eval()


def device() -> torch.device:
    """Where models work: the first accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def load_adapter(base: nn.Module, folder: Path) -> Any:
    """`base` with the PEFT adapters of `folder` on it; `.unload()` gives the base back unchanged."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the adapters in {folder} do not fit their base model: {_first_line(error)}") from error


def _load_full(model: Model, name: str) -> nn.Module:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    _check_local(name)
    dtype = model.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    options = {"attn_implementation": model.attn_implementation} if model.attn_implementation else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            name,
            revision=model.revision if name == model.model_name_or_path else None,
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no causal language model could be read from {name!r}: {_first_line(error)}") from error


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """`model` with fresh adapters to train; the output head never gets one, so that one head serves all checkpoints."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
    )
    return get_peft_model(model, config)


def load_trainable(model: Model, folder: Path | None, seed: int) -> nn.Module:
    """The student to train: untrained (with fresh adapters if the recipe asks for them), or as `folder` saved it."""
    if folder is None:
        student = load_model(model)
        if model.lora:
            torch.manual_seed(seed)
            student = with_lora(student, model.lora)
        return student
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        return PeftModel.from_pretrained(load_model(model), str(folder), is_trainable=True)
    return load_model(model, folder)


def merged(model: nn.Module) -> nn.Module:
    """The model with its adapters folded into the weights; a model without adapters comes back as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_student(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), tokenizer and generation config so that plain transformers loads and decodes
    greedily."""
    config = model.generation_config
    config.eos_token_id = config.eos_token_id or tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def check_vocabularies(teacher: Any, student: Any) -> int:
    """Size of the vocabulary both tokenizers share, compared entry by entry; equal sizes prove nothing.

    Models may pad their embeddings beyond it (Qwen2.5: 152,064 and 151,936 rows for the same tokenizer); the padding is
    sliced off on both sides. Raises ModelError with the first difference.
    """
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours != theirs:
        token = min(ours.items() ^ theirs.items(), key=lambda entry: (entry[1], entry[0]))[0]
        ids, sizes = (ours.get(token), theirs.get(token)), (len(ours), len(theirs))
        raise ModelError(Problem(Kind.VOCABULARIES_DIFFER, values={"token": token, "ids": ids, "sizes": sizes}))
    if teacher.eos_token_id != student.eos_token_id:
        values = {"teacher": teacher.eos_token, "student": student.eos_token}
        raise ModelError(Problem(Kind.END_OF_SEQUENCE_DIFFERS, values=values))
    return max(ours.values()) + 1


def hidden_size(model: Model) -> int | None:
    """Width of what enters the model's output head, from its config; None where the config does not say or is not
    here."""
    config = config_of(model)
    return getattr(config, "hidden_size", None)


def longest_context(model: Model) -> int | None:
    """Most tokens the model has positions for, from its config; None if there is no limit or it is not known yet."""
    return getattr(config_of(model), "max_position_embeddings", None)


def config_of(model: Model) -> Any:
    """The text part of a model's transformers configuration; None where it cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None
    return config.get_text_config()


def _check_local(name: str) -> None:
    """A name that looks like a folder and is none gets a plain message instead of the hub's."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).is_dir():
        raise ModelError(f"no folder {name!r}: give a folder in Hugging Face layout or a hub id (owner/name)")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def kept_layers(total: int, layers: int) -> list[int]:
    """Places of `layers` evenly spaced layers out of `total`, first and last among them: 5 of 9 are 0, 2, 4, 6, 8."""
    if not 2 <= layers < total:
        raise ModelError(f"--layers must lie between 2 and {total - 1} for a model of {total} layers; found {layers}")
    return [round(place * (total - 1) / (layers - 1)) for place in range(layers)]


def shrink(model: nn.Module, layers: int) -> nn.Module:
    """A student by depth pruning: the same model with `layers` of its layers, everything else kept.

    Changes `model` in place and returns it. Raises ModelError where the layers are not one plain list, or do not all
    have the same make-up by the config (`layer_types` is cut along).
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    places = kept_layers(total, layers)
    stacks = [
        (m, n)
        for m in model.modules()
        for n, c in m.named_children()
        if isinstance(c, nn.ModuleList) and len(c) == total
    ]
    if len(stacks) != 1:
        raise ModelError(f"{type(model).__name__} has no single list of {total} layers to prune")
    owner, name = stacks[0]
    kept = nn.ModuleList(getattr(owner, name)[place] for place in places)
    setattr(owner, name, kept)
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    config.num_hidden_layers = layers
    for key, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == total and key.startswith("layer"):
            setattr(config, key, [value[place] for place in places])
    return model
