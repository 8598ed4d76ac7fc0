"""A fleet of chips that do not exist, from a TOML file; every kind starts with `sim-` so that it shows everywhere.

    node = "hall-1"          # optional: names the racks (hall-1-rack1 …); default "sim"
    [[chips]]
    kind = "sim-npu"
    count = 32
    idle_w = 40
    full_w = 180
    racks = 2                # from here on optional, with these defaults: 1, "Simulated", unknown, 1.0, 1.0
    vendor = "Simulated"
    memory_mib = 49152
    speed = 1.0              # relative: a run lasts run_s / speed
    run_s = 1.0

All chips belong to the one node of the agent that reads the file; only their racks differ. Kinds share racks.
"""

from __future__ import annotations

import math
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from dure.hardware.driver import Host, unsupported
from dure.model.chip import Chip, Power, Reading
from dure.model.errors import DureError
from dure.model.units import NS_PER_S, Source
from dure.model.workload import Name

MAX_CHIPS = 1_000_000
_MAX_BYTES = 1_000_000
_DO = "Correct the fleet file; docs/add-a-driver.md shows one"

_Watts = Annotated[float, Meta(ge=0, le=100_000)]
_Factor = Annotated[float, Meta(gt=0, le=1_000_000)]


class Kind(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[chips]]` entry: `count` equal chips, in even runs over `racks`."""

    kind: Name
    count: Annotated[int, Meta(ge=1, le=MAX_CHIPS)]
    idle_w: _Watts
    full_w: _Watts
    racks: Annotated[int, Meta(ge=1)] = 1
    vendor: Annotated[str, Meta(min_length=1, max_length=64)] = "Simulated"
    memory_mib: Annotated[int, Meta(ge=1, le=2**40)] | None = None
    speed: _Factor = 1.0
    run_s: _Factor = 1.0


class Fleet(Struct, frozen=True):
    """What a fleet file says; `path` is where it stands."""

    path: str
    node: str
    kinds: tuple[Kind, ...]


def load_fleet(path: Path) -> Fleet:
    """Parse and check a fleet file. Raises DureError naming the file, the entry and the field."""
    what = f"fleet {path}"
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise DureError(what, f"longer than {_MAX_BYTES:,} bytes", _DO)
        table = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise DureError(what, f"cannot be read: {error.strerror}", "Give the path of a readable TOML file") from error
    except UnicodeDecodeError as error:
        raise DureError(what, f"not UTF-8 text at byte {error.start}", _DO) from error
    except (tomllib.TOMLDecodeError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise DureError(what, f"not TOML: {error}", _DO) from error
    except RecursionError as error:
        raise DureError(what, "nested too deeply", _DO) from error
    return _checked(what, str(path), table)


def _checked(what: str, path: str, table: Mapping[str, object]) -> Fleet:
    if unknown := sorted(set(table) - {"node", "chips"}):
        raise DureError(what, f"unknown field {unknown[0]!r}; known: node, chips", _DO)
    try:
        node = msgspec.convert(table.get("node", "sim"), Name)
    except msgspec.ValidationError as error:
        raise DureError(what, f"node: {error}", _DO) from error
    entries = table.get("chips")
    if not isinstance(entries, list) or not entries:
        raise DureError(what, "has no [[chips]] entry", _DO)
    kinds: dict[str, Kind] = {}
    for number, entry in enumerate(entries, 1):
        kind = _kind(f"{what}: chips entry {number}", entry)
        if kind.kind in kinds:
            raise DureError(f"{what}: chips entry {number}", f"kind: {kind.kind!r} stands in an earlier entry too", _DO)
        kinds[kind.kind] = kind
    total = sum(kind.count for kind in kinds.values())
    if total > MAX_CHIPS:
        raise DureError(what, f"count: {total:,} chips in all; at most {MAX_CHIPS:,}", _DO)
    return Fleet(path, node, tuple(kinds.values()))


def _kind(what: str, entry: object) -> Kind:
    try:
        kind = msgspec.convert(entry, Kind)
    except (msgspec.ValidationError, OverflowError) as error:
        reason, _, field = str(error).partition(" - at `$.")
        raise DureError(what, f"{field.rstrip('`')}: {reason}" if field else reason, _DO) from error
    if not kind.kind.startswith("sim-") or kind.kind == "sim-":
        raise DureError(what, f"kind: {kind.kind!r} must start with 'sim-' so that it shows as simulated", _DO)
    if not kind.vendor.isprintable():
        raise DureError(what, "vendor: has characters that cannot be printed", _DO)
    for field in ("idle_w", "full_w", "speed", "run_s"):
        if not math.isfinite(getattr(kind, field)):
            raise DureError(what, f"{field}: must be a finite number", _DO)
    if kind.full_w == 0 or kind.full_w < kind.idle_w:
        raise DureError(what, f"full_w: {kind.full_w:g} must be above 0 and not below idle_w {kind.idle_w:g}", _DO)
    if kind.racks > kind.count:
        raise DureError(what, f"racks: {kind.racks:,} racks for {kind.count:,} chips", _DO)
    return kind


