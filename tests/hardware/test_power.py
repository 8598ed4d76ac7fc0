from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.hardware.driver import Host
from dure.hardware.power import NodeMeter

RANGE_UJ = 262_143_328_850


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "trees/rapl", tmp_path / "rapl"))


def put(tree: Path, zone: str, energy_uj: int | str) -> None:
    (tree / f"sys/class/powercap/{zone}/energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_summed_since_the_first_read(tree: Path) -> None:
    meter = NodeMeter(Host(root=tree))
    assert meter.read() == (0, "RAPL intel-rapl:0, intel-rapl:1")
    put(tree, "intel-rapl:0", 1_500)
    put(tree, "intel-rapl:1", 6_000)
    put(tree, "intel-rapl:0:0", 900_000)  # a part, psys and the mmio copy are not counted
    put(tree, "intel-rapl:2", 900_000)
    put(tree, "intel-rapl-mmio:0", 900_000)
    assert meter.read() == (1_500, "RAPL intel-rapl:0, intel-rapl:1")
    assert meter.read() == (1_500, "RAPL intel-rapl:0, intel-rapl:1")
    assert meter.reason == ""


@settings(deadline=None)
@given(st.lists(st.integers(0, RANGE_UJ - 1), min_size=1, max_size=8))
def test_wraps_are_undone(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    tree = tmp_path_factory.mktemp("wrap")
    zone = tree / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    counter, meter = 17, NodeMeter(Host(root=tree))
    put(tree, "intel-rapl:0", counter)
    meter.read()
    for step in steps:
        counter += step
        put(tree, "intel-rapl:0", counter % RANGE_UJ)
        read = meter.read()
    assert read is not None and read[0] == sum(steps)


def test_a_wrap_without_a_known_range_is_no_figure(tree: Path) -> None:
    meter = NodeMeter(Host(root=tree))
    meter.read()
    put(tree, "intel-rapl:0", 1)
    (tree / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").unlink()
    assert meter.read() is None
    assert "max_energy_range_uj: No such file" in meter.reason


def test_no_rapl_is_none_with_a_reason(tmp_path: Path) -> None:
    meter = NodeMeter(Host(root=tmp_path))
    assert meter.read() is None
    assert "no RAPL package zone" in meter.reason


def test_a_zone_that_vanishes_is_no_smaller_figure(tree: Path) -> None:
    meter = NodeMeter(Host(root=tree))
    meter.read()
    zone = tree / "sys/class/powercap/intel-rapl:1"
    away = zone.rename(tree / "away")
    assert meter.read() is None
    assert "intel-rapl:1/energy_uj" in meter.reason
    away.rename(zone)
    put(tree, "intel-rapl:1", 5_400)
    assert meter.read() == (400, "RAPL intel-rapl:0, intel-rapl:1")


@pytest.mark.parametrize("text", ["", "many", "-5", "1.5", "٣", "9" * 5000])
def test_a_counter_that_is_no_number(tree: Path, text: str) -> None:
    put(tree, "intel-rapl:0", text)
    meter = NodeMeter(Host(root=tree))
    assert meter.read() is None
    assert "intel-rapl:0/energy_uj is not a number" in meter.reason


def test_a_counter_only_root_may_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root reads everything: let the open fail as it does for others
        real = Path.read_text

        def refused(path: Path, *args: str, **named: str) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **named)

        monkeypatch.setattr(Path, "read_text", refused)
    else:
        (tree / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    meter = NodeMeter(Host(root=tree))
    assert meter.read() is None
    assert "may be read by root only" in meter.reason and "chmod o+r" in meter.reason
