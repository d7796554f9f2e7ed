"""The HTTP API: rows and answers, OpenAI's completions, health and metrics."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tutelage import __version__
from tutelage.serve.bodies import ChatBody, CompletionBody, RowsBody
from tutelage.serve.completions import Completion
from tutelage.serve.guard import Guard, error_body, error_headers
from tutelage.serve.reader import Question, Reader
from tutelage.serve.refused import Refused
from tutelage.serve.service import Service

ANSWER, CHAT, COMPLETIONS, MODELS = "/v1/answer", "/v1/chat/completions", "/v1/completions", "/v1/models"
HEALTH, METRICS = "/health", "/metrics"


class AsciiJson(JSONResponse):
    """JSON of which every byte is ASCII: errors may repeat text that is no valid Unicode."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content).encode()


@dataclass(frozen=True)
class Api:
    """What the endpoints work with."""

    name: str
    """Of the model."""
    reader: Reader
    service: Service
    reading: anyio.CapacityLimiter
    """One reader at a time, off the event loop: a long prompt takes a while to be tokenized."""
    created: int

    async def read(self, make: Callable[[], list[Question]]) -> list[Question]:
        """Questions of a request. Raises Refused."""
        return await anyio.to_thread.run_sync(make, limiter=self.reading)

    async def complete(self, body: ChatBody | CompletionBody, make: Callable[[], list[Question]]) -> Response:
        """A response of OpenAI's API."""
        if body.model != self.name:
            text = f"there is no model {body.model!r} here: send {self.name!r}"
            raise Refused(404, "model_not_found", text, "model")
        questions = await self.read(make)
        completion = Completion(body, questions, await self.service.answer(questions), self.reader)
        if body.stream:
            events = await anyio.to_thread.run_sync(lambda: list(completion.events()), limiter=self.reading)
            return StreamingResponse(iter(events), media_type="text/event-stream")
        return JSONResponse(await anyio.to_thread.run_sync(completion.whole, limiter=self.reading))


def make_app(name: str, reader: Reader, service: Service, key: str | None = None, local: bool = False) -> FastAPI:
    """The application. name: of the model. key, local: see `Guard`.

    The service is closed when the application shuts down.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(title="tutelage serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    api = Api(name, reader, service, anyio.CapacityLimiter(1), int(time.time()))
    paths = (ANSWER, CHAT, COMPLETIONS, MODELS, HEALTH, METRICS)
    app.add_middleware(Guard, metrics=service.metrics, paths=paths, key=key, local=local)
    _add_answers(app, api)
    _add_about(app, api)
    _add_errors(app)
    return app


def _add_answers(app: FastAPI, api: Api) -> None:
    @app.post(ANSWER)
    async def answer(body: RowsBody) -> Response:
        """Answers to rows, as `tutelage predict` gives them."""
        questions = await api.read(lambda: api.reader.rows(body.rows))
        return JSONResponse({"model": api.name, "answers": await api.service.answer(questions)})

    @app.post(CHAT)
    async def chat(body: ChatBody) -> Response:
        """The answer to a prompt as a chat."""
        turns = [message.turn for message in body.messages]
        return await api.complete(body, lambda: [api.reader.messages(turns)])

    @app.post(COMPLETIONS)
    async def completions(body: CompletionBody) -> Response:
        """The answers to prompts."""
        return await api.complete(body, lambda: [api.reader.prompt(text) for text in body.prompt])


def _add_about(app: FastAPI, api: Api) -> None:
    model = {"id": api.name, "object": "model", "created": api.created, "owned_by": "tutelage"}

    @app.get(MODELS)
    async def models() -> Response:
        """The model."""
        return JSONResponse({"object": "list", "data": [model]})

    @app.get(f"{MODELS}/{{name:path}}")
    async def one_model(name: str) -> Response:
        """The model, by its name."""
        if name != api.name:
            raise Refused(404, "model_not_found", f"there is no model {name!r} here: ask for {api.name!r}", "model")
        return JSONResponse(model)

    @app.get(HEALTH)
    async def health() -> Response:
        """Whether rows will be answered."""
        well = api.service.is_healthy
        return JSONResponse({"status": "ok" if well else "failed", "model": api.name}, 200 if well else 503)

    @app.get(METRICS)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(api.service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Every error in the form of OpenAI's."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return AsciiJson(error_body(error), error.status, error_headers(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, _invalid(error))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}"
        response = await refused(request, Refused(error.status_code, "http_error", text))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(500, "internal_error", "an error of the server: its log has the cause"))


def _invalid(error: RequestValidationError) -> Refused:
    """All fields that are wrong, each with the reason."""
    found = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return Refused(400, "json_invalid", f"the body is no JSON: {found[0]['ctx']['error']}")
    names = [".".join(map(str, entry["loc"][1:])) for entry in found]
    reasons = [str(entry["ctx"]["error"]) if entry["type"] == "value_error" else entry["msg"] for entry in found]
    lines = [f"{name or 'body'}: {reason}" for name, reason in zip(names, reasons, strict=True)]
    return Refused(400, "value_invalid", "; ".join(lines[:10]), names[0] or None)
