"""A simulated node: keeps the agent's promises (idempotent orders, tombstones, runs that outlive the agent)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from dure.model.chip import Chip, Node
from dure.model.units import NS_PER_S
from dure.model.wire import Beat, Forget, Hello, Order, RunSpec, RunStatus, Start, Stop
from dure.model.workload import Command, Exit

STOP_NS = NS_PER_S // 2


class SimRun(Struct):
    """A run on the node. `ends_ns`: when it will end by itself. `spec` None: a tombstone of a stop
    that came before the start."""

    run: str
    spec: RunSpec | None
    started_ns: int
    ends_ns: int
    ready_ns: int
    exit: Exit
    over: bool = False


class SimNode:
    """One node's agent and its runs. The caller gives the time and the chance."""

    def __init__(self, name: str, chips: tuple[Chip, ...]) -> None:
        self.name, self.chips = name, chips
        self.boot = 1
        self.runs: dict[str, SimRun] = {}

    def obey(self, order: Order, now_ns: int, lasts_ns: int, exit: Exit) -> None:
        """One order. A started run would last `lasts_ns` and end with `exit`."""
        match order:
            case Start():
                if order.spec.run not in self.runs:
                    job = isinstance(order.spec.work, Command)
                    ready_ns = now_ns if job else now_ns + NS_PER_S
                    ends_ns = now_ns + lasts_ns
                    self.runs[order.spec.run] = SimRun(order.spec.run, order.spec, now_ns, ends_ns, ready_ns, exit)
            case Stop():
                run = self.runs.get(order.run)
                if run is None:
                    over = Exit("stopped", detail="stopped before it started")
                    self.runs[order.run] = SimRun(order.run, None, now_ns, now_ns, now_ns, over, True)
                elif not run.over and run.exit.reason != "stopped":
                    run.exit, run.ends_ns = Exit("stopped", signal=15), min(run.ends_ns, now_ns + STOP_NS)
            case Forget():
                run = self.runs.get(order.run)
                if run is not None and run.over:
                    del self.runs[order.run]
            case _:
                pass

    def advance(self, now_ns: int) -> bool:
        """End what has run out; True when something ended."""
        ended = [run for run in self.runs.values() if not run.over and run.ends_ns <= now_ns]
        for run in ended:
            run.over = True
        return bool(ended)

    def held(self) -> Iterator[tuple[str, str, int]]:
        """(run, chip, milli) of every run alive on the node, whatever control believes."""
        for run in self.runs.values():
            if not run.over and run.spec is not None:
                for piece in run.spec.slices:
                    yield run.run, piece.chip, piece.milli

    def beat(self, now_ns: int) -> Beat:
        return Beat(tuple(self._status(run, now_ns) for run in self.runs.values()))

    def hello(self, now_ns: int) -> Hello:
        node = Node(self.name, self.name, 1024, "twin", f"{self.name}-{self.boot}")
        return Hello(node, self.chips, self.beat(now_ns).runs)

    def _status(self, run: SimRun, now_ns: int) -> RunStatus:
        cpu_ns = max(0, min(now_ns, run.ends_ns) - run.started_ns) // 2
        if run.over:
            return RunStatus(run.run, "ended", cpu_ns, exit=run.exit)
        if now_ns < run.ready_ns:
            return RunStatus(run.run, "starting", cpu_ns, pid=1)
        url = None if run.spec is None or isinstance(run.spec.work, Command) else f"sim://{run.run}"
        return RunStatus(run.run, "running", cpu_ns, pid=1, url=url)
