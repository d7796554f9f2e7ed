"""Tiny models and a byte tokenizer, built in code in hundredths of a second: nothing is downloaded, nothing is
trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

EOS = "<|end|>"
PAD = "<|pad|>"

WIDE_INIT = 0.3
"""Standard deviation of the random weights: with the usual 0.02 all logits are near 0 and every answer as good as
another."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """258 entries: the id of a byte is its value, then 256 = end-of-sequence and 257 = padding. No
    beginning-of-sequence."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)


def tiny_model(
    seed: int = 0, arch: str = "llama", hidden: int = 16, layers: int = 2, vocab_size: int | None = None, **config: Any
) -> PreTrainedModel:
    """Random causal LM in eval mode, equal for equal arguments; the global random state is left alone.

    arch: llama, qwen2, gpt2 (absolute positions), gemma2 (sliding window, soft caps), granite, cohere (scaled logits).
    vocab_size: default, that of `byte_tokenizer`. config: any key of the architecture's own configuration.
    """
    tokenizer = byte_tokenizer()
    shape = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": hidden // 2,
    }
    if arch == "cohere":
        shape["logit_scale"] = 0.5  # its own 0.0625 makes the output of a model this narrow almost uniform
    if arch == "gpt2":
        shape = {
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    settings = {
        "vocab_size": vocab_size or len(tokenizer),
        "initializer_range": WIDE_INIT,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **{**settings, **shape, **config})).eval()


def save_pair(folder: Path, arch: str = "llama", seed: int = 0) -> tuple[Path, Path]:
    """Folders of a teacher (4 layers, hidden 32) and a student (2 layers, hidden 16), each with the byte tokenizer."""
    pair = {
        "teacher": tiny_model(seed, arch, hidden=32, layers=4),
        "student": tiny_model(seed + 1, arch, hidden=16, layers=2),
    }
    for name, model in pair.items():
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return folder / "teacher", folder / "student"
