"""Students and teachers in folders, made in code, and servers of them in this process."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError

from helpers.project import LABELS
from helpers.tiny import byte_tokenizer, tiny_model
from tutelage.recipe.schema import Data, Task
from tutelage.serve.command import Options, application
from tutelage.utils.console import Screen

if TYPE_CHECKING:
    import uvicorn

TEMPLATE = "{text}:"


def save_served(folder: Path, seed: int = 0, *, run: str = "colors", decoding: str = "labels", **data: Any) -> Path:
    """A random student of the colour task with its tutelage.json. data: values of the recipe's data section."""
    tiny_model(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    task = Task(type="classification", labels=list(LABELS), decoding=decoding)
    section = Data(**{"template": TEMPLATE, "max_length": 256, **data})
    usage = {
        "task": task.model_dump(),
        "data": section.model_dump(),
        "choice": False,
        "max_new_tokens": 6,
        "run": run,
    }
    (folder / "tutelage.json").write_text(json.dumps(usage), encoding="utf-8")
    return folder


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running(NamedTuple):
    """A server."""

    url: str
    """Without `/v1`."""
    name: str
    uvicorn: uvicorn.Server

    def get(self, path: str, **headers: str) -> Reply:
        return self.send(path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        """body: bytes are sent as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(path, data, {"Content-Type": "application/json", **headers})

    def send(self, path: str, data: bytes | None, headers: dict[str, str]) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, named)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Reply(response.status, dict(response.headers), response.read().decode())
        except HTTPError as error:
            with error:
                return Reply(error.code, dict(error.headers), error.read().decode())

    def metric(self, name: str) -> float:
        """A value of /metrics; 0 if it is not there."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").body.splitlines())
        return next((float(value) for found, _, value in lines if found == name), 0.0)


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[Running]:
    """A server in a thread of this process; what `tutelage serve FOLDER` does but for its signals."""
    import uvicorn

    made = application(Options(folder, **options), Screen())
    config = uvicorn.Config(made.app, log_config=None, access_log=False, timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", made.name, server)
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()
