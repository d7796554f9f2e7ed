"""Peak memory of a piece of work, and memory of the machine. Uses torch only if it is loaded already."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, ModuleType


@contextmanager
def peak_memory(every: float = 0.1) -> Iterator[Callable[[], int]]:
    """Gives a function that returns the peak so far in bytes: of the CUDA device, or of this process without one.

    every: seconds between two measurements of the process. Its memory includes the libraries that are loaded (0.5 GB).
    """
    import psutil

    if torch := _torch_with_cuda():
        torch.cuda.reset_peak_memory_stats()
    process, stop = psutil.Process(), threading.Event()
    highest = process.memory_info().rss

    def measure() -> None:
        nonlocal highest
        while not stop.wait(every):
            highest = max(highest, process.memory_info().rss)

    def peak() -> int:
        torch = _torch_with_cuda()
        return torch.cuda.max_memory_allocated() if torch else highest

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def machine_memory() -> int:
    """Total bytes of the CUDA device's memory, or of this machine's without one."""
    import psutil

    torch = _torch_with_cuda()
    return torch.cuda.get_device_properties(0).total_memory if torch else psutil.virtual_memory().total


def _raised_in(error: BaseException) -> CodeType | None:
    """The code of the function that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code if trace is not None else None


def _torch_with_cuda() -> ModuleType | None:
    """The module torch, if it is loaded and has a CUDA device."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be allocated."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if _raised_in(error) is threading.Thread.start.__code__:  # there is no memory for the stack of a thread
        return True
    if (torch := sys.modules.get("torch")) is None:
        return False
    # On an accelerator torch raises a type of its own. Its CPU allocator has none, so the only sign is the allocator's
    # name in the message: a name in torch's code, not wording. How much memory is free afterwards says nothing, because
    # one allocation that is too large is refused while plenty is free.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
