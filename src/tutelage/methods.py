"""METHODS: what each method of distillation is made of. A new method is one line.

A method is a point in a small product: which checkpoint teaches (schedule), how far the student is from it (divergence),
and how much of a sample's loss follows it (weighting). Rows, steps, stages, resets and seeds are the same for all of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """One way to train the student."""

    schedule: Literal["none", "best", "in_order", "nearest", "random"]
    """`none`: no teacher. `best`: always T*. `in_order`: oldest to newest. `nearest`: SCD's choice. `random`: seeded."""
    divergence: Literal["none", "forward_kl", "reverse_kl", "jsd", "skew_kl"]
    """See `divergences.py`."""
    weighting: Literal["none", "constant", "adaptive"]
    """`none`: gold only. `constant`: `kd_ratio`. `adaptive`: AW, from the anchor's and the checkpoint's losses."""
    source: str
    """Where the method comes from."""


METHODS: dict[str, Method] = {
    "sft": Method("none", "none", "none", "plain fine-tuning on gold, with the stages and resets of the others"),
    "td": Method("best", "forward_kl", "constant", "Hinton et al. 2015, arXiv 1503.02531"),
    "td-aw": Method("best", "forward_kl", "adaptive", "the weighting of arXiv 2601.10114 without its schedule"),
    "cd": Method("in_order", "forward_kl", "constant", "arXiv 2601.10114, baseline: checkpoints in fixed order"),
    "cd-aw": Method("in_order", "forward_kl", "adaptive", "checkpoints in fixed order with adaptive weighting"),
    "scd": Method("nearest", "forward_kl", "constant", "arXiv 2601.10114, without adaptive weighting"),
    "scd-aw": Method("nearest", "forward_kl", "adaptive", "arXiv 2601.10114, the whole method"),
    "random": Method("random", "forward_kl", "constant", "ablation of the schedule: a random checkpoint each stage"),
    "rkl": Method("best", "reverse_kl", "constant", "reverse KL as in MiniLLM, arXiv 2306.08543, on gold answers"),
    "jsd": Method("best", "jsd", "constant", "generalised JSD at 0.5 as in GKD, arXiv 2306.13649, on gold answers"),
    "skew": Method("best", "skew_kl", "constant", "skewed KL at 0.1 as in DistiLLM, arXiv 2402.03898"),
}
