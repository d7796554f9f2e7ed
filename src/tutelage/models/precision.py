"""Whether bfloat16 is faster than float32 on this machine. Many CPUs emulate it, a hundred times slower."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from transformers.utils import is_torch_bf16_gpu_available

WORTH = 0.8
"""bfloat16 is used if a matrix product takes at most this fraction of its time in float32."""


@lru_cache
def bf16_pays(device_type: str) -> tuple[bool, str]:
    """Whether to compute in bfloat16 on this kind of device, and why."""
    if device_type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, f"this GPU has {'' if able else 'no '}bfloat16 units"
    if device_type != "cpu":
        able = is_torch_bf16_gpu_available()  # if not, transformers refuses to train in it (Macs before macOS 14)
        return able, f"{device_type} computes in {'bfloat16' if able else 'float32 only'}"
    float32 = _seconds(torch.float32)
    bfloat16 = _seconds(torch.bfloat16, give_up=10 * float32)
    text = f"a matrix product takes {1e3 * bfloat16:.1f} ms in bfloat16 and {1e3 * float32:.1f} ms in float32 here"
    return bfloat16 < WORTH * float32, text


def _seconds(dtype: torch.dtype, give_up: float = float("inf")) -> float:
    """Shortest of four products of a training batch's size; of two, if the second takes longer than `give_up`
    seconds."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(4):  # the first one includes set-up time
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
        if len(times) > 1 and times[-1] > give_up:
            break
    return min(times)
