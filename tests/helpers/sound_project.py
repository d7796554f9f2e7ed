"""A project without a fault, for tests of the doctor: rows that are far from one another, two tiny models, a recipe."""

from __future__ import annotations

import random
from pathlib import Path

from helpers.project import LABELS, make_project, write_rows

SIZES = {"train": 150, "validation": 60, "test": 60}
WORDS = [
    *("river", "lamp", "cloud", "table", "stone", "window", "garden", "winter", "paper"),
    *("basket", "mirror", "bridge", "forest", "candle", "engine", "pocket"),
]


def texts(count: int, seed: int) -> list[str]:
    """Sentences of the same build that are far from one another."""
    draw = random.Random(seed)
    return [" ".join(["the", *draw.sample(WORDS, 6), str(draw.randint(100, 999))]) for _ in range(count)]


def rows(split: str) -> list[dict]:
    numbers = {"train": 0, "validation": 1, "test": 2}
    return [
        {"id": f"{split}-{n}", "text": text, "label": LABELS[n % 3]}
        for n, text in enumerate(texts(SIZES[split], numbers[split]))
    ]


def sound(folder: Path, **changes) -> Path:
    path = make_project(folder, **changes)
    for split in SIZES:
        write_rows(folder / "data" / f"{split}.jsonl", rows(split))
    return path
