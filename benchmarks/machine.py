"""What a measurement was taken on, in words and without naming a host; and what the kernel says about a process's
memory."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib import metadata, util
from pathlib import Path

import torch

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "Arm BF16",
}
"""Flags of /proc/cpuinfo that matter for matrix products."""

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "trl", "tutelage")

SLOW_BF16 = 5.0
"""From this ratio of bfloat16 to float32 seconds for a product on, the processor has no bfloat16 worth measuring."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_class() -> str:
    """Cores, processor family, instruction sets and memory."""
    info = _read("/proc/cpuinfo")
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in info.splitlines() if ":" in line)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    sets = [name for flag, name in INSTRUCTION_SETS.items() if flag in flags]
    gib = _kib(_read("/proc/meminfo"), "MemTotal") / 2**20
    processor = fields.get("model name", platform.machine())
    features = ", ".join(sets) or "instruction sets unknown"
    return f"{cores()} cores ({processor}; {features}), {gib:.0f} GiB, {platform.system()}"


def versions() -> dict[str, str]:
    """Version of Python and of every package that takes part and is there."""
    found = {name: metadata.version(name) for name in PACKAGES if util.find_spec(name)}
    return {"python": platform.python_version(), **found}


def memory_mb(field: str) -> float:
    """Memory of this process in MB (10^6 bytes) by the kernel's count: `VmRSS` now, `VmHWM` the highest so far."""
    status = _read("/proc/self/status")
    if not status:
        raise SystemExit(
            "memory is read from /proc/self/status, which this system has not got: run the benchmark on Linux"
        )
    return _kib(status, field) * 1024 / 1e6


def product_seconds(dtype: torch.dtype, repeats: int = 3) -> float:
    """Median seconds of a [512, 576] x [576, 1536] product, a layer of the benchmark's models."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    left @ right
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def why_no_bf16(fp32_seconds: float, bf16_seconds: float) -> str | None:
    """Why bfloat16 is not worth measuring here, with the numbers; None where it is."""
    ratio = bf16_seconds / fp32_seconds
    if ratio <= SLOW_BF16:
        return None
    return (
        f"a [512, 576] x [576, 1536] product takes {bf16_seconds * 1e3:.1f} ms in bfloat16 and"
        f" {fp32_seconds * 1e3:.1f} ms in float32, {ratio:.0f} times as long (limit {SLOW_BF16:.0f}):"
        " this processor has no fast bfloat16"
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""


def _kib(text: str, field: str) -> int:
    """A line `Field:   123 kB` as a number; 0 if it is not there."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field + ":")), 0)
