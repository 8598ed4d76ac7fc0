"""What control says to its agents and gateways over their link, and they to it.

A link is one authenticated WebSocket (`/link/agent`, `/link/gateway`, header
`Authorization: Bearer LINK_KEY`); each text frame is one of these as JSON.
"""

from __future__ import annotations

import hashlib
import hmac

from msgspec import Struct

from dure.model.chip import Chip, Node
from dure.model.usage import TokenRow
from dure.model.workload import Command, Exit, RunPhase, Serve, Slice


class RunSpec(Struct, frozen=True):
    """All a node needs to start one run."""

    run: str
    workload: str
    project: str
    work: Command | Serve
    slices: tuple[Slice, ...]


class RunStatus(Struct, frozen=True):
    """One run as its node sees it now. `cpu_ns` is cumulative over all its processes.

    `progress` is (bytes done, bytes in all) while a model is fetched.
    """

    run: str
    phase: RunPhase
    cpu_ns: int = 0
    pid: int | None = None
    url: str | None = None
    exit: Exit | None = None
    progress: tuple[int, int] | None = None
    detail: str = ""


# agent -> control


class Hello(Struct, frozen=True, tag="hello"):
    """First frame of an agent: what the node is, and every run it holds or has not yet forgotten."""

    node: Node
    chips: tuple[Chip, ...]
    runs: tuple[RunStatus, ...]


class Beat(Struct, frozen=True, tag="beat"):
    """Every second, and at once when a run changes: the heartbeat. `runs` is complete.

    `energy_uj` is the node's cumulative energy meter, None without one; `meter` names it.
    """

    runs: tuple[RunStatus, ...]
    energy_uj: int | None = None
    meter: str = ""


class LogChunk(Struct, frozen=True, tag="log_chunk"):
    """`data` from `offset` of a run's output; empty: nothing there yet. `missing`: no such run here."""

    request: int
    offset: int
    data: bytes
    missing: bool = False


AgentSays = Hello | Beat | LogChunk

# control -> agent


class Start(Struct, frozen=True, tag="start"):
    """Idempotent: a run already there is left as it is."""

    spec: RunSpec


class Stop(Struct, frozen=True, tag="stop"):
    """Idempotent: TERM, after `grace_s` KILL."""

    run: str
    grace_s: float = 5.0


class Forget(Struct, frozen=True, tag="forget"):
    """The end of this run is in the log: drop its bookkeeping (its output stays)."""

    run: str


class Lease(Struct, frozen=True, tag="lease"):
    """Answers each Hello and Beat: every run here may live `seconds` more from its receipt."""

    seconds: float


class ReadLog(Struct, frozen=True, tag="read_log"):
    request: int
    run: str
    offset: int
    limit: int = 65_536


Order = Start | Stop | Forget | Lease | ReadLog

# gateway <-> control


class Replica(Struct, frozen=True):
    """One engine that answers: base `url` without a trailing slash, its own key, its slots."""

    run: str
    url: str
    key: str
    slots: int


class KeyGrant(Struct, frozen=True):
    key: str
    project: str


class Routes(Struct, frozen=True, tag="routes"):
    """control -> gateway, whole, at link and on every change.

    `keys` maps SHA-256 hex of a key to its grant; `models` maps every endpoint's model to its
    replicas that answer now (an empty tuple: deployed, none ready).
    """

    keys: dict[str, KeyGrant]
    models: dict[str, tuple[Replica, ...]]


class Recorded(Struct, frozen=True, tag="recorded"):
    """control -> gateway: the journal is in the log up to byte `upto`; also the answer to Resume."""

    journal: str
    upto: int


class Resume(Struct, frozen=True, tag="resume"):
    """gateway -> control, at link: how far is this journal in the log?"""

    journal: str


class Usage(Struct, frozen=True, tag="usage"):
    """gateway -> control: rows of journal bytes [start, upto). Recorded at most once."""

    journal: str
    start: int
    upto: int
    digest: str
    rows: tuple[TokenRow, ...]


GatewaySays = Resume | Usage
ToGateway = Routes | Recorded


def engine_key(link_key: str, run: str) -> str:
    """The key an engine of `run` asks of its callers; both sides derive it, no one stores it."""
    return "ek-" + hmac.new(link_key.encode(), run.encode(), hashlib.sha256).hexdigest()[:40]
