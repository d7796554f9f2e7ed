"""One runtime on rows, in a process of its own: `python -m tutelage.export.measure JOB RESULT` (JSON files).

A process for each, so that the peak memory is that of one runtime with one model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

from tutelage.errors import ModelError
from tutelage.export.runtimes import RUNTIMES, Ask, Reply, Setting, versions_of
from tutelage.utils.files import read_json, write_json

AT_ONCE = 32
"""Prompts that are answered together in the second measurement."""
MOST_TOGETHER = 256
"""Rows of the second measurement at most; it is about time alone."""


class Job(TypedDict):
    """What a process is told."""

    runtime: str
    """Key of RUNTIMES."""
    setting: Setting
    asks: list[Ask]
    only_tokens: bool
    """Ask for no answers, only for the tokens that prompts are read in."""


class Measured(TypedDict):
    """What it found."""

    replies: list[Reply]
    """To all prompts, one at a time."""
    tokens: list[list[int]]
    """What the runtime read of each prompt."""
    seconds: list[float]
    """Of each prompt."""
    seconds_together: float
    """Of the first `rows_together` prompts, AT_ONCE at a time, all together."""
    rows_together: int
    loading: float
    """Seconds."""
    peak_memory: int
    """Bytes of the process, libraries included, after the prompts one at a time."""
    versions: dict[str, str]


def measure(job: Job) -> Measured:
    """Run a job in a process of its own, on the CPU. Raises ModelError with the end of its messages if it fails."""
    threads = str(job["setting"]["threads"])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
    with TemporaryDirectory(prefix="tutelage-export-") as folder:
        asked, found = Path(folder, "job.json"), Path(folder, "result.json")
        write_json(asked, job)
        command = [sys.executable, "-m", "tutelage.export.measure", str(asked), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if done.returncode or not found.is_file():
            said = ((done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ModelError(f"{job['runtime']} cannot answer with {job['setting']['folder']}: {said}")
        return read_json(found)


def _measure(job: Job) -> Measured:
    began, asks = time.perf_counter(), job["asks"]
    runtime = RUNTIMES[job["runtime"]](job["setting"], 1)
    loading, tokens, versions = time.perf_counter() - began, runtime.tokens(asks), versions_of(runtime)
    replies: list[Reply] = []
    seconds: list[float] = []
    for ask in [] if job["only_tokens"] else asks:
        began = time.perf_counter()
        replies += runtime.answer([ask])
        seconds.append(time.perf_counter() - began)
    memory = _peak_memory()
    del runtime
    together = sorted(asks[:MOST_TOGETHER], key=lambda ask: -len(ask["ids"])) if replies else []
    return {
        "replies": replies,
        "tokens": tokens,
        "seconds": seconds,
        "seconds_together": _together(job, together) if together else 0.0,
        "rows_together": len(together),
        "loading": loading,
        "peak_memory": memory,
        "versions": versions,
    }


def _together(job: Job, asks: Sequence[Ask]) -> float:
    """Seconds for prompts, AT_ONCE at a time."""
    runtime = RUNTIMES[job["runtime"]](job["setting"], AT_ONCE)
    began = time.perf_counter()
    for start in range(0, len(asks), AT_ONCE):
        runtime.answer(asks[start : start + AT_ONCE])
    return time.perf_counter() - began


def _peak_memory() -> int:
    """Bytes that the process has held at most. getrusage would include the process that started this one."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            values: dict[str, Any] = dict(line.split(":", 1) for line in file)
        return int(values["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), _measure(read_json(Path(sys.argv[1]))))
