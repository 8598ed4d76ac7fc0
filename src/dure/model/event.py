"""Everything that ever happened, as typed events in one log. The log is for ever: never change a
field's meaning; add a field with a default, or a new event."""

from __future__ import annotations

from msgspec import Struct

from dure.model.chip import Chip, Node
from dure.model.usage import RunMeter, TokenRow
from dure.model.workload import Exit, Plan, Refusal, RunPhase, Workload, WorkloadPhase

EVENT_V = 1
"""Version written on every event; a newer one is refused by name."""


class ControlStarted(Struct, frozen=True, tag="control_started"):
    version: str


class ProjectCreated(Struct, frozen=True, tag="project_created"):
    project: str
    by: str


class KeyCreated(Struct, frozen=True, tag="key_created"):
    """`digest` is the SHA-256 of the key in hex; the key itself is shown once and kept nowhere."""

    key: str
    project: str
    digest: str
    admin: bool
    by: str


class NodeJoined(Struct, frozen=True, tag="node_joined"):
    """A node's agent linked, with every chip it sees now."""

    node: Node
    chips: tuple[Chip, ...]


class NodeLost(Struct, frozen=True, tag="node_lost"):
    """The node's agent is no longer linked; its runs go on, unseen."""

    node: str
    why: str


class WorkloadSubmitted(Struct, frozen=True, tag="workload_submitted"):
    workload: Workload


class WorkloadRefused(Struct, frozen=True, tag="workload_refused"):
    workload: Workload
    refusal: Refusal


class WorkloadWaits(Struct, frozen=True, tag="workload_waits"):
    """Why a workload waits; written when the reason first holds or changes its code."""

    workload: str
    refusal: Refusal


class StopAsked(Struct, frozen=True, tag="stop_asked"):
    workload: str
    by: str


class WorkloadEnded(Struct, frozen=True, tag="workload_ended"):
    workload: str
    phase: WorkloadPhase
    why: str


class RunPlaced(Struct, frozen=True, tag="run_placed"):
    """`run` is `WORKLOAD.REPLICA.ATTEMPT`."""

    run: str
    workload: str
    replica: int
    attempt: int
    plan: Plan


class RunMoved(Struct, frozen=True, tag="run_moved"):
    """A run reached a phase on its node."""

    run: str
    workload: str
    phase: RunPhase
    pid: int | None = None
    url: str | None = None
    detail: str = ""


class RunAdopted(Struct, frozen=True, tag="run_adopted"):
    """A restarted process (`who`: control or agent) found this run alive and goes on with it."""

    run: str
    workload: str
    who: str
    pid: int | None = None


class RunEnded(Struct, frozen=True, tag="run_ended"):
    run: str
    workload: str
    exit: Exit


class RunsMetered(Struct, frozen=True, tag="runs_metered"):
    """Usage of runs on one node since their last rows. `counter_uj` is the node's energy counter."""

    node: str
    rows: tuple[RunMeter, ...]
    idle_energy_uj: int | None = None
    counter_uj: int | None = None


class TokensUsed(Struct, frozen=True, tag="tokens_used"):
    """Answers folded by a gateway, up to byte `upto` of its journal, exclusive.

    `digest` chains the journal's bytes (SHA-256 of the folded bytes, hex).
    """

    journal: str
    upto: int
    digest: str
    rows: tuple[TokenRow, ...]


Event = (
    ControlStarted
    | ProjectCreated
    | KeyCreated
    | NodeJoined
    | NodeLost
    | WorkloadSubmitted
    | WorkloadRefused
    | WorkloadWaits
    | StopAsked
    | WorkloadEnded
    | RunPlaced
    | RunMoved
    | RunAdopted
    | RunEnded
    | RunsMetered
    | TokensUsed
)


class Entry(Struct, frozen=True):
    """One row of the log. `at_ns` is the time of the turn that decided it."""

    at_ns: int
    event: Event
    v: int = EVENT_V


def subject(event: Event) -> str | None:
    """The workload an event tells of, by which `dure why` finds it; None: of no single one."""
    match event:
        case WorkloadSubmitted() | WorkloadRefused():
            return event.workload.id
        case WorkloadWaits() | StopAsked() | WorkloadEnded() | RunPlaced() | RunMoved() | RunAdopted() | RunEnded():
            return event.workload
    return None
