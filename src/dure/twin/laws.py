"""The laws, checked from outside the core: from the nodes, and from the log alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import json

from dure.computing.state import ENDS
from dure.computing.turn import Core
from dure.metering.ledger import check_chip_time, settle
from dure.model import event as ev
from dure.model.event import Entry
from dure.model.units import NS_PER_S, WHOLE_CHIP_MILLI
from dure.model.workload import Slice
from dure.twin.node import SimNode


def slices(nodes: Iterable[SimNode]) -> list[str]:
    """Law 1, on the nodes: no slice is held twice, no chip by more than there is of it."""
    broken, seen = [], set()
    held: dict[str, int] = {}
    for node in nodes:
        own = {chip.id for chip in node.chips}
        for run, chip, milli in node.held():
            held[chip] = held.get(chip, 0) + milli
            if chip not in own:
                broken.append(f"run {run} holds {chip}, which is not on {node.name}")
            if (run, chip) in seen:
                broken.append(f"run {run} holds {chip} twice")
            seen.add((run, chip))
    broken += [f"{chip} holds {milli} of {WHOLE_CHIP_MILLI} milli" for chip, milli in held.items() if milli > 1000]
    return broken


def attempts(nodes: Iterable[SimNode]) -> list[str]:
    """Law 1: of one replica at most one attempt is alive."""
    alive: dict[str, str] = {}
    broken = []
    for node in nodes:
        for run in node.runs.values():
            replica = run.run.rpartition(".")[0]
            if not run.over and alive.setdefault(replica, run.run) != run.run:
                broken.append(f"{run.run} and {alive[replica]} are alive together")
    return broken


def chip_time(core: Core, entries: Sequence[Entry], now_ns: int) -> list[str]:
    """Law 2: projects + idle == chips, exactly; and the ledger's held time is what the log says."""
    ledger = settle(core.ledger, now_ns)
    broken = check_chip_time(ledger)
    open_at: dict[str, tuple[int, tuple[Slice, ...]]] = {}
    told = 0
    for entry in entries:
        if isinstance(entry.event, ev.RunPlaced):
            open_at[entry.event.run] = (entry.at_ns, entry.event.plan.slices)
        elif isinstance(entry.event, ev.RunEnded):
            since_ns, pieces = open_at.pop(entry.event.run)
            told += (entry.at_ns - since_ns) * sum(piece.milli for piece in pieces)
    told += sum((now_ns - at) * sum(piece.milli for piece in pieces) for at, pieces in open_at.values())
    counted = sum(sum(chip.projects.values()) for chip in ledger.chips.values())
    if counted != told:
        broken.append(f"ledger counts {counted} milli·ns held, the log tells {told}")
    return broken


def replayed(core: Core, entries: Sequence[Entry]) -> list[str]:
    """Law 3: the log folded anew is the state, the ledger and the placement index."""
    again = Core(core.models)
    for entry in entries:
        again.replay(entry.at_ns, entry.event)
    placed = [entry.event.run for entry in entries if isinstance(entry.event, ev.RunPlaced)]
    broken = [f"{run} was placed twice" for run in sorted({run for run in placed if placed.count(run) > 1})]
    over: set[str] = set()
    for entry in entries:
        if isinstance(entry.event, ev.StopAsked | ev.WorkloadEnded):
            over.add(entry.event.workload)
        elif isinstance(entry.event, ev.RunPlaced) and entry.event.workload in over:
            broken.append(f"{entry.event.run} was placed after its workload's stop or end")
    for what, old, new in (("state", core.state, again.state), ("ledger", core.ledger, again.ledger)):
        if json.encode(old) != json.encode(new):
            broken.append(f"the replayed {what} differs")
    rebuilt = Core(core.models, json.decode(json.encode(core.state), type=type(core.state)), core.ledger)
    if rebuilt.columns.snapshot() != core.columns.snapshot():
        broken.append("the placement index differs from one made of the state")
    return broken


def reasons(core: Core, entries: Sequence[Entry]) -> list[str]:
    """Law 4: every refusal names a cause, every waiting workload a reason."""
    broken = []
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.WorkloadRefused | ev.WorkloadWaits) and not (event.refusal.why and event.refusal.who):
            broken.append(f"a refusal without a cause: {event}")
    for held in core.state.workloads.values():
        if held.phase == "failed" and held.reason is None:
            broken.append(f"{held.workload.id} failed without a reason")
    return broken


def unexplained(core: Core) -> list[str]:
    """Law 4: nothing waits without a reason."""
    waiting = {need.rpartition(".")[0] for need in core.state.needs}
    return [f"{workload} waits without a reason" for workload in sorted(waiting) if _silent(core, workload)]


def _silent(core: Core, workload: str) -> bool:
    held = core.state.workloads[workload]
    return held.phase == "waiting" and held.reason is None


def ended(core: Core, jobs: Iterable[str], stopped: Iterable[str]) -> list[str]:
    """After the fleet has been quiet for long: every job has ended, every stop has been obeyed."""
    state = core.state
    broken = [f"{job} is still {state.workloads[job].phase}" for job in jobs if state.workloads[job].phase not in ENDS]
    broken += [f"{job}: its stop is not over" for job in stopped if state.workloads[job].phase not in ENDS]
    broken += [
        f"{chip.chip.id} still holds {chip.held} with no run"
        for chip in state.chips.values()
        if chip.held != sum(chip.runs.values())
    ]
    return broken


def covered(core: Core, now_ns: int) -> list[str]:
    """Every replica of a workload that has not ended and is not being stopped has a run or a need,
    and no need whose time has long come is left without another reason."""
    state = core.state
    overdue = [
        f"{held.workload.id} waits past its time"
        for held in state.workloads.values()
        if held.phase == "waiting"
        and held.reason is not None
        and held.reason.retry_at_ns is not None
        and held.reason.retry_at_ns < now_ns - 5 * NS_PER_S
    ]
    return overdue + [
        f"replica {replica} of {held.workload.id} is forgotten"
        for held in state.workloads.values()
        if held.phase not in ENDS and held.stop_by is None
        for replica in range(held.workload.ask.replicas)
        if f"{held.workload.id}.{replica}" not in state.needs
        and (replica not in held.runs or state.runs[held.runs[replica]].phase == "ended")
    ]


def agree(core: Core, nodes: Iterable[SimNode]) -> list[str]:
    """At rest, control and the nodes know of the same live runs."""
    believed = {run.id for run in core.state.runs.values() if run.phase != "ended"}
    alive = {run.run for node in nodes for run in node.runs.values() if not run.over}
    known = sorted(run.run for node in nodes for run in node.runs.values() if run.over)
    return [f"{run} is alive on one side only" for run in sorted(believed ^ alive)] + [
        f"{run} ended and was never forgotten" for run in known
    ]
