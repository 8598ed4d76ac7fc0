"""A real control over a log in memory: its loop and its server in a thread of their own, a fake agent beside it."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from dure.cloud.api.app import make_app
from dure.cloud.api.resources import Control
from dure.cloud.keys import digest
from dure.cloud.loop import Loop
from dure.computing.catalogue import load
from dure.computing.inbox import MakeKey, MakeProject
from dure.metering.cost import load_prices
from dure.model.chip import Chip, Node
from dure.model.event import Entry, Event
from dure.model.view import ErrorView, Failed
from dure.model.wire import AgentSays, Beat, Hello, Order, RunStatus
from dure.model.workload import Ask, ChipAsk, Command
from dure.store.log import Log
from dure.store.memory import MemoryLog

T = TypeVar("T")
ADMIN, LINK = "dk-admin", "link-secret"
PATIENCE_S = 20.0


def until(probe: Callable[[], T | None]) -> T:
    """The first value of `probe` that is neither None nor False."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = probe()
        if value is not None and value is not False:
            return value
        time.sleep(0.01)
    raise AssertionError("it never came true")


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def as_(self, kind: type[T]) -> T:
        """The body of a 2xx answer, strictly of this type."""
        assert 200 <= self.status < 300, (self.status, self.body[:500])
        return msgspec.json.decode(self.body, type=kind)

    def error(self, status: int) -> ErrorView:
        """The body of an error of this status, in the API's one shape."""
        assert self.status == status, (self.status, self.body[:500])
        error = msgspec.json.decode(self.body, type=Failed).error
        assert error.what and "Traceback" not in self.body.decode()
        return error


class Served:
    """`log` is what it writes, `keys` its secrets by project; `admin` is the key of who runs the cloud."""

    def __init__(self, home: Path, log: Log | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.log = MemoryLog() if log is None else log
        self.loop = Loop(self.log, ["simulated-echo", "smollm2-135m"], clock_ns, LINK)
        self.control = Control(self.loop, load(None), load_prices(), LINK, home, clock_ns)
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._sock.getsockname()[1]
        self._started, self._stop = threading.Event(), asyncio.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE_S) and not self._failed, f"control did not start: {self._failed}"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # the thread's edge
            self._failed.append(error)
        finally:
            self._sock.close()
            self._started.set()

    async def _serve(self) -> None:
        self._here = asyncio.get_running_loop()
        turning = asyncio.create_task(self.loop.run())
        if not self.loop.core.state.keys:
            await self.loop.ask(lambda token: MakeProject("default", "up", token), str)
            await self.loop.ask(lambda token: MakeKey("default", digest(ADMIN), True, "up", token), str)
        config = uvicorn.Config(
            make_app(self.control), log_config=None, lifespan="off", ws="websockets-sansio", access_log=False
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = asyncio.create_task(server._serve([self._sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        self._started.set()
        waits = asyncio.create_task(self._stop.wait())
        await asyncio.wait({waits, turning}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = server.force_exit = True
        await serving
        waits.cancel()
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._here).result(PATIENCE_S)

    def close(self) -> None:
        self._here.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive() and not self._failed, self._failed

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        key: str | None = ADMIN,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            given = {"Content-Type": "application/json"} if body is not None else {}
            given |= {"Authorization": f"Bearer {key}"} if key is not None else {}
            connection.request(method, path, body, given | dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, kind: type[T], key: str = ADMIN) -> T:
        return self.request("GET", path, key=key).as_(kind)

    def post(self, path: str, value: object = None, key: str = ADMIN) -> Answer:
        return self.request("POST", path, msgspec.json.encode(value) if value is not None else None, key)

    def submit(self, *asks: Ask, key: str = ADMIN) -> Answer:
        return self.post("/api/workloads", asks[0] if len(asks) == 1 else list(asks), key)

    def events(self) -> list[Event]:
        return [entry.event for entry in self.entries()]

    def entries(self) -> list[Entry]:
        return [entry for _, entry in self.log.read(0, 1_000_000)]

    def join(self, chips: Sequence[Chip] = (), node: str = "n", runs: tuple[RunStatus, ...] = ()) -> FakeAgent:
        """An agent that is linked, with four cores unless told otherwise."""
        agent = FakeAgent(self.port)
        agent.say(Hello(Node(node, "host", 1024, "0", "boot"), tuple(chips) or cores(4, node), runs))
        until(lambda: node in self.loop.agents and self.loop.core.state.nodes.get(node) is not None)
        return agent


class FakeAgent:
    """A link as an agent holds it. Closing it is the node's loss."""

    def __init__(self, port: int, key: str = LINK, path: str = "/link/agent") -> None:
        headers = {"Authorization": f"Bearer {key}"}
        with ExitStack() as stack:
            url, free = f"ws://127.0.0.1:{port}{path}", {"max_size": None, "max_queue": None}
            self.socket: ClientConnection = stack.enter_context(
                connect(url, additional_headers=headers, proxy=None, **free)
            )
            self.close = stack.pop_all().close

    def say(self, said: AgentSays) -> None:
        self.socket.send(msgspec.json.encode(said).decode())

    def beat(self, *runs: RunStatus) -> None:
        self.say(Beat(runs))

    def hear(self, kind: type[T]) -> T:
        """The next order of this kind; others are passed over."""
        while True:
            order = msgspec.json.decode(self.socket.recv(timeout=PATIENCE_S), type=Order)
            if isinstance(order, kind):
                return order

    def closed(self) -> tuple[int, str]:
        """Waits until control has closed the link; its code and reason."""
        try:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        except ConnectionClosed as end:
            assert end.rcvd is not None, "it broke without a close frame"
            return end.rcvd.code, end.rcvd.reason


def cores(count: int, node: str = "n", kind: str = "cpu") -> tuple[Chip, ...]:
    return tuple(
        Chip(f"{node}:{kind}{i}", node, kind, i, "Maker", "A core", "real", "cpu", "metal") for i in range(count)
    )


def job(*argv: str, chips: ChipAsk | None = None, project: str = "default") -> Ask:
    return Ask(Command(argv or ("true",)), chips or ChipAsk(), project)
