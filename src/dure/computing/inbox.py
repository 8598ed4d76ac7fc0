"""What reaches `turn`, and what it asks of the shell. Values; `reply` and `link` are tokens the shell understands."""

from __future__ import annotations

from msgspec import Struct

from dure.model.view import Submitted
from dure.model.wire import Beat, Hello, Order, Recorded, Usage
from dure.model.workload import Ask, Refusal


class Started(Struct, frozen=True):
    """Control has opened its log."""

    version: str


class Submit(Struct, frozen=True):
    asks: tuple[Ask, ...]
    by: str
    reply: int


class StopWork(Struct, frozen=True):
    workload: str
    by: str
    reply: int


class MakeProject(Struct, frozen=True):
    project: str
    by: str
    reply: int


class MakeKey(Struct, frozen=True):
    project: str
    digest: str
    admin: bool
    by: str
    reply: int


class AgentHello(Struct, frozen=True):
    hello: Hello


class AgentBeat(Struct, frozen=True):
    node: str
    beat: Beat


class AgentGone(Struct, frozen=True):
    node: str
    why: str


class UsageIn(Struct, frozen=True):
    link: int
    usage: Usage


class MeterNow(Struct, frozen=True):
    """Log what live runs have used up to now, before a report is read."""

    reply: int


class Tick(Struct, frozen=True):
    """Time has passed; nothing else has."""


Item = (
    Started | Submit | StopWork | MakeProject | MakeKey | AgentHello | AgentBeat | AgentGone | UsageIn | MeterNow | Tick
)


class Reply(Struct, frozen=True):
    to: int
    value: tuple[Submitted, ...] | str | Refusal


class Tell(Struct, frozen=True):
    node: str
    order: Order


class Record(Struct, frozen=True):
    link: int
    recorded: Recorded


class Push(Struct, frozen=True):
    """Keys or routes may have changed: send gateways the new Routes."""


Effect = Reply | Tell | Record | Push
