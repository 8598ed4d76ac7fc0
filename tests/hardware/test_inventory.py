from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from dure.hardware.driver import Host, LibraryAbsent
from dure.hardware.drivers.simulated import Fleet, Kind, SimulatedDriver
from dure.hardware.inventory import discover, read
from dure.model.chip import Chip, Reading

HOST = Host(root=Path("/nonexistent"))


def fleet(kind: str = "sim-npu", count: int = 2) -> SimulatedDriver:
    return SimulatedDriver(Fleet("f", "sim", (Kind(kind, count, 1, 2),)))


class Broken(SimulatedDriver):
    """Raises `error` from discover and read, or gives `found`."""

    def __init__(self, name: str, error: Exception | None, found: Sequence[Chip] = ()) -> None:
        self.name, self.error, self.found = name, error, found

    def discover(self, host: Host, node: str) -> list[Chip]:
        if self.error:
            raise self.error
        return list(self.found)

    def read(self, host: Host, chips: Sequence[Chip], now_ns: int) -> list[Reading]:
        raise self.error or RuntimeError


def test_three_ways_to_have_no_chips_are_told_apart_and_hide_no_other() -> None:
    drivers = [
        Broken("absent", LibraryAbsent("libx.so is not installed")),
        Broken("empty", None),
        Broken("failing", KeyError("libamd_smi.so")),
        Broken("silent", RuntimeError()),
        fleet(),
    ]
    inventory = discover(drivers, HOST, "n1")
    assert [chip.id for chip in inventory.chips] == ["n1:sim-npu-0", "n1:sim-npu-1"]
    told = [(problem.driver, problem.state, problem.why) for problem in inventory.problems]
    assert told == [
        ("absent", "library absent", "libx.so is not installed"),
        ("empty", "no chip", "the driver found no chip on this host"),
        ("failing", "chip failing", "'libamd_smi.so'"),
        ("silent", "chip failing", "RuntimeError"),
    ]


def test_no_drivers_no_chips() -> None:
    assert discover([], HOST, "n1").chips == ()


def test_an_id_is_given_once() -> None:
    (chip, *_) = fleet().discover(HOST, "n1")
    inventory = discover([fleet(), Broken("double", None, [replace(chip, vendor="Other")])], HOST, "n1")
    assert [chip.vendor for chip in inventory.chips] == ["Simulated", "Simulated"]
    (problem,) = inventory.problems
    assert (problem.driver, problem.state) == ("double", "chip failing") and "n1:sim-npu-0" in problem.why


def test_a_driver_that_fails_to_read_leaves_the_others_readings() -> None:
    (template, *_) = fleet().discover(HOST, "n1")
    broken = Broken("broken", OSError("bus gone"))
    chips = [replace(template, id="n1:x", driver="broken"), *fleet().discover(HOST, "n1")]
    readings, problems = read([broken, fleet(), Broken("unused", None)], HOST, chips, 7)
    assert [reading.chip for reading in readings] == ["n1:sim-npu-0", "n1:sim-npu-1"]
    assert [(problem.driver, problem.why) for problem in problems] == [("broken", "bus gone")]
