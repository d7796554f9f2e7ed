"""The entry point: help, exit codes, and errors without a traceback."""

import errno
import os
import signal
import time

import pytest

from helpers.project import Command, make_project
from tutelage.cli.main import app
from tutelage.errors import DiskFullError
from tutelage.stages import STAGES


@pytest.fixture
def command(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def test_every_command_is_listed_with_a_whole_sentence(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert command("--help") == 0
    listed = command.out.split("Commands:")[1].strip().splitlines()
    assert len(listed) == len(app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("name", [None, *STAGES])
def test_every_stage_has_a_help_page(command, name):
    assert command(*([name.replace("_", "-")] if name else []), "--help") == 0
    assert "Usage:" in command.out


def test_an_error_of_the_user_is_one_line(command, tmp_path):
    assert command("run", tmp_path / "none.yaml") == 2
    assert command.err.startswith("ConfigError: ") and "Traceback" not in command.err


def test_a_full_disk_in_a_stage_names_the_run_folder(command, tmp_path, monkeypatch):
    def full(space) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("tutelage.stages.prepare.run_stage", full)
    assert command("prepare", make_project(tmp_path), f"output_dir={tmp_path / 'full'}") == 2
    assert command.err.startswith(f"{DiskFullError.__name__}: the disk of {tmp_path / 'full'} is full")


def test_an_interrupt_exits_with_130(command, tmp_path, monkeypatch):
    def interrupted(space) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr("tutelage.stages.prepare.run_stage", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert command("prepare", make_project(tmp_path)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command continues where it stopped" in command.err
