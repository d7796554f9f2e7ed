"""Several teachers as one: mixtures of checkpoints, or of a checkpoint and the anchor, behind the interface of a single
one.

    p = sum_j share_j p_j                in probabilities, each share the same for all rows, a row's own, or moving with
    the steps

KL(p || S) has the gradient of sum_j share_j KL(p_j || S), so following a mixture is following its parts by their
shares. Mixtures need full distributions, and the heads of all their parts in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from tutelage.data.collate import IGNORED
from tutelage.method.mixed_loss import Targets
from tutelage.method.schedule import ENSEMBLE
from tutelage.teacher.sources import CachedTeacher, TeacherSource

Ahead = Callable[[Sequence[int]], None] | None


@dataclass(frozen=True)
class Mixture:
    """Targets that are a mixture of others."""

    parts: Sequence[Targets]
    shares: Sequence[float | Tensor]
    """Of each part: a number, or [positions]; they add up to 1."""

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V]: logarithms of the mixture's probabilities, in float32."""
        logs = []
        for part, share in zip(self.parts, self.shares, strict=True):
            log_share = torch.as_tensor(share, dtype=torch.float32).log()
            log_share = log_share[start:stop, None] if log_share.ndim else log_share
            log_probs = part.logits(start, stop).float().log_softmax(-1)
            logs.append(log_probs + log_share.to(log_probs.device))
        return torch.logsumexp(torch.stack(logs), 0)

    def top_k(self, start: int, stop: int) -> None:
        """Raises ValueError if only the top k of a part is known."""
        if any(part.top_k(start, stop) is not None for part in self.parts):
            raise ValueError(
                "a mixture of teachers needs full distributions, and this teacher's cache holds top-k entries only: use a method"
                " without one (not ens, cd-mix or schedule.glide)"
            )


class Ensemble:
    """A source whose checkpoint `ensemble` is a mixture of all its checkpoints; the others are as they were."""

    def __init__(self, source: CachedTeacher, shares: dict[str, float], lengths: np.ndarray) -> None:
        """shares: by checkpoint, see `mixture_shares`. lengths: [rows] answer tokens of the training rows."""
        self.source, self.shares, self.checkpoints = source, shares, source.checkpoints
        self._lengths = lengths

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """All checkpoints' targets, mixed."""
        if checkpoint != ENSEMBLE:
            return self.source.targets(checkpoint, batch)
        return Mixture([self.source.targets(name, batch) for name in self.shares], list(self.shares.values()))

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] loss of the mixture."""
        if checkpoint != ENSEMBLE:
            return self.source.nll(checkpoint)
        tokens = np.stack([self.source.token_nll(name) for name in self.shares])
        mixed = -np.log(np.array(list(self.shares.values())) @ np.exp(-tokens))
        return row_means(mixed, self._lengths)

    def ahead(self, checkpoint: str) -> Ahead:
        """Fetches what all checkpoints said."""
        names = self.shares if checkpoint == ENSEMBLE else [checkpoint]
        return _Each([self.source.ahead(name) for name in names])


@dataclass(frozen=True)
class Gated:
    """A checkpoint where it is better and the anchor where that is: w T_k + (1 - w) S_0, w of the row."""

    source: TeacherSource
    anchor: TeacherSource
    """Has one checkpoint: the anchor."""
    weight: np.ndarray
    """[rows] share of the checkpoint."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """Those of the teacher."""
        return self.source.checkpoints

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """Checkpoint and anchor, mixed row by row."""
        counts = (batch["targets"] != IGNORED).sum(1)
        w = torch.from_numpy(self.weight).to(counts.device, torch.float32)[batch["row"].to(counts.device)]
        share = torch.repeat_interleave(w, counts)
        parts = [self.source.targets(checkpoint, batch), self.anchor.targets(self.anchor.checkpoints[0], batch)]
        return Mixture(parts, [share, 1 - share])

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] loss of the checkpoint alone."""
        return self.source.nll(checkpoint)

    def ahead(self, checkpoint: str) -> Ahead:
        """Fetches what both said."""
        return _Each([self.source.ahead(checkpoint), self.anchor.ahead(self.anchor.checkpoints[0])])


class Gliding(TrainerCallback):
    """A source whose target moves, within a training, from the checkpoint asked for to the one after it."""

    def __init__(self, source: TeacherSource, after: str) -> None:
        """after: the checkpoint that the target has become when the training ends."""
        self.source, self.after, self.checkpoints, self.share = source, after, source.checkpoints, 0.0

    def targets(self, checkpoint: str, batch: dict[str, Tensor]) -> Targets:
        """Both checkpoints, mixed by how much of the training is done."""
        parts = [self.source.targets(name, batch) for name in (checkpoint, self.after)]
        return Mixture(parts, [1 - self.share, self.share])

    def nll(self, checkpoint: str) -> np.ndarray:
        """[rows] loss of the checkpoint alone."""
        return self.source.nll(checkpoint)

    def ahead(self, checkpoint: str) -> Ahead:
        """Fetches what both said."""
        return _Each([self.source.ahead(name) for name in (checkpoint, self.after)])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """0 at the first step, 1 at the last; a restart goes on where it was."""
        self.share = state.global_step / max(1, state.max_steps - 1)


@dataclass(frozen=True)
class _Each:
    """Calls several; goes to data-loading processes."""

    functions: Sequence[Ahead]

    def __call__(self, places: Sequence[int]) -> None:
        for function in self.functions:
            if function is not None:
                function(places)


def row_means(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[rows] means of [positions] values, which lie row by row; lengths: [rows], at least 1 each."""
    return np.add.reduceat(tokens, np.cumsum(lengths) - lengths) / lengths if len(lengths) else np.zeros(0)


def mixture_shares(tokens: dict[str, np.ndarray], lengths: np.ndarray, rounds: int = 500) -> dict[str, float]:
    """Shares with which the mixture of models has the smallest mean loss on rows, each row's loss the mean over its
    tokens.

    tokens: by model, [positions] losses of the gold answers' tokens in nats, row by row. lengths: [rows] tokens of each
    row. The loss is convex in the shares; expectation-maximisation lowers it in every round (Dempster et al. 1977).
    Returns shares that add up to 1.
    """
    likelihood = np.exp(-np.stack(list(tokens.values())))
    weight = np.repeat(1 / lengths, lengths) / len(lengths)
    shares = np.full(len(likelihood), 1 / len(likelihood))
    for _ in range(rounds):
        parts = shares[:, None] * likelihood
        shares = (parts / np.maximum(parts.sum(0), np.finfo(float).tiny)) @ weight
        shares /= shares.sum()
    return dict(zip(tokens, shares.tolist(), strict=True))
