"""In front of every request: the API key, the type and size of the body; and its time and status, counted."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.serve.metrics import Metrics
from tutelage.serve.refused import Refused

MOST_BYTES = 2**20
"""Of a body."""
MOST_DISCARDED = 64 * MOST_BYTES
"""Bytes of a refused body that are read before the connection is closed."""
OPEN = ("/health",)
"""Paths that need no key."""
GONE = 499
"""Status, in metrics alone, of a request whose client went away; nginx calls it so."""
OTHER = "other"
"""What metrics call all paths that do not exist."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], key: str | None, local: bool) -> None:
        """paths: endpoints that metrics name. key: of all clients; None: everybody is let in. local: refuse requests to
        other names than this machine's own, by which a page in a browser could reach a server on 127.0.0.1 (DNS
        rebinding)."""
        self._app, self._metrics, self._paths, self._local = app, metrics, paths, local
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self._paths else OTHER
        began, statuses = time.monotonic(), [500]

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self._checked(scope, receive, watched, statuses)
        finally:
            self._metrics.requests.labels(endpoint, str(statuses[-1])).inc()
            self._metrics.seconds.labels(endpoint).observe(time.monotonic() - began)

    async def _checked(self, scope: Scope, receive: Receive, send: Send, statuses: list[int]) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        reading = _Body(receive)
        try:
            self._check(scope, headers)
            body = await reading.whole()
        except Refused as refused:
            await reading.discard()
            await send_refused(refused, send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        if body is not None:
            await _until_gone(self._app(scope, replayed, send), receive, lambda: len(statuses) > 1)
        if len(statuses) == 1:
            statuses.append(GONE)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self._key is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                raise Refused(401, "invalid_api_key", "send the server's key: `Authorization: Bearer KEY`")
        if self._local and not is_local(headers.get(b"host", b"").decode("latin-1")):
            text = "this server answers to 127.0.0.1 and localhost alone: set TUTELAGE_SERVE_KEY for other host names"
            raise Refused(403, "host_refused", text)
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                text = "send the body as JSON, with the header `Content-Type: application/json`"
                raise Refused(415, "unsupported_media_type", text)
            declared = headers.get(b"content-length", b"0")
            if declared.isdigit() and int(declared) > MOST_BYTES:
                raise _too_large()


def is_local(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by a name that no other one can have."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_large() -> Refused:
    text = f"the body has more than {MOST_BYTES:,} bytes: send fewer or shorter rows at a time"
    return Refused(413, "body_too_large", text)


async def _until_gone(answering: Awaitable[None], receive: Receive, has_begun: Callable[[], bool]) -> None:
    """Answer a request, unless its client goes away before the answer has begun: its rows then leave the queue."""
    task, gone = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and not has_begun():
            task.cancel()
            await asyncio.wait({task})
        else:
            await task
    finally:
        task.cancel()
        gone.cancel()


class _Body:
    """The body of a request, read once."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._more = receive, True

    async def whole(self) -> bytes | None:
        """All of it; None if the client went away. Raises Refused for one that is too large."""
        body = bytearray()
        while self._more:
            message = await self._next()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > MOST_BYTES:
                raise _too_large()
        return bytes(body)

    async def discard(self) -> None:
        """Read what is left: a client that is still sending does not see the answer."""
        size = 0
        while self._more and size < MOST_DISCARDED:
            size += len((await self._next()).get("body", b""))

    async def _next(self) -> Message:
        message = await self._receive()
        self._more = message.get("more_body", False)
        return message


def error_body(refused: Refused) -> dict[str, Any]:
    """In the form of OpenAI's errors."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}}


def error_headers(refused: Refused) -> dict[str, str]:
    """Headers beside those of every response."""
    return {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}


async def send_refused(refused: Refused, send: Send) -> None:
    """Send an error, and close the connection: there may be more of a body than was read."""
    body = json.dumps(error_body(refused)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
