"""The processes of one launch (`torchrun`, `accelerate launch`), on one machine or several: which one this is, and how
they wait for one another, share work out, and end together.

All of them run the same code in the same order. What only one may do, such as writing a file of the run, is passed to
`once`; work on rows is shared out by `share`, and its results come together by `gather`. Without a launcher there is
one process: each of these then does the obvious, and torch is not imported.

A process that fails sets a key in the launcher's store (torch's TCPStore). A thread of every other process watches
that key and ends its process silently with the same exit code, even while that waits in a collective. Where there are
several machines, the thread also sends a heartbeat, so that the others notice a process that has stopped.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tutelage.errors import ConfigError

T = TypeVar("T")
V = TypeVar("V")

LONGEST_WAIT = timedelta(days=7)
"""For `once` and `gather`. The main process may read data or write a report for hours; a process that died is noticed
at once, since its connections close."""
LOOK_EVERY = 0.25
"""Seconds between two looks at whether another process has failed."""
SILENT_FOR = 8 * LOOK_EVERY
"""Seconds without a heartbeat after which a process on another machine is lost."""
VISIBLE_SECONDS = 60.0
"""How long to wait for a file that another machine wrote: network file systems keep what they know of a folder."""
GRACE = 5.0
"""Seconds that a process which failed waits for the others to end by themselves, before its launcher kills them."""
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What `accelerate launch` announces in the environment, and no process here can do."""


@dataclass
class _Launch:
    """The launch that this process has joined."""

    rank: int
    size: int
    group: Any
    """A gloo group for `once` and `gather`: it works on CPUs, beside the one that training uses."""
    store: Any
    name: str
    """Start of the keys in the store; another one after a launcher has restarted its processes."""
    processes: list[tuple[str, int]]
    """Machine and process id, by rank."""
    alone: bool = False
    """Whether the main process is doing what it does once."""
    parted: threading.Event = field(default_factory=threading.Event)
    """Set when this process no longer ends because of others."""

    @property
    def elsewhere(self) -> list[int]:
        """Ranks of the processes on other machines than this one's."""
        own = self.processes[self.rank][0]
        return [rank for rank, (machine, _) in enumerate(self.processes) if machine != own]


_launch: _Launch | None = None


# --- which process this is ---


def started() -> int:
    """Number of processes that a launcher says it has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def started_one_of_several() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes: it then starts one, unless it has MPI."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return started() == 1 or int(os.environ.get("RANK") or 0) == 0


def divides_models() -> bool:
    """Whether the user's `accelerate` config asks for FSDP: the models that are trained are divided over processes."""
    return size() > 1 and _asked("ACCELERATE_USE_FSDP")


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def size() -> int:
    """Number of processes that share work here: 1 inside `once`, and without a launch that was joined."""
    return 1 if _launch is None or _launch.alone else _launch.size


def join() -> None:
    """Meet the other processes of the launch, if there are any. Raises ConfigError for a launch that is not supported.

    It must come before anything that uses torch's process groups.
    """
    global _launch
    for name, what in UNSUPPORTED.items():
        if _asked(name):
            raise ConfigError(
                f"the launcher asks for {what}, which is not supported: launch without it. Models that do not fit on"
                " one GPU are divided by FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`), or held in 4 bits and"
                " trained by adapters (teacher.quantization=4bit teacher.lora={})"
            )
    if _asked("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            "the launcher asks for FSDP in its first version, and the second is supported: `accelerate launch"
            " --use_fsdp --fsdp_version 2`, or fsdp_version: 2 in its config"
        )
    # With it transformers would load the weights in the first process of a machine only, of all models.
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    if started() == 1 or _launch is not None:
        return
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE says that a launcher started {started()} processes, and {', '.join(missing)} is not set: start"
            " them by `torchrun --nproc_per_node N -m tutelage run RECIPE`, or unset WORLD_SIZE for one process"
        )
    _launch = _joined(int(os.environ["RANK"]), started())
    threading.Thread(target=_watch, args=(_launch,), daemon=True).start()


def _joined(rank: int, count: int) -> _Launch:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is told by us, without frames of C++
    import torch
    from torch import distributed

    local = int(os.environ["LOCAL_RANK"])
    if devices := torch.cuda.device_count():
        if local >= devices:
            raise ConfigError(
                f"the launcher started at least {local + 1} processes on {socket.gethostname()}, which has {devices}"
                " GPUs: one for each (--nproc_per_node)"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if devices else "gloo", rank=rank, world_size=count)
    group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    store = distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    name = f"tutelage-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    processes: list[Any] = [None] * count
    distributed.all_gather_object(processes, (socket.gethostname(), os.getpid()), group=group)
    return _Launch(rank, count, group, store, name, processes)


# --- together ---


