from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dure.hardware.driver import Host
from dure.hardware.drivers.simulated import Fleet, Kind, SimulatedDriver
from dure.hardware.telemetry import RING, Past, Telemetry
from dure.model.chip import Chip, Reading

HOST = Host(root=Path("/nonexistent"))


def chips(count: int = 3) -> list[Chip]:
    return SimulatedDriver(Fleet("f", "sim", (Kind("sim-npu", count, 1, 2, memory_mib=100),))).discover(HOST, "n1")


def reading(index: int, at_ns: int = 1, utilisation: float | None = 0.5) -> Reading:
    return Reading(f"n1:sim-npu-{index}", at_ns, utilisation, 64, 12.5, "simulated")


def samples(text: bytes) -> dict[str, float]:
    """The lines of Prometheus text, with the few rules of format 0.0.4 that it must keep."""
    found: dict[str, float] = {}
    family, families = "", set[str]()
    for line in text.decode().removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in families, "a family is there twice"
            families.add(family)
            continue
        if line.startswith("# TYPE "):
            assert line.split()[2] == family and line.split()[3] in ("gauge", "counter")
            continue
        match = re.fullmatch(
            r'([a-z_]+)(\{[a-z]+="(?:[^"\\]|\\[\\"n])*"(?:,[a-z]+="(?:[^"\\]|\\[\\"n])*")*\}) (\S+)', line
        )
        assert match and match[1] == family, line
        assert line.rpartition(" ")[0] not in found, "a series is there twice"
        found[line.rpartition(" ")[0]] = float(match[3])
    return found


def test_every_family_with_its_units() -> None:
    telemetry = Telemetry(chips(1))
    telemetry.take([reading(0)], 1)
    text = telemetry.render({"n1:sim-npu-0": 250}, {"w1.0.1": 1_500_000_001}, (2_000_001, "RAPL intel-rapl:0"))
    assert samples(text) == {
        'dure_chip_info{id="n1:sim-npu-0",kind="sim-npu",vendor="Simulated",model="sim-npu",source="simulated",'
        'rack="sim-rack1"}': 1,
        'dure_chip_held_ratio{id="n1:sim-npu-0"}': 0.25,
        'dure_chip_utilisation_ratio{id="n1:sim-npu-0"}': 0.5,
        'dure_chip_memory_used_bytes{id="n1:sim-npu-0"}': 64 * 2**20,
        'dure_chip_power_watts{id="n1:sim-npu-0",source="simulated"}': 12.5,
        'dure_run_cpu_seconds_total{run="w1.0.1"}': 1.500000001,
        'dure_node_energy_joules_total{source="measured",meter="RAPL intel-rapl:0"}': 2.000001,
    }


def test_without_a_meter_there_is_no_line_and_no_head() -> None:
    telemetry = Telemetry(chips(1))
    telemetry.take([Reading("n1:sim-npu-0", 1)], 1)
    text = telemetry.render({}, {}, None)
    assert {name.partition("{")[0] for name in samples(text)} == {"dure_chip_info", "dure_chip_held_ratio"}
    for absent in (b"energy", b"power", b"utilisation", b"run_cpu"):
        assert absent not in text


def test_no_chips_is_empty() -> None:
    telemetry = Telemetry([])
    telemetry.take([], 1)
    assert telemetry.render({}, {}, None) == b""


def test_a_gap_leaves_only_its_own_lines_out() -> None:
    telemetry = Telemetry(chips(3))
    telemetry.take([reading(0), reading(1), reading(2)], 1)
    telemetry.take([reading(0, 2), reading(2, 2)], 2)
    told = samples(telemetry.render({}, {}, None))
    assert 'dure_chip_power_watts{id="n1:sim-npu-2",source="simulated"}' in told
    assert not [name for name in told if "ratio" not in name and "info" not in name and "npu-1" in name]
    assert telemetry.latest("n1:sim-npu-1") is None and telemetry.latest("n1:sim-npu-2") == reading(2, 2)
    assert telemetry.past("n1:sim-npu-1") == [Past(1, False, 0.5, 12.5), Past(2, True)]


def test_a_reading_without_figures_is_no_gap() -> None:
    telemetry = Telemetry(chips(1))
    telemetry.take([Reading("n1:sim-npu-0", 1)], 1)
    assert telemetry.past("n1:sim-npu-0") == [Past(1, False)]


def test_the_past_is_bounded() -> None:
    telemetry = Telemetry(chips(1))
    for at_ns in range(RING + 5):
        telemetry.take([reading(0, at_ns)], at_ns)
    past = telemetry.past("n1:sim-npu-0")
    assert [one.at_ns for one in past] == list(range(5, RING + 5))


def test_strangers_and_unknown_chips() -> None:
    telemetry = Telemetry(chips(1))
    telemetry.take([Reading("n9:cpu0", 1, 0.5), reading(0)], 1)
    assert b"n9" not in telemetry.render({"n9:cpu0": 1000}, {}, None)
    assert telemetry.latest("n9:cpu0") is None
    with pytest.raises(KeyError):
        telemetry.past("n9:cpu0")


def test_power_of_several_sources_keeps_them_apart() -> None:
    telemetry = Telemetry(chips(2))
    telemetry.take([reading(0), replace(reading(1), power_source="measured")], 1)
    power = {name for name in samples(telemetry.render({}, {}, None)) if "power" in name}
    assert power == {
        'dure_chip_power_watts{id="n1:sim-npu-0",source="simulated"}',
        'dure_chip_power_watts{id="n1:sim-npu-1",source="measured"}',
    }


def test_chunks_are_the_render_and_are_small() -> None:
    many = chips(3000)
    telemetry = Telemetry(many)
    telemetry.take([reading(index) for index in range(3000) if index != 700], 1)
    pieces = list(telemetry.chunks({}, {}, None))
    assert b"".join(pieces) == telemetry.render({}, {}, None)
    assert max(piece.count(b"\n") for piece in pieces) <= 514
    assert len(samples(b"".join(pieces))) == 5 * 3000 - 3


def test_a_render_shows_one_sample_even_when_another_is_taken_meanwhile() -> None:
    telemetry = Telemetry(chips(1))
    telemetry.take([reading(0, utilisation=0.25)], 1)
    pieces = telemetry.chunks({}, {}, None)
    first = next(pieces)
    telemetry.take([], 2)
    assert b"utilisation_ratio{" in first + b"".join(pieces)


ODD = st.text(st.sampled_from('\\"\n%{}=,# a') | st.characters(codec="utf-8"), max_size=20)


@settings(deadline=None)
@given(ODD, ODD, ODD)
@example("\\", "\\n", '\\"')
@example("%d", "\n", '"')
def test_any_name_is_one_label(vendor: str, name: str, run: str) -> None:
    (chip,) = chips(1)
    telemetry = Telemetry([replace(chip, id=f"n1:{name}", vendor=vendor)])
    telemetry.take([Reading(f"n1:{name}", 1, 0.5)], 1)
    told = samples(telemetry.render({f"n1:{name}": 3}, {run: 5}, (1, vendor)))
    labels = [re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', series.partition("{")[2]) for series in told]
    meant = [
        {key: re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value) for key, value in one} for one in labels
    ]
    assert [one.get("id") for one in meant] == [f"n1:{name}"] * 3 + [None] * 2
    assert (meant[0]["vendor"], meant[3], meant[4]["meter"]) == (vendor, {"run": run}, vendor)
