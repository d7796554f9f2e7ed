"""Where the cells of a comparison run: on this machine, each in a process of its own, one or several at a time.

A process of its own gives a cell's memory back when it ends, and a cell that fails, or is killed, takes no other with
it.
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

CellTask = Callable[[Cell], None]
"""Trains and scores a cell; whatever it prints goes to the cell's log. Must be importable: it is called in another
process."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    seconds: float
    error: str | None = None
    """Last words of a cell that failed."""


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
    """Folder for what the cells print, a file each."""
    jobs: int = 1
    """Cells at a time; processor threads are divided among them, GPUs go round."""

    @property
    def threads(self) -> int:
        """Torch threads of a cell: its part of this process's own, fewer than the machine's where processors are
        shared."""
        import torch

        return max(1, torch.get_num_threads() // self.jobs)

    def run(self, cells: Iterable[Cell]) -> Iterator[Outcome]:
        """The outcome of each cell as it ends. Cells that still run when this is left are ended."""
        self.logs.mkdir(parents=True, exist_ok=True)
        waiting, places = deque(cells), deque(range(self.jobs))
        working: dict[int, _Process] = {}
        try:
            while waiting or working:
                while waiting and places:
                    process = _Process(self.task, waiting.popleft(), places.popleft(), self)
                    working[process.sentinel] = process
                for sentinel in wait(list(working)):
                    ended = working.pop(sentinel)
                    places.append(ended.place)
                    yield ended.outcome()
        finally:
            for process in working.values():
                process.end()


class _Process:
    """A cell at work."""

    def __init__(self, task: CellTask, cell: Cell, place: int, executor: LocalExecutor) -> None:
        context = multiprocessing.get_context("spawn")
        self.cell, self.place, self.began = cell, place, time.monotonic()
        self.pipe, theirs = context.Pipe(duplex=False)
        self.log = log_of(cell, executor.logs)
        gpus = visible_gpus()
        device = gpus[place % len(gpus)] if gpus and executor.jobs > 1 else None
        arguments = (task, cell, theirs, self.log, executor.threads, device)
        self._process = context.Process(target=_run, args=arguments, name=str(cell), daemon=True)
        self._process.start()
        theirs.close()

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
            why = " (most often a lack of memory: fewer --jobs, or a smaller batch)" if code == -signal.SIGKILL else ""
            return Outcome(self.cell, seconds, f"the cell's process was {ended}{why}; its log is {self.log}")
        return Outcome(self.cell, seconds)

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _run(task: CellTask, cell: Cell, pipe: Connection, log: Path, threads: int, device: str | None) -> None:
    """In the cell's process: run the task, its words into the log; an error goes back in a line and into the log as a
    whole."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the comparison, which ends its cells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print_to(log)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device

    def with_threads(given: Cell) -> None:
        import torch

        torch.set_num_threads(threads)
        task(given)

    if (error := last_words(with_threads, cell)) is not None:
        pipe.send(error)


def _end_with_parent() -> None:
    """A killed comparison takes its cells with it: the next one must not meet them at work in the same folders."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def log_of(cell: Cell, logs: Path) -> Path:
    """The file for what a cell prints."""
    return logs / f"{str(cell).replace(' ', '-').replace('/', '-')}.log"


def print_to(log: Path) -> None:
    """From here on everything that this process prints, libraries in C included, is appended to a file."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def last_words(task: CellTask, cell: Cell) -> str | None:
    """Run a cell in this process: None if it came to a good end, or its error in a line; the traceback is printed."""
    try:
        task(cell)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return None


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs as CUDA_VISIBLE_DEVICES has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
