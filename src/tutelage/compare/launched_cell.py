"""A cell as several processes of `torchrun`, one for each of its GPUs, on the machine of the process that asks for it.

`python -m tutelage.compare.launched_cell FILE` is one of these processes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tutelage.compare.cells import Cell
from tutelage.compare.executors import run_task
from tutelage.utils import ranks

LOOK_EVERY = 0.5
"""Seconds between two looks at whether the process that started the cell still lives."""


def processes_of(num_gpus: float) -> int:
    """Processes of a cell with so many GPUs: one for each, and one with a part of a GPU or none."""
    return max(1, int(num_gpus))


def launch_command(processes: int, file: Path) -> list[str]:
    """The command that starts the processes of a cell. file: what `run_launched` wrote."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, "--module", "tutelage.compare.launched_cell", str(file)]


def run_launched(cell: Cell, task: bytes, processes: int) -> str | None:
    """Run a cell in processes that share its work. task: a pickled `CellTask`. Returns None, or the error as one
    line."""
    with TemporaryDirectory() as folder:
        file, answer = Path(folder, "cell"), Path(folder, "error")
        file.write_bytes(pickle.dumps((cell, task, os.getpid(), answer)))
        code = subprocess.run(launch_command(processes, file), check=False).returncode
        if answer.is_file():
            return answer.read_text(encoding="utf-8")
    ended = f"its {processes} processes ended with exit code {code}; its log says which was first"
    return f"{ended} (-9: killed, most often by a lack of memory)" if code else None


def main(arguments: Sequence[str]) -> int:
    """Do this process's part of a cell. Returns the exit code."""
    cell, task, owner, answer = pickle.loads(Path(arguments[0]).read_bytes())
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()

    def joined(given: Cell) -> Any:
        with ranks.quiet():
            ranks.join()
            return pickle.loads(task)(given)

    error = run_task(joined, cell)
    if error is None:
        ranks.part()
        return 0
    if gone := ranks.lost():
        error = f"process {gone[0]} of {ranks.started()} was killed or has crashed"
    code, first = ranks.fail(1)
    if first:
        answer.write_text(error, encoding="utf-8")
    ranks.leave()
    return code


def _end_with(owner: int) -> None:
    """End when the process that started the cell has: the cell's next try must not find this one at work."""
    while psutil.pid_exists(owner) and psutil.Process(owner).status() != psutil.STATUS_ZOMBIE:
        time.sleep(LOOK_EVERY)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
