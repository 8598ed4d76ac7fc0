"""Energy rows: one rule per kind of chip, exact splits, and None where nothing is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.metering.energy import HeldRun, NodeCounter, NodeLogged, measure
from dure.model.chip import Chip, Power
from dure.model.event import RunsMetered
from dure.model.units import NS_PER_S
from dure.model.usage import RunMeter
from dure.model.workload import Slice

S = NS_PER_S
EXAMPLE = Power(1.0, 10.0, "configured", "example")
RAPL = "RAPL intel-rapl:0"


def core(index: int, power: Power | None = EXAMPLE, node: str = "a") -> Chip:
    return Chip(f"{node}:cpu{index}", node, "cpu", index, "v", "m", "real", "cpu", "metal", power=power)


def npu(index: int, power: Power | None, source: str = "simulated") -> Chip:
    kind = "sim-npu" if source == "simulated" else "npu"
    return Chip(f"a:n{index}", "a", kind, index, "v", "m", source, "d", "none", power=power)  # type: ignore[arg-type]


def held(run: str, *slices: tuple[str, int], cpu_ns: int = 0, logged: int = 0, since_ns: int = 0) -> HeldRun:
    return HeldRun(run, tuple(Slice(*each) for each in slices), since_ns, logged, cpu_ns)


def rows(
    chips: list[Chip], runs: list[HeldRun], now_ns: int, counter: int | None = None, logged: NodeLogged | None = None
) -> RunsMetered:
    by_id = {chip.id: chip for chip in chips}
    event = measure(by_id, runs, NodeCounter("a", counter, RAPL), logged or NodeLogged(), now_ns)
    assert event is not None
    return event


def test_simulated_chips_draw_full_power_for_their_share() -> None:
    chips = [npu(0, Power(40, 180, "configured", "fleet")), npu(1, Power(40, 180, "configured", "fleet"))]
    event = rows(chips, [held("w1.0.1", ("a:n0", 500), ("a:n1", 1000), since_ns=2 * S)], 4 * S)
    expected = RunMeter("w1.0.1", 0, 540_000_000, "simulated", "time held × 180 W a sim-npu chip")
    assert event == RunsMetered("a", (expected,), None, None)


def test_cores_without_a_meter_are_modelled_from_new_cpu_time() -> None:
    [row] = rows([core(0)], [held("w1.0.1", ("a:cpu0", 100), cpu_ns=5 * S, logged=3 * S)], 100 * S).rows
    assert row == RunMeter("w1.0.1", 2 * S, 20_000_000, "modelled", "CPU time × 10 W a core, configured: example")


def test_cores_of_unlike_power_are_weighted_by_share() -> None:
    chips = [core(0), core(1, Power(1, 40, "configured", "big"))]
    [row] = rows(chips, [held("w1.0.1", ("a:cpu0", 1000), ("a:cpu1", 500), cpu_ns=3 * S)], S).rows
    assert row.energy_uj == 60_000_000
    assert "10 W, 40 W" in row.basis


def test_a_node_meter_is_split_over_cpu_time_and_the_idle_rest() -> None:
    chips = [core(0), core(1), core(0, node="b")]
    runs = [held("w1.0.1", ("a:cpu0", 1000), cpu_ns=3 * S), held("w2.0.1", ("a:cpu1", 100), cpu_ns=S)]
    event = rows(chips, runs, 10 * S, 1_000_007, NodeLogged(0, 0))
    assert [(row.energy_uj, row.energy_source) for row in event.rows] == [(150_001, "measured"), (50_000, "measured")]
    assert event.idle_energy_uj == 800_006
    assert event.counter_uj == 1_000_007
    assert event.rows[0].basis == f"{RAPL}, split over CPU time"


@pytest.mark.parametrize(
    ("counter", "logged", "why"),
    [
        (50, NodeLogged(), "first reading"),
        (50, NodeLogged(51, 0), "went back"),
        (50, NodeLogged(10, 11 * S), "went back"),
    ],
)
def test_an_interval_that_cannot_be_measured_is_none_and_says_why(counter: int, logged: NodeLogged, why: str) -> None:
    event = rows([core(0)], [held("w1.0.1", ("a:cpu0", 1000), cpu_ns=S)], 10 * S, counter, logged)
    [row] = event.rows
    assert (row.cpu_ns, row.energy_uj, row.energy_source) == (S, None, None)
    assert why in row.basis
    assert (event.idle_energy_uj, event.counter_uj) == (None, counter)


def test_an_idle_node_with_a_meter_is_all_idle() -> None:
    event = rows([core(0)], [], 10 * S, 700, NodeLogged(100, 0))
    assert event == RunsMetered("a", (), 600, 700)
    no_time = rows([core(0)], [held("w1.0.1", ("a:cpu0", 1000))], 0, 700, NodeLogged(100, 0))
    assert (no_time.rows[0].energy_uj, no_time.idle_energy_uj) == (0, 600)


def test_nothing_to_say() -> None:
    assert measure({}, [], NodeCounter("a"), NodeLogged(), 5) is None


@pytest.mark.parametrize("watts", [None, math.nan, math.inf, -1.0])
@pytest.mark.parametrize("kind", ["cpu", "npu"])
def test_no_usable_watts_is_none_never_zero(watts: float | None, kind: str) -> None:
    power = None if watts is None else Power(0, watts, "configured", "bad")
    chip = core(0, power) if kind == "cpu" else npu(0, power)
    [row] = rows([chip], [held("w1.0.1", (chip.id, 1000), cpu_ns=S)], 10 * S).rows
    assert (row.cpu_ns, row.energy_uj, row.energy_source) == (S, None, None)
    assert "no watts known" in row.basis


@pytest.mark.parametrize("counter", [None, 500])
def test_a_real_accelerator_is_not_told_by_the_cpus_meter(counter: int | None) -> None:
    chips = [core(0), npu(0, EXAMPLE, "real")]
    event = rows(chips, [held("w1.0.1", ("a:n0", 1000), cpu_ns=S)], 10 * S, counter, NodeLogged(0, 0))
    assert event.rows == (RunMeter("w1.0.1", S, None, None, "no meter for npu"),)
    assert event.idle_energy_uj == counter


def test_a_chip_not_known_and_a_run_without_slices() -> None:
    runs = [held("w1.0.1", ("a:gone", 1000), cpu_ns=S), held("w2.0.1", cpu_ns=S)]
    assert [row.energy_uj for row in rows([], runs, 10 * S).rows] == [None, None]


def test_counters_and_clocks_that_go_back_never_make_negative_rows() -> None:
    chips = [core(0), npu(0, EXAMPLE)]
    runs = [held("w1.0.1", ("a:cpu0", 10), cpu_ns=1, logged=5), held("w2.0.1", ("a:n0", 10), since_ns=20 * S)]
    assert [(row.cpu_ns, row.energy_uj) for row in rows(chips, runs, 10 * S).rows] == [(0, 0), (0, 0)]


@given(
    used=st.lists(st.integers(0, 10**13), max_size=20),
    cores=st.integers(0, 8),
    wall_ns=st.integers(0, 10**13),
    grown=st.integers(0, 10**15),
)
def test_the_whole_counter_is_given_out(used: list[int], cores: int, wall_ns: int, grown: int) -> None:
    chips = [core(i) for i in range(max(cores, 1))]
    runs = [held(f"w{i}.0.1", ("a:cpu0", 1), cpu_ns=cpu_ns) for i, cpu_ns in enumerate(used)]
    event = rows(chips, runs, wall_ns, 5 + grown, NodeLogged(5, 0))
    assert event.idle_energy_uj is not None
    assert sum(row.energy_uj or 0 for row in event.rows) + event.idle_energy_uj == grown


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=20), st.integers(1, 1000))
def test_many_intervals_add_up_to_one_within_a_microjoule_each(steps: list[int], milli: int) -> None:
    chips = [npu(0, Power(0, 123.456789, "configured", "x"))]
    total, at_ns = 0, 0
    for step in steps:
        [row] = rows(chips, [held("w1.0.1", ("a:n0", milli), since_ns=at_ns)], at_ns + step).rows
        assert row.energy_uj is not None
        total, at_ns = total + row.energy_uj, at_ns + step
    [whole] = rows(chips, [held("w1.0.1", ("a:n0", milli))], at_ns).rows
    assert whole.energy_uj is not None
    assert abs(total - whole.energy_uj) <= len(steps)
