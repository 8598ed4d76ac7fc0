"""Readings of a node's chips: the newest of each, a short past with its gaps, and Prometheus text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dure.model.chip import Chip, Reading
from dure.model.units import NS_PER_S, UJ_PER_J, WHOLE_CHIP_MILLI

RING = 60
"""Samples kept of each chip."""
_LINES = 512
"""Lines rendered at a time; between two pieces other work may run."""

_GAP = Reading("", 0)
"""Stands for the reading that a chip did not give."""


class Past(Struct, frozen=True):
    """One chip at one past sample; figures are rounded to 24 bits. `gap`: the chip gave no reading then."""

    at_ns: int
    gap: bool
    utilisation: float | None = None
    power_w: float | None = None


class Telemetry:
    """Fixed chips, samples as they come. One thread may `take` while another goes through `chunks`."""

    def __init__(self, chips: Sequence[Chip]) -> None:
        self.chips = tuple(chips)
        self._ids = [chip.id for chip in self.chips]
        self._row = {name: row for row, name in enumerate(self._ids)}
        self._latest = [_GAP] * len(self.chips)
        self._past: deque[tuple[int, npt.NDArray[np.float32]]] = deque(maxlen=RING)
        self._info = [_info(chip) for chip in self.chips]
        self._forms: dict[tuple[str, str], list[str]] = {}

    def take(self, readings: Iterable[Reading], now_ns: int) -> None:
        """One sample of all chips: a chip without a reading has a gap. Readings of other chips are dropped."""
        given = {reading.chip: reading for reading in readings}
        latest = [given.get(name, _GAP) for name in self._ids]
        figures = (
            [reading is _GAP for reading in latest],
            [reading.utilisation for reading in latest],
            [reading.power_w for reading in latest],
        )
        self._past.append((now_ns, np.array([np.array(column, dtype=np.float32) for column in figures])))
        self._latest = latest

    def latest(self, chip: str) -> Reading | None:
        """The chip's reading in the newest sample; None: it gave none, or is not ours."""
        row = self._row.get(chip)
        return None if row is None or self._latest[row] is _GAP else self._latest[row]

    def past(self, chip: str) -> list[Past]:
        """The newest samples of one of our chips, oldest first."""
        row = self._row[chip]
        return [
            Past(at_ns, bool(gap), *(None if np.isnan(figure) else float(figure) for figure in figures))
            for at_ns, sample in list(self._past)
            for gap, *figures in (sample[:, row],)
        ]

    def render(self, held: Mapping[str, int], runs_cpu_ns: Mapping[str, int], energy: tuple[int, str] | None) -> bytes:
        """Prometheus text (format 0.0.4) of the newest sample.

        `held`: chip id -> milli; `runs_cpu_ns`: run -> cumulative CPU time; `energy`: the node meter's µJ and name.
        A chip with a gap, or without a meter, has no line in that family.
        """
        return b"".join(self.chunks(held, runs_cpu_ns, energy))

    def chunks(
        self, held: Mapping[str, int], runs_cpu_ns: Mapping[str, int], energy: tuple[int, str] | None
    ) -> Iterator[bytes]:
        """`render` in pieces of some hundred lines, between which other work may run."""
        latest = self._latest
        yield from _family("dure_chip_info", _pieces(self._info))
        shares = [held.get(name, 0) / WHOLE_CHIP_MILLI for name in self._ids]
        yield from _family("dure_chip_held_ratio", self._filled("dure_chip_held_ratio", "%g", shares))
        figures: list[float | None] = [reading.utilisation for reading in latest]
        yield from _family("dure_chip_utilisation_ratio", self._filled("dure_chip_utilisation_ratio", "%.4g", figures))
        figures = [None if mib is None else mib << 20 for mib in [reading.memory_used_mib for reading in latest]]
        yield from _family("dure_chip_memory_used_bytes", self._filled("dure_chip_memory_used_bytes", "%d", figures))
        yield from _family("dure_chip_power_watts", self._power(latest))
        runs = [f'{{run="{_escaped(run)}"}} {_decimal(cpu_ns, NS_PER_S)}' for run, cpu_ns in runs_cpu_ns.items()]
        yield from _family(
            "dure_run_cpu_seconds_total", _pieces([f"dure_run_cpu_seconds_total{run}\n" for run in runs])
        )
        if energy is not None:
            labels = f'{{source="measured",meter="{_escaped(energy[1])}"}}'
            line = f"dure_node_energy_joules_total{labels} {_decimal(energy[0], UJ_PER_J)}\n"
            yield from _family("dure_node_energy_joules_total", iter([line]))

    def _power(self, latest: Sequence[Reading]) -> Iterator[str]:
        for source in sorted({reading.power_source or "" for reading in latest} - {""}):
            watts = [reading.power_w if reading.power_source == source else None for reading in latest]
            yield from self._filled("dure_chip_power_watts", "%.6g", watts, f',source="{source}"')

    def _filled(self, name: str, form: str, figures: Sequence[float | None], labels: str = "") -> Iterator[str]:
        """Lines of one figure a chip; None has no line. One `%` over many lines is twice as fast as one a line."""
        forms = self._forms.get((name, labels))
        if forms is None:
            forms = [f'{name}{{id="{_escaped(chip)}"{labels}}} '.replace("%", "%%") + f"{form}\n" for chip in self._ids]
            self._forms[name, labels] = forms
        for start in range(0, len(forms), _LINES):
            lines, part = forms[start : start + _LINES], figures[start : start + _LINES]
            if None in part:
                lines = [line for line, figure in zip(lines, part, strict=True) if figure is not None]
                part = [figure for figure in part if figure is not None]
            yield "".join(lines) % tuple(part)


_FAMILIES = {
    "dure_chip_info": ("gauge", "A chip of this node; always 1."),
    "dure_chip_held_ratio": ("gauge", "Share of the chip that runs hold."),
    "dure_chip_utilisation_ratio": ("gauge", "Share of the time since the last reading in which the chip worked."),
    "dure_chip_memory_used_bytes": ("gauge", "Memory of the chip in use."),
    "dure_chip_power_watts": ("gauge", "Power of the chip; source says where the figure comes from."),
    "dure_run_cpu_seconds_total": ("counter", "CPU time of all processes of a run."),
    "dure_node_energy_joules_total": ("counter", "Energy of the node's CPU packages since the agent started."),
}


def _family(name: str, pieces: Iterable[str]) -> Iterator[bytes]:
    """A metric family with its head; nothing at all when it has no line."""
    kind, told = _FAMILIES[name]
    head = f"# HELP {name} {told}\n# TYPE {name} {kind}\n"
    for piece in pieces:
        if piece:
            yield (head + piece).encode()
            head = ""


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    return ("".join(lines[start : start + _LINES]) for start in range(0, len(lines), _LINES))


def _info(chip: Chip) -> str:
    names = {"id": chip.id, "kind": chip.kind, "vendor": chip.vendor, "model": chip.model, "source": chip.source}
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in {**names, "rack": chip.rack or ""}.items())
    return f"dure_chip_info{{{labels}}} 1\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _decimal(value: int, unit: int) -> str:
    """An integer in a power of ten of its unit, exactly.

    >>> _decimal(1_500_000, 1_000_000)
    '1.500000'
    """
    return f"{value // unit}.{value % unit:0{len(str(unit)) - 1}d}"
