"""Chips and the nodes that carry them, as a driver reports them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from dure.model.units import Source

TestedOn = Literal["none", "replay", "emulator", "metal"]
Health = Literal["healthy", "degraded", "quarantined", "draining", "out"]


class Power(Struct, frozen=True):
    """Watts of one chip, idle and at full work. `note` names the citation, file or formula."""

    idle_w: float
    full_w: float
    source: Source
    note: str


class Chip(Struct, frozen=True):
    """One chip: 1000 milli of one accelerator, or of one CPU core.

    `id` is `NODE:NAME`, unique in the cloud. `index` is the number the vendor's tools use on its
    node (for `cpu`, the operating system's CPU number). `memory_mib` is the chip's own memory;
    for `cpu` its even share of the node's; None: unknown. `run_s` is how long a run on a
    simulated chip lasts; None on a real one.
    """

    id: str
    node: str
    kind: str
    index: int
    vendor: str
    model: str
    source: Literal["real", "simulated"]
    driver: str
    tested_on: TestedOn
    country: str | None = None
    memory_mib: int | None = None
    numa: int | None = None
    rack: str | None = None
    features: tuple[str, ...] = ()
    power: Power | None = None
    run_s: float | None = None
    health: Health = "healthy"


class Node(Struct, frozen=True):
    """A machine with an agent. `boot` changes when the agent's process does."""

    id: str
    hostname: str
    memory_mib: int
    agent_version: str
    boot: str


class Reading(Struct, frozen=True):
    """One chip's telemetry at one instant (UTC ns). None: the chip has no such meter."""

    chip: str
    at_ns: int
    utilisation: float | None = None
    memory_used_mib: int | None = None
    power_w: float | None = None
    power_source: Source | None = None
    temperature_c: float | None = None
