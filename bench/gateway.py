"""What the gateway costs: beside a bare proxy, over an instant engine, in interleaved rounds of one run.

`python -m bench.gateway [--seconds S] [--rounds N] [--json]`; or a gateway of a running cloud:
`--url URL --key KEY --model M --pid PID` (its engine's own time is then part of every figure).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from msgspec import Struct

from bench.load import Load
from dure.model.wire import GatewaySays, KeyGrant, Recorded, Replica, Routes, Usage

CELLS = [(1, False), (1, True), (16, False), (16, True)]
CPU_LIMIT_US = {False: 150.0, True: 400.0}
"""DESIGN §11: CPU of the gateway a request, plain and a stream of 22 events, at c=16."""
ADDED_MS = 0.1
"""DESIGN §11: p50 at c=1 over the bare proxy's in the same run."""


class Way(Struct, frozen=True):
    """Something that answers chat requests: `pid` is the process whose CPU counts, None: not counted."""

    name: str
    url: str
    key: str
    model: str
    pid: int | None


class Cell(Struct, frozen=True):
    """Medians over the rounds of one way at one concurrency. `cpu_us`: user and system time an answer."""

    way: str
    connections: int
    stream: bool
    per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    cpu_us: float | None
    errors: int


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(way: Way, connections: int, stream: bool, seconds: float) -> Load:
    """Load from a process of its own."""
    command = [sys.executable, "-m", "bench.load", way.url, "--key", way.key, "--model", way.model]
    command += ["-c", str(connections), "--seconds", str(seconds), *(["--stream"] if stream else [])]
    done = subprocess.run(command, check=True, capture_output=True, timeout=seconds + 90)
    return msgspec.json.decode(done.stdout, type=Load)


def measure(ways: list[Way], seconds: float, rounds: int) -> list[Cell]:
    """Every way at every concurrency, plain and streaming, interleaved so that a neighbour disturbs all alike."""
    taken: dict[tuple[str, int, bool], list[tuple[Load, float | None]]] = {}
    for way in ways:
        load(way, 4, False, 0.5)
    for _ in range(rounds):
        for connections, stream in CELLS:
            for way in ways:
                before = cpu_s(way.pid) if way.pid else 0.0
                result = load(way, connections, stream, seconds)
                spent = (cpu_s(way.pid) - before) / max(result.answers, 1) * 1e6 if way.pid else None
                taken.setdefault((way.name, connections, stream), []).append((result, spent))
    return [_cell(way, connections, stream, results) for (way, connections, stream), results in taken.items()]


def _cell(way: str, connections: int, stream: bool, results: list[tuple[Load, float | None]]) -> Cell:
    loads = [result for result, _ in results]
    cpu = [spent for _, spent in results if spent is not None]
    return Cell(
        way,
        connections,
        stream,
        statistics.median(one.per_s for one in loads),
        statistics.median(one.latency_ms_p50 for one in loads),
        statistics.median(one.latency_ms_p99 for one in loads),
        statistics.median(cpu) if cpu else None,
        sum(one.errors for one in loads),
    )


