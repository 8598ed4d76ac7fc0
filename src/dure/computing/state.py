"""What the log says of nodes, chips, workloads, runs, projects and keys: one fold, in place."""

from __future__ import annotations

from msgspec import Struct, field

from dure.computing.place.columns import Columns
from dure.metering.energy import NodeLogged
from dure.model import event as ev
from dure.model.chip import Chip, Node
from dure.model.units import NS_PER_S
from dure.model.workload import Command, Exit, Plan, Refusal, RunPhase, Workload, WorkloadPhase

KEPT_ENDED = 10_000
"""Ended workloads kept in memory; older ones are in the log only."""
ENDS: frozenset[str] = frozenset({"done", "failed", "stopped"})


class NodeState(Struct):
    node: Node
    linked: bool
    chips: list[str]


class ChipState(Struct):
    """`gone`: its node no longer shows it; kept as long as runs hold it."""

    chip: Chip
    held: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    gone: bool = False


class RunState(Struct):
    """`metered_*`: how far its usage is in the log."""

    id: str
    workload: str
    replica: int
    attempt: int
    plan: Plan
    placed_ns: int
    phase: RunPhase = "placed"
    pid: int | None = None
    url: str | None = None
    started_ns: int | None = None
    ended_ns: int | None = None
    exit: Exit | None = None
    metered_cpu_ns: int = 0
    metered_at_ns: int = 0


class WorkloadState(Struct):
    workload: Workload
    phase: WorkloadPhase = "waiting"
    reason: Refusal | None = None
    runs: dict[int, str] = field(default_factory=dict)
    """Replica -> its last run."""
    failures: int = 0
    stop_by: str | None = None


class KeyState(Struct):
    id: str
    project: str
    digest: str
    admin: bool


class State(Struct):
    nodes: dict[str, NodeState] = field(default_factory=dict)
    chips: dict[str, ChipState] = field(default_factory=dict)
    workloads: dict[str, WorkloadState] = field(default_factory=dict)
    runs: dict[str, RunState] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    needs: dict[str, int] = field(default_factory=dict)
    """`WORKLOAD.REPLICA` without a live run -> not before (UTC ns). Ordered by when the need arose."""
    projects: dict[str, int] = field(default_factory=dict)
    keys: dict[str, KeyState] = field(default_factory=dict)
    journals: dict[str, int] = field(default_factory=dict)
    counters: dict[str, NodeLogged] = field(default_factory=dict)
    """Node -> its energy counter as last metered."""
    next_workload: int = 1


def backoff_ns(failures: int) -> int:
    """Wait before attempt `failures` + 1: 1, 2, 4 … 60 s."""
    return min(60, 1 << min(6, max(0, failures - 1))) * NS_PER_S


def apply(state: State, columns: Columns, at_ns: int, event: ev.Event) -> None:
    """Fold one event. Deterministic; never refuses: deciding was before the event."""
    match event:
        case ev.WorkloadSubmitted():
            _submitted(state, event.workload)
        case ev.RunPlaced():
            _placed(state, columns, at_ns, event)
        case ev.RunMoved():
            run = state.runs[event.run]
            run.phase = event.phase
            run.pid = event.pid or run.pid
            run.url = event.url or run.url
            if event.phase == "running" and run.started_ns is None:
                run.started_ns = at_ns
        case ev.RunEnded():
            _ended(state, columns, at_ns, event)
        case ev.RunsMetered():
            for row in event.rows:
                run = state.runs[row.run]
                run.metered_cpu_ns += row.cpu_ns
                run.metered_at_ns = at_ns
            if event.counter_uj is not None:
                state.counters[event.node] = NodeLogged(event.counter_uj, at_ns)
        case ev.TokensUsed():
            state.journals[event.journal] = event.upto
        case ev.WorkloadWaits():
            state.workloads[event.workload].reason = event.refusal
        case ev.StopAsked():
            _stop_asked(state, event)
        case ev.WorkloadEnded() | ev.WorkloadRefused():
            _workload_over(state, event)
        case _:
            _fleet_or_tenant(state, columns, event)


def _fleet_or_tenant(state: State, columns: Columns, event: ev.Event) -> None:
    match event:
        case ev.NodeJoined():
            _joined(state, columns, event)
        case ev.NodeLost():
            _unlink(state, columns, event.node)
        case ev.ControlStarted():
            for node in state.nodes:
                _unlink(state, columns, node)
        case ev.ProjectCreated():
            state.projects[event.project] = len(state.projects)
        case ev.KeyCreated():
            state.keys[event.digest] = KeyState(event.key, event.project, event.digest, event.admin)
        case _:
            pass


