"""The port between Dure and an inference engine: how one replica is started and reached. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from dure.model.artifact import ModelEntry
from dure.model.workload import Serve


class Seat(Struct, frozen=True):
    """What a replica is given: `threads` (cores granted, at least 1), a loopback port, the key it must ask for."""

    threads: int
    port: int
    key: str


class Launch(Struct, frozen=True):
    """How to start a replica. `config` goes into a file that only its owner may read, whose path is appended to `argv`,
    so that no key shows in a process list. `ready_path` answers 200 once the replica can."""

    argv: tuple[str, ...]
    config: bytes
    env: dict[str, str] = {}
    ready_path: str = "/health"
    protocol: str = "openai"


class Engine(Protocol):
    """One inference engine, run as a process of its own and spoken to over HTTP, never imported."""

    name: str
    """The name of its file, and of `ModelEntry.engine`."""
    package: str
    """The distribution it comes in; empty: a part of Dure."""

    def supports(self, version: str) -> bool:
        """This adapter knows that version of the package."""

    def footprint(self, entry: ModelEntry, work: Serve) -> int:
        """Memory a replica needs, in MiB; an estimate that says how in its docstring."""

    def launch(self, artifact: Path, work: Serve, seat: Seat) -> Launch:
        """`artifact` is the model's file; for a model without one it is not read."""
