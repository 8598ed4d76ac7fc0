"""A whole cloud under load: its gateway idle and busy, its submissions, its answers from the bundled model.

`python -m bench.cloud [--seconds S] [--rounds N]`. Everything, load generators included, shares this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from bench.figures import Figure
from bench.gateway import Cell, Way, measure
from bench.load import Load, drive
from dure.client import Client, find
from dure.model.view import RunView
from dure.model.wire import engine_key
from dure.model.workload import Ask, ChipAsk, Command, Serve

FLEET = """
[[chips]]
kind = "sim-npu"
count = 10000
racks = 100
vendor = "Simulated"
memory_mib = 49152
idle_w = 40
full_w = 180
speed = 1.0
run_s = 1.0
"""
SUBMISSIONS_A_SECOND = 200
MODEL = "smollm2-135m"


@contextlib.contextmanager
def cloud(folder: Path, *options: str) -> Iterator[tuple[Client, Path]]:
    """`dure up` in a new home under `folder`; its client and home."""
    home = folder / "home"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "dure.app", "up", "--no-model", "--home", str(home), "--port", str(port), *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        said = b""
        while b"ready:" not in said:
            line = process.stdout.readline()
            assert line, f"dure up ended: {said.decode()}"
            said += line
        yield find(home), home
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def serve(client: Client, model: str, slots: int) -> RunView:
    """Deploy, and wait until it answers."""
    workload = client.submit([Ask(Serve(model, slots), ChipAsk("cpu", 1, 1000))])[0].id
    deadline = time.monotonic() + 300
    while True:
        runs = client.workload(workload).runs
        if runs and runs[0].phase == "running":
            return runs[0]
        assert time.monotonic() < deadline, client.why(workload)
        time.sleep(0.1)


def ways(client: Client, home: Path, run: RunView, model: str) -> list[Way]:
    """The engine itself, and the gateway before it."""
    url, key = (home / "url").read_text().strip(), (home / "admin.key").read_text().strip()
    gateway = json.loads((home / "run" / "pids.json").read_text())["gateway"]
    own = engine_key((home / "link.key").read_text().strip(), run.id)
    return [Way("engine", run.url or "", own, model, None), Way("gateway", url, key, model, gateway)]


class Busy:
    """In the background: 200 submissions a second one by one, and a scrape of /metrics each second."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key, self._stop = url, key, threading.Event()
        self.submitted = self.scraped = 0
        self._threads = [threading.Thread(target=act) for act in (self._submit, self._scrape)]

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._url.removeprefix("http://"), timeout=30)

    def _submit(self) -> None:
        connection, began = self._connection(), time.monotonic()
        body = msgspec.json.encode(Ask(Command(("work",)), ChipAsk("sim-npu", 1, 1000)))
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        while not self._stop.is_set():
            connection.request("POST", "/api/workloads", body, headers)
            answer = connection.getresponse()
            answer.read()
            self.submitted += answer.status == 201
            self._stop.wait(max(0.0, began + self.submitted / SUBMISSIONS_A_SECOND - time.monotonic()))

    def _scrape(self) -> None:
        connection = self._connection()
        while not self._stop.is_set():
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            self.scraped += answer.status == 200 and len(answer.read()) > 1_000_000
            self._stop.wait(1.0)


def under_load(folder: Path, seconds: float, rounds: int) -> list[Figure]:
    """The gateway over an instant engine in a cloud of 10,000 simulated chips: quiet, then busy."""
    (folder / "fleet.toml").write_text(FLEET)
    with cloud(folder, "--fleet", str(folder / "fleet.toml")) as (client, home):
        over = ways(client, home, serve(client, "simulated-echo", 64), "simulated-echo")
        quiet = measure(over, seconds, rounds)
        began = time.monotonic()
        with Busy(over[1].url, over[1].key) as busy:
            loaded = measure(over, seconds, rounds)
            rate = busy.submitted / (time.monotonic() - began)
        figures = [*_cells("quiet, 10,000 chips", quiet), *_cells("under load", loaded, 15.0)]
        scraped = f"/metrics of 10,000 chips scraped {busy.scraped} times meanwhile"
        figures.append(Figure("submissions/s kept up under load", round(rate, 1), "/s", at_least=190, beside=scraped))
        return figures


def _cells(when: str, cells: list[Cell], p99_ms: float | None = None) -> list[Figure]:
    at = {(cell.way, cell.connections, cell.stream): cell for cell in cells}
    figures = []
    for (way, connections, stream), cell in at.items():
        if way != "gateway":
            continue
        engine = at["engine", connections, stream]
        what = f"{'stream' if stream else 'plain'}, c={connections}, {when}"
        engine_said = f"engine alone {engine.latency_ms_p50:.2f} / {engine.latency_ms_p99:.2f} ms"
        added50, added99 = (
            cell.latency_ms_p50 - engine.latency_ms_p50,
            cell.latency_ms_p99 - engine.latency_ms_p99,
        )
        figures.append(Figure(f"gateway added p50, {what}", round(added50, 3), "ms", beside=engine_said))
        figures.append(Figure(f"gateway added p99, {what}", round(added99, 3), "ms", p99_ms, beside=engine_said))
        if cell.cpu_us is not None:
            figures.append(Figure(f"gateway CPU, {what}", round(cell.cpu_us, 1), "µs a request"))
        if cell.errors:
            figures.append(Figure(f"errors, {what}", cell.errors, "answers", at_most=0))
    return figures


