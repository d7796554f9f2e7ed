"""How a command ends. Whatever is no bug is one line on standard error, without a traceback.

Of the processes of a launch the one that fails first says why; all end with its exit code.

Exit codes: 0 success; 1 a bug, failed students of a comparison, output that nobody reads, or a stop by a signal; 2 an
error that the user can mend; 3 a run that stopped because going on is not worth it (--anyway); 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TextIO

from tutelage.errors import Kind, Problem, UserError
from tutelage.errors.wording import first_line
from tutelage.utils import ranks
from tutelage.utils.console import err
from tutelage.utils.disk import full_disk_as_user_error
from tutelage.utils.memory import is_out_of_memory

FEWEST_FILES = 64
"""Open files that a process needs: libraries, shards of the cache, and standard streams."""
CONTINUES = "the same command continues where it stopped"


class Stopped(BaseException):
    """A signal asks the process to end. Not a KeyboardInterrupt, which typer would turn into exit code 1."""

    def __init__(self, number: int) -> None:
        """number: of the signal."""
        super().__init__(number)
        self.number = number


class OutputLost(Exception):
    """Standard output cannot be written. Not an OSError: those are about files of the run."""


class _Output:
    """Standard output, whose errors can be told from those of files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            reason = error.strerror
        raise OutputLost(reason)  # outside of the handler, so that it does not count as an error of a file


def run_command(command: Callable[[], None]) -> int:
    """Run a command to its end. Returns the exit code; everything it has to say is printed."""
    if not _open_streams():
        err("standard output is closed, so results have nowhere to go: redirect it, e.g. `> /dev/null`")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` has SIGHUP ignored
            signal.signal(number, _stop)
    with redirect_stdout(_Output(sys.stdout)):
        code = _outcome(lambda: _in_working_order(command))
        code = _outcome(sys.stdout.flush) or code
    if code == 0:
        ranks.part()
    for stream in (sys.stdout, sys.stderr):
        _discard_if_lost(stream)
    return code


def _outcome(action: Callable[[], None]) -> int:
    """Exit code of an action, whose error is printed."""
    try:
        action()
        return 0
    except BaseException as error:
        code, text = _ending(error)
        unexpected = isinstance(error, Exception) and not isinstance(error, UserError)
    if not code:
        return 0
    if gone := ranks.lost(soon=unexpected):
        code, text = 1, f"process {gone[0]} of {ranks.started()} was killed or has crashed; {CONTINUES}"
    code, speaks = ranks.fail(code, common=text is None)
    if ranks.size() > 1:  # a launcher ends all processes as soon as one has ended
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if speaks and text:
        err(text)
    ranks.leave()
    return code


def _ending(error: BaseException) -> tuple[int, str | None]:
    """Exit code and message of a command that ended by an exception; no message where one was printed."""
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else int(bool(error.code))), None
    if isinstance(error, Stopped):
        interrupted = error.number == signal.SIGINT
        what = "interrupted" if interrupted else f"stopped by {signal.Signals(error.number).name}"
        return 130 if interrupted else 1, f"{what}; {CONTINUES}"
    if isinstance(error, OutputLost):
        return 1, f"standard output could not be written: {error}"
    if not isinstance(error, Exception):
        raise error
    mendable = error if isinstance(error, UserError) else as_user_error(error)
    if mendable is None:
        return 1, "".join(traceback.format_exception(error)).rstrip()
    return mendable.exit_code, f"{type(mendable).__name__}: {mendable}"


def as_user_error(error: Exception) -> UserError | None:
    """What the user can do about an error of the machine: no memory, no access to a file. None for a bug."""
    if is_out_of_memory(error):
        return UserError(Problem(Kind.OUT_OF_MEMORY, values={"reason": first_line(error)}))
    if isinstance(error, ImportError) and str(error.path).endswith(tuple(EXTENSION_SUFFIXES)):
        cause = "not enough memory or open files, or a damaged installation"
        return UserError(f"{error.path} cannot be loaded ({error.msg}): {cause}")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    few = error.errno in (errno.EMFILE, errno.ENFILE)
    values = {"path": error.filename or "a file", "reason": error.strerror or os.strerror(error.errno), "few": few}
    return UserError(Problem(Kind.FILE_INACCESSIBLE, values=values))


def _in_working_order(command: Callable[[], None]) -> None:
    """Run a command where a process can work: with files to open, in a folder that exists."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEWEST_FILES:
        raise UserError(f"a process may open only {hard} files here, and needs {FEWEST_FILES}: `ulimit -n 1024`")
    if soft < FEWEST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEWEST_FILES, hard))
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted: `cd` to another one") from None
    with full_disk_as_user_error(here), ranks.quiet():
        ranks.join()
        command()


def _stop(number: int, frame: object) -> None:
    """End by an exception; a second signal ends at once, without output from cleanup code."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(other) == _stop:
            signal.signal(other, _stop_at_once)
    raise Stopped(number)


def _stop_at_once(number: int, frame: object) -> None:
    os.write(2, f"stopped at once; {CONTINUES}\n".encode())
    os._exit(130 if number == signal.SIGINT else 1)


def _open_streams() -> bool:
    """Whether standard output is open. Closed streams are opened on /dev/null, since the next file that is opened would
    take the place of a closed one and get all messages."""
    is_open = sys.stdout is not None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII alone still gets every message
            stream.reconfigure(errors="backslashreplace")
    return is_open


def _discard_if_lost(stream: TextIO) -> None:
    """Send what a stream could not write to /dev/null, where Python would complain about it once more at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
