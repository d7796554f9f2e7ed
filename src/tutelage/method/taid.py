"""TAID: the student follows a target that moves from its own distribution to the teacher's (arXiv 2501.16937).

    target = softmax((1 - t) x student's logits + t x teacher's logits), the student's held constant          (eq. 2)

`t` grows with training, and faster while the divergence falls (section 3.2). It goes on through all stages of a
distillation.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

START, END = 0.4, 1.0
"""t at the first and at the last step: the authors' setting."""
ALPHA, BETA = 5e-4, 0.99
"""Size of an adaptive step, and memory of the divergence's relative change: the authors' setting."""


class Interpolation(TrainerCallback):
    """t, updated after every optimizer step and saved with every restart point."""

    NAME = "taid.json"

    def __init__(
        self, steps: int, share: float = START, momentum: float = 0.0, previous: float | None = None, done: int = 0
    ):
        """steps: of all stages. done: steps of the stages before."""
        self.steps, self.share, self.momentum, self.previous, self.done = steps, share, momentum, previous, done
        self._seen: list[Tensor] = []

    def observe(self, divergence: Tensor) -> None:
        """The mean divergence of a micro-batch, over all ranks."""
        self._seen.append(divergence.detach())

    def update(self, divergence: float, step: int) -> None:
        """t after this many steps in all, from the divergence seen in the last of them."""
        if self.previous is not None:
            change = (self.previous - divergence) / (self.previous + 1e-15)
            self.momentum = BETA * self.momentum + (1 - BETA) * change
            sigmoid = (1 + math.tanh(self.momentum / 2)) / 2  # in this form it cannot overflow
            grown = self.share + ALPHA * sigmoid * (1 - self.share)
            self.share = min(END, max(grown, START + (END - START) * step / self.steps))
        self.previous = divergence

    def state(self) -> dict[str, Any]:
        """What a restart or the next stage goes on from."""
        return {"share": self.share, "momentum": self.momentum, "previous": self.previous}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a restart: as it was then."""
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.NAME
        if state.global_step and kept.is_file():
            self.__dict__ |= json.loads(kept.read_text(encoding="utf-8"))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more optimizer step is done."""
        self.update(float(torch.stack(self._seen).mean()), self.done + state.global_step)
        self._seen.clear()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the restart point's other files."""
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.NAME
        kept.write_text(json.dumps(self.state()), encoding="utf-8")
