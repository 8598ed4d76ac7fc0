"""Long lists and reports do not hold up the loop: rendered in pieces, or in a thread from a ledger of its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from dure.cloud.api import views
from dure.cloud.api.resources import in_pieces
from dure.computing import inbox as ib
from dure.computing.turn import Core
from dure.metering import report as reports
from dure.metering.ledger import Ledger
from dure.model.chip import Node, Power
from dure.model.usage import TokenRow
from dure.model.view import ChipView, Report, WorkloadView
from dure.model.wire import Beat, Hello, RunStatus, Usage
from dure.model.workload import Ask, ChipAsk, Exit, Serve
from tests.cloud.api.served import Served, cores, job

T0_NS = 1_790_000_000_000_000_000
MINUTE_NS = 60_000_000_000
ROW = TokenRow("k1", "default", "simulated-echo", "w1.0.1", 29_833_333, 1, 5, 7)


def a_cloud(jobs: int = 5) -> Core:
    """An endpoint that answers as w1, `jobs` jobs of which the first has ended."""
    core = Core(["simulated-echo"])
    asks = (Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 500)), *[job()] * jobs)
    power = Power(2.0, 10.0, "configured", "example")
    chips = tuple(msgspec.structs.replace(chip, power=power) for chip in cores(4))
    hello = Hello(Node("n", "h", 1, "0", "b"), chips, ())
    core.turn(T0_NS, [ib.MakeProject("default", "up", 1), ib.AgentHello(hello), ib.Submit(asks, "k1", 2)])
    beat(core, T0_NS + 1, cpu_ns=5)
    return core


def beat(core: Core, now_ns: int, cpu_ns: int) -> None:
    statuses = [RunStatus(run, "running", cpu_ns, 42) for run in core.state.runs if run != "w2.0.1"]
    statuses += [RunStatus("w2.0.1", "ended", cpu_ns, exit=Exit("exited", 0))]
    core.turn(now_ns, [ib.AgentBeat("n", Beat(tuple(statuses)))])


def test_others_have_their_turn_while_a_long_list_is_rendered() -> None:
    async def main() -> None:
        core = a_cloud(0)
        held, turns = core.state.workloads["w1"], 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        answer = await in_pieces(views.workload(core, held) for _ in range(5000))
        task.cancel()
        assert turns >= 40
        assert len(msgspec.json.decode(answer.content, type=list[WorkloadView])) == 5000

    asyncio.run(main())


@pytest.mark.parametrize("what", ["usage", "energy", "cost"])
def test_a_report_is_written_in_a_thread(control: Served, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, threads = getattr(reports, what), []

    def spied(*given: object) -> object:
        threads.append(threading.current_thread())
        return real(*given)

    monkeypatch.setattr(reports, what, spied)
    assert control.get(f"/api/report/{what}", Report).by == "project"
    assert len(threads) == 1 and threads[0] is not control._thread


def test_the_ledger_a_report_reads_is_folded_into_no_more() -> None:
    core, minute = a_cloud(), T0_NS
    at = 0

    def use() -> None:
        nonlocal at
        core.turn(minute, [ib.UsageIn(1, Usage("gateway-0", at, at + 9, "d" * 64, (ROW,)))])
        at += 9

    def freeze() -> tuple[Ledger, bytes]:
        ledger = views.frozen(core.ledger, minute)
        return ledger, msgspec.json.encode(ledger)

    kept = [freeze()]
    for cpu_ns in (7_000_000_000, 9_000_000_000):
        minute += MINUTE_NS
        beat(core, minute, cpu_ns)
        kept.append(freeze())
        use()
        kept.append(freeze())
    core.turn(minute + 1, [ib.StopWork("w1", "k1", 9), ib.StopWork("w3", "k1", 9)])
    minute += MINUTE_NS
    for run in list(core.state.runs):
        core.turn(minute, [ib.AgentBeat("n", Beat((RunStatus(run, "ended", 10**10, exit=Exit("stopped")),)))])
    kept.append(freeze())
    use()  # late: the endpoint has ended
    core.turn(minute + 2, [ib.AgentGone("n", "gone")])
    assert core.ledger.workloads["w1"].ended and core.ledger.workloads["w1"].tokens["default"].answers == 3
    assert len({encoded for _, encoded in kept}) == len(kept), "nothing was folded: the test shows nothing"
    for ledger, encoded in kept:
        assert msgspec.json.encode(ledger) == encoded


def test_a_report_says_the_same_of_the_frozen_ledger_as_of_the_live_one() -> None:
    core = a_cloud()
    now_ns = T0_NS + 90_000_000_000
    for by in ("project", "workload", "model", "chip"):
        assert reports.usage(views.frozen(core.ledger, now_ns), by, now_ns) == reports.usage(core.ledger, by, now_ns)
        assert reports.energy(views.frozen(core.ledger, now_ns), by, now_ns) == reports.energy(core.ledger, by, now_ns)


def test_every_chip_and_workload_of_a_large_cloud_is_listed(control: Served, tmp_path: Path) -> None:
    agent = control.join(cores(3000, kind="sim-npu"))
    for _ in range(2):
        control.submit(*[job(chips=ChipAsk("sim-npu", 1, 1000))] * 700)
    chips = control.get("/api/chips", list[ChipView])
    assert len(chips) == 3000 and sum(view.free_milli == 0 for view in chips) == 1400
    ids = [view.id for view in control.get("/api/workloads", list[WorkloadView])]
    assert ids == [f"w{i}" for i in range(1, 1401)]
    agent.close()
