"""What is asked of the cloud, and what becomes of it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from dure.model.errors import DureError
from dure.model.units import WHOLE_CHIP_MILLI

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
Kind = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]


class ChipAsk(Struct, frozen=True):
    """`count` chips of one kind on one node, `milli` of each (1000 = whole)."""

    kind: Kind = "cpu"
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    milli: Annotated[int, Meta(ge=1, le=WHOLE_CHIP_MILLI)] = 100

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}" + ("" if self.milli == WHOLE_CHIP_MILLI else f":{self.milli}")


def parse_chips(text: str) -> ChipAsk:
    """`KIND:N[:MILLI]` as a ChipAsk; without MILLI the chips are whole. Raises DureError.

    >>> str(parse_chips("cpu:1:100")), parse_chips("rngd:2").milli
    ('cpu:1:100', 1000)
    """
    do = "Write KIND:N or KIND:N:MILLI, e.g. cpu:1:100 (a tenth of a core) or rngd:2"
    match = re.fullmatch(r"([a-z0-9][a-z0-9._-]{0,62}):([0-9]{1,7})(?::([0-9]{1,4}))?", text)
    if not match:
        raise DureError(f"--chips {text!r} is not an ask for chips", do=do)
    count, milli = int(match[2]), int(match[3] or WHOLE_CHIP_MILLI)
    if not 1 <= count <= 1_000_000 or not 1 <= milli <= WHOLE_CHIP_MILLI:
        raise DureError(f"--chips {text!r}", "N must be 1 to 1,000,000 and MILLI 1 to 1000", do)
    return ChipAsk(match[1], count, milli)


class Command(Struct, frozen=True, tag="command"):
    """A job: one process. `env` adds to the few variables every run gets."""

    argv: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=131_072)], ...], Meta(min_length=1, max_length=4096)
    ]
    env: dict[str, str] = {}


class Serve(Struct, frozen=True, tag="serve"):
    """An endpoint: replicas of a model behind the gateway. `slots` answers at a time a replica."""

    model: Name
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    context_tokens: Annotated[int, Meta(ge=128, le=1_048_576)] = 2048
    """Context of one slot."""


class Ask(Struct, frozen=True):
    """What a tenant submits. `replicas` is 1 for a Command."""

    work: Command | Serve
    chips: ChipAsk = ChipAsk()
    project: Name = "default"
    replicas: Annotated[int, Meta(ge=1, le=1000)] = 1


class Workload(Struct, frozen=True):
    """An admitted ask. `by` is the id of the key that submitted it."""

    id: str
    ask: Ask
    by: str
    at_ns: int


class Slice(Struct, frozen=True):
    """A share of one chip."""

    chip: str
    milli: int


class Plan(Struct, frozen=True):
    """Where one run goes, and why there."""

    node: str
    slices: tuple[Slice, ...]
    because: str


class Refusal(Struct, frozen=True):
    """Why not: a value, never an exception. `counts` gives candidates per cause."""

    code: Literal["shape", "busy", "quota", "isolation", "unknown_model", "backoff", "stopped", "no_such"]
    why: str
    who: str
    counts: dict[str, int] = {}
    retry_at_ns: int | None = None


RunPhase = Literal["placed", "fetching", "starting", "running", "ended"]
"""`running`: a job's process lives, an endpoint's replica answers."""

EndReason = Literal["exited", "signalled", "stopped", "lease", "lost", "failed", "shutdown"]


class Exit(Struct, frozen=True):
    """How a run ended. Exactly one of `code` and `signal` is set when a process ran."""

    reason: EndReason
    code: int | None = None
    signal: int | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.reason == "exited" and self.code == 0


WorkloadPhase = Literal["waiting", "active", "stopping", "done", "failed", "stopped"]
"""`active`: every replica is placed. The last three are ends."""
