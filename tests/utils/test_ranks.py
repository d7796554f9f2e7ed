"""A process that fails says why: it is not ended by its own watch, and finds out that another one was killed."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from tutelage.utils import ranks


@pytest.mark.parametrize("own", [True, False])
def test_the_watch_leaves_a_process_that_failed_itself_to_say_why(monkeypatch, own):
    """The process fails between two lines of its watch: after that it has not parted, and before the code is there."""
    ended = []

    def check(_):
        if own:
            launch.parted.set()  # as `fail` does before it writes the code
        return True

    store = SimpleNamespace(check=check, get=lambda _: b"1", add=lambda *_: 1)
    launch = ranks._Launch(0, 2, None, store, "launch", [("here", 1), ("here", 2)])
    monkeypatch.setattr(ranks, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(os, "_exit", lambda code: (ended.append(code), launch.parted.set()))
    ranks._watch(launch)
    assert ended == ([] if own else [1])


def test_a_process_is_lost_that_ends_a_moment_after_its_connections(monkeypatch):
    looks = []

    def status(number):
        looks.append(number)
        return psutil.STATUS_ZOMBIE if number == 2 and looks.count(2) > 2 else psutil.STATUS_RUNNING

    monkeypatch.setattr(psutil, "Process", lambda number: SimpleNamespace(status=lambda: status(number)))
    here = socket.gethostname()
    monkeypatch.setattr(ranks, "_launch", ranks._Launch(0, 2, None, None, "launch", [(here, 1), (here, 2)]))
    assert ranks.lost() == []
    assert ranks.lost(soon=True) == [1]
