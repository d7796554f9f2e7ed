"""Whatever ends a command is one line on standard error and an exit code, without a traceback."""

import errno
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from helpers.project import Command
from helpers.recipes_in import GOOD
from tutelage.utils.memory import is_out_of_memory

SLOW_STAGE = """
import sys, time
import tutelage.stages.pipeline as pipeline
from tutelage.cli.main import main

cleanup = float(sys.argv.pop())

def slow(run, stages):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        time.sleep(cleanup)

pipeline.run_stages = slow
main()
"""


@pytest.fixture
def command(monkeypatch, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield Command(monkeypatch, capsys)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "bank.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def shell(line, **options):
    """Exit code and lines of standard error of a line of bash in which `tutelage` is the command."""
    script = f'set -o pipefail; tutelage() {{ {sys.executable} -m tutelage "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, **options)
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("tutelage show {} > /dev/full", 1, "standard output could not be written: No space left on device"),
        ("tutelage --help > /dev/full", 1, "standard output could not be written"),
        ("(sleep 3; tutelage show {}) | true", 1, "standard output could not be written: Broken pipe"),
        ("tutelage show {} >&-", 2, "standard output is closed"),
        ("ulimit -n 30; tutelage show {}", 2, "may open only 30 files"),
        ("mkdir gone && cd gone && rmdir ../gone && tutelage show {}", 2, "the current folder was deleted"),
    ],
)
def test_streams_and_limits_of_the_shell(recipe, line, code, words):
    found, lines = shell(line.format(recipe), cwd=recipe.parent)
    assert (found, len(lines)) == (code, 1) and words in lines[0]


@pytest.mark.parametrize(
    ("line", "code"), [("tutelage show {} <&- 2>&- | tail -n 1", 0), ("tutelage show none 2> /dev/full", 2)]
)
def test_other_streams_may_be_closed_or_full(recipe, line, code):
    assert shell(line.format(recipe)) == (code, [])


def test_a_low_soft_limit_is_raised(recipe):
    assert shell(f"ulimit -S -n 16; tutelage show {recipe} | tail -n 1") == (0, [])


def start(recipe, cleanup, hangup=signal.SIG_DFL):
    """A process in the middle of a stage, which takes `cleanup` seconds to clean up. hangup: what SIGHUP does at its
    start."""
    words = [sys.executable, "-c", SLOW_STAGE, "prepare", str(recipe), f"output_dir={recipe.parent}/run", str(cleanup)]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
    )
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.2)  # for the process to be asleep
    return process


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted; the same command"),
        (signal.SIGTERM, 1, "stopped by SIGTERM; the same command"),
        (signal.SIGHUP, 1, "stopped by SIGHUP; the same command"),
    ],
)
def test_a_signal_is_one_line(recipe, number, code, words):
    process = start(recipe, 0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code and errors.startswith(words) and len(errors.splitlines()) == 1


def test_nohup_keeps_a_run_alive(recipe):
    process = start(recipe, 0, signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


def test_a_second_interrupt_ends_at_once(recipe):
    process = start(recipe, 50)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10 and process.returncode == 130
    assert errors == "stopped at once; the same command continues where it stopped\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/models/x"), "/models/x: Permission denied; check that"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/run"), "/ro/run: Read-only file system"),
        (OSError(errno.EMFILE, "Too many open files", "/run/a"), "/run/a: Too many open files; allow this shell"),
        (MemoryError(), "not enough memory ("),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory (CUDA out of memory)"),
    ],
)
def test_errors_of_the_machine_are_errors_of_the_user(command, recipe, monkeypatch, error, words):
    def fails(run, stages):
        raise error

    monkeypatch.setattr("tutelage.stages.pipeline.run_stages", fails)
    assert command("prepare", recipe, f"output_dir={recipe.parent / 'run'}") == 2
    assert command.err.startswith(f"UserError: {words}") and len(command.err.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_named(command, recipe):
    for folder in ("/dev/null/run", str(recipe / "run"), "x" * 300):
        assert command("prepare", recipe, f"output_dir={folder}") == 2
        assert command.err.startswith(f"UserError: {folder}") and len(command.err.splitlines()) == 1


def test_the_allocator_of_torch_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("another"))


def test_a_thread_without_memory_is_recognised(monkeypatch):
    def refused(*_):
        raise RuntimeError("any words")

    monkeypatch.setattr(threading, "_start_new_thread", refused)
    with pytest.raises(RuntimeError) as caught:
        threading.Thread(target=print).start()
    trace = caught.value.__traceback__.tb_next
    trace.tb_next = None  # the replacement is a function of Python; the real one leaves no frame
    assert is_out_of_memory(caught.value.with_traceback(trace))


def test_a_library_that_cannot_be_loaded_is_named(command, recipe, monkeypatch):
    def fails(run, stages):
        raise ImportError("failed to map segment from shared object", path="/lib/x.cpython-311-x86_64-linux-gnu.so")

    monkeypatch.setattr("tutelage.stages.pipeline.run_stages", fails)
    monkeypatch.setattr("tutelage.cli.endings.EXTENSION_SUFFIXES", [".so"])
    assert command("prepare", recipe, f"output_dir={recipe.parent / 'run'}") == 2
    assert command.err.startswith("UserError: /lib/x.cpython-311-x86_64-linux-gnu.so cannot be loaded (failed to map")


def test_a_bug_has_a_traceback_that_no_terminal_obeys(command, recipe, monkeypatch):
    def fails(run, stages):
        raise KeyError("\x1b[31mred")

    monkeypatch.setattr("tutelage.stages.pipeline.run_stages", fails)
    assert command("prepare", recipe, f"output_dir={recipe.parent / 'run'}") == 1
    assert "Traceback" in command.err and "\x1b" not in command.err


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "x", "--input", "-", "--batch-size", "0"],
        ["predict", "x", "--input", "-", "--batch-size", "9" * 5000],
        ["shrink", "x", "y", "--layers", "0"],
        ["watch", "x", "--interval", "nan"],
        ["watch", "x", "--interval", "inf"],
        ["compare", "x", "--seeds", "1000000000"],
        ["doctor", "x", "--timing-run", "-5"],
    ],
)
def test_numbers_on_the_command_line_have_bounds(command, words):
    assert command(*words) == 2
    assert words[-2] in command.err and "Traceback" not in command.err


def test_an_interrupt_during_the_first_imports_prints_no_traceback():
    program = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'tutelage.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "runpy.run_module('tutelage', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