class _Columns(NamedTuple):
    """What a read of these chips needs, once computed: 10,000 chips are read each second."""

    chips: tuple[Chip, ...]
    ids: list[str]
    seeds: npt.NDArray[np.uint32]
    idle_w: npt.NDArray[np.float64]
    span_w: npt.NDArray[np.float64]
    memory_mib: npt.NDArray[np.float64]
    memoryless: list[int]


def _columns(fleet: Fleet, chips: tuple[Chip, ...]) -> _Columns:
    known = {kind.kind: kind for kind in fleet.kinds}
    kinds = [known[chip.kind] for chip in chips]
    return _Columns(
        chips,
        [chip.id for chip in chips],
        np.array([zlib.crc32(chip.id.encode()) for chip in chips], dtype=np.uint32),
        np.array([kind.idle_w for kind in kinds], dtype=np.float64),
        np.array([kind.full_w - kind.idle_w for kind in kinds], dtype=np.float64),
        np.array([kind.memory_mib or 0 for kind in kinds], dtype=np.float64),
        [row for row, kind in enumerate(kinds) if kind.memory_mib is None],
    )


class SimulatedDriver:
    """Chips of a fleet. Readings follow from (chip, time, share held) alone."""

    name = "simulated"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._columns = _columns(fleet, ())
        self.held: Mapping[str, int] = {}
        """Chip id -> milli held by runs now; whoever places runs replaces it."""

    def discover(self, host: Host, node: str) -> list[Chip]:
        return [chip for kind in self._fleet.kinds for chip in self._chips(kind, node)]

    def _chips(self, kind: Kind, node: str) -> list[Chip]:
        power = Power(kind.idle_w, kind.full_w, "simulated", f"fleet file {self._fleet.path}")
        return [
            Chip(
                id=f"{node}:{kind.kind}-{index}",
                node=node,
                kind=kind.kind,
                index=index,
                vendor=kind.vendor,
                model=kind.kind,
                source="simulated",
                driver=self.name,
                tested_on="none",
                memory_mib=kind.memory_mib,
                rack=f"{self._fleet.node}-rack{index * kind.racks // kind.count + 1}",
                power=power,
                run_s=kind.run_s / kind.speed,
            )
            for index in range(kind.count)
        ]

    def read(self, host: Host, chips: Sequence[Chip], now_ns: int) -> list[Reading]:
        """A held share works at 90 to 100 %, wavering each second; memory is used as it is held."""
        asked = tuple(chips)
        if self._columns.chips != asked:
            self._columns = _columns(self._fleet, asked)
        columns = self._columns
        share = (
            np.clip(np.fromiter((self.held.get(name, 0) for name in columns.ids), float, len(chips)), 0, 1000) / 1000
        )
        second = np.uint32(now_ns // NS_PER_S * 2_654_435_761 & 0xFFFF_FFFF)
        waver = ((columns.seeds ^ second) * np.uint32(0x9E3779B1) >> np.uint32(20)) / 0xFFF
        work = share * (0.9 + 0.1 * waver)
        watts = columns.idle_w + columns.span_w * work
        memory: list[int | None] = (columns.memory_mib * share).astype(np.int64).tolist()
        for row in columns.memoryless:
            memory[row] = None
        source: Source = "simulated"
        return list(map(Reading, columns.ids, repeat(now_ns), work.tolist(), memory, watts.tolist(), repeat(source)))

    def limit_power(self, host: Host, chip: Chip, watts: float) -> None:
        raise unsupported(self.name, "limit power")

    def partition(self, host: Host, chip: Chip, parts: int) -> None:
        raise unsupported(self.name, "be partitioned")
