"""Which teacher checkpoint a stage follows: Scheduled Checkpoint Distillation (SCD) and what it is compared with. Plain
Python.

Distances come in as numbers, so a choice can be recomputed from `stages.json` by anyone; `distillation.py` measures
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import ModelError

ENSEMBLE = "ensemble"
"""Name of the mixture of all checkpoints, where one of them is named otherwise."""

FAR_NATS = 0.05
"""A student further than this (nats an answer token) from a checkpoint it has already followed for a stage has not
reached it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint as seen at the start of a stage. Divergences are means over the answer positions of the probe rows,
    in nats."""

    checkpoint: str
    kl_best: float
    """KL(T* || T_k): how much of the best teacher is missing in it."""
    kl_student: float
    """KL(S || T_k), or KL(T_k || S) with `reach: forward`: how far the student has to go."""

    @property
    def total(self) -> float:
        """What SCD minimises: near enough to the best teacher to be worth following, near enough to the student to be
        followed."""
        return self.kl_best + self.kl_student


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint of a stage, and why."""

    chosen: str
    reason: str
    stall: str | None = None
    """Set when the student gets the same checkpoint again without having reached it: what was seen and what resolves
    it."""


def nearest(
    candidates: Sequence[Candidate],
    *,
    stage: int,
    num_stages: int,
    best: str,
    previous: Candidate | None = None,
    advance: bool = False,
    trust: float | None = None,
) -> Choice:
    """SCD's choice: k = argmin_k KL(T* || T_k) + KL(S || T_k); the older checkpoint wins a tie (arXiv 2601.10114).

    candidates: all checkpoints, oldest first. stage counts from 1. previous: the checkpoint of the stage before, as it
    was seen then. With `advance` only checkpoints after the previous one compete, and the last stage (or one after T*
    was reached) follows T*. With `trust` (nats) those within trust x stage of the student compete, by their distance to
    T*; where none is, the nearest to the student wins.
    """
    pool = list(candidates)
    if advance:
        names = [c.checkpoint for c in candidates]
        after = names.index(previous.checkpoint) + 1 if previous else 0
        pool = [c for c in candidates[after : names.index(best) + 1]]
        if stage == num_stages or not pool:
            why = "last stage" if stage == num_stages else f"no checkpoint left between {previous.checkpoint} and T*"
            return Choice(best, f"advance: {why}, so it follows T*")
    if trust is not None:
        winner, reason = _within(pool, trust * stage)
        return Choice(winner.checkpoint, reason, _stall(winner, previous, best))
    winner = min(pool, key=lambda c: c.total)
    reason = (
        f"smallest KL(T*||k) + KL with the student: {winner.kl_best:.4f} + {winner.kl_student:.4f} = {winner.total:.4f} nats"
        f" among {len(pool)} checkpoint{'s' if len(pool) > 1 else ''}"
    )
    return Choice(winner.checkpoint, reason, _stall(winner, previous, best))


def _within(pool: Sequence[Candidate], nats: float) -> tuple[Candidate, str]:
    """The best checkpoint in the student's trust region, and why."""
    inside = [c for c in pool if c.kl_student <= nats]
    if not inside:
        winner = min(pool, key=lambda c: c.kl_student)
        return winner, f"no checkpoint within {nats:.3f} nats of the student; the nearest, at {winner.kl_student:.4f}"
    winner = min(inside, key=lambda c: c.kl_best)
    return winner, f"nearest to T* ({winner.kl_best:.4f} nats) of {len(inside)} within {nats:.3f} nats of the student"


def own(rule: Callable[..., str], candidates: Sequence[Candidate], **seen: Any) -> Choice:
    """The choice of a function of the user's own, called as `nearest` is. Raises ModelError for what is no
    checkpoint."""
    chosen, names = rule(candidates, **seen), [candidate.checkpoint for candidate in candidates]
    if chosen not in names:
        raise ModelError(f"the schedule {rule.__name__} chose {chosen!r}; it must return one of {', '.join(names)}")
    return Choice(chosen, f"chosen by {rule.__name__}")


def _stall(winner: Candidate, previous: Candidate | None, best: str) -> str | None:
    """The warning for a student that stays with an early checkpoint it has not reached."""
    again = previous is not None and winner.checkpoint == previous.checkpoint
    if not again or winner.checkpoint == best or winner.kl_student < FAR_NATS:
        return None
    return (
        f"{winner.checkpoint} was chosen again although the student is still {winner.kl_student:.3f} nats from it"
        f" ({previous.kl_student:.3f} a stage ago): later checkpoints look even further away, so the student may never see"
        " T*. `distill.schedule.advance=true` moves on by one checkpoint at least; `distill.schedule.reach=forward` measures"
        " the distance as KL(T_k || S)"
    )


def fixed(
    schedule: Literal["best", "interpolated", "in_order", "random", "ensemble"],
    checkpoints: Sequence[str],
    *,
    stage: int,
    num_stages: int,
    best: str,
    seed: int,
) -> Choice:
    """The choices that do not look at the student.

    `best`: T* in every stage, and so `interpolated`, whose target moves towards it (`taid.py`). `in_order`: checkpoints
    oldest to newest, spread evenly over the stages, the last stage getting the newest. `random`: one drawn from (seed,
    stage), the same whenever it is asked for. `ensemble`: all of them at once.
    """
    if schedule == "ensemble":
        return Choice(ENSEMBLE, f"a mixture of all {len(checkpoints)} checkpoints")
    if schedule in ("best", "interpolated"):
        return Choice(best, "T*, the best teacher on validation")
    if schedule == "in_order":
        position = -(-stage * len(checkpoints) // num_stages) - 1
        return Choice(checkpoints[position], f"fixed order: checkpoint {position + 1} of {len(checkpoints)}")
    drawn = random.Random(f"{seed}/{stage}").choice(list(checkpoints))
    return Choice(drawn, f"drawn at random (seed {seed})")
