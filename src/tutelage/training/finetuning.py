"""Plain supervised fine-tuning on gold answers: teachers and anchors. The same trainer as distillation, without a
teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from transformers import TrainingArguments

from tutelage.data.encode import EncodedRow
from tutelage.run.artifacts import CheckpointScore
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

    A killed run continues from the last complete checkpoint there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic() - seconds_before(Path(args.output_dir))
    callbacks = [SaveAt(save_at, began), JsonLog(log), OnStep(on_step)]
    train(DistillTrainer(model, args, rows, vocabulary=vocabulary, pad_id=pad_id, fused=fused, callbacks=callbacks))
    return model


def spaced_steps(args: TrainingArguments, rows: int, count: int) -> list[int]:
    """`count` equally spaced optimizer steps of a fine-tuning run on `rows` rows, the last step among them."""
    total = steps_of(args, rows)
    return sorted({max(1, round(total * k / count)) for k in range(1, count + 1)})


def best_checkpoint(checkpoints: Sequence[CheckpointScore], by: str) -> str:
    """Name of the checkpoint with the best score (ties: the lower loss), or the lowest loss; of equals the earlier one.

    checkpoints: on validation, in training order. by: score or loss.
    """

    def rank(checkpoint: CheckpointScore) -> tuple[float, float]:
        score = checkpoint["score"] if by == "score" else None
        return score or 0.0, -checkpoint["nll"]

    return max(checkpoints, key=rank)["name"]  # the first of equals
