"""One seeded run of the whole cloud: production `turn` and log, simulated nodes, links that delay and break."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from functools import partial
from random import Random

from msgspec import Struct, json

from dure.computing import inbox as ib
from dure.computing.turn import Core
from dure.model.chip import Chip, Power
from dure.model.event import Entry
from dure.model.units import NS_PER_S
from dure.model.view import Submitted
from dure.model.workload import Ask, ChipAsk, Command, Exit, Serve
from dure.store.memory import MemoryLog
from dure.twin import laws
from dure.twin.links import Links
from dure.twin.node import SimNode

MODELS = ("sim-model",)
START_NS = 1_800_000_000 * NS_PER_S
KINDS = (("sim-npu", 32), ("sim-gpu", 24), ("sim-cpu", 8))
REST_S = 300
"""Quiet time after the arrivals, before and after the endpoints are stopped; then all must be at an end."""


class Result(Struct):
    """`broken` lists what each law found, empty when it held; `digest` is of the log's bytes."""

    seed: int
    chips: int
    kinds: int
    broken: dict[str, list[str]]
    digest: str
    rows: int
    workloads: int
    ended_by: dict[str, int]
    restarts: dict[str, int]

    @property
    def held(self) -> bool:
        return not any(self.broken.values())


def fleet() -> list[SimNode]:
    """64 chips of 3 kinds on 4 nodes."""
    nodes = []
    for number in range(4):
        chips = tuple(
            Chip(
                id=f"n{number}:{kind}{index}",
                node=f"n{number}",
                kind=kind,
                index=index,
                vendor="Simulated",
                model=kind,
                source="simulated",
                driver="simulated",
                tested_on="none",
                power=Power(20.0, 100.0, "simulated", "twin"),
            )
            for kind, count in KINDS
            for index in range(count // 4)
        )
        nodes.append(SimNode(f"n{number}", chips))
    return nodes


class Simulation:
    """Virtual time, one seed. Deliveries of one link direction keep their order; a cut link loses what is under way."""

    def __init__(self, seed: int, jobs: int) -> None:
        self.seed, self.random = seed, Random(seed)
        self.log = MemoryLog()
        self.core = Core(MODELS)
        self.nodes = {node.name: node for node in fleet()}
        self.now_ns = START_NS
        self.broken: dict[str, list[str]] = {"1 slices": [], "1 attempts": [], "4 refusals": [], "4 waits": []}
        self.restarts = {"control": 0, "agent": 0, "link": 0}
        self.jobs: list[str] = []
        self.served: list[str] = []
        self.stopped: list[str] = []
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._order = 0
        self.links = Links(self)
        self._plan(jobs)

    def at(self, delay_ns: int, do: Callable[[], object]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._order, do))

    def _plan(self, jobs: int) -> None:
        self.at(0, lambda: self.turn(ib.Started("twin"), ib.MakeProject("default", "twin", 1)))
        for name in self.nodes:
            self.at(1, partial(self.links.join, name))
        self.arrivals_s = max(10, jobs * 4 // 5)
        for _ in range(jobs):
            self._some_time(self._submit)
        for _ in range(jobs // 8):
            self._some_time(self._cancel)
            self._some_time(self._crash_run)
        for _ in range(6):
            self._some_time(self._crash_control)
            self._some_time(partial(self._break_link, True))
            self._some_time(partial(self._break_link, False))

    def _some_time(self, do: Callable[[], object]) -> None:
        """At a time of the arrivals, which begin when every node has joined."""
        self.at(self.random.randrange(2 * NS_PER_S, self.arrivals_s * NS_PER_S), do)

    def run(self) -> Result:
        """To the end of the rest. The endpoints are stopped when the arrivals are over."""
        self.at((self.arrivals_s + REST_S) * NS_PER_S, self._stop_endpoints)
        self.at((self.arrivals_s + 2 * REST_S) * NS_PER_S, self._heap.clear)
        self._tick()
        while self._heap:
            self.now_ns, _, do = heapq.heappop(self._heap)
            do()
            self.broken["1 slices"] += laws.slices(self.nodes.values())
            self.broken["1 attempts"] += laws.attempts(self.nodes.values())
            if any(len(found) > 20 for found in self.broken.values()):
                break
        return self._result()

    def _result(self) -> Result:
        entries = [entry for _, entry in self.log.read(0, self.log.head)]
        self.broken["2 chip time"] = laws.chip_time(self.core, entries, self.now_ns)
        self.broken["3 replay"] = laws.replayed(self.core, entries)
        self.broken["4 reasons"] = laws.reasons(self.core, entries)
        self.broken["ended"] = laws.ended(self.core, self.jobs, self.stopped)
        self.broken["agree"] = laws.agree(self.core, self.nodes.values())
        raw = b"\n".join(json.encode(entry) for entry in entries)
        phases: dict[str, int] = {}
        for held in self.core.state.workloads.values():
            phases[held.phase] = phases.get(held.phase, 0) + 1
        digest = hashlib.sha256(raw).hexdigest()
        chips = [chip for node in self.nodes.values() for chip in node.chips]
        return Result(
            seed=self.seed,
            chips=len(chips),
            kinds=len({chip.kind for chip in chips}),
            broken=self.broken,
            digest=digest,
            rows=len(entries),
            workloads=len(self.core.state.workloads),
            ended_by=phases,
            restarts=self.restarts,
        )

    # The world

    def _tick(self) -> None:
        self.at(NS_PER_S, self._tick)
        self.turn(ib.Tick())
        self.broken["4 waits"] += laws.unexplained(self.core)

    def _submit(self) -> None:
        kind = self.random.choice(KINDS)[0]
        milli = self.random.choice((1000, 1000, 500, 250, 300))
        count = self.random.choice((1, 1, 1, 2, 4, 9)) if milli == 1000 else 1
        serve = self.random.random() < 0.05
        work = Serve("sim-model") if serve else Command(("work",))
        ask = Ask(work, ChipAsk(kind, count, milli), replicas=self.random.choice((1, 2)) if serve else 1)
        done = self.turn(ib.Submit((ask,), "k1", 7))
        for submitted in done:
            largest = max(sum(chip.kind == kind for chip in node.chips) for node in self.nodes.values())
            if (submitted.refusal is not None) != (count > largest):
                self.broken["4 refusals"].append(f"{submitted}, though the largest node has {largest} of {count}")
            if submitted.refusal is None:
                (self.served if serve else self.jobs).append(submitted.id)

    def _cancel(self) -> None:
        if self.jobs or self.served:
            chosen = self.random.choice(self.jobs + self.served)
            self.stopped.append(chosen)
            self.turn(ib.StopWork(chosen, "k1", 8))

    def _stop_endpoints(self) -> None:
        self.broken["covered"] = laws.covered(self.core, self.now_ns)
        for workload in self.served:
            self.stopped.append(workload)
            self.turn(ib.StopWork(workload, "k1", 8))

    def _crash_run(self) -> None:
        alive = [run for node in self.nodes.values() for run in node.runs.values() if not run.over]
        if alive:
            run = self.random.choice(alive)
            run.ends_ns, run.exit = self.now_ns, Exit("signalled", signal=11)

    def _crash_control(self) -> None:
        """All memory of control is gone; it comes back from the log alone."""
        self.restarts["control"] += 1
        for name in self.nodes:
            self.links.drop(name)
        self.core = Core(MODELS)
        for _, entry in self.log.read(0, self.log.head):
            self.core.replay(entry.at_ns, entry.event)
        self.core.reindex()
        self.turn(ib.Started("twin"))
        for name in self.nodes:
            self.at(self.random.randrange(NS_PER_S, 3 * NS_PER_S), partial(self.links.join, name))

    def _break_link(self, agent_dies: bool) -> None:
        """A link is cut for a while. With the agent dead too, its runs go on and the next agent finds them."""
        name = self.random.choice(list(self.nodes))
        self.restarts["agent" if agent_dies else "link"] += 1
        self.nodes[name].boot += agent_dies
        self.links.cut(name)
        here = {run.spec.workload for run in self.nodes[name].runs.values() if run.spec and not run.over}
        for workload in sorted(here.intersection(self.served))[:1]:  # a stop the node cannot hear yet
            self.stopped.append(workload)
            self.turn(ib.StopWork(workload, "k1", 8))
        self.at(self.random.randrange(NS_PER_S, 40 * NS_PER_S), partial(self.links.join, name))

    def turn(self, *items: ib.Item) -> tuple[Submitted, ...]:
        answered: tuple[Submitted, ...] = ()
        events, effects = self.core.turn(self.now_ns, items)
        if events:
            self.log.append([Entry(self.now_ns, event) for event in events])
        for effect in effects:
            if isinstance(effect, ib.Tell):
                self.links.send_down(effect.node, effect.order)
            elif isinstance(effect, ib.Reply) and isinstance(effect.value, tuple):
                answered = effect.value
        return answered


def simulate(seed: int, jobs: int = 500) -> Result:
    """One seed, from an empty log to rest."""
    return Simulation(seed, jobs).run()
