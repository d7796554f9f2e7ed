"""A server under load: requests that wait are answered together, the queue is bounded, shutdown loses nothing."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.served import save_served, served
from tutelage.predict.predictor import Predictor

pytest.importorskip("fastapi", reason='needs FastAPI: pip install "tutelage[serve]"')
openai = pytest.importorskip("openai", reason='needs the OpenAI client: pip install "tutelage[serve]"')
pytest.importorskip("prometheus_client", reason='needs prometheus-client: pip install "tutelage[serve]"')


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save_served(tmp_path_factory.mktemp("student"))


class Gate:
    """Holds the model's answers back until it is opened; knows the size of each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.sizes = threading.Event(), []
        real = Predictor.answer

        def waiting(predictor, examples):
            self.sizes.append(len(examples))
            assert self.opened.wait(20)
            return real(predictor, examples)

        monkeypatch.setattr(Predictor, "answer", waiting)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def until(holds) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(start: int, count: int = 1) -> dict:
    return {"rows": [{"id": str(n), "text": f"thing {n}"} for n in range(start, start + count)]}


def test_requests_that_wait_are_answered_together_and_each_gets_its_own_answer(student, gate):
    with served(student, batch_size=8) as running, ThreadPoolExecutor(20) as pool:
        first = pool.submit(running.post, "/v1/answer", rows(0))
        until(lambda: gate.sizes)
        others = [pool.submit(running.post, "/v1/answer", rows(n)) for n in range(1, 20)]
        until(lambda: running.metric("tutelage_rows_in_progress") == 20)
        gate.opened.set()
        replies = [reply.result().json["answers"] for reply in (first, *others)]
    assert gate.sizes == [1, 8, 8, 3]
    assert [answer["id"] for (answer,) in replies] == [str(n) for n in range(20)]


def test_a_full_queue_refuses_and_says_when_to_come_back(student, gate):
    with served(student, queue=4) as running, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(running.post, "/v1/answer", rows(n)) for n in range(4)]
        until(lambda: running.metric("tutelage_rows_in_progress") == 4)
        reply = running.post("/v1/answer", rows(4))
        assert (reply.status, reply.json["error"]["code"]) == (503, "queue_full")
        assert int({name.lower(): value for name, value in reply.headers.items()}["retry-after"]) >= 1
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="colors", prompt="a")
        assert caught.value.code == "queue_full"
        assert running.metric('tutelage_requests_total{endpoint="/v1/answer",status="503"}') == 1
        gate.opened.set()
        assert [reply.result().status for reply in waiting] == [200] * 4
        assert running.post("/v1/answer", rows(4)).status == 200


def test_a_request_that_never_fits_is_refused_for_good(student):
    with served(student, queue=4) as running:
        reply = running.post("/v1/answer", rows(0, 5))
        assert (reply.status, reply.json["error"]["code"]) == (413, "too_many_rows")
        assert running.post("/v1/answer", rows(0, 4)).status == 200


def test_rows_of_a_client_that_has_gone_are_not_answered(student, gate):
    with served(student, batch_size=8) as running, ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.post, "/v1/answer", rows(0))
        until(lambda: gate.sizes)
        leaving = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=60)
        leaving.request("POST", "/v1/answer", json.dumps(rows(1, 3)), {"Content-Type": "application/json"})
        until(lambda: running.metric("tutelage_rows_in_progress") == 4)
        leaving.close()
        until(lambda: running.metric("tutelage_rows_in_progress") == 1)
        gate.opened.set()
        assert first.result().status == 200
        assert running.post("/v1/answer", rows(4)).status == 200
        assert running.metric('tutelage_requests_total{endpoint="/v1/answer",status="499"}') == 1
    assert gate.sizes == [1, 1]


def test_at_shutdown_what_was_received_is_answered_and_nothing_more_is_taken(student, gate):
    with served(student) as running, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(running.post, "/v1/answer", rows(n)) for n in range(4)]
        until(lambda: running.metric("tutelage_rows_in_progress") == 4)
        running.uvicorn.should_exit = True
        until(lambda: not running.uvicorn.servers or not any(s.is_serving() for s in running.uvicorn.servers))
        with pytest.raises(OSError):
            running.get("/health")
        gate.opened.set()
        assert [reply.result().json["answers"][0]["id"] for reply in waiting] == [str(n) for n in range(4)]


# --- the command ---


class Process:
    """`tutelage serve` as a program."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "tutelage", "serve", *map(str, words), "--port", "0"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        while not (found := re.search(r"serving (\S+) on (http://\S+)/v1", self.lines[-1] if self.lines else "")):
            line = self.process.stderr.readline()
            assert line, self.lines
            self.lines.append(line)
        self.name, self.url = found[1], found[2]

    def end(self, number: int) -> int:
        """Exit code after a signal."""
        self.process.send_signal(number)
        self.lines += self.process.communicate(timeout=120)[1].splitlines(keepends=True)
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_after_the_requests_in_flight(student, number):
    server = Process(student, "--batch-size", 1)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with ThreadPoolExecutor(1) as pool:
        prompts = [f"thing {n}:" for n in range(200)]
        asked = pool.submit(client.completions.create, model=server.name, prompt=prompts)
        metrics = client.with_options(base_url=server.url)
        until(lambda: "rows_in_progress 200" in metrics.get("/metrics", cast_to=str) or asked.done())
        code = server.end(number)
        assert len(asked.result().choices) == 200
    assert code == 0 and server.lines[-1] == "stopped\n" and "Traceback" not in "".join(server.lines)
