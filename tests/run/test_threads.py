"""torch's number of threads: the CPUs that are allowed, granted by the cgroup and free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.run import threads
from tutelage.run.threads import Cpus, cgroup_quota, settle_threads


@pytest.mark.parametrize(
    ("cpus", "usable", "reason"),
    [
        (Cpus(8, None, 7.8), 8, ""),
        (Cpus(8, None, 5.2), 5, "2.8 of 8 CPUs are busy with other work"),
        (Cpus(2, None, 0.1), 1, "1.9 of 2 CPUs are busy with other work"),
        (Cpus(64, 2.0, 60.0), 2, "the CPU limit of this container (cgroup) is 2"),
        (Cpus(64, 0.5, 60.0), 1, "the CPU limit of this container (cgroup) is 0.5"),
        (Cpus(8, 4.0, 2.0), 2, "6.0 of 8 CPUs are busy with other work"),
    ],
)
def test_usable_cpus_and_why(cpus, usable, reason):
    assert (cpus.usable, cpus.reason) == (usable, reason)


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/job/cpu.max": "400000 100000\n",
            },
            4.0,
        ),
        (  # the path of the host, seen from a container that has its own group as the root
            {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/pod\n2:memory:/pod\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
    ],
    ids=["none", "v2", "no limit", "outer", "container", "v1"],
)
def test_the_limit_of_the_cgroup_and_of_those_around_it(files, quota, tmp_path):
    assert cgroup_quota(put(tmp_path, files)) == quota


@pytest.fixture
def torch_threads(monkeypatch):
    """torch with four threads, and a machine on which they are settled anew."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "_SETTLED", [])
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_busy_machine_gets_fewer_threads_once_and_is_told(torch_threads, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(threads, "cpus_now", lambda by_load: Cpus(4, None, 1.3))
    assert settle_threads(said.append) == torch.get_num_threads() == 1
    assert said == [
        "computing with 1 thread: 2.7 of 4 CPUs are busy with other work (OMP_NUM_THREADS sets another number)"
    ]
    monkeypatch.setattr(threads, "cpus_now", lambda by_load: pytest.fail("the load is our own by now"))
    torch.set_num_threads(2)
    assert settle_threads(said.append) == 2 and len(said) == 1


def test_an_idle_machine_keeps_its_threads(torch_threads, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(threads, "cpus_now", lambda by_load: Cpus(16, None, 15.9))
    assert settle_threads(said.append) == torch.get_num_threads() == 4
    assert said == ["computing with 4 threads (OMP_NUM_THREADS sets another number)"]


def test_the_variable_wins(torch_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "cpus_now", lambda by_load: pytest.fail("nobody asks"))
    assert settle_threads(pytest.fail) == torch.get_num_threads() == 4


def test_what_a_parent_has_chosen_stays(torch_threads):
    threads.fix_threads(3)
    assert settle_threads(pytest.fail) == torch.get_num_threads() == 3


def test_a_server_counts_the_limit_and_not_the_load(monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda **_: pytest.fail("not asked"))
    cpus = threads.cpus_now(by_load=False)
    assert cpus.free == cpus.allowed >= 1
