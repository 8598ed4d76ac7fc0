"""ASGI at the door: its untyped scope parsed once, bodies read under a limit, answers sent whole."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from msgspec import Struct

from dure.cloud.gateway.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_TIMEOUT_S = 60.0
DRAIN_BYTES, DRAIN_S, DRAIN_IDLE_S = 64 << 20, 10.0, 0.5
WATCH_AFTER_S = 0.05
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::[0-9]{1,5})?")


class Request(Struct, frozen=True):
    """What the gateway reads of one HTTP request. `target` is path and query as sent."""

    method: str
    path: str
    target: str
    headers: Headers
    host: str
    origin: str
    authorization: str
    length: int | None


def parse(scope: Scope) -> Request:
    """The scope of an `http` connection as a Request. Raises ApiError on a Host or length it cannot trust."""
    host, origin, authorization, length = b"", b"", b"", b""
    for name, value in scope["headers"]:
        if name == b"host":
            if host:
                raise ApiError(400, "Two Host headers", code="bad_host")
            host = value
        elif name == b"authorization":
            authorization = value
        elif name == b"content-length":
            length = value
        elif name == b"origin":
            origin = value
    query: bytes = scope["query_string"]
    raw: bytes = scope["raw_path"]
    if length and not (length.isdigit() and len(length) < 20):
        raise ApiError(400, "Content-Length is not a number", code="bad_length")
    return Request(
        scope["method"],
        scope["path"],
        (raw + b"?" + query if query else raw).decode("latin-1"),
        scope["headers"],
        host.decode("latin-1").lower(),
        origin.decode("latin-1").lower(),
        authorization.decode("latin-1"),
        int(length) if length else None,
    )


def check_site(request: Request, allowed: frozenset[str]) -> None:
    """Refuse a Host that is not ours (a rebound name) and a page of another site. Raises ApiError."""
    match = _HOST.fullmatch(request.host)
    if match is None or match[1] not in allowed:
        raise ApiError(421, f"This server does not answer for host {request.host[:100]!r}", code="bad_host")
    if request.origin and request.origin.partition("://")[2] != request.host:
        raise ApiError(403, f"Pages of {request.origin[:100]!r} may not call this server", code="bad_origin")


async def read_body(request: Request, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises ApiError 413 before reading more than that, 408 when it stalls."""
    if request.length is not None and request.length > limit:
        await _drain(receive)
        raise too_big(limit)
    message = await receive()
    if not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise too_big(limit)
        return body
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while message["type"] == "http.request":
                parts.append(message["body"])
                size += len(message["body"])
                if size > limit:
                    parts.clear()
                    await _drain(receive)
                    raise too_big(limit)
                if not message["more_body"]:
                    return b"".join(parts)
                message = await receive()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s", code="timeout") from None
    raise ApiError(400, "The client left before its body was whole", code="client_left")


async def _drain(receive: Receive) -> None:
    """Drop what is still coming, within bounds: a client that is cut off while it sends never sees the 413."""
    left = DRAIN_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while left > 0:
                message = await asyncio.wait_for(receive(), DRAIN_IDLE_S)
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def too_big(limit: int) -> ApiError:
    """413, naming the limit in MiB."""
    return ApiError(413, f"The body is larger than {limit >> 20} MiB", code="too_large")


async def send_whole(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """One complete answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


class Leaver:
    """Cancels the current task when its client leaves: at once, or 50 ms after the request came.

    Most tasks that watch would watch an answer that is out within those 50 ms: they are not made.
    `gone` tells that cancellation from the server's own; set `ended` before the last bytes are sent.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.ended = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def _start(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.ended:
            self.gone = True
            self._task.cancel()

    def stop(self) -> None:
        self.ended = True
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
