"""What `tutelage serve` does with its options: models, threshold, and the server from start to shutdown."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage.errors import ConfigError, UserError
from tutelage.errors.extras import missing_package
from tutelage.errors.wording import first_line
from tutelage.predict.command import columns_of
from tutelage.predict.find_model import USAGE, find_model, find_teacher, run_of, teacher_beside
from tutelage.predict.predictor import Predictor
from tutelage.run.threads import settle_threads
from tutelage.utils.console import Screen
from tutelage.utils.format import counted

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tutelage.serve.metrics import Metrics
    from tutelage.serve.service import Deferral
    from tutelage.serve.teachers import LocalTeacher, RemoteTeacher
    from tutelage.serve.threshold import Chosen

KEY = "TUTELAGE_SERVE_KEY"
"""Environment variable with the API key that clients have to send."""
PACKAGES = ("fastapi", "openai", "prometheus_client", "uvicorn")
"""Of the extra `serve`."""
AUTO = "auto"
BACKLOG = 2048
"""Connections that wait to be accepted."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than those of common proxies, which reuse it."""


@dataclass(frozen=True)
class Options:
    """The options of `tutelage serve`."""

    folder: Path
    """See `find_model`, as `model`."""
    model: str | None = None
    teacher: str | None = None
    """A folder, see `find_teacher`, or a base URL."""
    teacher_model: str | None = None
    """Name of the model behind the URL. Default: the only one that the server lists."""
    defer_below: str | None = None
    """Confidence in [0, 1], or `auto`. Default: `auto` with a teacher, else nothing is deferred."""
    columns: Sequence[str] = ()
    """`ours=theirs`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one."""
    batch_size: int = 16
    queue: int = 1024
    """Most rows that wait or are being answered."""
    drain: int = 30
    """Seconds that requests have at shutdown."""


