"""The agent process of one node: its chips, its runs, its link to control, its metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import socket
import sys
from pathlib import Path

from dure import __version__
from dure.app.child import serve
from dure.app.metrics import Metrics, Now
from dure.computing.agent.link import Link
from dure.computing.agent.node import NodeRuns
from dure.computing.agent.run import Site
from dure.computing.agent.runs import home_id
from dure.hardware.driver import Driver, Host
from dure.hardware.drivers.cpu import CpuDriver
from dure.hardware.drivers.simulated import SimulatedDriver, load_fleet
from dure.hardware.inventory import discover
from dure.hardware.power import NodeMeter
from dure.model.chip import Chip, Node
from dure.model.errors import DureError

_LAST_WORDS_S = 3.0
_log = logging.getLogger("dure.agent")


def run(home: Path, fd: int, control_port: int, fleet: Path | None, node: str, watts_per_core: float | None) -> None:
    """Serve until SIGTERM, which leaves every run alive for the next agent, or SIGINT, which first stops them all.

    `fd` is the listening socket for `/metrics` and `/healthz`. Raises DureError when the home or the fleet is unusable.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    os.set_inheritable(fd, False)
    try:
        key = (home / "link.key").read_text(encoding="ascii").strip()
        own_id = home_id(home)
    except (OSError, ValueError) as error:
        raise DureError(f"The home {home} cannot be used", str(error), "Start it with dure up") from error
    host = Host()
    fleets = [SimulatedDriver(load_fleet(fleet))] if fleet is not None else []
    drivers: list[Driver] = [CpuDriver(watts_per_core), *fleets]
    inventory = discover(drivers, host, node)
    for problem in inventory.problems:
        _log.warning("driver %s: %s: %s", problem.driver, problem.state, problem.why)
    chips = {chip.id: chip for chip in inventory.chips}
    path = os.pathsep.join(os.get_exec_path())
    agent = _Agent(Site(home, own_id, key, chips, path), host, drivers, fleets)
    asyncio.run(agent.serve(f"ws://127.0.0.1:{control_port}/link/agent", node, socket.socket(fileno=fd)))


class _Agent:
    """The parts of the process, and what they show one another."""

    def __init__(self, site: Site, host: Host, drivers: list[Driver], fleets: list[SimulatedDriver]) -> None:
        self.site, self.host, self.drivers, self.fleets = site, host, drivers, fleets
        self.now = Now()
        self.meter = NodeMeter(host)
        self.energy: tuple[int, str] | None = None

    def read_meter(self) -> tuple[int, str] | None:
        self.energy = self.meter.read()
        return self.energy

    async def serve(self, url: str, name: str, listening: socket.socket) -> None:
        runs = NodeRuns(self.site)
        chips: tuple[Chip, ...] = tuple(self.site.chips.values())
        Metrics(self.drivers, self.host, chips, lambda: self.now, self.site.link_key).start(listening)
        await runs.adopt()
        asked: asyncio.Queue[int] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.put_nowait, number)
        link = Link(url, self.site.link_key, _node(self.host, name), chips, runs)
        tasks = [asyncio.create_task(link.keep(self.read_meter)), asyncio.create_task(self._show(runs))]
        told = asyncio.create_task(asked.get())
        await asyncio.wait({told, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and told.result() == signal.SIGINT:
            await runs.shutdown()
            await link.say_all(_LAST_WORDS_S)
        failed = [task.exception() for task in tasks if task.done()]
        for task in (told, *tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runs.let_go()
        for error in failed:  # the process ends, is started again, and adopts the runs
            raise error or RuntimeError("a task of the agent ended")

    async def _show(self, runs: NodeRuns) -> None:
        """Once a second, to the metrics and the simulated chips: what the runs hold and use."""
        while True:
            held = runs.held()
            self.now = Now(held, {status.run: status.cpu_ns for status in runs.statuses()}, self.energy)
            for fleet in self.fleets:
                fleet.held = held
            await asyncio.sleep(1.0)


def _node(host: Host, name: str) -> Node:
    total = re.search(r"^MemTotal:\s+(\d+) kB", host.read("proc/meminfo") or "", re.M)
    memory_mib = int(total[1]) // 1024 if total else 0
    return Node(name, socket.gethostname(), memory_mib, __version__, secrets.token_hex(8))


if __name__ == "__main__":
    sys.exit(serve(lambda told: run(told.home, told.fd, told.control, told.fleet, told.node, None)))
