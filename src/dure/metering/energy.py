"""What runs used since they were last metered: CPU time, and energy with its source.

One rule per kind of chip, so that a figure is never better than its meter:

- simulated chips: full watts × share × time held, `simulated`;
- CPU cores of a node with an energy counter: the counter's growth split over CPU time, `measured`;
- CPU cores of a node without one: CPU time × watts a core, `modelled`;
- anything else: None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from dure.model.chip import Chip, Power
from dure.model.event import RunsMetered
from dure.model.units import NS_PER_S, WHOLE_CHIP_MILLI, Source, split
from dure.model.usage import RunMeter
from dure.model.workload import Slice


class HeldRun(Struct, frozen=True):
    """A run that holds chips now. `since_ns`: placed or last metered; `cpu_ns` is cumulative as its
    node reports it, `logged_cpu_ns` what of it is in the log."""

    run: str
    slices: tuple[Slice, ...]
    since_ns: int
    logged_cpu_ns: int
    cpu_ns: int


class NodeCounter(Struct, frozen=True):
    """A node's cumulative energy counter now, µJ; None: it has no meter."""

    node: str
    energy_uj: int | None = None
    meter: str = ""


class NodeLogged(Struct, frozen=True):
    """The counter's value last logged, and when (UTC ns). None: nothing to count from."""

    counter_uj: int | None = None
    counter_ns: int = 0


class _Measured(Struct, frozen=True):
    """A counter's growth, split. `why`: why there is none."""

    by_run: dict[str, int] = {}
    idle_uj: int | None = None
    why: str = ""


def measure(
    chips: Mapping[str, Chip], held: Sequence[HeldRun], node: NodeCounter, logged: NodeLogged, now_ns: int
) -> RunsMetered | None:
    """One row for each held run; None when there is nothing to say.

    On a node with a counter `held` is every run of the node, one that just ended included, and
    `chips` holds every chip of the node: what is missing there would be told as idle. The first
    reading of a counter only sets where the next one counts from.

    >>> core = Chip("a:cpu0", "a", "cpu", 0, "x", "y", "real", "cpu", "metal", power=Power(1, 10, "configured", "mine"))
    >>> run = HeldRun("w1.0.1", (Slice("a:cpu0", 500),), since_ns=0, logged_cpu_ns=0, cpu_ns=2 * NS_PER_S)
    >>> measure({"a:cpu0": core}, [run], NodeCounter("a"), NodeLogged(), 4 * NS_PER_S).rows[0]
    ... # doctest: +NORMALIZE_WHITESPACE
    RunMeter(run='w1.0.1', cpu_ns=2000000000, energy_uj=20000000, energy_source='modelled',
             basis='CPU time × 10 W a core, configured: mine')
    """
    if not held and node.energy_uj is None:
        return None
    measured = _measured(chips, held, node, logged, now_ns)
    rows = []
    for run in held:
        energy_uj, source, basis = _energy(chips, run, node, measured, now_ns)
        rows.append(RunMeter(run.run, _cpu_ns(run), energy_uj, source, basis))
    return RunsMetered(node.node, tuple(rows), measured.idle_uj, node.energy_uj)


def _energy(
    chips: Mapping[str, Chip], run: HeldRun, node: NodeCounter, measured: _Measured, now_ns: int
) -> tuple[int | None, Source | None, str]:
    held = [(chips.get(piece.chip), piece.milli) for piece in run.slices]
    kinds = ", ".join(sorted({"a chip not known" if chip is None else chip.kind for chip, _ in held}))
    real_cpu = _on_cpu(chips, run)
    if real_cpu and node.energy_uj is not None:
        if measured.idle_uj is None:
            return None, None, f"{node.meter}: {measured.why}"
        return measured.by_run[run.run], "measured", f"{node.meter}, split over CPU time"
    if not real_cpu and any(chip is None or chip.source == "real" for chip, _ in held):
        return None, None, f"no meter for {kinds}"
    watts = [(chip.power, _full_uw(chip.power), milli) for chip, milli in held if chip is not None]
    if not watts or any(uw is None for _, uw, _ in watts):
        return None, None, f"no watts known for {kinds}"
    uw_milli = sum(uw * milli for _, uw, milli in watts if uw is not None)
    each = ", ".join(sorted({f"{power.full_w:g} W" for power, _, _ in watts if power is not None}))
    if real_cpu:
        notes = ", ".join(sorted({f"{power.source}: {power.note}" for power, _, _ in watts if power is not None}))
        whole = sum(milli for _, _, milli in watts)
        return _half_up(_cpu_ns(run) * uw_milli, whole * NS_PER_S), "modelled", f"CPU time × {each} a core, {notes}"
    held_ns = max(0, now_ns - run.since_ns)
    energy_uj = _half_up(uw_milli * held_ns, WHOLE_CHIP_MILLI * NS_PER_S)
    return energy_uj, "simulated", f"time held × {each} a {kinds} chip"


def _measured(
    chips: Mapping[str, Chip], held: Sequence[HeldRun], node: NodeCounter, logged: NodeLogged, now_ns: int
) -> _Measured:
    """The counter's growth over CPU time of the runs on CPU cores and over the cores' other time."""
    if node.energy_uj is None:
        return _Measured(why="no meter")
    if logged.counter_uj is None:
        return _Measured(why="first reading, nothing to count from")
    if node.energy_uj < logged.counter_uj or now_ns < logged.counter_ns:
        return _Measured(why="the counter or the clock went back, interval skipped")
    runs = [run for run in held if _on_cpu(chips, run)]
    used = [_cpu_ns(run) for run in runs]
    cores = sum(_is_core(chip) and chip.node == node.node for chip in chips.values())
    rest = max(0, (now_ns - logged.counter_ns) * cores - sum(used))
    if not rest and not any(used):
        rest = 1  # nobody worked: all of it is idle
    *parts, idle_uj = split(node.energy_uj - logged.counter_uj, [*used, rest])
    return _Measured({run.run: part for run, part in zip(runs, parts, strict=True)}, idle_uj)


def _cpu_ns(run: HeldRun) -> int:
    return max(0, run.cpu_ns - run.logged_cpu_ns)


def _is_core(chip: Chip | None) -> bool:
    return chip is not None and chip.kind == "cpu" and chip.source == "real"


def _on_cpu(chips: Mapping[str, Chip], run: HeldRun) -> bool:
    return bool(run.slices) and all(_is_core(chips.get(piece.chip)) for piece in run.slices)


def _full_uw(power: Power | None) -> int | None:
    """Full watts as integer µW, so that the rest is integer arithmetic; None: not a usable figure."""
    if power is None or not math.isfinite(power.full_w) or power.full_w < 0:
        return None
    return round(power.full_w * 1_000_000)


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
