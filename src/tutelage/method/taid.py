"""TAID: the target moves from the student's own distribution to the teacher's (arXiv 2501.16937).

    target = softmax((1 - t) x student's logits + t x teacher's logits), the student's held constant          (eq. 2)

t grows from START to END over all stages, at least linearly, and faster while the divergence falls (section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tutelage.method.mixed_loss import Targets

START, END = 0.4, 1.0
"""t at the first and at the last step; the authors' setting."""
ALPHA, BETA = 5e-4, 0.99
"""Size of an adaptive step, and decay of the momentum; the authors' setting."""


@dataclass
class Interpolation:
    """t and what its update needs."""

    share: float = START
    """t: weight of the teacher's logits, in [START, END]."""
    momentum: float = 0.0
    """Moving average of the divergence's relative decrease per step."""
    previous: float | None = None
    """Divergence in the step before, nats."""

    def update(self, divergence: float, step: int, steps: int) -> None:
        """Set t after an optimizer step. divergence: its mean in that step, nats. step: number of steps done, out of
        `steps` in all stages."""
        if self.previous is not None:
            decrease = (self.previous - divergence) / (self.previous + 1e-15)
            self.momentum = BETA * self.momentum + (1 - BETA) * decrease
            sigmoid = (1 + math.tanh(self.momentum / 2)) / 2  # this form cannot overflow
            adaptive = self.share + ALPHA * sigmoid * (1 - self.share)
            self.share = min(END, max(adaptive, START + (END - START) * step / steps))
        self.previous = divergence

    def state(self) -> dict[str, float | None]:
        """What a resumed run or the next stage continues from: the arguments of an equal object."""
        return asdict(self)


@dataclass(frozen=True)
class InterpolatedTargets:
    """Targets between student and teacher, with t = `share`."""

    targets: Targets
    student: Tensor
    """[positions, vocabulary] logits."""
    share: float

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, vocabulary] in float32."""
        student, teacher = self.student[start:stop].detach(), self.targets.logits(start, stop)
        return torch.lerp(student.float(), teacher.float(), self.share)

    def top_k(self, start: int, stop: int) -> None:
        """Full distributions are needed; `logits` of a top-k source raises."""