def _submitted(state: State, workload: Workload) -> None:
    state.workloads[workload.id] = WorkloadState(workload)
    for replica in range(workload.ask.replicas):
        state.needs[f"{workload.id}.{replica}"] = 0
    state.next_workload += 1


def _placed(state: State, columns: Columns, at_ns: int, event: ev.RunPlaced) -> None:
    state.needs.pop(f"{event.workload}.{event.replica}", None)
    held = state.workloads[event.workload]
    before = held.runs.get(event.replica)
    if before is not None:
        state.runs.pop(before, None)
    held.runs[event.replica] = event.run
    state.runs[event.run] = RunState(
        event.run, event.workload, event.replica, event.attempt, event.plan, at_ns, metered_at_ns=at_ns
    )
    for piece in event.plan.slices:
        chip = state.chips[piece.chip]
        chip.held += piece.milli
        chip.runs[event.run] = piece.milli
        columns.take(piece.chip, piece.milli)
    if not any(f"{event.workload}.{replica}" in state.needs for replica in range(held.workload.ask.replicas)):
        held.phase, held.reason = "active", None


def _ended(state: State, columns: Columns, at_ns: int, event: ev.RunEnded) -> None:
    run = state.runs[event.run]
    served_ns = at_ns - run.started_ns if run.started_ns is not None else 0
    run.phase, run.exit, run.ended_ns, run.url = "ended", event.exit, at_ns, None
    for piece in run.plan.slices:
        chip = state.chips[piece.chip]
        chip.held -= piece.milli
        chip.runs.pop(event.run, None)
        columns.take(piece.chip, -piece.milli)
        if chip.gone and not chip.runs:
            columns.drop([piece.chip])
            del state.chips[piece.chip]
    held = state.workloads[event.workload]
    if isinstance(held.workload.ask.work, Command) or held.stop_by is not None:
        return
    if event.exit.reason == "shutdown":
        held.failures, wait_ns = 0, 0
    else:
        held.failures = 1 if served_ns > 60 * NS_PER_S else held.failures + 1
        wait_ns = backoff_ns(held.failures)
    held.phase = "waiting"
    state.needs[f"{event.workload}.{run.replica}"] = at_ns + wait_ns


def _stop_asked(state: State, event: ev.StopAsked) -> None:
    held = state.workloads[event.workload]
    held.stop_by, held.phase, held.reason = event.by, "stopping", None
    for replica in range(held.workload.ask.replicas):
        state.needs.pop(f"{event.workload}.{replica}", None)


def _workload_over(state: State, event: ev.WorkloadEnded | ev.WorkloadRefused) -> None:
    if isinstance(event, ev.WorkloadRefused):
        workload = event.workload
        state.workloads[workload.id] = WorkloadState(workload, "failed", event.refusal)
        state.next_workload += 1
        state.ended.append(workload.id)
    else:
        held = state.workloads[event.workload]
        held.phase = event.phase
        if event.phase == "failed":
            held.reason = Refusal("stopped", event.why, "run")
        state.ended.append(event.workload)
    if len(state.ended) > KEPT_ENDED + KEPT_ENDED // 10:
        for old in state.ended[:-KEPT_ENDED]:
            for run in state.workloads.pop(old).runs.values():
                state.runs.pop(run, None)
        del state.ended[:-KEPT_ENDED]


def _joined(state: State, columns: Columns, event: ev.NodeJoined) -> None:
    old = state.nodes.get(event.node.id)
    if old is None or old.node.boot != event.node.boot:
        state.counters.pop(event.node.id, None)  # a new agent counts from 0 again
    ids = [chip.id for chip in event.chips]
    if old is not None:
        gone = sorted(set(old.chips) - set(ids))
        columns.close(gone)
        idle = [chip_id for chip_id in gone if not state.chips[chip_id].runs]
        columns.drop(idle)
        for chip_id in gone:
            state.chips[chip_id].gone = True
        for chip_id in idle:
            del state.chips[chip_id]
    state.nodes[event.node.id] = NodeState(event.node, True, ids)
    for chip in event.chips:
        known = state.chips.get(chip.id, ChipState(chip))
        if known.chip.kind != chip.kind:
            del state.chips[chip.id]  # to the end: among its new kind it is the last to join
        known.chip, known.gone = chip, False
        state.chips[chip.id] = known
    columns.put((chip, state.chips[chip.id].held, True) for chip in event.chips)


def _unlink(state: State, columns: Columns, node: str) -> None:
    state.nodes[node].linked = False
    columns.close(state.nodes[node].chips)


def columns_of(state: State) -> Columns:
    """The placement index of a state, made anew."""
    columns = Columns()
    listed = {chip: held.linked for held in state.nodes.values() for chip in held.chips}
    columns.put((held.chip, held.held, listed.get(held.chip.id, False)) for held in state.chips.values())
    return columns