def submissions(folder: Path, seconds: float) -> list[Figure]:
    """Durable submissions through the front door, each answered after its events are on disk. The 1,000 chips
    are soon taken, for 30 s each; what comes then is explained and waits."""
    fleet = FLEET.replace("count = 10000", "count = 1000").replace("run_s = 1.0", "run_s = 30.0")
    (folder / "fleet.toml").write_text(fleet)
    body = Ask(Command(("work",)), ChipAsk("sim-npu", 1, 1000))
    with cloud(folder, "--fleet", str(folder / "fleet.toml")) as (client, home):
        url, key = (home / "url").read_text().strip(), (home / "admin.key").read_text().strip()
        way = Way("gateway", url, key, "", None)
        one = _load(way, msgspec.json.encode(body), 64, seconds)
        many = _load(way, msgspec.json.encode([body] * 100), 16, seconds)
        waiting = sum(view.phase == "waiting" for view in client.workloads())
    direct = f"{one.errors} errors, p50 {one.latency_ms_p50:.1f} ms"
    return [
        Figure("submissions/s over HTTP, 64 clients, one each", round(one.per_s), "/s", at_least=2000, beside=direct),
        Figure(
            "submissions/s over HTTP, batches of 100, 16 clients",
            round(many.per_s * 100),
            "/s",
            at_least=20_000,
            beside=f"{many.errors} errors, p50 {many.latency_ms_p50:.1f} ms a batch; {waiting:,} wait at the end",
        ),
    ]


def _load(way: Way, body: bytes, connections: int, seconds: float) -> Load:
    host = way.url.removeprefix("http://")
    head = f"POST /api/workloads HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {way.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return uvloop.run(drive(way.url, head.encode() + body, connections, seconds))


def answers(folder: Path, models: Path | None, rounds: int) -> list[Figure]:
    """Tokens/s and time to the first token of the bundled model: through the gateway, and at the engine itself."""
    if models is not None:
        shutil.copytree(models, folder / "home" / "models")
    with cloud(folder) as (client, home):
        over = ways(client, home, serve(client, MODEL, 4), MODEL)
        taken: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for connections in (1, 4):
                for way in over:
                    taken.setdefault((connections, way.name), []).append(_stream_all(way, connections))
    figures = []
    for connections in (1, 4):
        (speed, ttft), (bare_speed, bare_ttft) = (
            tuple(statistics.median(column) for column in zip(*taken[connections, name], strict=True))
            for name in ("gateway", "engine")
        )
        ratio = speed / bare_speed
        beside = f"bare engine {bare_speed:.1f}: ratio {ratio:.2f}"
        figures.append(
            Figure(f"tokens/s through the gateway, c={connections}", round(speed, 1), "tok/s", beside=beside)
        )
        beside = f"bare engine {bare_ttft:.1f} ms"
        figures.append(Figure(f"TTFT through the gateway, c={connections}", round(ttft, 1), "ms", beside=beside))
    return figures


def _stream_all(way: Way, connections: int) -> tuple[float, float]:
    """Tokens/s in all and median ms to the first token, `connections` streams at once, 48 tokens each."""
    first: list[float] = []
    tokens: list[int] = []
    began = time.monotonic()
    threads = [threading.Thread(target=_stream, args=(way, number, first, tokens)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.monotonic() - began), statistics.median(first) * 1e3


def _stream(way: Way, number: int, first: list[float], tokens: list[int]) -> None:
    connection = http.client.HTTPConnection(way.url.removeprefix("http://"), timeout=120)
    messages = [{"role": "user", "content": f"{time.time_ns()} Write a story about {number + 2} farmers and a field."}]
    body = {"model": way.model, "messages": messages, "max_tokens": 48, "stream": True, "ignore_eos": True}
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {way.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer, seen = connection.getresponse(), 0
    assert answer.status == 200, answer.read()
    for line in answer:
        if line.startswith(b"data:") and b'"content":"' in line:
            if not seen:
                first.append(time.monotonic() - began)
            seen += 1
    tokens.append(seen)


def figures(seconds: float, rounds: int, models: Path | None) -> list[Figure]:
    """All of this page. `models`: a model store to copy, so that nothing is fetched again."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        loaded = under_load(Path(first), seconds, rounds)
        submitted = submissions(Path(second), 2 * seconds)
    with tempfile.TemporaryDirectory() as third:
        return [*loaded, *submitted, *answers(Path(third), models, rounds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path)
    asked = parser.parse_args()
    for figure in figures(asked.seconds, asked.rounds, asked.models):
        print(figure.line())
