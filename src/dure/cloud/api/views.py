"""Model values rendered as what the API answers: one function a noun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

from msgspec.structs import replace

from dure.computing.state import ENDS, ChipState, RunState, State, WorkloadState
from dure.computing.story import tell
from dure.computing.turn import Core
from dure.metering.ledger import Ledger, settle
from dure.model.artifact import ModelEntry
from dure.model.event import Entry, Event, WorkloadRefused, WorkloadSubmitted
from dure.model.units import WHOLE_CHIP_MILLI
from dure.model.view import (
    ChipView,
    EventView,
    KeyView,
    ModelView,
    ProjectView,
    RunView,
    StoryLine,
    WorkloadView,
)
from dure.model.workload import Serve


def chip(state: State, held: ChipState, project: str | None) -> ChipView:
    """One chip; of its runs only those of `project` (None: of every one)."""
    node = state.nodes.get(held.chip.node)
    runs = [run for run in held.runs if project is None or _project_of_run(state, run) == project]
    return ChipView(held.chip, WHOLE_CHIP_MILLI - held.held, tuple(runs), node is not None and node.linked)


def _project_of_run(state: State, run_id: str) -> str:
    return state.workloads[state.runs[run_id].workload].workload.ask.project


def workload(core: Core, held: WorkloadState) -> WorkloadView:
    asked = held.workload
    runs = tuple(_run(core, core.state.runs[run_id]) for run_id in held.runs.values() if run_id in core.state.runs)
    return WorkloadView(asked.id, asked.ask, asked.by, asked.at_ns, held.phase, held.reason, runs)


def listed(core: Core, project: str | None, ended: bool) -> list[WorkloadState]:
    """All workloads of a project (None: of every one); those that ended only with `ended`."""
    return [
        held
        for held in core.state.workloads.values()
        if (project is None or held.workload.ask.project == project) and (ended or held.phase not in ENDS)
    ]


def _run(core: Core, run: RunState) -> RunView:
    status = core.statuses.get(run.id)
    return RunView(
        id=run.id,
        phase=run.phase,
        attempt=run.attempt,
        node=run.plan.node,
        slices=run.plan.slices,
        placed_ns=run.placed_ns,
        pid=run.pid,
        url=run.url,
        started_ns=run.started_ns,
        ended_ns=run.ended_ns,
        exit=run.exit,
        cpu_ns=max(run.metered_cpu_ns, status.cpu_ns if status else 0),
        cpu_at_ns=core.seen_ns.get(run.plan.node, 0) if status else run.metered_at_ns,
        progress=status.progress if status else None,
        detail=status.detail if status else "",
    )


def models(catalogue: Mapping[str, ModelEntry], state: State) -> list[ModelView]:
    serving: dict[str, list[str]] = {}
    for held in state.workloads.values():
        work = held.workload.ask.work
        if isinstance(work, Serve) and held.phase not in ENDS:
            serving.setdefault(work.model, []).append(held.workload.id)
    return [
        ModelView(
            name,
            entry.source,
            entry.size_bytes,
            entry.licence,
            entry.engine,
            entry.languages,
            entry.note,
            tuple(serving.get(name, ())),
        )
        for name, entry in catalogue.items()
    ]


def projects(state: State) -> list[ProjectView]:
    keys: dict[str, int] = {}
    for key in state.keys.values():
        keys[key.project] = keys.get(key.project, 0) + 1
    live: dict[str, int] = {}
    for held in state.workloads.values():
        if held.phase not in ENDS:
            live[held.workload.ask.project] = live.get(held.workload.ask.project, 0) + 1
    return [ProjectView(name, keys.get(name, 0), live.get(name, 0)) for name in state.projects]


def keys(state: State) -> list[KeyView]:
    return [KeyView(key.id, key.project, key.admin) for key in state.keys.values()]


def frozen(ledger: Ledger, now_ns: int) -> Ledger:
    """The ledger at `now_ns`, to be read in a thread: nothing in it is folded into any more."""
    settled = settle(ledger, now_ns)
    settled.idle_energy_uj = settled.idle_energy_uj.copy()
    settled.keys, settled.nodes = {}, {}  # no report reads them
    for chip_time in settled.chips.values():
        chip_time.held = chip_time.held.copy()
    for workload_id, row in settled.workloads.items():
        if not row.ended or row.tokens:
            tokens = {caller: copy(sums) for caller, sums in row.tokens.items()}
            settled.workloads[workload_id] = replace(
                row, energy_uj=row.energy_uj.copy(), basis=row.basis.copy(), tokens=tokens
            )
    return settled


def story(rows: Iterable[tuple[int, Entry]]) -> list[StoryLine]:
    return [StoryLine(offset, entry.at_ns, tell(entry.event)) for offset, entry in rows]


def project_of(event: Event) -> str | None:
    """The project of a workload's first event."""
    return event.workload.ask.project if isinstance(event, WorkloadSubmitted | WorkloadRefused) else None


def events(rows: Iterable[tuple[int, Entry]]) -> list[EventView]:
    return [
        EventView(offset, entry.at_ns, str(type(entry.event).__struct_config__.tag), tell(entry.event))
        for offset, entry in rows
    ]
