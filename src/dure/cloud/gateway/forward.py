"""Requests passed on byte by byte: `/api` and pages to control, `/metrics` to the agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from dure.cloud.gateway.asgi import Headers, Leaver, Receive, Request, Send, too_big
from dure.cloud.gateway.errors import ApiError

MAX_BODY = 64 << 20
WAIT_S = 5.0
_RETRY_S = 0.1
_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
_OURS = frozenset({b"date", b"server"})


class Upload:
    """A request's body: held while it is small and whole, streamed else. Raises ApiError 413 past the limit."""

    def __init__(self, request: Request, receive: Receive) -> None:
        if request.length is not None and request.length > MAX_BODY:
            raise too_big(MAX_BODY)
        self._receive = receive
        self.held: bytes | None = None
        self.streaming = False
        self.too_big = False
        self._first = b""

    async def open(self) -> None:
        message = await self._receive()
        self._first = message.get("body", b"")
        if not message.get("more_body"):
            self.held = self._first

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes; once only."""
        self.streaming = True
        size, block, more = len(self._first), self._first, True
        while True:
            if block:
                yield block
            if not more:
                return
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client left while sending")
            block, more = message["body"], message["more_body"]
            size += len(block)
            if size > MAX_BODY:
                self.too_big = True
                raise ConnectionResetError("the body is too large")


class Forwarder:
    """Passes requests on to one local process, named `who` in errors, at `base`.

    While it is away (`up` not set, or connections refused) a request waits up to 5 s.
    """

    def __init__(self, session: aiohttp.ClientSession, base: str, who: str, up: asyncio.Event | None = None) -> None:
        self._session, self._base, self._who, self._up = session, base, who, up

    async def __call__(self, request: Request, receive: Receive, send: Send, key: str | None = None) -> None:
        """Answer with what the process answers; `key` replaces the caller's. Raises ApiError."""
        upload = Upload(request, receive)
        await upload.open()
        leaver = Leaver(receive) if upload.held is not None else None
        try:
            response = await self._open(request, upload, _request_headers(request, key))
            try:
                await _answer(response, send, leaver)
            finally:
                response.close()
        except asyncio.CancelledError:
            if leaver is None or not leaver.gone:
                raise
        finally:
            if leaver is not None:
                leaver.stop()

    async def _open(self, request: Request, upload: Upload, headers: CIMultiDict[str]) -> aiohttp.ClientResponse:
        url = URL(self._base + request.target, encoded=True)
        until = asyncio.get_running_loop().time() + WAIT_S
        while True:
            await self._wait_up(until)
            body = upload.stream() if upload.held is None else upload.held or None
            try:
                return await self._session.request(
                    request.method, url, data=body, headers=headers, allow_redirects=False
                )
            except (aiohttp.ClientError, OSError) as error:
                if upload.too_big:
                    raise too_big(MAX_BODY) from None
                unsent = isinstance(error, aiohttp.ClientConnectorError) and not upload.streaming
                if not unsent and (request.method not in ("GET", "HEAD") or upload.streaming):
                    what = f"The {self._who} went away during this request; it may or may not have taken effect"
                    raise ApiError(502, what, code="broke_off") from None
                if asyncio.get_running_loop().time() >= until:
                    raise self._away() from None
                await asyncio.sleep(_RETRY_S)

    async def _wait_up(self, until: float) -> None:
        if self._up is not None and not self._up.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._up.wait()
            if not self._up.is_set():
                raise self._away()

    def _away(self) -> ApiError:
        what = f"The {self._who} process is away (restarting?); running work goes on"
        return ApiError(503, what, code="away", retry_s=2)


def _request_headers(request: Request, key: str | None) -> CIMultiDict[str]:
    drop = _HOP | _named(request.headers) | ({"authorization"} if key else set())
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers)
    headers = CIMultiDict((name, value) for name, value in pairs if name not in drop)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _named(headers: Headers) -> set[str]:
    """Headers that the Connection header declares to be of this hop only."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.decode("latin-1").split(",")}


async def _answer(response: aiohttp.ClientResponse, send: Send, leaver: Leaver | None) -> None:
    raw = list(response.raw_headers)
    drop = _HOP | _named(raw)
    headers = [(n, v) for n, v in raw if n.decode("latin-1").lower() not in drop and n.lower() not in _OURS]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    # A break in the middle is told by closing the connection: the answer's length or last chunk is missing.
    with contextlib.suppress(aiohttp.ClientError, OSError):
        while block := await response.content.readany():
            await send({"type": "http.response.body", "body": block, "more_body": True})
        if leaver is not None:
            leaver.ended = True
        await send({"type": "http.response.body", "body": b""})
