"""How long a healing takes on this machine, before anything is loaded."""

from __future__ import annotations

import time

import torch

from tutelage.models.placement import device
from tutelage.models.precision import bf16_pays
from tutelage.shrink.influence import INFLUENCE_TOKENS

EFFICIENCY = {torch.float32: 0.5, torch.bfloat16: 0.2}
"""Speed of training as a fraction of a matrix product's. Measured: 0.58 and 0.22, SmolLM2-135M on one CPU core with
bfloat16 units, blocks of 256 tokens."""


def healing_seconds(teacher: int, student: int, tokens: int) -> float:
    """Seconds of `tutelage shrink --heal`, roughly. teacher, student: parameters. tokens: trained on, in one epoch.

    Counted are 2 operations per parameter and token in a forward pass, 6 in training (arXiv 2001.08361).
    """
    read = tokens + min(tokens, INFLUENCE_TOKENS)
    return (2 * teacher * read + 6 * student * tokens) / _operations_per_second()


def _operations_per_second() -> float:
    """Of training here, from a matrix product in the dtype that it computes in."""
    place = device()
    size = 512 if place.type == "cpu" else 4096
    dtype = torch.bfloat16 if bf16_pays(place.type)[0] else torch.float32
    matrix = torch.ones(size, size, dtype=dtype, device=place)
    times = []
    for _ in range(5):  # the first one includes set-up time
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for an accelerator
        times.append(time.perf_counter() - began)
    return EFFICIENCY[dtype] * 2 * size**3 / min(times)
