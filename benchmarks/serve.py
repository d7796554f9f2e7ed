"""A student under load: `python -m benchmarks.serve [STUDENT] [--rows FILE] [--clients 200] [--seconds 120]`.

Clients send one row at a time over a connection of their own, each as soon as it has its answer, for so many seconds;
then the last answers are waited for. Two servers take turns, each a process of its own:

    tutelage   `tutelage serve STUDENT`: requests that wait are answered together
    naive      the same rendering, model and decoding behind the same HTTP library, a row at a time under a lock

Lost is every request without an answer of status 200 to its own row. Latencies are from the first byte sent to the last
byte read. Processor seconds are of the server, all of its threads. Without STUDENT a model of the demo with random
weights answers generated rows.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine_class, versions
from tutelage.data.readers import read_rows

SERVERS = ("tutelage", "naive")
PATIENCE = 600.0
"""Seconds after which a client gives a request up."""
LABELS = [f"{color} {thing}" for color in ("red", "green", "blue") for thing in ("door", "house", "car", "ship")]


# --- the load ---


@dataclass
class Load:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    """Seconds, of the requests that were answered."""
    lost: list[str] = field(default_factory=list)
    """Why, of the others."""
    seconds: float = 0.0
    """From the first request to the last answer."""

    def record(self) -> dict[str, Any]:
        """Numbers of a table's line."""
        quantiles = np.quantile(self.latencies, [0.5, 0.99]) if self.latencies else [np.nan, np.nan]
        return {
            "requests": len(self.latencies) + len(self.lost),
            "lost": len(self.lost),
            "rows_per_second": len(self.latencies) / self.seconds,
            "p50": float(quantiles[0]),
            "p99": float(quantiles[1]),
            "longest": max(self.latencies, default=float("nan")),
            "seconds": self.seconds,
        }


def put_load(host: str, port: int, rows: Sequence[dict[str, Any]], clients: int, seconds: float) -> Load:
    """Clients that ask for `seconds`, and wait for their last answer."""
    load, numbers, began = Load(), count(), time.monotonic()

    def client() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        while time.monotonic() - began < seconds:
            row = {**rows[next(numbers) % len(rows)], "id": f"{threading.get_ident()}-{next(numbers)}"}
            started = time.monotonic()
            try:
                problem = _ask(connection, row)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = repr(error)
                connection.close()
            if problem:
                load.lost.append(problem)
            else:
                load.latencies.append(time.monotonic() - started)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - began
    return load


def _ask(connection: http.client.HTTPConnection, row: dict[str, Any]) -> str | None:
    """Why a row has no answer; None if it has one."""
    body = json.dumps({"rows": [row]})
    connection.request("POST", "/v1/answer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        return f"status {response.status}: {text[:200]!r}"
    (answer,) = json.loads(text)["answers"]
    return None if answer["id"] == row["id"] else f"the answer to {answer['id']} instead of {row['id']}"


# --- the servers ---


@contextmanager
def running(server: str, student: Path, batch_size: int) -> Iterator[tuple[str, int, psutil.Process]]:
    """Host, port and process of a server, ended by SIGTERM. Raises RuntimeError for one that does not end in order."""
    tutelage = ["tutelage", "serve", str(student), "--port", "0", "--batch-size", str(batch_size)]
    words = tutelage if server == "tutelage" else ["benchmarks.serve", str(student), "--naive"]
    process = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        while not (found := re.search(r"http://([\d.]+):(\d+)", lines[-1] if lines else "")):
            if not (line := process.stderr.readline()):
                raise RuntimeError("".join(lines))
            lines.append(line)
        yield found[1], int(found[2]), psutil.Process(process.pid)
    finally:
        process.terminate()
        lines += process.communicate()[1].splitlines(keepends=True)
    if process.returncode:
        raise RuntimeError("".join(lines))


def cpu_seconds(process: psutil.Process) -> float:
    """Processor seconds of a process so far: what a row costs does not depend on other work of the machine."""
    times = process.cpu_times()
    return times.user + times.system


def serve_naively(student: Path) -> None:
    """One row at a time."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from tutelage.errors import Place
    from tutelage.predict.find_model import find_model
    from tutelage.predict.predictor import Predictor

    predictor, lock, app = Predictor(find_model(student)), threading.Lock(), FastAPI()
    _ = predictor.model, predictor.encoder

    @app.post("/v1/answer")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            return {"answers": [*predictor([(body["rows"][0], Place("request"))])]}

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal that ended it once more
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])


# --- a model of the demo ---


def demo_student(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A student with random weights, and rows for it."""
    from tutelage.demo.models import STUDENT, build_models

    rows = [{"text": f"message {n} about the {LABELS[n % len(LABELS)]} that I saw"} for n in range(1000)]
    build_models(folder, [row["text"] for row in rows], shapes={"student": STUDENT})
    usage = {
        "task": {"type": "classification", "labels": LABELS, "decoding": "labels"},
        "data": {"template": "{text}\nAbout:"},
        "choice": False,
        "max_new_tokens": 8,
        "run": "random",
    }
    (folder / "student" / "tutelage.json").write_text(json.dumps(usage), encoding="utf-8")
    return folder / "student", rows


# --- the command ---


def table(records: Sequence[dict[str, Any]]) -> Table:
    """A line a server."""
    view = Table()
    for heading in (
        "server",
        "requests",
        "lost",
        "rows/s",
        "p50 (s)",
        "p99 (s)",
        "longest (s)",
        "seconds",
        "CPU s/row",
    ):
        view.add_column(heading, justify="left" if heading == "server" else "right")
    for record in records:
        numbers = [f"{record[key]:.3f}" for key in ("p50", "p99", "longest")]
        counts = [f"{record['requests']:,}", f"{record['lost']:,}", f"{record['rows_per_second']:.1f}"]
        view.add_row(record["server"], *counts, *numbers, f"{record['seconds']:.1f}", f"{record['cpu_per_row']:.4f}")
    return view


def main(
    student: Annotated[Path | None, typer.Argument(help="Folder of a student. Default: a tiny random one.")] = None,
    rows_file: Annotated[Path | None, typer.Option("--rows", help="File with rows of its task.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that clients ask, for each server.")] = 120.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Of tutelage serve.")] = 16,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records to this file.")] = None,
    naive: Annotated[bool, typer.Option("--naive", hidden=True)] = False,
) -> None:
    """Latencies and throughput of `tutelage serve` and of a naive server, under the same load."""
    if naive and student is not None:
        serve_naively(student)
        return
    if (student is None) != (rows_file is None):
        raise typer.BadParameter("name STUDENT and --rows, or neither")
    own = {name: metadata.version(name) for name in ("fastapi", "uvicorn")}
    console, about = Console(), {"machine": machine_class(), "versions": versions() | own}
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"{about['machine']}; {packages}; load {os.getloadavg()[0]:.1f}", highlight=False)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        if student is None or rows_file is None:
            student, rows = demo_student(Path(made))
        else:
            rows = [row for row, _ in read_rows([str(rows_file)], need_answers=False)]
        for server in SERVERS:
            with running(server, student, batch_size) as (host, port, process):
                put_load(host, port, rows, 1, 2.0)  # to warm up
                began = cpu_seconds(process)
                load = put_load(host, port, rows, clients, seconds)
                cpu = (cpu_seconds(process) - began) / max(len(load.latencies), 1)
            records.append({"server": server, "clients": clients, **load.record(), "cpu_per_row": cpu, **about})
            console.print(table(records))
            for problem in sorted(set(load.lost))[:5]:
                console.print(problem, markup=False)
            if json_file:
                json_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
