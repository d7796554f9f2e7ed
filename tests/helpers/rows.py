"""Encoded rows and stores for tests, built from the byte tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.data.encode import EncodedRow, Encoder
from tutelage.records import Example
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.sources import CachedTeacher

TEXTS = [
    ("sum of two", "ok"),
    ("a", "longer answer"),
    ("capital of", "x"),
    ("?", "yes no"),
    ("tell me more now", "b"),
    ("q", "cd"),
]


def encoder() -> Encoder:
    return Encoder(byte_tokenizer(), " ", 128)


def encoded(count: int = 6, split: str = "train") -> list[EncodedRow]:
    examples = []
    for place in range(count):
        prompt, answer = TEXTS[place % len(TEXTS)]
        examples.append(Example(f"{split}-{place}", split, f"{prompt} {place}:", answer, [answer]))
    return [encoder().row(example) for example in examples]


VOCABULARY = len(byte_tokenizer())
PAD = byte_tokenizer().pad_token_id


def teachers(arch: str = "llama", count: int = 3) -> dict[str, torch.nn.Module]:
    """Checkpoints of a pretended fine-tuning: the first is far from the last, the second in between."""
    start, end = tiny_model(1, arch, hidden=32, layers=4), tiny_model(2, arch, hidden=32, layers=4)
    found = {}
    for place in range(1, count + 1):
        model = tiny_model(1, arch, hidden=32, layers=4)
        share = place / count
        mixed = {k: (1 - share) * start.state_dict()[k] + share * end.state_dict()[k] for k in start.state_dict()}
        model.load_state_dict(mixed)
        found[f"checkpoint-{place}"] = model.eval()
    return found


def cached(
    folder: Path, models: dict[str, torch.nn.Module], rows: list[EncodedRow], dtype=torch.float32
) -> CachedTeacher:
    builder = CacheBuilder(
        folder, rows, vocabulary=VOCABULARY, pad_id=PAD, dtype=dtype, batch_size=4, shard_rows=4, top_k=8
    )
    for name, model in models.items():
        builder.build(name, model, {})
    return CachedTeacher(folder, list(models), rows)
