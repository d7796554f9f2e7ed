"""A student's folder without a run: a tiny model that was taught some rows in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from helpers.tiny import tiny_model
from helpers.tokenizers_made import bpe_tokenizer
from tutelage.data.encode import make_encoder
from tutelage.models.save import save_student
from tutelage.predict.find_model import FoundModel, find_model
from tutelage.recipe.schema import Data, Task
from tutelage.records import Example

COLORS = ("red", "green", "blue")
COLOR_ROWS = [
    Example(f"row-{n}", "test", f"Thing {n % 7}, 색상 {color}!\n{n}:", color, [color])
    for n, color in enumerate(COLORS * 6)
]
COLOR_TASK = {"type": "classification", "labels": list(COLORS)}


def small_student(
    folder: Path,
    rows: list[Example],
    task: dict[str, Any],
    *,
    data: dict[str, Any] | None = None,
    passes: int = 12,
    arch: str = "llama",
    tokenizer: Any = None,
    **config: Any,
) -> FoundModel:
    """Write the folder and find it. passes: over the rows; 0 for random weights. config: of the model."""
    tokenizer = tokenizer or bpe_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"hidden": 64, "vocab_size": len(tokenizer), "initializer_range": 0.1, **ids}
    model = tiny_model(arch=arch, **{**shape, **config})
    section = Data(**(data or {"template": "{text}"}))
    encoder = make_encoder(section, tokenizer, Task(**task))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for row in [encoder.row(example) for example in rows] * passes:
        labels = torch.tensor([[-100] * len(row.prompt) + row.answer])
        loss = model(input_ids=torch.tensor([row.prompt + row.answer]), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_student(model.eval(), tokenizer, folder)
    usage = {
        "task": Task(**task).model_dump(),
        "data": section.model_dump(),
        "choice": bool(task["type"] == "qa" and task.get("labels")),
        "max_new_tokens": max(len(encoder.answer(row.answer)) for row in rows) + 2,
        "run": "small",
    }
    (folder / "tutelage.json").write_text(json.dumps(usage), encoding="utf-8")
    return find_model(folder)
