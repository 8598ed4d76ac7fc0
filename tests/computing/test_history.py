"""Laws over any history: restarts, lost orders, crashes, stops, chips that come, go and change; few ends are kept."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from dure.computing import inbox as ib
from dure.computing.place.place import place
from dure.computing.state import ENDS, State, columns_of
from dure.computing.turn import Core
from dure.metering.ledger import check_chip_time, settle
from dure.model.chip import Chip
from dure.model.usage import TokenRow
from dure.model.wire import Forget, Order, RunStatus, Start, Stop, Usage
from dure.model.workload import Ask, ChipAsk, Command, Exit, Serve
from tests.computing.small import Small, beat, chip, hello, over, status

KEPT = 3
nodes = st.sampled_from("ab")
seconds = st.sampled_from((0.0, 0.4, 1.0, 3.0, 61.0))
shapes = st.builds(
    ChipAsk, st.sampled_from(("npu", "cpu")), st.sampled_from((1, 1, 1, 2)), st.sampled_from((300, 1000))
)
works = st.sampled_from((Command(("true",)), Command(("true",)), Serve("m")))
Becomes = Literal["same", "running", "well", "badly", "shutdown", "vanished"]
becomes: st.SearchStrategy[Becomes] = st.sampled_from(
    ("same", "running", "running", "well", "badly", "shutdown", "vanished")
)
Odd = Literal["no", "sick", "changed", "twice", "foreign"]
odds: st.SearchStrategy[Odd] = st.sampled_from(("no", "no", "no", "sick", "changed", "twice", "foreign"))
EXITS = {
    "well": Exit("exited", code=0),
    "badly": Exit("signalled", signal=9),
    "shutdown": Exit("shutdown"),
}


def assert_chips_add_up(state: State) -> None:
    """Law 1: no chip is overcommitted, and only live runs hold one."""
    for held in state.chips.values():
        assert held.held == sum(held.runs.values()) <= 1000
        assert all(state.runs[run].phase != "ended" for run in held.runs)
        assert held.runs or not held.gone


def assert_index_is_made_of_state(core: Core) -> None:
    """Also in how it breaks ties: a control that starts from a snapshot decides as this one does."""
    anew = columns_of(core.state)
    assert core.columns.snapshot() == anew.snapshot()
    for ask in (ChipAsk("npu", 1, 300), ChipAsk("npu", 2, 1000), ChipAsk("cpu", 2, 300)):
        assert place(core.columns, ask) == place(anew, ask)


def assert_waits_have_reasons(core: Core) -> None:
    """Each replica of what has not ended runs, or is needed; a workload with a need says why."""
    for held in core.state.workloads.values():
        if held.phase in ENDS or held.stop_by is not None:
            continue
        for replica in range(held.workload.ask.replicas):
            runs = replica in held.runs and core.state.runs[held.runs[replica]].phase != "ended"
            assert runs != (f"{held.workload.id}.{replica}" in core.state.needs)
            assert runs or held.reason is not None


def assert_few_ends_are_kept(state: State) -> None:
    assert len(state.ended) <= KEPT
    assert sum(held.phase in ENDS for held in state.workloads.values()) == len(state.ended)
    last = {run for held in state.workloads.values() for run in held.runs.values()}
    assert set(state.runs) == last, "of earlier attempts nothing is kept"


class History(RuleBasedStateMachine):
    """`actual`: what each node has, as it will tell in its next beat."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("dure.computing.state.KEPT_ENDED", KEPT)
        self.patch.setattr("dure.metering.ledger.KEPT_ENDED", KEPT)
        self.small = Small()
        self.actual: dict[str, dict[str, RunStatus]] = {"a": {}, "b": {}}
        self.boots = {"a": 1, "b": 1}
        self.energy_uj = 0

    def _turn(self, *items: ib.Item, after_s: float = 0, deaf: bool = False) -> None:
        """A turn; with `deaf` every order is lost on its way."""
        self.small.turn(*items, after_s=after_s)
        for effect in self.small.effects:
            if isinstance(effect, ib.Tell) and not deaf:
                self._obey(self.actual[effect.node], effect.order)

    def _obey(self, runs: dict[str, RunStatus], order: Order) -> None:
        match order:
            case Start():
                runs.setdefault(order.spec.run, status(order.spec.run, "starting"))
            case Stop():
                runs[order.run] = over(order.run, Exit("stopped"))
            case Forget():
                runs.pop(order.run, None)

    def _chips(self, node: str, npus: int, cpus: int, odd: Odd) -> tuple[Chip, ...]:
        own = [chip(node, index) for index in range(npus)] + [chip(node, index, "cpu") for index in range(cpus)]
        if own and odd == "sick":
            own[0] = replace(own[0], health="quarantined")
        elif own and odd == "changed":
            own[0] = replace(own[0], kind="cpu" if own[0].kind == "npu" else "npu")
        elif own and odd == "twice":
            own.append(own[0])
        elif odd == "foreign":
            other = "a" if node == "b" else "b"
            own += [replace(chip(node, 7), node="c"), chip("c", 7), replace(chip(other), node=node)]
        return tuple(own)

    @rule(node=nodes, npus=st.integers(0, 3), cpus=st.integers(0, 2), odd=odds, reboot=st.booleans())
    def join(self, node: str, npus: int, cpus: int, odd: Odd, reboot: bool) -> None:
        self.boots[node] += reboot
        chips = self._chips(node, npus, cpus, odd)
        self._turn(hello(node, chips, self.actual[node].values(), str(self.boots[node])), after_s=0.1)

    @rule(node=nodes)
    def leave(self, node: str) -> None:
        self._turn(ib.AgentGone(node, "cut"), after_s=0.1)

    @rule(work=works, shape=shapes, replicas=st.integers(1, 2), times=st.integers(1, 5), deaf=st.booleans())
    def submit(self, work: Command | Serve, shape: ChipAsk, replicas: int, times: int, deaf: bool) -> None:
        ask = Ask(work, shape, replicas=replicas if isinstance(work, Serve) else 1)
        self._turn(ib.Submit((ask,) * times, "k1", 1), after_s=0.1, deaf=deaf)

    @precondition(lambda self: self.small.state.workloads)
    @rule(data=st.data(), deaf=st.booleans())
    def stop(self, data: st.DataObject, deaf: bool) -> None:
        workload = data.draw(st.sampled_from(sorted(self.small.state.workloads)))
        self._turn(ib.StopWork(workload, "k1", 1), deaf=deaf)

    @rule(node=nodes, what=st.lists(becomes, min_size=1, max_size=4), meter=st.booleans(), after_s=seconds)
    def live(self, node: str, what: list[Becomes], meter: bool, after_s: float) -> None:
        """Time passes on a node, then it tells."""
        runs = self.actual[node]
        for number, (run, was) in enumerate(list(runs.items())):
            now = what[number % len(what)]
            cpu_s = was.cpu_ns / 1e9 + after_s / 2
            if now == "vanished":
                del runs[run]
            elif now in EXITS and was.phase != "ended":
                runs[run] = over(run, EXITS[now], cpu_s)
            elif now == "running" and was.phase != "ended":
                runs[run] = status(run, "running", cpu_s, f"http://{run}")
        self.energy_uj += int(after_s * 1e6)
        self._turn(beat(node, *runs.values(), energy_uj=self.energy_uj if meter else None), after_s=after_s)

    @rule(start=st.integers(0, 4), length=st.integers(0, 3))
    def usage(self, start: int, length: int) -> None:
        row = TokenRow("k1", "default", "m", "w1.0.1", 1, length, length, length)
        self._turn(ib.UsageIn(1, Usage("j", start, start + length, "00", (row,))))

    @rule(after_s=seconds)
    def tick(self, after_s: float) -> None:
        self._turn(ib.Tick(), after_s=after_s)

    @rule(name=st.sampled_from(("default", "lab")))
    def project(self, name: str) -> None:
        if self.small.state.next_workload > 8:
            self._turn(ib.MakeProject(name, "k1", 1), ib.MakeKey(name, f"{len(self.small.log):064}", False, "k1", 2))

    @rule()
    def restart(self) -> None:
        self.small.restart()

    @invariant()
    def laws_hold(self) -> None:
        assert_chips_add_up(self.small.state)
        assert_index_is_made_of_state(self.small.core)
        assert_waits_have_reasons(self.small.core)
        assert_few_ends_are_kept(self.small.state)

    def teardown(self) -> None:
        try:
            self.small.assert_replayable()
            assert check_chip_time(settle(self.small.core.ledger, self.small.now_ns)) == []
        finally:
            self.patch.undo()


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
