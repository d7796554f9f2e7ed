"""Several processes of the command, started as `torchrun` starts them, and what each of them printed.

They are forked from a process that has imported everything (multiprocessing's `forkserver`): importing torch and
transformers in each of them takes longer than what they are started for.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["helpers.launched"])
SECONDS = 600


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
    with TemporaryDirectory() as folder:
        processes = [
            FORKS.Process(
                target=_command,
                args=(
                    [str(word) for word in words],
                    before,
                    str(within[rank // each].resolve()),
                    {**of_all, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank % each)},
                    [f"{folder}/{rank}.{name}" for name in ("out", "err")],
                ),
            )
            for rank in range(count)
        ]
        with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()  # it looks for what it imports there
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(SECONDS)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
        return [
            Ended(process.exitcode, *(Path(f"{folder}/{rank}.{name}").read_text() for name in ("out", "err")))
            for rank, process in enumerate(processes)
        ]


def _command(words: list[str], before: str, folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """What a process does."""
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["tutelage", *words]
    exec(before, {})  # the test's own code
    from tutelage.cli.main import main

    main()
