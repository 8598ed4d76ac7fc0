"""A small cloud without processes: the core, its log, and what nodes say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from msgspec import json

from dure.computing import inbox as ib
from dure.computing.state import RunState, State, WorkloadState
from dure.computing.turn import Core
from dure.model.chip import Chip, Health, Node, Power
from dure.model.event import Entry, Event
from dure.model.units import NS_PER_S
from dure.model.view import Submitted
from dure.model.wire import Beat, Hello, RunStatus
from dure.model.workload import Ask, ChipAsk, Command, Exit, RunPhase, Serve

START_NS = 1_800_000_000 * NS_PER_S
"""Begins a minute."""
WATTS = Power(10.0, 100.0, "configured", "made up")
JOB = Ask(Command(("true",)), ChipAsk("npu", 1, 1000))
SERVE = Ask(Serve("m"), ChipAsk("npu", 1, 1000))
T = TypeVar("T")


def chip(node: str, index: int = 0, kind: str = "npu", health: Health = "healthy") -> Chip:
    """A simulated chip of 100 W; of kind `cpu` a real core of 100 W."""
    real = kind == "cpu"
    return Chip(
        id=f"{node}:{kind}{index}",
        node=node,
        kind=kind,
        index=index,
        vendor="Nobody",
        model=kind,
        source="real" if real else "simulated",
        driver="cpu" if real else "simulated",
        tested_on="none",
        power=WATTS,
        health=health,
    )


def chips(node: str, count: int, kind: str = "npu") -> tuple[Chip, ...]:
    return tuple(chip(node, index, kind) for index in range(count))


def hello(node: str, has: Iterable[Chip], runs: Iterable[RunStatus] = (), boot: str = "1") -> ib.AgentHello:
    return ib.AgentHello(Hello(Node(node, node, 1024, "test", boot), tuple(has), tuple(runs)))


def beat(node: str, *runs: RunStatus, energy_uj: int | None = None) -> ib.AgentBeat:
    return ib.AgentBeat(node, Beat(runs, energy_uj, "meter" if energy_uj is not None else ""))


def status(run: str, phase: RunPhase = "running", cpu_s: float = 0, url: str | None = None) -> RunStatus:
    return RunStatus(run, phase, int(cpu_s * NS_PER_S), pid=7, url=url)


def over(run: str, exit: Exit | None = None, cpu_s: float = 0) -> RunStatus:
    """A run that ended; well, unless `exit` says otherwise."""
    return RunStatus(run, "ended", int(cpu_s * NS_PER_S), exit=exit or Exit("exited", code=0))


class Small:
    """Project `default`, model `m`, no node. `events` and `effects` are of the last turn, `log` of all."""

    def __init__(self) -> None:
        self.core = Core(("m",))
        self.now_ns = START_NS
        self.log: list[Entry] = []
        self.events: list[Event] = []
        self.effects: list[ib.Effect] = []
        self.turn(ib.Started("test"), ib.MakeProject("default", "test", 0))

    @property
    def state(self) -> State:
        return self.core.state

    def turn(self, *items: ib.Item, after_s: float = 0) -> list[Event]:
        """One turn, `after_s` later than the last."""
        self.now_ns += int(after_s * NS_PER_S)
        self.events, self.effects = self.core.turn(self.now_ns, items)
        self.log += [Entry(self.now_ns, event) for event in self.events]
        return self.events

    def submit(self, *asks: Ask) -> tuple[Submitted, ...]:
        self.turn(ib.Submit(asks, "k1", 1))
        done = self.replies()[0]
        assert isinstance(done, tuple)
        return done

    def job(self, ask: Ask = JOB) -> WorkloadState:
        """The state of one workload, submitted now."""
        return self.state.workloads[self.submit(ask)[0].id]

    def run(self, workload: WorkloadState, replica: int = 0) -> RunState:
        return self.state.runs[workload.runs[replica]]

    def of(self, kind: type[T]) -> list[T]:
        """The last turn's events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def orders(self, node: str, kind: type[T] | tuple[type[T], ...]) -> list[T]:
        """The last turn's orders of one kind to a node."""
        told = [effect.order for effect in self.effects if isinstance(effect, ib.Tell) and effect.node == node]
        return [order for order in told if isinstance(order, kind)]

    def replies(self) -> list[object]:
        return [effect.value for effect in self.effects if isinstance(effect, ib.Reply)]

    def told_nodes(self) -> set[str]:
        return {effect.node for effect in self.effects if isinstance(effect, ib.Tell)}

    def restarted(self) -> Core:
        """What a control that starts now knows: the log, through its bytes."""
        core = Core(self.core.models)
        for entry in json.decode(json.encode(self.log), type=list[Entry]):
            core.replay(entry.at_ns, entry.event)
        core.reindex()
        return core

    def restart(self) -> None:
        """Control is killed and starts again from its log."""
        self.core = self.restarted()
        self.turn(ib.Started("test"))

    def assert_replayable(self) -> None:
        """Law 3, and the placement index is the one made of the state."""
        again = self.restarted()
        assert json.encode(again.state) == json.encode(self.state)
        assert json.encode(again.ledger) == json.encode(self.core.ledger)
        assert again.columns.snapshot() == self.core.columns.snapshot()
        from_snapshot = Core(self.core.models, json.decode(json.encode(self.state), type=State))
        assert from_snapshot.columns.snapshot() == self.core.columns.snapshot()
