"""Which teacher checkpoint a stage follows: Scheduled Checkpoint Distillation (SCD) and its baselines. Plain Python.

    k = argmin_k  KL(T* || T_k) + KL(S || T_k)          (arXiv 2601.10114, SCD)

T* is the best checkpoint on validation, S the student at the start of the stage. The distances are plain numbers here,
so that a choice can be recomputed from `stages.json`; `training/probe.py` measures them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import ModelError

FAR_NATS = 0.05
"""A student that has followed a checkpoint for a stage and is still further from it than this (nats per answer token)
has not reached it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A teacher checkpoint with its distances at the start of a stage: means over answer positions of the probe set,
    in nats."""

    checkpoint: str
    kl_best: float
    """KL(T* || T_k)."""
    kl_student: float
    """KL(S || T_k), or KL(T_k || S) with `student_kl: forward`."""

    @property
    def total(self) -> float:
        """What SCD minimises: small for a checkpoint that is near both to T* and to the student."""
        return self.kl_best + self.kl_student


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint of a stage, and why it was chosen."""

    chosen: str
    reason: str
    stall: str | None = None
    """A warning with numbers and remedy, set when the student gets the same checkpoint again without having reached
    it."""


def nearest(
    candidates: Sequence[Candidate],
    *,
    stage: int,
    num_stages: int,
    best: str,
    previous: Candidate | None = None,
    advance: bool = False,
) -> Choice:
    """SCD's choice; of equal sums the older checkpoint wins.

    candidates: all checkpoints, oldest first. stage: counted from 1. best: name of T*. previous: the checkpoint of the
    stage before, with its distances at that stage's start. advance: only checkpoints after the previous one compete,
    and the last stage, or a stage without any left, follows T*.
    """
    pool = list(candidates)
    if advance:
        names = [candidate.checkpoint for candidate in candidates]
        first = names.index(previous.checkpoint) + 1 if previous else 0
        pool = pool[first : names.index(best) + 1]
        if stage == num_stages:
            return Choice(best, "advance: last stage, so it follows T*")
        if previous and not pool:
            why = f"no checkpoint left between {previous.checkpoint} and T*"
            return Choice(best, f"advance: {why}, so it follows T*")
    winner = min(pool, key=lambda candidate: candidate.total)
    reason = (
        f"smallest KL(T*||k) + KL with the student: {winner.kl_best:.4f} + {winner.kl_student:.4f} ="
        f" {winner.total:.4f} nats among {len(pool)} checkpoint{'s' if len(pool) > 1 else ''}"
    )
    return Choice(winner.checkpoint, reason, _stall(winner, previous, best))


def _stall(winner: Candidate, previous: Candidate | None, best: str) -> str | None:
    """The warning for a student that stays with a checkpoint before T* that it has not reached."""
    if previous is None or winner.checkpoint != previous.checkpoint:
        return None
    if winner.checkpoint == best or winner.kl_student < FAR_NATS:
        return None
    return (
        f"{winner.checkpoint} was chosen again although the student is still {winner.kl_student:.3f} nats from it"
        f" ({previous.kl_student:.3f} a stage ago). Later checkpoints are even further away, so the student may never"
        " follow T*. `distill.schedule.advance=true` moves on by at least one checkpoint per stage;"
        " `distill.schedule.student_kl=forward` measures the distance as KL(T_k || S)"
    )


def by_function(rule: Callable[..., str], candidates: Sequence[Candidate], **state: Any) -> Choice:
    """The checkpoint that a user's schedule function returns. state: stage, num_stages, best and previous, as for
    `nearest`.

    Raises ModelError if it does not return the name of a checkpoint.
    """
    chosen = rule(candidates, **state)
    names = [candidate.checkpoint for candidate in candidates]
    if chosen not in names:
        raise ModelError(f"the schedule {rule.__name__} chose {chosen!r}; it must return one of {', '.join(names)}")
    return Choice(chosen, f"chosen by {rule.__name__}")


def fixed(
    schedule: Literal["best", "interpolated", "in_order", "random"],
    checkpoints: Sequence[str],
    *,
    stage: int,
    num_stages: int,
    best: str,
    seed: int,
) -> Choice:
    """The choice of schedules that do not depend on the student.

    `best` and `interpolated`: T* in every stage. `in_order`: oldest to newest, spread evenly over the stages; the last
    stage gets the newest. `random`: drawn from (seed, stage), the same on every call.
    """
    if schedule in ("best", "interpolated"):
        return Choice(best, "T*, the best teacher on validation")
    if schedule == "in_order":
        index = -(-stage * len(checkpoints) // num_stages) - 1
        return Choice(checkpoints[index], f"fixed order: checkpoint {index + 1} of {len(checkpoints)}")
    drawn = random.Random(f"{seed}/{stage}").choice(list(checkpoints))
    return Choice(drawn, f"drawn at random (seed {seed})")
