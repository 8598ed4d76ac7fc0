"""The engines' side of HTTP: whole answers however they come, and a clear end when they break."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cloud.gateway.engines import Connection, Reply, ask_engine
from dure.cloud.gateway.routes import Target
from dure.model.wire import Replica

BODY = b"".join(b"data: event %d\n\n" % number for number in range(5))
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + (
    b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:50], BODY[50:])) + b"0\r\n\r\n"
)
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


class FakeTransport:
    """What a Connection does to its transport."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.paused = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


def target(port: int = 1) -> Target:
    return Target(Replica("w1.0.1", f"http://127.0.0.1:{port}", "ek", 1))


def opened() -> tuple[Connection, FakeTransport, Target]:
    to, transport = target(), FakeTransport()
    connection = Connection(to)
    connection.connection_made(cast(asyncio.Transport, transport))
    return connection, transport, to


async def whole(reply: Reply) -> bytes:
    parts = []
    while not reply.finished:
        parts.append(await reply.read())
    return b"".join(parts)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


@given(st.sampled_from([CHUNKED, LENGTH, UNTIL_CLOSE, CONTINUED]), st.lists(st.integers(0, 1000)))
def test_an_answer_is_whole_wherever_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    async def check() -> None:
        connection, transport, to = opened()
        reply = connection.ask(b"request")
        reading = asyncio.create_task(whole(reply))
        at = sorted({0, len(answer), *(cut % len(answer) for cut in cuts)})
        for start, end in pairwise(at):
            connection.data_received(answer[start:end])
            await asyncio.sleep(0)
        if answer is UNTIL_CLOSE:
            connection.connection_lost(None)
        else:
            assert to.idle == [connection] and not transport.closing
        assert await reading == BODY
        assert (reply.status, reply.content_type, transport.paused) == (200, b"text/event-stream", 0)

    run(check())


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED[:-1], CHUNKED[:-30], LENGTH[:-1], b"SSH-2.0-x\r\n\r\n", b"\x00" * 99],
)
def test_a_broken_answer_is_an_error(answer: bytes) -> None:
    async def check() -> None:
        connection, _, to = opened()
        reply = connection.ask(b"request")
        if answer:
            connection.data_received(answer)
        connection.connection_lost(None)
        with pytest.raises(ConnectionError):
            await whole(reply)
        assert to.idle == []

    run(check())


def test_close_cuts_off_only_what_has_not_ended() -> None:
    async def check() -> None:
        connection, transport, _ = opened()
        connection.ask(b"request").close()
        assert transport.closing
        connection, transport, _ = opened()
        reply = connection.ask(b"request")
        connection.data_received(LENGTH)
        reply.close()
        assert not transport.closing and await whole(reply) == BODY

    run(check())


def test_an_engine_that_says_close_or_more_than_it_should_is_not_used_again() -> None:
    async def check() -> None:
        connection, transport, to = opened()
        reply = connection.ask(b"request")
        connection.data_received(LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        assert transport.closing and to.idle == [] and await whole(reply) == BODY
        connection, transport, to = opened()
        reply = connection.ask(b"request")
        connection.data_received(LENGTH + LENGTH)
        assert transport.closing and await whole(reply) == BODY
        connection, transport, to = opened()
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert transport.closing

    run(check())


def test_a_slow_reader_pauses_the_engine() -> None:
    async def check() -> None:
        connection, transport, _ = opened()
        reply = connection.ask(b"request")
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 400_000)
        assert transport.paused == 1
        assert len(await reply.read()) == 400_000
        assert transport.paused == 0
        connection.data_received(b"x" * 500_000)
        assert len(await whole(reply)) == 500_000 and transport.paused == 0

    run(check())


def test_stale_connections_are_tried_once_more_and_idle_ones_used_again() -> None:
    """An engine that hangs up on every second request of a connection, without a word."""
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.readuntil(b"body")
        writer.write(LENGTH)
        await reader.readuntil(b"body")
        writer.close()

    async def check() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        to = target(server.sockets[0].getsockname()[1])
        for want in (1, 2, 3):
            reply, first = await ask_engine(to, "/v1/completions", b"body")
            assert first + await whole(reply) == BODY
            assert accepted == want
            assert len(to.idle) == 1
        server.close()
        cast(Connection, to.idle[0]).transport.abort()
        with pytest.raises(OSError):
            await ask_engine(to, "/v1/completions", b"body")

    run(check())
