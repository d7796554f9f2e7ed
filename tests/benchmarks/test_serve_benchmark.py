"""The load of `benchmarks.serve`: what it counts, on a server that answers and on one that does not."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.serve import Load, demo_student, put_load
from helpers.served import served

pytest.importorskip("fastapi", reason='needs FastAPI: pip install "tutelage[serve]"')


def test_no_request_is_lost_by_a_server_that_answers(tmp_path):
    student, rows = demo_student(tmp_path)
    with served(student) as running:
        host, _, port = running.url.removeprefix("http://").partition(":")
        load = put_load(host, int(port), rows, 4, 0.5)
        answered = running.metric('tutelage_rows_total{answered_by="student"}')
    assert load.lost == [] and len(load.latencies) == answered >= 4


def test_refusals_and_answers_to_other_rows_count_as_lost():
    class Wrong(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"answers": [{"id": "another"}]}' if next(kinds) else b"full"
            self.send_response(200 if body != b"full" else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    kinds = iter([True, False] * 10_000)
    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever).start()
        load = put_load("127.0.0.1", server.server_port, [{"text": "a"}], 1, 0.2)
        server.shutdown()
    assert load.latencies == [] and len(load.lost) >= 2
    assert load.lost[0].startswith("the answer to another instead of") and load.lost[1] == "status 503: b'full'"


def test_quantiles_by_hand():
    record = Load([0.1 * n for n in range(1, 102)], ["status 503"], 2.0).record()
    assert (record["requests"], record["lost"], record["rows_per_second"]) == (102, 1, 50.5)
    assert record["p50"] == pytest.approx(5.1) and record["p99"] == pytest.approx(10.0)
    assert record["longest"] == pytest.approx(10.1)
