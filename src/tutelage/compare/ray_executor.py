"""The Ray executor: runs cells on the nodes of a running Ray cluster, each in its own worker process.

Cells read and write the run folders themselves, so every node must see the same files; that is checked before anything
runs. A cell whose node or worker process is lost is tried again, and continues from the files in its run folder.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from tutelage.compare.cells import Cell
from tutelage.compare.executors import CellTask, Outcome, log_of, print_to, run_task
from tutelage.compare.launched_cell import processes_of, run_launched
from tutelage.errors import UserError, problems
from tutelage.errors.wording import first_line
from tutelage.run.manifest import versions

FORWARDED = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY")
"""Environment variables that cells inherit from this process; all others are the node's own."""
VISIBLE_SECONDS = 5.0
"""How long to wait for a file that another node wrote: network file systems cache what a folder contains."""
ANSWER_SECONDS = 120.0
"""A node that has not checked the folders by then is refused: its mount may hang."""
LOCK_SECONDS = 150.0
"""How long a cell that is tried again waits for its former process, which a lost node keeps for about 60 s."""
RESOURCE_CHECK_SECONDS = 60.0
"""If no cell has ended for this long, check that a node is left that can run one."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A cell that was submitted to the cluster."""

    cell: Cell
    number: int
    """From 1."""
    began: float
    """When it was submitted, on the monotonic clock; it may have waited for a free node since."""
    reference: Any
    """Ray's reference to the task."""


