"""Models and rows that the benchmarks run on: real shapes, random weights and ids. Time and memory do not depend on the
values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.bytes.reader import ByteReader
from tutelage.bytes.vocabulary import ByteVocabulary
from tutelage.data.encode import EncodedRow
from tutelage.models.adapters import with_lora
from tutelage.recipe.schema import Lora

EOS, PAD = 0, 1
FIRST_TEXT_ID = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def with_layers(self, layers: int) -> Shape:
        """The same model with another depth."""
        return replace(self, layers=layers)


SMOLLM2_135M = Shape(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocabulary=49_152)
SMOLLM2_10_LAYERS = SMOLLM2_135M.with_layers(10)


@dataclass(frozen=True)
class Batch:
    """Sizes of a training batch; every row has the same length, so no variant meets padding."""

    rows: int
    tokens: int
    """Prompt and answer."""
    answer_tokens: int
    """End-of-sequence included."""


CASES = {
    "short": Batch(rows=8, tokens=128, answer_tokens=8),
    "long": Batch(rows=8, tokens=512, answer_tokens=256),
    "cross": Batch(rows=8, tokens=128, answer_tokens=8),
}
"""`cross`: short rows, teacher and student compared by the next byte, as if their tokenizers differed."""


def build_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A float32 model with seeded random weights; the global random state is left alone."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def build_student(shape: Shape, seed: int, adapters: bool) -> nn.Module:
    """The student to train: all of its weights, or LoRA adapters of rank 16 on every linear layer but the output
    head."""
    model = build_model(shape, seed)
    if not adapters:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return with_lora(model, Lora(r=16))


def random_reader(shape: Shape, seed: int) -> ByteReader:
    """Ids as words of 1 to 12 letters, half of them after a space: about as many words begin with the same bytes as in
    SmolLM2's vocabulary, which is what a step over bytes costs."""
    draw = np.random.default_rng(seed)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
    odds = 1.0 / np.arange(2, 2 + len(letters))
    lengths = draw.integers(1, 13, shape.vocabulary)
    words = [draw.choice(letters, int(length), p=odds / odds.sum()).tobytes() for length in lengths]
    spelled = [b" " * (number % 2) + word for number, word in enumerate(words)]
    spelled[EOS] = spelled[PAD] = b""
    return ByteReader(ByteVocabulary(spelled, EOS))


def random_rows(batch: Batch, count: int, vocabulary: int, seed: int) -> list[EncodedRow]:
    """`count` rows of random ids."""
    draw = np.random.default_rng(seed)
    prompt = batch.tokens - batch.answer_tokens
    rows = []
    for number in range(count):
        ids = draw.integers(FIRST_TEXT_ID, vocabulary, batch.tokens - 1).tolist()
        rows.append(EncodedRow(str(number), "train", ids[:prompt], [*ids[prompt:], EOS]))
    return rows
