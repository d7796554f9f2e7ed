"""Cells on a real Ray cluster of two nodes on this machine: outcomes, lost workers and nodes, storage that a node does
not see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from tutelage.compare import ray_executor
from tutelage.compare.cells import Cell
from tutelage.compare.executors import log_of
from tutelage.compare.ray_executor import RayExecutor
from tutelage.errors import UserError

FOUND_BY_WORKERS = os.pathsep.join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))
"""PYTHONPATH of processes that import this module and the helpers."""
ray = pytest.importorskip("ray", reason='needs Ray: pip install "tutelage[ray]"')

SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def started(tries=3):
    """A cluster of one node. Ray gives its head 30 s to come up, which is not always enough on a busy machine."""
    from ray.cluster_utils import Cluster

    try:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
    except Exception:
        if tries == 1:
            raise
        return started(tries - 1)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", FOUND_BY_WORKERS)  # where workers find this module
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves workers on a busy machine
        cluster = started()
        try:
            patch.setenv("RAY_ADDRESS", cluster.address)
            cluster.add_node(num_cpus=1, **SMALL)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def cells(*methods):
    return [Cell("r", "run", method, 0, 0) for method in methods]


def executor(folder, task, **more):
    return RayExecutor(task, folder / "logs", [folder], **more)


def wait_for(path, seconds=200):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.1)


def gone(pid):
    """Soon, that is: a process needs a moment to end."""
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


# --- what cells do ---


def end_as_named(cell):
    """Paths are relative: they are looked for where the comparison was started."""
    print("words of", cell.method, os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"])
    path = Path(cell.run) / cell.method
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if cell.method == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.method == "wrong":
        raise UserError("this cannot be\nmended")
    if cell.method == "raises":
        raise ValueError("not today")


def stay_on_the_other_node(cell):
    """Ends at once on the head node and in a second try; otherwise stays until it is killed."""
    began = Path(cell.run) / f"began-{cell.method}"
    again = began.exists()
    began.write_text(ray.get_runtime_context().get_node_id())
    if not again and (Path(cell.run) / "doomed").read_text() == began.read_text():
        (Path(cell.run) / "there").write_text(str(os.getpid()))
        time.sleep(300)
    print("second try" if again else "first try")


def name_rank(cell):
    name = f"{cell.method}-{os.environ['RANK']}"
    (Path(cell.run) / name).write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['CUDA_VISIBLE_DEVICES']}")


def sleep(cell):
    with (Path(cell.run) / "asleep").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(300)


# --- without a cluster ---


def test_without_ray_or_a_cluster_the_error_names_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(UserError, match=r"nowhere(.|\n)*ray start --head(.|\n)*RAY_ADDRESS(.|\n)*--executor local"):
        executor(tmp_path, end_as_named).check()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "tutelage\[ray\]"'):
        list(executor(tmp_path, end_as_named).run(cells("good")))
    assert list(executor(tmp_path, end_as_named).run([])) == [], "with nothing to do no cluster is needed"


def test_a_cell_waits_a_limited_time_for_its_former_process(tmp_path):
    (cell,), here = cells("good"), str(tmp_path)
    patched = "from tutelage.compare import ray_executor as r; r.LOCK_SECONDS = 0.3\n"
    work = f"from tutelage.compare.cells import Cell; print(r._work({cell!r}, b'', 1, {here!r}, 'logs', {{}})[1])"
    (tmp_path / "logs").mkdir()
    log = log_of(cell, tmp_path / "logs")
    with FileLock(log.with_suffix(".lock")):
        subprocess.run([sys.executable, "-c", patched + work], check=True)
    assert "another process" in log.read_text() and f"rm logs/{log.stem}.lock" in log.read_text()


# --- on a cluster ---


def test_every_cell_has_an_outcome(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    here = RayExecutor(end_as_named, Path("logs"), [Path("run")], retries=1)
    outcomes = {o.cell.method: o for o in here.run(cells("killed", "raises", "wrong", "good"))}
    assert outcomes["good"].error is None and 0 < outcomes["good"].seconds < 60
    assert outcomes["raises"].error == "ValueError: not today"
    assert outcomes["wrong"].error == "this cannot be\nmended"
    assert "tried 2 times" in outcomes["killed"].error and "memory" in outcomes["killed"].error
    tries = {name: Path("run", name).read_text().split() for name in outcomes}
    assert {name: len(pids) for name, pids in tries.items()} == {"good": 1, "raises": 1, "wrong": 1, "killed": 2}
    assert len({pid for pids in tries.values() for pid in pids}) == 5, "no worker process is used twice"
    logs = {name: Path(f"logs/r-teacher-0-{name}-seed-0.log").read_text() for name in outcomes}
    assert logs["good"].startswith("words of good 1 \n")
    assert "Traceback" in logs["raises"] and "in end_as_named" in logs["raises"]
    assert logs["killed"].count("words of killed") == 2 and "try 1 of 2" in logs["killed"]
    assert sorted(p.name for p in Path("run").iterdir()) == sorted(outcomes), "the files of the check are gone"
    assert not ray.is_initialized()


def test_cells_that_no_node_can_run_are_refused(cluster, tmp_path):
    with pytest.raises(UserError, match=r"2 CPUs and 0.5 GPUs(.|\n)*: 1 CPUs and 0 GPUs"):
        executor(tmp_path, end_as_named, num_cpus=2, num_gpus=0.5).check()


def test_a_cell_with_two_gpus_is_two_processes(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, num_gpus=2, **SMALL)
    try:
        (outcome,) = executor(tmp_path, name_rank, num_gpus=2).run([Cell("r", str(tmp_path), "a", 0, 0)])
    finally:
        cluster.remove_node(node)
    assert outcome.error is None
    assert [(tmp_path / f"a-{rank}").read_text() for rank in range(2)] == ["1 0,1", "1 0,1"]


def test_a_folder_of_this_process_alone_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "VISIBLE_SECONDS", 0.2)
    opened = os.open(tmp_path, os.O_RDONLY)
    own_folder = Path(f"/proc/self/fd/{opened}")  # leads elsewhere, or nowhere, in any other process
    try:
        if not own_folder.exists():
            pytest.skip("needs /proc")
        with pytest.raises(UserError) as caught:
            RayExecutor(end_as_named, tmp_path / "logs", [tmp_path, own_folder]).check()
    finally:
        os.close(opened)
    assert (
        len(
            [
                line
                for line in str(caught.value).splitlines()
                if line.endswith(f" {own_folder}") or f" {own_folder} (" in line
            ]
        )
        == 2
    )
    assert f"{tmp_path / 'logs'}" not in str(caught.value) and "absolute path" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_the_node_that_does_not_see_a_folder_is_named(cluster, tmp_path, monkeypatch):
    """A third node with a mount of its own over the folder, as on a machine without the shared file system."""
    apart = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if (
        not shutil.which("unshare")
        or subprocess.run([*apart, f"mount -t tmpfs none '{hidden}'"], capture_output=True).returncode
    ):
        pytest.skip("needs unshare and the right to use it")
    monkeypatch.setattr(ray_executor, "VISIBLE_SECONDS", 0.2)
    start = (
        f"exec '{sys.executable}' -m ray.scripts.scripts start --address={cluster.address} --num-cpus=0 --num-gpus=0"
    )
    words = [
        *apart,
        f"mount -t tmpfs none '{hidden}' && {start} --object-store-memory={SMALL['object_store_memory']} --block",
    ]
    node = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ray.init("auto", log_to_driver=False, logging_level="ERROR")
        until = time.monotonic() + 200
        before = {node.node_id for node in cluster.list_all_nodes()}
        while not (new := {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before):
            assert time.monotonic() < until and node.poll() is None
            time.sleep(0.2)
        with pytest.raises(UserError) as caught:
            executor(hidden, end_as_named).check()
        assert ray.is_initialized(), "a connection of the caller's own is kept"
    finally:
        ray.shutdown()
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
    named = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert len(named) == 2 and len(new) == 1  # the folder, and the one for logs in it
    assert all(new.copy().pop()[:8] in line and "does not see" in line and str(hidden) in line for line in named)


class CtrlC(BaseException):
    pass


def test_ctrl_c_stops_the_cells(cluster, tmp_path):
    def leave(signum, frame):
        raise CtrlC

    def press():
        wait_for(tmp_path / "asleep")
        os.kill(os.getpid(), signal.SIGINT)

    running = executor(tmp_path, sleep).run([Cell("r", str(tmp_path), "a", seed, 0) for seed in range(3)])
    before = signal.signal(signal.SIGINT, leave)
    try:
        threading.Thread(target=press).start()
        with pytest.raises(CtrlC):
            next(running)
    finally:
        signal.signal(signal.SIGINT, before)
    for pid in (tmp_path / "asleep").read_text().split():
        assert gone(int(pid))
    assert not ray.is_initialized()


def test_a_killed_comparison_stops_its_cells(cluster, tmp_path):
    words = f"import pathlib, {__name__} as t; path = pathlib.Path({str(tmp_path)!r})"
    run = "list(t.executor(path, t.sleep).run([t.Cell('r', str(path), 'a', 0, 0)]))"
    driver = subprocess.Popen([sys.executable, "-c", f"{words}; {run}"])
    try:
        wait_for(tmp_path / "asleep")
    finally:
        driver.kill()
        driver.wait()
    assert gone(int((tmp_path / "asleep").read_text()))


def test_a_cell_whose_node_dies_is_run_on_another(cluster, tmp_path):
    doomed = next(iter(cluster.worker_nodes))
    (tmp_path / "doomed").write_text(doomed.node_id)
    killer = threading.Thread(
        target=lambda: (wait_for(tmp_path / "there"), cluster.remove_node(doomed, allow_graceful=False))
    )
    killer.start()
    wanted = [Cell("r", str(tmp_path), method, 0, 0) for method in ("a", "b", "c")]
    outcomes = list(executor(tmp_path, stay_on_the_other_node).run(wanted))
    killer.join()
    assert {o.cell for o in outcomes} == set(wanted) and len(outcomes) == 3 and not any(o.error for o in outcomes)
    logs = [path.read_text() for path in (tmp_path / "logs").glob("*.log")]
    assert sum("second try" in log and "its node was lost" in log for log in logs) == 1
    assert doomed.node_id not in {path.read_text() for path in tmp_path.glob("began-*")}
    assert gone(int((tmp_path / "there").read_text())), "the process on the dead node has ended too"
