"""How a pruned model is healed: options, and the training arguments and steps that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.recipe.schema import TRAINER_DEFAULTS

BLOCK_LENGTH = 512
"""Tokens of a block."""


@dataclass(frozen=True)
class HealingPlan:
    """How a pruned model is healed. AdamW, betas, clipping and schedule are `TRAINER_DEFAULTS`."""

    layers: int | None
    """Layers to keep; None for all."""
    text: tuple[Path, ...]
    by: str = "even"
    """`even` or `influence`."""
    width: int | None = None
    """Feed-forward units to keep in each layer; None for all."""
    tokens: int = 1_000_000
    """Tokens trained on, all epochs together."""
    learning_rate: float = 5e-4
    batch_size: int = 8
    """Blocks of an optimizer step."""
    block_length: int = BLOCK_LENGTH
    """Tokens of a block."""
    seed: int = 0
    """Of the held-out blocks and the order of training."""


def healing_arguments(plan: HealingPlan, steps: int, bf16: bool) -> dict[str, Any]:
    """TrainingArguments of a healing, on top of the library's own."""
    return {
        **TRAINER_DEFAULTS,
        "per_device_train_batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "max_steps": steps,
        "bf16": bf16,
        "logging_steps": max(1, min(10, steps // 20)),
        "save_total_limit": 2,  # the newest is not marked as complete yet when transformers deletes older ones
        "train_sampling_strategy": "group_by_length",  # lengths are equal; its order survives a restart
    }


def training_steps(plan: HealingPlan, blocks: int) -> int:
    """Optimizer steps that train on at least `plan.tokens` tokens; the last batch of an epoch may be smaller."""
    epochs, rest = divmod(-(-plan.tokens // plan.block_length), blocks)
    return epochs * -(-blocks // plan.batch_size) + -(-rest // plan.batch_size)


def trained_tokens(plan: HealingPlan, blocks: int) -> int:
    """Tokens of the blocks of all optimizer steps."""
    epochs, rest = divmod(training_steps(plan, blocks), -(-blocks // plan.batch_size))
    return plan.block_length * (epochs * blocks + min(blocks, rest * plan.batch_size))