def once(action: Callable[[], T]) -> T:
    """Let the main process do something, once all are here; all wait for it and get its result.

    Inside it the main process is alone: what it calls may use this module. The result is pickled. An exception ends all
    processes, see the module.
    """
    launch = _launch
    if launch is None or launch.alone:
        return action()
    from torch import distributed

    distributed.barrier(group=launch.group)
    value: list[Any] = [None]
    if launch.rank == 0:
        launch.alone = True
        try:
            value = [action()]
        finally:
            launch.alone = False
    distributed.broadcast_object_list(value, src=0, group=launch.group)
    return value[0]


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items, every one of which goes to one process: each n-th of them."""
    launch = _launch
    return items if launch is None or launch.alone else items[launch.rank :: launch.size]


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    launch = _launch
    if launch is None or launch.alone:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * launch.size
    distributed.all_gather_object(values, value, group=launch.group)
    return values


def joined(parts: dict[T, V]) -> dict[T, V]:
    """The entries of all processes, whose keys differ."""
    return {key: value for part in gather(parts) for key, value in part.items()}


def check_shared(folder: Path) -> None:
    """Raises ConfigError unless every machine of the launch sees what the others write into this folder."""
    launch = _launch
    if launch is None or int(os.environ.get("LOCAL_WORLD_SIZE") or launch.size) == launch.size:
        return
    name = f".seen-{once(lambda: secrets.token_hex(8))}"
    own, problem = folder / f"{name}-{launch.rank}", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.touch()
    except OSError as error:
        problem = f"cannot write there ({error.strerror})"
    if not any(gather(problem)):
        unseen = [rank for rank in range(launch.size) if not _appears(folder / f"{name}-{rank}")]
        hosts = sorted({launch.processes[rank][0] for rank in unseen})
        problem = f"does not see what process {unseen[0]} (on {', '.join(hosts)}) wrote there" if unseen else None
    found = gather((folder.absolute(), problem))
    own.unlink(missing_ok=True)
    if wrong := [(rank, where, text) for rank, (where, text) in enumerate(found) if text]:
        # The same words in every process, whichever of them prints: a relative output_dir differs between machines.
        rank, where, text = wrong[0]
        raise ConfigError(
            f"{where} is not one folder for all machines of the launch: process {rank} on"
            f" {launch.processes[rank][0]} {text}. Put the run on a file system that all of them mount at the same"
            " path: output_dir=/SHARED/runs/NAME"
        )


def _appears(path: Path) -> bool:
    until = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


# --- the end ---


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed inside by a process that is not the main one."""
    if is_main():
        yield
        return
    import warnings
    from contextlib import redirect_stderr, redirect_stdout

    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def part() -> None:
    """Leave the launch after everything went well. All processes must come here."""
    global _launch
    if _launch is None:
        return
    from torch import distributed

    _launch.parted.set()
    distributed.barrier(group=_launch.group)  # nobody looks into the store of a process that has ended
    distributed.destroy_process_group()
    _launch = None


def fail(code: int, *, common: bool = False) -> tuple[int, bool]:
    """Tell the others that this process failed, and ends with this exit code. Returns the exit code of the process that
    failed first, and whether that is this one: it alone says why.

    common: whether all processes fail like this, and so the main one speaks. Without a launch that was joined this
    process is alone, if it is the main one.
    """
    launch = _launch
    if launch is None:
        if not is_main():
            time.sleep(GRACE / 5)  # launchers end all processes once one has ended, and the main one is to speak first
        return code, is_main()
    launch.parted.set()
    try:
        mine = (not common or launch.rank == 0) and launch.store.add(f"{launch.name}-failed", 1) == 1
        if mine:
            launch.store.set(f"{launch.name}-code", str(code))
        else:
            launch.store.wait([f"{launch.name}-code"], timedelta(seconds=GRACE))
        return int(launch.store.get(f"{launch.name}-code")), mine
    except RuntimeError:  # the store went with the main process, if no launcher held it
        return code, launch.rank <= 1


def leave() -> None:
    """After `fail`: wait until the other processes have ended by themselves, for some seconds at most."""
    launch = _launch
    if launch is None:
        return
    until = time.monotonic() + GRACE
    try:
        left = launch.store.add(f"{launch.name}-left", 1)
        while left + len(lost()) < launch.size and time.monotonic() < until:
            time.sleep(LOOK_EVERY / 2)
            left = launch.store.add(f"{launch.name}-left", 0)
    except RuntimeError:
        return


def lost(*, soon: bool = False) -> list[int]:
    """Ranks of processes that are not there any more. soon: also of those that end within the next seconds: the
    connections of a process that is killed close, and so the others fail, a moment before it has ended."""
    until = time.monotonic() + (SILENT_FOR if soon and _launch else 0.0)
    while not (gone := _gone()) and time.monotonic() < until:
        time.sleep(LOOK_EVERY / 5)
    return gone


def _gone() -> list[int]:
    import psutil

    gone = _silent()
    for rank, (machine, number) in enumerate(_launch.processes if _launch else ()):
        try:
            if machine == socket.gethostname() and psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                gone.append(rank)
        except psutil.NoSuchProcess:
            gone.append(rank)
    return gone


def _silent() -> list[int]:
    """Ranks of processes on other machines that do not count any more, unless one has said why it ends; the main one,
    if the store went with it."""
    launch = _launch
    if launch is None or not launch.elsewhere:
        return []
    keys = {rank: f"{launch.name}-alive-{rank}" for rank in launch.elsewhere}
    try:
        before = {rank: launch.store.add(key, 0) for rank, key in keys.items()}
        time.sleep(SILENT_FOR)
        if launch.store.check([f"{launch.name}-code"]):
            return []
        return [rank for rank, key in keys.items() if launch.store.add(key, 0) == before[rank]]
    except RuntimeError:
        return [0] if 0 in keys else []


def _watch(launch: _Launch) -> None:
    """End this process as soon as another one has failed."""
    while not launch.parted.wait(LOOK_EVERY):
        try:
            if launch.elsewhere:
                launch.store.add(f"{launch.name}-alive-{launch.rank}", 1)
            # This process's own code may be there already: `fail` has set `parted` before, and its message is to come.
            if launch.store.check([f"{launch.name}-code"]) and not launch.parted.is_set():
                code = int(launch.store.get(f"{launch.name}-code"))
                launch.store.add(f"{launch.name}-left", 1)
                os._exit(code)
        except RuntimeError:
            if not launch.parted.wait(GRACE):  # the launcher is gone
                os._exit(1)
