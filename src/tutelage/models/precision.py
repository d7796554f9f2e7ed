"""bfloat16 or float32: whichever this machine multiplies faster. Many CPUs emulate bfloat16, a hundred times slower."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from transformers.utils import is_torch_bf16_gpu_available

WORTH = 0.8
"""bfloat16 is used where a product takes at most this share of the time it takes in float32."""


@lru_cache
def bf16_pays(device_type: str) -> tuple[bool, str]:
    """Whether to compute in bfloat16 on this kind of device, and why."""
    if device_type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, f"this GPU has {'' if able else 'no '}bfloat16 units"
    if device_type != "cpu":
        able = is_torch_bf16_gpu_available()  # where not, transformers refuses to train in it: Macs before macOS 14
        return able, f"{device_type} computes in {'bfloat16' if able else 'float32 only'}"
    wide = _seconds(torch.float32)
    narrow = _seconds(torch.bfloat16, hopeless=10 * wide)
    return (
        narrow < WORTH * wide,
        f"a product takes {1e3 * narrow:.1f} ms in bfloat16 and {1e3 * wide:.1f} ms in float32 here",
    )


def _seconds(dtype: torch.dtype, hopeless: float = float("inf")) -> float:
    """Shortest of a few products of a training batch's size; of two, where the second still takes longer than
    `hopeless`."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(4):  # the first one also sets things up
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
        if len(times) > 1 and times[-1] > hopeless:
            break
    return min(times)
