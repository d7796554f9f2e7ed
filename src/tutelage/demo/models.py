"""The demo's models: a small teacher and a smaller student with random weights, and the tokenizer of both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tutelage.utils.files import replacing

TEACHER = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.05,
}
STUDENT = {
    "hidden_size": 48,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}
"""Larger random weights than the usual 0.02, with which models this narrow would spend most of a short fine-tuning run
on leaving their starting point."""
EOS, PAD = "<|end|>", "<|pad|>"
SHAPES = {"teacher": TEACHER, "student": STUDENT}


def build_models(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    vocabulary: int = 2000,
    shapes: dict[str, dict[str, Any]] = SHAPES,
) -> None:
    """Write a folder for each of `shapes`: a Llama with random weights and tied embeddings, and its tokenizer.

    texts: what the byte-level BPE is learned from. vocabulary: its number of entries. shapes: settings of LlamaConfig
    by folder name.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer(texts, vocabulary)
    for name, shape in shapes.items():
        torch.manual_seed(seed)
        config = LlamaConfig(
            **shape,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with replacing(folder / name) as draft:
            LlamaForCausalLM(config).save_pretrained(draft)
            tokenizer.save_pretrained(draft)


def _tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)
