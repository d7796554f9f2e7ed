"""How many threads torch computes with: no more than CPUs that this process may use and that are free.

Threads that wait for one another lose far more than the CPU that they lack: on a machine whose CPUs are busy, one
thread can be ten times as fast as one for each CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutelage.utils import ranks

VARIABLE = "OMP_NUM_THREADS"
"""Environment variable that sets the number instead; torch reads it by itself."""
SAMPLE = 0.3
"""Seconds for which the load of the machine is looked at."""
_SETTLED: list[int] = []
"""The number, once it was settled: later the load is our own."""


@dataclass(frozen=True)
class Cpus:
    """The CPUs of a process."""

    allowed: int
    """That it may run on."""
    quota: float | None
    """CPU seconds a second that its cgroup grants; None for no limit."""
    free: float
    """Of those allowed, what other processes left unused a moment ago."""

    @property
    def usable(self) -> int:
        """At least 1: the CPUs that are allowed, granted and free."""
        granted = self.allowed if self.quota is None else min(self.allowed, int(self.quota))
        return max(1, min(granted, round(self.free)))

    @property
    def reason(self) -> str:
        """What the number of usable CPUs comes from."""
        if self.quota is not None and int(self.quota) <= min(self.allowed, round(self.free)):
            return f"the CPU limit of this container (cgroup) is {self.quota:g}"
        busy = self.allowed - self.free
        return f"{busy:.1f} of {self.allowed} CPUs are busy with other work" if round(self.free) < self.allowed else ""


def settle_threads(say: Callable[[str], None], *, by_load: bool = True) -> int:
    """Lower torch's number of threads to the CPUs that are usable, and say what it is; returns the number.

    Once for a process. Nothing changes where OMP_NUM_THREADS is set, models are on an accelerator, or a launch has
    several processes. say: called with a line for the user. by_load: False for a process that will work long after the
    load has changed; then only the limit of its cgroup counts.
    """
    import torch

    given = torch.get_num_threads()
    if os.environ.get(VARIABLE) or torch.cuda.is_available() or ranks.size() > 1 or given == 1 or _SETTLED:
        return given
    cpus = cpus_now(by_load=by_load)
    number = min(given, cpus.usable)
    torch.set_num_threads(number)
    _SETTLED.append(number)
    because = f": {cpus.reason}" if number < given and cpus.reason else ""
    say(f"computing with {number} thread{'s' * (number > 1)}{because} ({VARIABLE} sets another number)")
    return number


def fix_threads(number: int) -> None:
    """Compute with this number, which the process that started this one has chosen."""
    import torch

    torch.set_num_threads(number)
    _SETTLED.append(number)


def cpus_now(*, by_load: bool = True) -> Cpus:
    """The CPUs of this process; takes `SAMPLE` seconds. by_load: False takes all of them for free."""
    import psutil

    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    busy = psutil.cpu_percent(interval=SAMPLE, percpu=True) if by_load else []
    known = [cpu for cpu in allowed if cpu < len(busy)]
    free = sum(1 - busy[cpu] / 100 for cpu in known) if known else float(len(allowed))
    return Cpus(len(allowed), cgroup_quota() if sys.platform == "linux" else None, free)


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup of this process and those around it grant; None for no limit. root: of the file system."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas(root / "sys/fs/cgroup", path, _quota_of_v2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(root / "sys/fs/cgroup" / controllers, path, _quota_of_v1)
            quotas += _quotas(root / "sys/fs/cgroup/cpu", path, _quota_of_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Limits of a cgroup and of all above it. Inside a container the path may be one of the host; then only the mount's
    own is there."""
    own = Path(path.lstrip("/"))
    folders = [mount / own, *(mount / parent for parent in own.parents)]
    return [quota for folder in dict.fromkeys(folders) if (quota := read(folder)) is not None]


def _quota_of_v2(folder: Path) -> float | None:
    """`cpu.max`: microseconds granted, or `max`, and the period."""
    try:
        granted, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return int(granted) / int(period)
    except (OSError, ValueError):
        return None


def _quota_of_v1(folder: Path) -> float | None:
    """`cpu.cfs_quota_us`: microseconds granted, or -1, and the period in a file of its own."""
    try:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        granted, period = (int((folder / name).read_text(encoding="ascii")) for name in names)
        return granted / period if granted > 0 else None
    except (OSError, ValueError):
        return None