@contextlib.contextmanager
def child(*argv: str, fd: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that prints its port, stopped at the end."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=() if fd is None else (fd,))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@contextlib.asynccontextmanager
async def fake_control(routes: Routes, link_key: str) -> AsyncIterator[int]:
    """Control's side of the link: pushes routes, records usage at once. Gives its port."""

    async def link(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {link_key}":
            raise web.HTTPUnauthorized
        ws = web.WebSocketResponse(max_msg_size=64 << 20)
        await ws.prepare(request)
        await ws.send_str(msgspec.json.encode(routes).decode())
        async for message in ws:
            said = msgspec.json.decode(message.data, type=GatewaySays)
            upto = said.upto if isinstance(said, Usage) else 0
            await ws.send_str(msgspec.json.encode(Recorded(said.journal, upto)).decode())
        return ws

    app = web.Application()
    app.router.add_get("/link/gateway", link)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def wait_ready(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def idle(seconds: float, rounds: int) -> list[Cell]:
    """Engine, bare proxy and gateway, with nothing else running."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        link_key, key = secrets.token_hex(16), "bench-" + secrets.token_hex(8)
        (home / "link.key").write_text(link_key)
        engine = stack.enter_context(child(sys.executable, "-m", "bench.instant_engine"))
        engine_url = f"http://127.0.0.1:{port_of(engine)}"
        bare = stack.enter_context(child(sys.executable, "-m", "bench.bare_proxy", engine_url))
        bare_url = f"http://127.0.0.1:{port_of(bare)}"
        replica = Replica("w0.0.1", engine_url, "engine-key", 64)
        grant = KeyGrant("k1", "default")
        routes = Routes({hashlib.sha256(key.encode()).hexdigest(): grant}, {"instant": (replica,)})
        async with fake_control(routes, link_key) as control_port:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            fd = listener.fileno()
            code = (
                "from pathlib import Path; from dure.app.gateway import run; "
                f"run(Path({str(home)!r}), {fd}, {control_port}, 9)"
            )
            gateway = stack.enter_context(child(sys.executable, "-c", code, fd=fd))
            gateway_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            await wait_ready(gateway_url)
            ways = [
                Way("engine", engine_url, key, "instant", engine.pid),
                Way("bare proxy", bare_url, key, "instant", bare.pid),
                Way("gateway", gateway_url, key, "instant", gateway.pid),
            ]
            return await asyncio.to_thread(measure, ways, seconds, rounds)


def table(cells: list[Cell]) -> str:
    """The cells, and what DESIGN §11 asks beside what was measured."""
    head = f"{'':12}{'c':>3} {'':7}{'answers/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs':>8}{'errors':>8}"
    lines = [head]
    for cell in cells:
        cpu = "-" if cell.cpu_us is None else f"{cell.cpu_us:.0f}"
        kind = "stream" if cell.stream else "plain"
        lines.append(
            f"{cell.way:12}{cell.connections:>3} {kind:7}{cell.per_s:>10,.0f}{cell.latency_ms_p50:>9.3f}"
            f"{cell.latency_ms_p99:>9.2f}{cpu:>8}{cell.errors:>8}"
        )
    at = {(cell.way, cell.connections, cell.stream): cell for cell in cells}
    for stream in (False, True):
        kind = "22-event stream" if stream else "request"
        mine, bare = at.get(("gateway", 16, stream)), at.get(("bare proxy", 16, stream))
        if mine is not None and mine.cpu_us is not None:
            ratio = f", {mine.cpu_us / bare.cpu_us:.2f} x the bare proxy" if bare is not None and bare.cpu_us else ""
            lines.append(_verdict(f"CPU a {kind}, c=16{ratio}", mine.cpu_us, CPU_LIMIT_US[stream], "µs"))
        mine, bare = at.get(("gateway", 1, stream)), at.get(("bare proxy", 1, stream))
        if mine is not None and bare is not None:
            added = mine.latency_ms_p50 - bare.latency_ms_p50
            lines.append(_verdict(f"p50 of a {kind} over the bare proxy's, c=1", added, ADDED_MS, "ms"))
    return "\n".join(lines)


def _verdict(what: str, value: float, limit: float, unit: str) -> str:
    return f"{'ok    ' if value <= limit else 'MISSED'} {what}: {value:.3g} {unit} (at most {limit:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--url", help="measure a running gateway instead")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--pid", type=int)
    asked = parser.parse_args()
    if asked.url:
        cells = measure([Way("gateway", asked.url, asked.key, asked.model, asked.pid)], asked.seconds, asked.rounds)
    else:
        cells = uvloop.run(idle(asked.seconds, asked.rounds))
    print(msgspec.json.encode(cells).decode() if asked.json else table(cells))


if __name__ == "__main__":
    main()
