"""What the control API answers: renderings of model values, read by every client."""

from __future__ import annotations

from msgspec import Struct

from dure.model.chip import Chip
from dure.model.units import Source
from dure.model.workload import Ask, Exit, Refusal, RunPhase, Slice, WorkloadPhase


class ErrorView(Struct, frozen=True):
    """Body of every 4xx and 5xx of the control API: {"error": {…}}."""

    what: str
    why: str = ""
    do: str = ""
    refusal: Refusal | None = None
    workload: str | None = None


class Failed(Struct, frozen=True):
    error: ErrorView


class ChipView(Struct, frozen=True):
    """`free_milli` of 1000; `runs` hold the rest. `linked`: its node's agent is there now."""

    chip: Chip
    free_milli: int
    runs: tuple[str, ...]
    linked: bool


class RunView(Struct, frozen=True):
    id: str
    phase: RunPhase
    attempt: int
    node: str
    slices: tuple[Slice, ...]
    placed_ns: int
    pid: int | None = None
    url: str | None = None
    started_ns: int | None = None
    ended_ns: int | None = None
    exit: Exit | None = None
    cpu_ns: int = 0
    cpu_at_ns: int = 0
    progress: tuple[int, int] | None = None
    detail: str = ""


class WorkloadView(Struct, frozen=True):
    id: str
    ask: Ask
    by: str
    submitted_ns: int
    phase: WorkloadPhase
    reason: Refusal | None
    """Why it waits, or how it ended badly; None while all is well."""
    runs: tuple[RunView, ...]
    """The last attempt of each replica."""


class Submitted(Struct, frozen=True):
    """One per ask, in order: admitted (`refusal` None) or refused. Durable when it is answered."""

    id: str
    refusal: Refusal | None = None


class StoryLine(Struct, frozen=True):
    """One line of `dure why`: the log's row, told in a sentence with its figures."""

    offset: int
    at_ns: int
    text: str


class LogView(Struct, frozen=True):
    """A piece of a run's output. `next` is where to read on; `ended`: no more will come."""

    run: str
    data: bytes
    next: int
    ended: bool


class ModelView(Struct, frozen=True):
    name: str
    source: str
    size_bytes: int
    licence: str
    engine: str
    languages: tuple[str, ...]
    note: str
    endpoints: tuple[str, ...]
    """Workloads that serve it now."""


class ProjectView(Struct, frozen=True):
    name: str
    keys: int
    workloads: int


class KeyView(Struct, frozen=True):
    id: str
    project: str
    admin: bool


class KeyMade(Struct, frozen=True):
    """`secret` is shown this once and stored nowhere."""

    id: str
    project: str
    secret: str


class EventView(Struct, frozen=True):
    offset: int
    at_ns: int
    kind: str
    text: str


class Figure(Struct, frozen=True):
    """A number with its source; `value` None: unknown. `basis`: meter, formula, citation or file."""

    value: int | None
    source: Source
    basis: str = ""


class Report(Struct, frozen=True):
    """A table. `columns` name the units last; integers are ledger units (µJ, milli-won, ns, tokens)
    rendered by whoever shows them. `shares` gives the share of each source in the main figure."""

    title: str
    by: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    totals: tuple[str | int | float | None, ...]
    shares: dict[str, float] = {}
    notes: tuple[str, ...] = ()


class ServerInfo(Struct, frozen=True):
    version: str
    home: str
    head: int
    """Rows in the log."""
    nodes: dict[str, bool]
    """Node id -> its agent is linked now."""
