"""The local executor: runs cells on this machine, each in its own process, one or several at a time.

The process frees a cell's memory when it ends, and a cell that fails or is killed does not affect the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from tutelage.compare.cells import Cell
from tutelage.errors import UserError
from tutelage.run.threads import fix_threads

CellTask = Callable[[Cell], object]
"""Trains and scores a cell; what it prints goes to the cell's log. Picklable: it is called in another process."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    seconds: float
    error: str | None = None
    """One line, of a cell that failed."""


class Executor(Protocol):
    """Runs cells somewhere."""

    @property
    def threads(self) -> int:
        """Torch threads of a cell."""

    def run(self, cells: Iterable[Cell]) -> Iterator[Outcome]:
        """The outcome of each cell as it ends."""


@dataclass
class LocalExecutor:
    """Runs cells on this machine."""

    task: CellTask
    logs: Path
    """Folder of the cells' logs."""
    jobs: int = 1
    """Cells at a time; they share the processor threads, and take the GPUs in turn."""

    @property
    def threads(self) -> int:
        """Torch threads of a cell: of this process's own, which are fewer than the machine's if it is shared."""
        import torch

        return max(1, torch.get_num_threads() // self.jobs)

    def run(self, cells: Iterable[Cell]) -> Iterator[Outcome]:
        """The outcome of each cell as it ends. Cells that still run when the iterator is closed are stopped."""
        self.logs.mkdir(parents=True, exist_ok=True)
        waiting, free_slots = deque(cells), deque(range(self.jobs))
        working: dict[int, _Process] = {}
        try:
            while waiting or working:
                while waiting and free_slots:
                    process = _Process(self.task, waiting.popleft(), free_slots.popleft(), self)
                    working[process.sentinel] = process
                for sentinel in wait(list(working)):
                    process = working.pop(sentinel)
                    free_slots.append(process.slot)
                    yield process.outcome()
        finally:
            for process in working.values():
                process.stop()


class _Process:
    """The process of a cell. slot: one of the executor's `jobs`, which decides on the GPU."""

    def __init__(self, task: CellTask, cell: Cell, slot: int, executor: LocalExecutor) -> None:
        context = multiprocessing.get_context("spawn")
        self.cell, self.slot, self.began = cell, slot, time.monotonic()
        self.pipe, child_end = context.Pipe(duplex=False)
        self.log = log_of(cell, executor.logs)
        gpus = visible_gpus()
        device = gpus[slot % len(gpus)] if gpus and executor.jobs > 1 else None
        arguments = (task, cell, child_end, self.log, executor.threads, device)
        self._process = context.Process(target=_run, args=arguments, name=str(cell), daemon=True)
        self._process.start()
        child_end.close()

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    def outcome(self) -> Outcome:
        self._process.join()
        seconds, code = time.monotonic() - self.began, self._process.exitcode
        with contextlib.suppress(EOFError):
            if self.pipe.poll():
                return Outcome(self.cell, seconds, self.pipe.recv())
        if code:
            ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if code == -signal.SIGKILL:
                ended += " (most often by a lack of memory: use fewer --jobs, or a smaller batch)"
            return Outcome(self.cell, seconds, f"the cell's process was {ended}; its log is {self.log}")
        return Outcome(self.cell, seconds)

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()


def _run(task: CellTask, cell: Cell, pipe: Connection, log: Path, threads: int, device: str | None) -> None:
    """In the cell's process: run the task, log what it prints, and send back an error as one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the comparison, which stops its cells
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    print_to(log)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device

    def with_threads(given: Cell) -> None:
        fix_threads(threads)
        task(given)

    if (error := run_task(with_threads, cell)) is not None:
        pipe.send(error)


def _exit_with_parent() -> None:
    """Exit if the comparison is killed: the next one must not find cells still writing in the same folders."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def log_of(cell: Cell, logs: Path) -> Path:
    """The log file of a cell."""
    return logs / f"{str(cell).replace(' ', '-').replace('/', '-')}.log"


def print_to(log: Path) -> None:
    """Append everything that this process prints from now on to a file, C libraries included."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def run_task(task: CellTask, cell: Cell) -> str | None:
    """Run a cell in this process. Returns None, or its error as one line, after printing the traceback."""
    try:
        task(cell)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return None


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs as in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
