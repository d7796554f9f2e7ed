"""The processes of one launch (`torchrun`, `accelerate launch`): which one this is, and how they wait for one another,
share work out, and end together.

All of them run the same code in the same order. What only one may do, such as writing a file of the run, is passed to
`once`; work on rows is shared out by `share`, and its results come together by `gather`. Without a launcher there is
one process: each of these then does the obvious, and torch is not imported.

A process that fails says so in the launcher's store. A thread of every other one looks there, and ends its process
without a word and with the same exit code, whatever that is waiting for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from tutelage.errors import ConfigError

T = TypeVar("T")
V = TypeVar("V")

LONGEST_WAIT = timedelta(days=7)
"""For `once` and `gather`. The main process may read data or write a report for hours; a process that died is noticed
at once, since its connections close."""
LOOK_EVERY = 0.25
"""Seconds between two looks at whether another process has failed."""
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
    if started() == 1 or _launch is not None:
        return
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE says that a launcher started {started()} processes, and {', '.join(missing)} is not set: start"
            " them by `torchrun --nproc_per_node N -m tutelage run RECIPE`, or unset WORLD_SIZE for one process"
        )
    if int(os.environ.get("LOCAL_WORLD_SIZE") or started()) != started():
        raise ConfigError("the launcher started processes on several machines; those of one machine are supported")
    _launch = _joined(int(os.environ["RANK"]), started())
    threading.Thread(target=_watch, args=(_launch,), daemon=True).start()


def _joined(rank: int, count: int) -> _Launch:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is told by us, without frames of C++
    import torch
    from torch import distributed

    local = int(os.environ["LOCAL_RANK"])
    if devices := torch.cuda.device_count():
        if local >= devices:
            raise ConfigError(f"the launcher started {count} processes, and there are {devices} GPUs: one for each")
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


def lost() -> list[int]:
    """Ranks of processes on this machine that are not there any more."""
    import psutil

    gone: list[int] = []
    for rank, (machine, number) in enumerate(_launch.processes if _launch else ()):
        try:
            if machine == socket.gethostname() and psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                gone.append(rank)
        except psutil.NoSuchProcess:
            gone.append(rank)
    return gone


def _watch(launch: _Launch) -> None:
    """End this process as soon as another one has failed."""
    while not launch.parted.wait(LOOK_EVERY):
        try:
            if launch.store.check([f"{launch.name}-code"]):
                code = int(launch.store.get(f"{launch.name}-code"))
                launch.store.add(f"{launch.name}-left", 1)
                os._exit(code)
        except RuntimeError:
            if not launch.parted.wait(GRACE):  # the launcher is gone
                os._exit(1)
