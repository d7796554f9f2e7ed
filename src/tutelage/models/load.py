"""Models and tokenizers: loading, saving, what their configs say, and whether two vocabularies are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import Kind, ModelError, Problem
from tutelage.models.adapters import first_line, has_adapters, load_adapter, with_lora
from tutelage.recipe.schema import Model
from tutelage.utils.files import replacing
from tutelage.utils.integrity import MODEL_FILES, check_folder

# --- loading ---


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
        raise ModelError(f"cannot load a tokenizer from {name!r}: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-sequence token, so answers would never end")
    return tokenizer


def load_model(model: Model, path: Path | str | None = None) -> nn.Module:
    """A causal language model in eval mode, on the accelerator if there is one.

    path: a folder of fine-tuned weights to load instead of `model.model_name_or_path`: full weights, or PEFT adapters,
    which are merged into their base. Only safetensors are read. Raises ModelError if the folder holds no model.
    """
    folder = Path(path) if path is not None else None
    if folder is not None and has_adapters(folder):
        return load_adapter(load_model(model), folder).merge_and_unload().eval()
    return _load_full(model, str(path or model.model_name_or_path)).to(device()).eval()


def load_trainable(model: Model, folder: Path | None, seed: int) -> nn.Module:
    """The student to train: untrained, with new adapters if the recipe asks for them, or as saved in `folder`.

    seed: of new adapters' initial weights.
    """
    if folder is None:
        student = load_model(model)
        if model.lora:
            torch.manual_seed(seed)
            student = with_lora(student, model.lora)
        return student
    if has_adapters(folder):
        return load_adapter(load_model(model), folder, trainable=True)
    return load_model(model, folder)


def check_lora_targets(model: Model) -> None:
    """Refuse adapters for layers that a model does not have, before anything is trained. Loads no weights.

    Raises ModelError. A model whose config cannot be read is not judged: loading it says why.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if model.lora is None or config_of(model) is None:
        return
    trust, targets = model.trust_remote_code, model.lora.target_modules
    config = AutoConfig.from_pretrained(model.model_name_or_path, revision=model.revision, trust_remote_code=trust)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        layers = [name for name, layer in skeleton.named_modules() if getattr(layer, "weight", None) is not None]
        listed = [] if isinstance(targets, str) else targets
        unknown = [target for target in listed if not any(f".{name}".endswith(f".{target}") for name in layers)]
        reason = ""
        try:
            with_lora(skeleton, model.lora)
        except (ValueError, RuntimeError) as error:
            reason = first_line(error)
    if unknown or reason:
        inner = sorted({name.rpartition(".")[2] for name in layers if "layers." in name and "norm" not in name})
        values = {"name": model.model_name_or_path, "unknown": unknown, "reason": reason, "layers": inner or layers}
        raise ModelError(Problem(Kind.LORA_TARGETS_UNKNOWN, values=values))


def device() -> torch.device:
    """The first accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


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
        raise ModelError(f"cannot load a causal language model from {name!r}: {first_line(error)}") from error


def _check_local(name: str) -> None:
    """Raises ModelError for a name that looks like a folder and is none, before the hub is asked for it, and
    DamagedArtifactError for a model of a run that is not as it was saved."""
    check_folder(Path(name), *MODEL_FILES)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).is_dir():
        raise ModelError(f"there is no folder {name!r}: give a folder in Hugging Face layout or a hub id (owner/name)")


# --- saving ---


def save_student(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), tokenizer and generation config; plain transformers then decodes greedily."""
    config = model.generation_config
    config.eos_token_id = config.eos_token_id or tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    with replacing(folder) as draft:
        model.save_pretrained(str(draft))
        tokenizer.save_pretrained(str(draft))


# --- configs and vocabularies ---


def config_of(model: Model) -> Any:
    """The text part of a model's transformers config; None if it cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None
    return config.get_text_config()


def hidden_size(model: Model) -> int | None:
    """Width of the output head's input, from the model's config; None if it is not known."""
    return getattr(config_of(model), "hidden_size", None)


def longest_context(model: Model) -> int | None:
    """Most tokens that the model has positions for, from its config; None if there is no limit or it is not known."""
    return getattr(config_of(model), "max_position_embeddings", None)


def check_vocabularies(teacher: Any, student: Any) -> int:
    """Size of the vocabulary that both tokenizers share, compared entry by entry: equal sizes prove nothing.

    Models may pad their embeddings beyond it (Qwen2.5: 152,064 and 151,936 rows for the same tokenizer); the padding is
    cut off on both sides. Raises ModelError with the first difference.
    """
    teacher_ids, student_ids = teacher.get_vocab(), student.get_vocab()
    if teacher_ids != student_ids:
        token = min(teacher_ids.items() ^ student_ids.items(), key=lambda entry: (entry[1], entry[0]))[0]
        ids, sizes = (teacher_ids.get(token), student_ids.get(token)), (len(teacher_ids), len(student_ids))
        raise ModelError(Problem(Kind.VOCABULARIES_DIFFER, values={"token": token, "ids": ids, "sizes": sizes}))
    if teacher.eos_token_id != student.eos_token_id:
        values = {"teacher": teacher.eos_token, "student": student.eos_token}
        raise ModelError(Problem(Kind.END_OF_SEQUENCE_DIFFERS, values=values))
    return max(teacher_ids.values()) + 1
