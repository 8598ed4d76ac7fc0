"""The agent as a real process, linked to a fake control: what it says, obeys, and survives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from dure.model.wire import AgentSays, Beat, Forget, Hello, Lease, LogChunk, Order, ReadLog, RunStatus, Start, Stop
from dure.model.workload import Command, Exit, Serve
from tests.computing.agent.lab import IGNORES_TERM, SLEEPS, Lab, lives, spec, until

pytestmark = pytest.mark.slow

KEY = "the-link-key"
RUN = """
import sys
from pathlib import Path
from dure.app.agent import run
home, fd, control, fleet = sys.argv[1:]
run(Path(home), int(fd), int(control), Path(fleet) if fleet else None, "n", 7.5)
"""
FLEET = '[[chips]]\nkind = "sim-npu"\ncount = 10000\nidle_w = 40\nfull_w = 180\nrun_s = 0.2\n'


class FakeControl:
    """One WebSocket server on a port of its own; it keeps what it hears, and answers each beat with a lease."""

    def __init__(self, port: int = 0) -> None:
        self.heard: list[AgentSays] = []
        self.refused = 0
        self._socket: web.WebSocketResponse | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = port
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(30)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/link/agent", self._link)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._end.wait()
        if self._socket is not None:
            await self._socket.close()
        await runner.cleanup()

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            self.refused += 1
            raise web.HTTPForbidden
        self._socket = made = web.WebSocketResponse(max_msg_size=1 << 26)
        await made.prepare(request)
        async for message in made:
            assert message.type is aiohttp.WSMsgType.TEXT
            said = msgspec.json.decode(message.data, type=AgentSays)
            self.heard.append(said)
            if not isinstance(said, LogChunk):
                await made.send_str(msgspec.json.encode(Lease(30.0)).decode())
        return made

    def order(self, order: Order) -> None:
        self.send(msgspec.json.encode(order).decode())

    def send(self, frame: str | bytes) -> None:
        assert self._socket is not None
        sending = self._socket.send_str(frame) if isinstance(frame, str) else self._socket.send_bytes(frame)
        asyncio.run_coroutine_threadsafe(sending, self._loop).result(30)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(30)
            self._loop.close()

    def last(self, run: str) -> RunStatus | None:
        """The run in the newest full report."""
        for said in reversed(self.heard):
            if isinstance(said, Hello | Beat):
                return next((status for status in said.runs if status.run == run), None)
        return None

    def when(self, run: str, wanted: Callable[[RunStatus], bool]) -> RunStatus:
        def there() -> RunStatus | None:
            status = self.last(run)
            return status if status is not None and wanted(status) else None

        return until(there)

    def running(self, run: str) -> RunStatus:
        return self.when(run, lambda status: status.phase == "running")

    def exit(self, run: str) -> Exit | None:
        return self.when(run, lambda status: status.phase == "ended").exit

    def hellos(self) -> list[Hello]:
        return [said for said in self.heard if isinstance(said, Hello)]


class Agents:
    """Agents of one home, one after another, all on one listening socket."""

    def __init__(self, lab: Lab, control_port: int, fleet: Path | None = None) -> None:
        (lab.home / "link.key").write_text(KEY + "\n")
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        fd = self.listening.fileno()
        self._argv = [sys.executable, "-c", RUN, str(lab.home), str(fd), str(control_port), str(fleet or "")]
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(self._argv, pass_fds=[self.listening.fileno()], stderr=subprocess.DEVNULL)
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def close(self) -> None:
        self.kill()
        self.listening.close()


@pytest.fixture
def control() -> Iterator[FakeControl]:
    made = FakeControl()
    yield made
    made.close()


@pytest.fixture
def agents(lab: Lab, control: FakeControl) -> Iterator[Agents]:
    made = Agents(lab, control.port)
    yield made
    made.close()


def start(run: str, *argv: str) -> Start:
    return Start(spec(run, Command(argv), ("n:cpu0", 100)))


def test_a_job_is_run_and_told(agents: Agents, control: FakeControl) -> None:
    hello = until(lambda: next(iter(control.hellos()), None))
    assert hello.node.id == "n" and hello.node.memory_mib > 0 and hello.runs == ()
    assert {chip.kind for chip in hello.chips} == {"cpu"}
    assert hello.chips[0].power is not None and hello.chips[0].power.full_w == 7.5
    control.send("not json")
    control.send('{"type": "dance"}')
    control.send(b"binary")
    control.order(Stop("../../etc"))
    control.order(start("w1.0.1", "sh", "-c", "echo hello; exit 3"))
    assert control.exit("w1.0.1") == Exit("exited", code=3)
    control.order(ReadLog(5, "w1.0.1", 1))
    chunk = until(lambda: next((said for said in control.heard if isinstance(said, LogChunk)), None))
    assert chunk == LogChunk(5, 1, b"ello\n")
    control.order(Forget("w1.0.1"))
    until(lambda: control.last("w1.0.1") is None)
    assert len(control.hellos()) == 1


def test_control_may_go_away_and_come_back(agents: Agents, control: FakeControl) -> None:
    until(lambda: control.hellos() != [])
    control.order(start("w1.0.1", *SLEEPS))
    control.order(start("w2.0.1", "sh", "-c", "while ! [ -e go ]; do sleep 0.02; done"))
    before, going = control.running("w1.0.1"), control.running("w2.0.1")
    control.close()
    Path(f"/proc/{going.pid}/cwd/go").touch()
    back = FakeControl(control.port)
    try:
        hello = until(lambda: next(iter(back.hellos()), None))
        assert hello.node.boot == control.hellos()[0].node.boot
        assert back.running("w1.0.1").pid == before.pid
        assert back.exit("w2.0.1") == Exit("exited", code=0)
    finally:
        back.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_agent_goes_on_with_the_runs(agents: Agents, control: FakeControl, number: int) -> None:
    until(lambda: control.hellos() != [])
    control.order(start("w1.0.1", *SLEEPS))
    control.order(Start(spec("w2.0.1", Serve("simulated-echo"))))
    before = control.running("w1.0.1"), control.running("w2.0.1")
    agents.process.send_signal(number)
    assert agents.process.wait(30) == (0 if number == signal.SIGTERM else -9)
    agents.start()
    hello = until(lambda: next(iter(control.hellos()[1:]), None))
    assert hello.node.boot != control.hellos()[0].node.boot
    for old in before:
        new = next(status for status in hello.runs if status.run == old.run)
        assert (new.phase, new.pid, new.url) == ("running", old.pid, old.url)


def test_everything_killed_leaves_no_orphan(agents: Agents, control: FakeControl, lab: Lab) -> None:
    until(lambda: control.hellos() != [])
    control.order(start("w1.0.1", "sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & wait"))
    control.running("w1.0.1")
    pids = until(lambda: lab.live_pids() if len(lab.live_pids()) == 3 else None)
    agents.kill()
    holds = Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1]
    for pid in (int(holds), min(pids)):
        os.kill(pid, signal.SIGKILL)
    agents.start()
    exit = control.exit("w1.0.1")
    assert exit is not None and exit.reason == "lost"
    assert not lab.live_pids() and not any(lives(pid) for pid in pids)


def test_an_interrupt_ends_every_run_and_says_so(agents: Agents, control: FakeControl, lab: Lab) -> None:
    until(lambda: control.hellos() != [])
    for number in range(3):
        control.order(start(f"w{number}.0.1", *SLEEPS))
    for number in range(3):
        control.running(f"w{number}.0.1")
    agents.process.send_signal(signal.SIGINT)
    assert agents.process.wait(30) == 0
    for number in range(3):
        assert control.exit(f"w{number}.0.1") == Exit("shutdown", signal=15)
    assert not lab.live_pids()


def test_a_deaf_run_is_killed_on_interrupt(agents: Agents, control: FakeControl) -> None:
    until(lambda: control.hellos() != [])
    control.order(start("w1.0.1", *IGNORES_TERM))
    control.running("w1.0.1")
    agents.process.send_signal(signal.SIGINT)
    assert agents.process.wait(30) == 0
    assert control.exit("w1.0.1") == Exit("shutdown", signal=9)


def test_a_wrong_link_key_is_tried_again(lab: Lab, control: FakeControl) -> None:
    agents = Agents(lab, control.port)
    (lab.home / "link.key").write_text("wrong")
    try:
        agents.kill()
        agents.start()
        until(lambda: control.refused >= 2)
        assert agents.process.poll() is None
    finally:
        agents.close()


def scrape(url: str, key: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_ten_thousand_simulated_chips(lab: Lab, control: FakeControl, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    agents = Agents(lab, control.port, tmp_path / "fleet.toml")
    try:
        hello = until(lambda: next(iter(control.hellos()), None))
        assert sum(chip.source == "simulated" for chip in hello.chips) == 10_000
        control.order(Start(spec("w1.0.1", Command(("x",)), ("n:sim-npu-7", 500))))
        control.order(start("w2.0.1", *SLEEPS))
        assert control.exit("w1.0.1") == Exit("exited", code=0, detail="simulated")
        control.running("w2.0.1")
        assert scrape(agents.url + "/metrics", "")[0] == 401
        assert scrape(agents.url + "/metrics", "é")[0] == 401
        assert scrape(agents.url + "/healthz", "")[0] == 200

        def complete() -> str | None:
            seen = scrape(agents.url + "/metrics", KEY)[1]
            return seen if 'run="w2.0.1"' in seen else None

        text = until(complete)
        assert 'dure_chip_held_ratio{id="n:cpu0"} 0.1' in text
        assert text.count("dure_chip_power_watts{") == 10_000
    finally:
        agents.close()


def test_a_home_without_a_link_key_is_an_error(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        argv = [sys.executable, "-c", RUN, str(lab.home), str(listening.fileno()), "1", ""]
        ended = subprocess.run(argv, pass_fds=[listening.fileno()], stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == 1 and b"cannot be used" in ended.stderr
