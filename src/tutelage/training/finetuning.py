"""Plain supervised fine-tuning on gold answers: teachers and anchors. The same trainer as distillation, without a
teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments

from tutelage.data.encode import EncodedRow
from tutelage.training.callbacks import JsonLog, OnStep, SaveAt, seconds_before
from tutelage.training.trainer import DistillTrainer, steps_of, train


def fine_tune(
    model: nn.Module,
    args: TrainingArguments,
    rows: Sequence[EncodedRow],
    *,
    save_at: Sequence[int],
    log: Path,
    vocabulary: int,
    pad_id: int,
    fused: bool = True,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Train `model` in place, saving `checkpoint-STEP` in args.output_dir after the steps in `save_at`; returns it.

    A killed training continues from the last whole checkpoint there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic() - seconds_before(Path(args.output_dir))
    callbacks = [SaveAt(save_at, began), JsonLog(log), OnStep(on_step)]
    train(DistillTrainer(model, args, rows, vocabulary=vocabulary, pad_id=pad_id, fused=fused, callbacks=callbacks))
    return model


def spaced_steps(args: TrainingArguments, rows: int, count: int) -> list[int]:
    """`count` equally spaced optimizer steps of a training on `rows` rows, the last step among them."""
    total = steps_of(args, rows)
    return sorted({max(1, round(total * k / count)) for k in range(1, count + 1)})


def best_checkpoint(found: list[dict[str, Any]], by: str) -> str:
    """Name of the one with the best score (ties: the smaller loss), or the smallest loss; the earlier one of equals.

    found: `name`, `score` and `nll` on validation, in training order. by: score or loss.
    """
    ranks = [
        (c["score"] if by == "score" and c["score"] is not None else 0.0, -c["nll"], -i) for i, c in enumerate(found)
    ]
    return found[-max(ranks)[2]]["name"]
