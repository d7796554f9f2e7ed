"""Seconds of building a store against plain forward passes of the teacher: `python -m benchmarks.caching [--json
FILE]`.

    forward   the teacher reads the rows, batch by batch: hidden states and logits at the answer positions, nothing kept
    cache     CacheBuilder over the same rows in the same batches: losses, states in bfloat16, shards and index written
    open      HiddenStore on what was written, until the first batch's states are there

The teacher has the shape of SmolLM2-135M with random weights, float32, all cores; rows have 32 to 224 tokens, 8 of them
answer, in batches of 16 sorted by length. `forward` and `cache` take turns after a round for warming up, so whatever
else the machine does meets both alike. Memory is not measured here: `benchmarks.scale` does.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.machine import cores, machine_class, versions
from benchmarks.shapes import EOS, FIRST_TEXT_ID, PAD, SMOLLM2_135M, Shape, build_model
from tutelage.data.collate import Collator
from tutelage.data.encode import EncodedRow
from tutelage.data.token_store import length_order
from tutelage.models.heads import answer_logits
from tutelage.teacher.build_cache import CacheBuilder
from tutelage.teacher.hidden_store import HiddenStore

ROWS, ANSWER, PROMPT_TOKENS, BATCH = 48, 8, (24, 217), 16
CHECKPOINT = "checkpoint-1"


def make_rows(count: int, vocabulary: int) -> list[EncodedRow]:
    """Rows of random ids and mixed lengths."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        ids = draw.integers(FIRST_TEXT_ID, vocabulary, int(draw.integers(*PROMPT_TOKENS)) + ANSWER - 1).tolist()
        rows.append(EncodedRow(str(number), "train", ids[: 1 - ANSWER], [*ids[1 - ANSWER :], EOS]))
    return rows


@torch.no_grad()
def forward(model: nn.Module, rows: Sequence[EncodedRow]) -> None:
    """Every row once, in the batches that the builder makes."""
    order, collate = length_order(rows), Collator(PAD)
    for start in range(0, len(order), BATCH):
        answer_logits(model, collate([(place, rows[place]) for place in order[start : start + BATCH]]))


def build(folder: Path, model: nn.Module, rows: Sequence[EncodedRow], vocabulary: int) -> None:
    """The whole store, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    builder = CacheBuilder(folder, rows, vocabulary=vocabulary, pad_id=PAD, dtype=torch.bfloat16, batch_size=BATCH)
    builder.build(CHECKPOINT, model, {})


def open_store(folder: Path) -> None:
    """From nothing to the states of a batch."""
    HiddenStore(folder / CHECKPOINT).positions("states", range(BATCH))


def seconds(task: Callable[[], None]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def measure(folder: Path, shape: Shape = SMOLLM2_135M, rows: int = ROWS, rounds: int = 5) -> dict[str, Any]:
    """The record: median seconds, and their ratio."""
    model, items = build_model(shape, 0).eval(), make_rows(rows, shape.vocabulary)
    tasks = {
        "forward": lambda: forward(model, items),
        "cache": lambda: build(folder, model, items, shape.vocabulary),
        "open": lambda: open_store(folder),
    }
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            taken = seconds(task)
            if number:
                samples[name].append(taken)
    found = {name: statistics.median(values) for name, values in samples.items()}
    return {
        "rows": rows,
        "seconds": found,
        "ratios": {"cache/forward": found["cache"] / found["forward"]},
        "samples": samples,
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after one for warming up.")] = 5,
) -> None:
    """Seconds of building a store against plain forward passes of the teacher."""
    torch.set_num_threads(cores())
    console, about = Console(), {"machine": machine_class(), "versions": versions()}
    console.print(f"{about['machine']}; torch {about['versions']['torch']}", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rounds=rounds) | about
    for name, value in found["seconds"].items():
        console.print(
            f"{name:8} {value:8.3f} s   {min(found['samples'][name]):.3f} to {max(found['samples'][name]):.3f}"
        )
    console.print(f"cache/forward {found['ratios']['cache/forward']:.2f}")
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
