"""The agent's telemetry and its `/metrics`, in a thread of their own: the link to control never waits for them."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from aiohttp import web
from msgspec import Struct

from dure.hardware.driver import Driver, Host
from dure.hardware.inventory import read
from dure.hardware.telemetry import Telemetry
from dure.model.chip import Chip

_EVERY_S = 1.0
_log = logging.getLogger("dure.agent")


class Now(Struct, frozen=True):
    """What the runs of the node are at now. `held`: chip -> milli; `cpu_ns`: run -> CPU time; `energy`: µJ, meter."""

    held: Mapping[str, int] = {}
    cpu_ns: Mapping[str, int] = {}
    energy: tuple[int, str] | None = None


class Metrics:
    """Samples `chips` once a second through `drivers`; `now` is asked for what the runs hold, from this thread."""

    def __init__(
        self, drivers: Sequence[Driver], host: Host, chips: Sequence[Chip], now: Callable[[], Now], key: str
    ) -> None:
        self.telemetry = Telemetry(chips)
        self._drivers, self._host, self._now = drivers, host, now
        self._auth = f"Bearer {key}".encode()
        self._told: set[str] = set()

    def start(self, listening: socket.socket) -> None:
        """Serve and sample until the process ends."""
        threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="metrics", daemon=True).start()

    async def _serve(self, listening: socket.socket) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        while True:
            began = time.monotonic()
            self.sample(time.time_ns())
            await asyncio.sleep(max(0.0, _EVERY_S - (time.monotonic() - began)))

    def sample(self, now_ns: int) -> None:
        readings, problems = read(self._drivers, self._host, self.telemetry.chips, now_ns)
        self.telemetry.take(readings, now_ns)
        for problem in problems:
            if problem.why not in self._told and len(self._told) < 1000:
                self._told.add(problem.why)
                _log.warning("driver %s: %s: %s", problem.driver, problem.state, problem.why)

    async def _metrics(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._auth):
            return web.Response(status=401, text="the link key is wrong or missing\n")
        now = self._now()
        body = self.telemetry.render(now.held, now.cpu_ns, now.energy)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")
