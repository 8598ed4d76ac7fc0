"""Connections to engines: HTTP/1.1 kept alive, on httptools.

aiohttp's client was two thirds of a request's CPU here (and 22 small chunks cost it 40 µs); this asks one kind of
question of one kind of server.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from dure.cloud.gateway.routes import Target

CONNECT_S = 5.0
IDLE_S = 4.0
"""Engines close after 5 s without a request: a connection is rarely stale when it is used again."""
_MUCH = 256 << 10


class Reply:
    """One answer as it comes. `status` and `content_type` are there once `read` has returned.

    The parser calls the `on_` methods.
    """

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.content_type = b""
        self.ended = False
        self.heard = False
        self._connection: Connection | None = connection
        self._blocks: list[bytes] = []
        self._size = 0
        self._framed = False
        self._paused = False
        self._error = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Ended, and all of it read."""
        return self.ended and not self._blocks

    async def read(self) -> bytes:
        """What has come since the last read; empty at the end. Raises ConnectionError when the engine broke off."""
        while not self._blocks:
            if self.ended:
                return b""
            if self._error:
                raise ConnectionResetError(self._error)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks, self._size = [], 0
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.transport.resume_reading()
        return data

    def close(self) -> None:
        """Drop the connection at once unless the answer has ended: the engine stops its work."""
        if self._connection is not None:
            self._connection.transport.abort()

    def fail(self, why: str) -> None:
        """The connection is gone. A body without a length ends so; any other is broken."""
        if self.status and not self._framed:
            self.ended = True
        else:
            self._error = why
        self._connection = None
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._connection is not None  # it is parsing for us
        self.status = self._connection.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._blocks.append(data)
        self._size += len(data)
        if self._size > _MUCH and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status >= 200 and self._connection is not None:
            self.ended = True
            connection, self._connection = self._connection, None
            if self._paused:
                connection.transport.resume_reading()
            connection.release()


class Connection(asyncio.Protocol):
    """One connection to one engine; between answers it lies in its target's `idle`."""

    transport: asyncio.Transport

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reply: Reply | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> Reply:
        self._reply = reply = Reply(self)
        self.parser = httptools.HttpResponseParser(reply)
        self.transport.write(request)
        return reply

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            self.transport.abort()  # bytes that nobody asked for
            return
        reply.heard = True
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.transport.abort()
            if self._reply is reply:
                self._reply = None
                reply.fail(f"not HTTP: {error}")
        reply.wake()

    def release(self) -> None:
        """The answer has ended: others may use the connection."""
        self._reply = None
        if self.parser.should_keep_alive() and not self.transport.is_closing():
            self.idle_since = asyncio.get_running_loop().time()
            self._target.idle.append(self)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._target.idle:
            self._target.idle.remove(self)
        if self._reply is not None:
            reply, self._reply = self._reply, None
            reply.fail(str(exc) if exc else "the engine closed the connection")


async def ask_engine(target: Target, path: str, body: bytes) -> tuple[Reply, bytes]:
    """POST `body`; the answer's head and first bytes. Raises OSError or TimeoutError.

    A kept-alive connection that the engine closes before a byte of answer was stale: tried once more on a new one.
    """
    request = b"%b%d\r\n\r\n%b" % (target.heads[path], len(body), body)
    now = asyncio.get_running_loop().time()
    while target.idle:
        connection = cast(Connection, target.idle.pop())
        if now - connection.idle_since > IDLE_S or connection.transport.is_closing():
            connection.transport.close()
            continue
        reply = connection.ask(request)
        try:
            return reply, await _first(reply)
        except ConnectionError:
            if reply.heard:
                raise
            break
    async with asyncio.timeout(CONNECT_S):
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(target), target.host, target.port
        )
    reply = connection.ask(request)
    return reply, await _first(reply)


async def _first(reply: Reply) -> bytes:
    try:
        return await reply.read()
    except BaseException:
        reply.close()
        raise
