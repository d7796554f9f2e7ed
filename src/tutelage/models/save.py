"""Saving a student so that other programs answer as `tutelage predict` does: plain transformers, 4.57 and 5, vLLM, and
what converts from their files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import GenerationConfig

from tutelage.data.collate import pad_id_of
from tutelage.errors import Kind, ModelError, Problem
from tutelage.models.generation import end_ids
from tutelage.utils.files import read_json, replacing, write_json

SAME_LOSS = 0.01
"""Largest relative difference, or in nats where that is larger, between the mean losses of a model before and after
saving. Other rows in a bfloat16 batch and merging into bfloat16 weights measured 0.0004 at most (tiny models)."""

NEOX_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""Names that GPT-NeoX alone uses in transformers 4."""


def save_student(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), tokenizer and generation config; of a model with adapters the adapters alone.

    Plain transformers then decodes greedily, whatever the model's own generation config said: nothing of it is kept but
    what ends an answer.
    """
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=end_ids(model, tokenizer), pad_token_id=pad_id_of(tokenizer)
    )
    with replacing(folder) as draft:
        model.save_pretrained(str(draft))
        _plain(tokenizer).save_pretrained(str(draft))
        if (draft / "config.json").is_file():
            _add_keys_of_version_4(draft)


def check_same_loss(trained: np.ndarray, saved: np.ndarray, folder: Path) -> None:
    """Raises ModelError if the model in `folder` is not the one that was trained, by their [rows] losses in nats."""
    before, after = float(trained.mean()), float(saved.mean())
    if not abs(after - before) <= SAME_LOSS * max(1.0, before):  # also for NaN
        values = {"folder": str(folder), "rows": len(saved), "trained": before, "saved": after}
        raise ModelError(Problem(Kind.SAVED_MODEL_DIFFERS, values=values))


def _plain(tokenizer: Any) -> Any:
    """The tokenizer without what `predict` leaves out: an end-of-sequence after prompts, and decoded text whose spaces
    are moved."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = False
    ids, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if tokenizer.is_fast and [*text, tokenizer.eos_token_id] == ids[-len(text) - 1 :]:
        begin = ids[: -len(text) - 1]
        names = tokenizer.convert_ids_to_tokens(begin)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], pair=[*names, "$A", "$B"], special_tokens=list(zip(names, begin, strict=True))
        )
    return tokenizer


def _add_keys_of_version_4(folder: Path) -> None:
    """Write what transformers 4.57 reads under other names; without them it takes default values and says nothing."""
    path = folder / "config.json"
    config = read_json(path)
    for section in (config, config.get("text_config") or {}):
        keys = _rope_of_version_4(section.get("rope_parameters") or {})
        names = NEOX_NAMES if section.get("model_type") == "gpt_neox" else {}
        section |= {names.get(key, key): value for key, value in keys.items()}
    write_json(path, config)
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if (folder / "tokenizer.json").is_file():
        # What reads that file as it is, in both versions. Version 4 has no TokenizersBackend, and its classes for Llama
        # and Gemma add a beginning-of-sequence whether the file says so or not.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)


def _rope_of_version_4(parameters: dict[str, Any]) -> dict[str, Any]:
    """The keys for rotary position embeddings in version 4. parameters: `rope_parameters` of version 5."""
    if "full_attention" in parameters:  # a dict for each kind of layer
        local = parameters["sliding_attention"]["rope_theta"]
        return {"rope_local_base_freq": local, **_rope_of_version_4(parameters["full_attention"])}
    keys = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    if parameters.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in parameters.items() if key not in keys}
    return keys
