"""Sizes of published models and of two GPUs, as plain numbers: what `benchmarks.cost` works from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Llm:
    """Sizes of a decoder with gated MLP and grouped-query attention."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """Rows of the embedding, padding included."""
    tied: bool
    qkv_bias: bool = False

    @property
    def linear_layers(self) -> list[tuple[int, int]]:
        """(in, out) of the seven matrices of one layer: q, k, v, o, gate, up, down."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        mlp = [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden), *mlp]

    @property
    def body(self) -> int:
        """Entries of all matrices between embedding and head: a token costs 2 FLOPs for each."""
        return self.layers * sum(rows * columns for rows, columns in self.linear_layers)

    @property
    def parameters(self) -> int:
        """Body, norms, biases, embedding, and the head if it is a matrix of its own."""
        bias = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = (2 * self.layers + 1) * self.hidden
        return self.body + norms + bias + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on every matrix of the body."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.linear_layers)


# Source: config.json of each model on the Hugging Face hub (meta-llama/..., Qwen/...). Their parameter counts, as
# `parameters` gives them, are the published ones: 8,030,261,248; 3,212,749,824; 70,553,706,496; 7,615,616,512;
# 32,763,876,352; 1,543,714,304; 494,032,768.
SHAPES = {
    "Llama-3.1-8B": Llm(4096, 32, 14336, 32, 8, 128, 128_256, tied=False),
    "Llama-3.2-3B": Llm(3072, 28, 8192, 24, 8, 128, 128_256, tied=True),
    "Llama-3.1-70B": Llm(8192, 80, 28672, 64, 8, 128, 128_256, tied=False),
    "Qwen2.5-7B": Llm(3584, 28, 18944, 28, 4, 128, 152_064, tied=False, qkv_bias=True),
    "Qwen2.5-32B": Llm(5120, 64, 27648, 40, 8, 128, 152_064, tied=False, qkv_bias=True),
    "Qwen2.5-1.5B": Llm(1536, 28, 8960, 12, 2, 128, 151_936, tied=True, qkv_bias=True),
    "Qwen2.5-0.5B": Llm(896, 24, 4864, 14, 2, 64, 151_936, tied=True, qkv_bias=True),
}


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    gib: int
    flops: float
    """Dense bf16 matrix products with float32 accumulation, FLOP a second, by the maker's data sheet."""


CARDS = (Card("RTX 4090", 24, 165e12), Card("A100", 80, 312e12))
