"""The gateway process: the public port, from an inherited socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import aiohttp
import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from dure.app.child import serve
from dure.cloud.gateway.answer import Answers
from dure.cloud.gateway.asgi import LOOPBACK
from dure.cloud.gateway.forward import Forwarder
from dure.cloud.gateway.gateway import Gateway
from dure.cloud.gateway.journal import Journal
from dure.cloud.gateway.link import Link
from dure.cloud.gateway.routes import Table

STOP_S = 5


def run(home: Path, fd: int, control_port: int, agent_port: int, hosts: frozenset[str] = frozenset()) -> None:
    """Serve until SIGTERM on the listening socket `fd`. `hosts`: names it answers for beside loopback's.

    Reads HOME/link.key; keeps HOME/usage. Raises DureError where the journal cannot be kept.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    link_key = (home / "link.key").read_text().strip()
    journal = Journal(home / "usage", "gateway-0")
    # uvicorn raises the signal again once it has stopped; then usage must still be reported.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(socket.socket(fileno=fd), journal, (control_port, agent_port), link_key, hosts | LOOPBACK))


def _session() -> aiohttp.ClientSession:
    """For control and the agent; adds nothing of its own to what it passes on."""
    return aiohttp.ClientSession(
        # Shorter than the servers' own keep-alive (5 s): a connection is rarely stale when it is used again.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


async def _serve(
    listener: socket.socket, journal: Journal, ports: tuple[int, int], link_key: str, hosts: frozenset[str]
) -> None:
    table = Table()
    async with _session() as local:
        control, agent = (f"http://127.0.0.1:{port}" for port in ports)
        link = Link(local, f"{control}/link/gateway", link_key, table, journal)
        app = Gateway(
            table,
            Answers(table, journal, time.time_ns),
            Forwarder(local, control, "control", link.up),
            Forwarder(local, agent, "agent"),
            (hosts, link_key),
        )
        linking = asyncio.create_task(link.run())
        server = uvicorn.Server(_config(app))
        gc.freeze()
        await server.serve(sockets=[listener])
        if cut := server.server_state.tasks:  # answers that did not end in time: each still writes its line
            await asyncio.wait(cut, timeout=1)
        await link.settle(within_s=3)
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)


def _config(app: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_S,
    )


if __name__ == "__main__":
    sys.exit(serve(lambda told: run(told.home, told.fd, told.control, told.agent)))