@dataclass
class RayExecutor:
    """Runs cells on a Ray cluster."""

    task: CellTask
    logs: Path
    """Folder of the cells' logs."""
    folders: Sequence[Path]
    """The comparison's folder and the run folders, which every node must see."""
    num_cpus: float = 1
    """Of one cell; its processes share as many torch threads, at least one each."""
    num_gpus: float = 0
    """Of one cell; fractions below 1 are allowed. With 0 it sees no GPU, with several it has a process for each."""
    retries: int = 2
    """How often a cell is tried again after its node or worker process was lost."""

    @property
    def threads(self) -> int:
        """Torch threads of a process of a cell."""
        return max(1, int(self.num_cpus) // processes_of(self.num_gpus))

    def check(self) -> None:
        """Raises UserError if there is no cluster, if no node can run a cell, or if a node does not see the folders."""
        with _cluster() as ray:
            self._check(ray)

    def run(self, cells: Iterable[Cell]) -> Iterator[Outcome]:
        """The outcome of each cell as it ends, after `check`. Other cells are cancelled when the iterator is closed.

        Raises UserError also if, later on, no node is left that can run a cell.
        """
        if waiting := list(cells):
            with _cluster() as ray:
                self._check(ray)
                yield from self._run(ray, waiting)

    def _check(self, ray: ModuleType) -> None:
        self._check_resources(ray)
        _check_folders(ray, list(dict.fromkeys([self.logs, *self.folders])))

    def _check_resources(self, ray: ModuleType) -> None:
        has = {_name(node): [node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")] for node in _alive(ray)}
        if not any(cpus >= self.num_cpus and gpus >= self.num_gpus for cpus, gpus in has.values()):
            title = f"a cell needs {_amount(self.num_cpus, self.num_gpus)}, and no node of the Ray cluster has that:"
            nodes = [f"{name}: {_amount(*amounts)}" for name, amounts in has.items()]
            raise UserError(
                f"{problems(title, nodes)}\nask for less (num_cpus, num_gpus), or add a node: ray start --address=..."
            )

    def _run(self, ray: ModuleType, cells: Sequence[Cell]) -> Iterator[Outcome]:
        # Ray's own retries are not used: those after out-of-memory never end.
        remote = ray.remote(max_calls=1, max_retries=0, num_cpus=self.num_cpus, num_gpus=self.num_gpus)(_work)
        environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        environment |= {} if self.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
        fixed = (pickle.dumps(self.task), processes_of(self.num_gpus), os.getcwd(), str(self.logs), environment)
        waiting, working = deque((cell, 1) for cell in cells), {}
        try:
            while waiting or working:
                while waiting:
                    cell, number = waiting.popleft()
                    attempt = _Attempt(cell, number, time.monotonic(), remote.remote(cell, *fixed))
                    working[attempt.reference.future()] = attempt
                ended = wait(working, RESOURCE_CHECK_SECONDS, FIRST_COMPLETED).done
                if not ended:
                    self._check_resources(ray)
                for future in ended:
                    attempt = working.pop(future)
                    outcome = self._outcome(ray, future, attempt)
                    if outcome is None:
                        waiting.append((attempt.cell, attempt.number + 1))
                    else:
                        yield outcome
        finally:
            _cancel(ray, {future: attempt.reference for future, attempt in working.items()})

    def _outcome(self, ray: ModuleType, ended: Future, attempt: _Attempt) -> Outcome | None:
        """How an attempt ended; None if the cell is to be tried again."""
        cell, number = attempt.cell, attempt.number
        try:
            return Outcome(cell, *ended.result())
        except ray.exceptions.RayError as error:
            seconds, loss = time.monotonic() - attempt.began, _describe_loss(ray, error)
            if loss is None:
                return Outcome(cell, seconds, _describe(error))
            log = log_of(cell, self.logs)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"--- try {number} of {self.retries + 1}: {loss}\n{error}\n")
            if number <= self.retries:
                return None
            times = f"{number} times, its node or worker process was lost each time" if number > 1 else "once"
            return Outcome(cell, seconds, f"tried {times}; the last time {loss}; its log is {log}")


@contextmanager
def _cluster() -> Iterator[ModuleType]:
    """Ray, connected to a cluster; an existing connection is used and kept."""
    # Otherwise Ray tries for 15 minutes to reach a cluster that no longer exists.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
    except ImportError as error:
        raise UserError('Ray is not installed here: pip install "tutelage[ray]", or use --executor local') from error
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster could be reached: {first_line(error)}\n"
            "  start one here:       ray start --head   (on other machines: ray start --address=THIS_MACHINE:6379)\n"
            "  or name one:          RAY_ADDRESS=MACHINE:6379 before the command, on a machine of the cluster\n"
            "  or use this machine:  --executor local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _alive(ray: ModuleType) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}, {node['NodeID'][:8]})"


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


# --- shared storage ---


def _check_folders(ray: ModuleType, folders: Sequence[Path]) -> None:
    """A file written here must be readable on every node and vice versa. Raises UserError that names the nodes."""
    token = secrets.token_hex(16)
    name = f".visible-{token[:8]}"
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(token, encoding="utf-8")
        problems_of = _ask_nodes(ray, [str(folder) for folder in folders], name, token)
    finally:
        for folder in folders:
            for path in folder.glob(f"{name}*"):
                path.unlink(missing_ok=True)
    if wrong := [f"{node} {problem}" for node, found in problems_of.items() for problem in found]:
        title = "every node must read and write the run folders, and these nodes of the Ray cluster cannot:"
        raise UserError(
            f"{problems(title, wrong)}\n"
            "put the runs on a file system that all nodes mount at the same path, and name it by its absolute path:"
            " output_dir=/SHARED/runs/NAME; or use --executor local"
        )


def _ask_nodes(ray: ModuleType, folders: list[str], name: str, token: str) -> dict[str, list[str]]:
    """Problems with the folders, by node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote, asked = ray.remote(max_calls=1, max_retries=0, num_cpus=0)(_check_on_node), {}
    for node in _alive(ray):
        pinned = remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        reference = pinned.remote(
            os.getcwd(), folders, name, token, node["NodeID"], VISIBLE_SECONDS, versions()["tutelage"]
        )
        asked[reference.future()] = node, reference
    answered, silent = wait(asked, ANSWER_SECONDS)
    problems_of = {_name(asked[future][0]): [f"did not answer within {ANSWER_SECONDS:.0f} s"] for future in silent}
    _cancel(ray, {future: asked[future][1] for future in silent})
    for future in answered:
        node, _ = asked[future]
        try:
            wrong = future.result()
        except ray.exceptions.RayError as error:
            wrong = [f"could not be checked: {_describe_loss(ray, error) or _describe(error).splitlines()[0]}"]
        if not wrong:
            unseen = [
                folder for folder in folders if not _appears(Path(folder) / f"{name}-{node['NodeID']}", VISIBLE_SECONDS)
            ]
            wrong = [f"has another {folder}: files that it writes there are not visible here" for folder in unseen]
        problems_of[_name(node)] = wrong
    return problems_of


def _check_on_node(
    cwd: str, folders: list[str], name: str, token: str, node: str, patience: float, version: str
) -> list[str]:
    """On a node: problems with the folders as seen from there. Writes a file into each."""
    if version != versions()["tutelage"]:
        return [f"has tutelage {versions()['tutelage']}, this machine {version}: install the same version"]
    try:
        os.chdir(cwd)
    except OSError as error:
        return [f"has no folder {cwd}, where this command was started ({error.strerror})"]
    wrong = []
    for folder in map(Path, folders):
        _appears(folder / name, patience)
        try:
            if (folder / name).read_text(encoding="utf-8") != token:
                wrong.append(f"has another {folder}")
            (folder / f"{name}-{node}").write_text(token, encoding="utf-8")
        except FileNotFoundError:
            wrong.append(f"does not see {folder}")
        except OSError as error:
            wrong.append(f"cannot use {folder} ({error.strerror})")
    return wrong


def _appears(path: Path, patience: float) -> bool:
    """Wait for a file, `patience` seconds at most."""
    until = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


# --- cells ---


def _work(
    cell: Cell, task: bytes, processes: int, cwd: str, logs: str, environment: dict[str, str]
) -> tuple[float, str | None]:
    """In the cell's worker process: run the task, or start the processes that share it, and log what they print.
    Returns seconds, and an error as one line."""
    os.chdir(cwd)  # paths in cells and recipes are relative to where the command was started
    os.environ.update(environment)
    log = log_of(cell, Path(logs))
    print_to(log)
    began = time.monotonic()
    lock = FileLock(log.with_suffix(".lock"))
    try:
        with lock.acquire(timeout=LOCK_SECONDS):
            # Loaded here and not by Ray, so that torch reads the environment, and an error at import is the cell's.
            one = processes == 1
            error = run_task(lambda c: pickle.loads(task)(c), cell) if one else run_launched(cell, task, processes)
    except Timeout:
        error = (
            f"another process still works on this cell after {LOCK_SECONDS:.0f} s, on a node that the cluster may have"
            f" lost: stop it; if there is none, the file system has kept its lock: rm {lock.lock_file}"
        )
    return time.monotonic() - began, error


def _describe_loss(ray: ModuleType, error: Exception) -> str | None:
    """How a node or worker process was lost; None for any other error."""
    known = ray.exceptions
    if isinstance(error, known.OutOfMemoryError):
        return (
            "Ray stopped its worker process because the node ran out of memory (use a smaller batch, or more num_cpus)"
        )
    if isinstance(error, known.NodeDiedError | known.LocalRayletDiedError):
        return "its node was lost"
    if isinstance(error, known.WorkerCrashedError):
        return "its worker process was killed (most often by a lack of memory: use a smaller batch, or more num_cpus)"
    return None


def _describe(error: Exception) -> str:
    """An error of Ray or, if it wraps one, of the task, worded as the local executor does."""
    inner = getattr(error, "cause", None) or error
    return str(inner) if isinstance(inner, UserError) else f"{type(inner).__name__}: {inner}"


def _cancel(ray: ModuleType, tasks: dict[Future, Any]) -> None:
    """Cancel tasks and wait until they have ended: the next comparison must not find them writing in the same folders.

    tasks: Ray's references, by the future of each. (Futures and not `ray.wait`, in which Ctrl-C turns into a
    SystemError.)
    """
    for reference in tasks.values():
        ray.cancel(reference, force=True)
    wait(tasks, 30)