def serve(options: Options) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; requests that were received by then are answered.

    Raises as `application`, and UserError for an address that cannot be listened on.
    """
    uvicorn, screen = _uvicorn(), Screen()
    with _address(options.host, options.port) as listener:
        served = application(options, screen)
        config = uvicorn.Config(
            served.app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=options.drain,
        )
        _say_start(screen, served.name, options, listener)
        _run(uvicorn.Server(config), listener)
    screen.say("stopped")


def _uvicorn() -> Any:
    for package in PACKAGES:
        if problem := missing_package(package, "serve", "tutelage serve"):
            raise UserError(problem)
    import uvicorn

    return uvicorn


class Served(NamedTuple):
    """A model with its API, loaded."""

    name: str
    app: FastAPI


def application(options: Options, screen: Screen) -> Served:
    """Load the models, choose the threshold if it is to be chosen, and put the API in front.

    Raises ConfigError for options that do not fit together, and as `find_model` and `find_teacher`.
    """
    from tutelage.serve.app import make_app
    from tutelage.serve.guard import is_local
    from tutelage.serve.metrics import Metrics
    from tutelage.serve.reader import Reader
    from tutelage.serve.service import Service

    below, metrics = _threshold(options), Metrics()
    settle_threads(screen.say, by_load=False)
    found = find_model(options.folder, options.model)
    predictor = Predictor(found, options.batch_size, columns_of(options.columns), "request")
    role = found.name if found.name in ("teacher", "anchor") else "student"
    if below is not None and role != "student":
        raise ConfigError(f"a student's rows go to its teacher, and --model is {found.name}: leave --model out")
    reader = Reader(predictor)  # loads the model
    service = Service(
        lambda questions: predictor.answer([question.example for question in questions]),
        role=role,
        room=options.queue,
        batch_size=options.batch_size,
        deferral=None if below is None else _deferral(options, below, predictor, metrics, screen),
        metrics=metrics,
    )
    name = found.usage["run"] if role == "student" else f"{found.usage['run']}-{role}"
    key = os.environ.get(KEY)
    return Served(name, make_app(name, reader, service, key, local=not key and is_local(options.host)))


# --- the cascade ---


def _threshold(options: Options) -> float | str | None:
    """Confidence, `auto`, or None where nothing is deferred. Raises ConfigError."""
    text = options.defer_below or (AUTO if options.teacher else None)
    if options.teacher_model and not is_url(options.teacher or ""):
        raise ConfigError("--teacher-model names a model behind a URL: add --teacher http://HOST:PORT/v1")
    if text is None or text == AUTO:
        return text
    try:
        below = float(text)
    except ValueError:
        below = -1.0
    if not 0 <= below <= 1:
        raise ConfigError(f"--defer-below {text}: write a confidence from 0 to 1, or {AUTO}")
    return below


def _deferral(options: Options, below: float | str, student: Predictor, metrics: Metrics, screen: Screen) -> Deferral:
    """The teacher, loaded, and the threshold, chosen if it is `auto`. Raises as `find_teacher` and `choose`."""
    from tutelage.serve.service import Deferral
    from tutelage.serve.threshold import choose, validation_rows

    run = run_of(options.folder)
    if below == AUTO and run is None:
        raise ConfigError(
            f"{options.folder} lies in no run folder, so there are no validation rows to choose a threshold on: type"
            " one, --defer-below 0.8"
        )
    if below == AUTO and options.teacher and _has_other_rules(options.teacher, run):
        raise ConfigError(
            f"--teacher {options.teacher} renders rows by its own recipe, and the validation rows of {run} are kept as"
            " its student reads them: type a threshold, --defer-below 0.8"
        )
    teacher = _teacher(options, student, metrics)
    if below != AUTO or run is None:
        return Deferral(teacher, float(below))
    rows = validation_rows(run)
    screen.say(f"both models answer {counted(len(rows), 'validation row')}, to choose the threshold")
    chosen = choose(rows, student.task, student.answer, teacher.answers)
    screen.say(_what_was_chosen(chosen))
    return Deferral(teacher, chosen.below)


def _what_was_chosen(chosen: Chosen) -> str:
    scores = f"student alone {chosen.student:.3f}, teacher alone {chosen.teacher:.3f}"
    if chosen.below == 0 and not chosen.share:
        return (
            f"--defer-below 0.0: on {chosen.rows:,} validation rows the student alone is as good as its teacher"
            f" ({scores}), so nothing is passed on but answers that cannot be parsed. Without --defer-below and"
            " --teacher, no teacher is loaded"
        )
    why = ": those whose answers cannot be parsed" if chosen.below == 0 else ""
    return (
        f"--defer-below {chosen.below!r}: {chosen.share:.0%} of the validation rows go to the teacher{why}; score"
        f" {chosen.score:.3f}, {scores}. Type it next time, and nothing has to be chosen"
    )


def _has_other_rules(teacher: str, run: Path | None) -> bool:
    """Whether a teacher is of another run than the student."""
    if is_url(teacher) or not any((Path(teacher) / name).is_file() for name in (USAGE, "recipe.yaml")):
        return False  # it reads the student's prompts
    other = run_of(Path(teacher))
    return run is None or other is None or other.resolve() != run.resolve()


def is_url(teacher: str) -> bool:
    """Whether a teacher is named by a URL."""
    return teacher.startswith(("http://", "https://"))


def _teacher(options: Options, student: Predictor, metrics: Metrics) -> LocalTeacher | RemoteTeacher:
    from tutelage.serve.teachers import LocalTeacher, RemoteTeacher

    if options.teacher and is_url(options.teacher):
        return RemoteTeacher(options.teacher, student.task, options.teacher_model, student.encoder.verbalizers)
    if options.teacher:
        found = find_teacher(Path(options.teacher), student.found.usage)
    else:
        beside = teacher_beside(options.folder)
        if beside is None:
            raise ConfigError(f"{options.folder} lies in no run folder, so its teacher is not known: add --teacher RUN")
        found = beside
    predictor = Predictor(found, options.batch_size, columns_of(options.columns), "request")
    _ = predictor.model, predictor.encoder  # loaded before the first row is
    return LocalTeacher(predictor, lambda rows, seconds: metrics.batches.labels("teacher").observe(rows))


# --- the server ---


@contextmanager
def _address(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on this address, taken before models are loaded. Until the server listens, clients are refused.

    Raises UserError.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {first_line(error)}; choose another port, or 0") from error
        yield listener


def _say_start(screen: Screen, name: str, options: Options, listener: socket.socket) -> None:
    from tutelage.serve.guard import is_local

    host = f"[{options.host}]" if ":" in options.host else options.host
    if not os.environ.get(KEY) and not is_local(options.host):
        screen.warn(f"everybody who reaches {host} is answered: set {KEY} to ask for a key")
    screen.say(f"serving {name} on http://{host}:{listener.getsockname()[1]}/v1 (stop with Ctrl-C or SIGTERM)")


def _run(server: Any, listener: socket.socket) -> None:
    """Run the server to its end by a signal, which is no error.

    uvicorn handles SIGTERM and SIGINT, and raises them again at its end.
    """

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
