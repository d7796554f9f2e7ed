"""Several processes of the command, started as `torchrun` starts them, and what each of them printed."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

COMMAND = "import os; os.fsync = lambda descriptor: None; from tutelage.cli.main import main; main()"


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


def launch(
    count: int, *words: Any, before: str = "", within: Sequence[Path] = (Path(),), **environment: str
) -> list[Ended]:
    """Run `tutelage WORDS` in `count` processes to the end, one torch thread in each.

    before: Python that all run first. within: the current folder on each machine; several stand for as many machines,
    with an equal number of processes. environment: more variables of all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    each = count // len(within)
    of_all = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(each), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    source = Path(__file__).parents[2] / "src"
    of_all |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(source), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{COMMAND}", *map(str, words)],
            env={**os.environ, **of_all, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank % each)},
            cwd=within[rank // each],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        texts = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
