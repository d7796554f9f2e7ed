"""The most memory that a piece of work held. torch is asked only where it is loaded already."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def peak_memory(every: float = 0.1) -> Iterator[Callable[[], int]]:
    """Gives a function that says the most bytes held so far: of the accelerator, or of this process where there is
    none.

    every: seconds between looks at the process. Its memory holds everything that is loaded, libraries (0.5 GB)
    included.
    """
    import psutil

    if torch := _accelerated():
        torch.cuda.reset_peak_memory_stats()
    process, stop = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not stop.wait(every):
            seen[0] = max(seen[0], process.memory_info().rss)

    def peak() -> int:
        torch = _accelerated()
        return torch.cuda.max_memory_allocated() if torch else seen[0]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def machine_memory() -> int:
    """Bytes of the accelerator, or of this machine where there is none."""
    import psutil

    torch = _accelerated()
    return torch.cuda.get_device_properties(0).total_memory if torch else psutil.virtual_memory().total


def _accelerated() -> ModuleType | None:
    """The module torch, if it is loaded and has an accelerator."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
