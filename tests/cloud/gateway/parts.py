"""A fake engine, a fake control and a real gateway process between them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from dure.model.usage import TokenRow
from dure.model.wire import GatewaySays, KeyGrant, Recorded, Replica, Routes, Usage

KEY = "sk-test"
LINK_KEY = "link-secret"
T = TypeVar("T")


def until(condition: Callable[[], T], within_s: float = 15.0) -> T:
    """Poll until `condition` gives something true; fail after the deadline."""
    end = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"not within {within_s} s"
        pause.wait(0.01)


class Served:
    """An aiohttp application on a free loopback port, in a loop and thread of its own."""

    def __init__(self, app: web.Application, port: int = 0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        # A client that leaves cancels the handler: so the fakes notice.
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        self.call(self._runner.setup())
        self._sock = socket.create_server(("127.0.0.1", port))
        self.port: int = self._sock.getsockname()[1]
        self.call(web.SockSite(self._runner, self._sock).start())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def close(self) -> None:
        self.call(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def chunk(text: str | None, usage: tuple[int, int] | None = None) -> str:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    body: dict[str, object] = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


class FakeEngine:
    """Answers by the request's own `user` field: words, a hang, a break. Remembers what it saw."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.open = 0
        self.closed_early = 0
        self.release = threading.Event()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        self._served = Served(app)
        self.url = f"http://127.0.0.1:{self._served.port}"
        self.close = self._served.close

    def replica(self, run: str = "w1.0.1", slots: int = 4) -> Replica:
        return Replica(run, self.url, f"ek-{run}", slots)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.bodies.append(raw)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        body = json.loads(raw)
        self.open += 1
        try:
            return await self._by(body.get("user", ""), body, request)
        except asyncio.CancelledError:
            self.closed_early += 1
            raise
        finally:
            self.open -= 1

    async def _by(self, how: str, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        if how.startswith("status-"):
            return web.Response(status=int(how[7:]), text="context is too long")
        if how == "hang":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if how == "abort":
            assert request.transport is not None
            request.transport.abort()
        if body.get("stream"):
            return await self._stream(how, body, request)
        text = {"role": "assistant", "content": "hello there"}
        choice: dict[str, object] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": text} if "messages" in body else {"text": "hello there"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        kind = "chat.completion" if "messages" in body else "text_completion"
        return web.json_response(
            {"id": "c1", "object": kind, "created": 1, "model": body["model"], "choices": [choice], "usage": usage}
        )

    async def _stream(self, how: str, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in ["one ", "two ", "three "]:
            await response.write(chunk(word).encode())
        if how == "drip":
            while not self.release.is_set():
                await response.write(chunk("more ").encode())
                await asyncio.sleep(0.01)
        if how == "break":
            assert request.transport is not None
            request.transport.abort()
            return response
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(chunk(None, (7, 3)).encode())
        await response.write(b"data: [DONE]\n\n")
        return response


class FakeControl:
    """Control's side of the link, and a few paths to forward to. Keeps every Usage it recorded."""

    def __init__(self, routes: Routes, port: int = 0) -> None:
        self.routes = routes
        self.upto: dict[str, int] = {}
        self.usages: list[Usage] = []
        self.linked = 0
        self.sockets: set[web.WebSocketResponse] = set()
        self.requests: list[tuple[str, str, dict[str, str], int]] = []
        self.uploads_cut = 0
        self.pages_left = 0
        app = web.Application(client_max_size=256 << 20)
        app.router.add_get("/link/gateway", self._link)
        app.router.add_route("*", "/{tail:.*}", self._page)
        self._served = Served(app, port)
        self.port = self._served.port
        self.close = self._served.close

    @property
    def rows(self) -> list[TokenRow]:
        return [row for usage in self.usages for row in usage.rows]

    @property
    def answers(self) -> int:
        return sum(row.answers for row in self.rows)

    def push(self, routes: Routes) -> None:
        """New routes to every linked gateway."""
        self.routes = routes
        for ws in list(self.sockets):
            self._served.call(ws.send_str(msgspec.json.encode(routes).decode()))

    def drop_links(self) -> None:
        for ws in list(self.sockets):
            self._served.call(ws.close())

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {LINK_KEY}":
            raise web.HTTPUnauthorized
        ws = web.WebSocketResponse(max_msg_size=64 << 20)
        await ws.prepare(request)
        self.linked += 1
        self.sockets.add(ws)
        try:
            await ws.send_str(msgspec.json.encode(self.routes).decode())
            async for message in ws:
                await ws.send_str(msgspec.json.encode(self._record(message.data)).decode())
        finally:
            self.sockets.discard(ws)
        return ws

    def _record(self, frame: str) -> Recorded:
        said = msgspec.json.decode(frame, type=GatewaySays)
        known = self.upto.get(said.journal, 0)
        if isinstance(said, Usage) and said.start == known:
            self.usages.append(said)
            known = self.upto[said.journal] = said.upto
        return Recorded(said.journal, known)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/api/slow":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"first")
            try:
                await asyncio.Event().wait()
            finally:
                self.pages_left += 1
        size = 0
        try:
            async for block in request.content.iter_any():
                size += len(block)
        except (ConnectionError, asyncio.CancelledError):
            self.uploads_cut += 1
            raise
        seen = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.path_qs, seen, size))
        headers = {"X-From": "control", "Connection": "X-Secret", "X-Secret": "hop"}
        return web.Response(status=201 if request.method == "POST" else 200, text=f"got {size}", headers=headers)


def routes_for(*replicas: Replica, model: str = "m") -> Routes:
    return Routes({hashlib.sha256(KEY.encode()).hexdigest(): KeyGrant("k1", "default")}, {model: replicas})


class GatewayProcess:
    """The real process on an inherited socket; `kill9` and `start` again keep the port."""

    def __init__(self, home: Path, control_port: int, agent_port: int) -> None:
        self.home = home
        (home / "link.key").write_text(LINK_KEY + "\n")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._code = (
            "from pathlib import Path; from dure.app.gateway import run; "
            f"run(Path({str(home)!r}), {self._listener.fileno()}, {control_port}, {agent_port})"
        )
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._code], pass_fds=(self._listener.fileno(),), env={"PATH": os.environ["PATH"]}
        )

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill9()
        self._listener.close()


class Cloud:
    """All of it; `engine` serves model `m`."""

    def __init__(self, home: Path) -> None:
        self.engine = FakeEngine()
        self.control = FakeControl(routes_for(self.engine.replica()))
        self.gateway = GatewayProcess(home, self.control.port, self.control.port)
        self.url = self.gateway.url

    def close(self) -> None:
        self.engine.release.set()
        self.gateway.close()
        self.control.close()
        self.engine.close()
