"""The rules of `dure.hardware.conformance` over every driver, and over drivers that break them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

import dure.hardware.drivers
from dure.hardware.conformance import faults
from dure.hardware.driver import Driver, Host
from dure.hardware.drivers.cpu import CpuDriver
from dure.hardware.drivers.simulated import Fleet, Kind, SimulatedDriver
from dure.model.chip import Chip, Power, Reading

TREES = Path(__file__).parent / "trees"
FOUR = frozenset(range(4))
NOW_NS = 1_700_000_000_000_000_000
FLEET = Fleet("fleet.toml", "sim", (Kind("sim-npu", 32, 40, 180, racks=2, memory_mib=49_152), Kind("sim-gpu", 3, 0, 9)))


def busy_fleet() -> SimulatedDriver:
    driver = SimulatedDriver(FLEET)
    driver.held = {"n1:sim-npu-0": 1000, "n1:sim-gpu-2": 1}
    return driver


CASES: list[tuple[str, Callable[[], Driver], Host]] = [
    ("cpu", CpuDriver, Host(root=TREES / "x86", allowed_cpus=lambda: FOUR)),
    ("cpu", CpuDriver, Host(root=TREES / "arm", allowed_cpus=lambda: FOUR)),
    ("cpu", lambda: CpuDriver(4.5), Host()),
    ("simulated", lambda: SimulatedDriver(FLEET), Host(root=TREES / "x86")),
    ("simulated", busy_fleet, Host()),
]
"""Every driver, each with the hosts it is checked on; `Host()` is this machine."""


@pytest.mark.parametrize(("name", "driver", "host"), CASES)
def test_a_driver_keeps_the_rules(name: str, driver: Callable[[], Driver], host: Host) -> None:
    one = driver()
    assert one.name == name
    assert one.discover(host, "n1"), "a host without its chip proves nothing"
    assert faults(one, host, "n1", NOW_NS) == []


def test_every_driver_file_is_covered() -> None:
    files = {path.stem for path in Path(dure.hardware.drivers.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == {name for name, _, _ in CASES}


class Bad(SimulatedDriver):
    """Breaks one rule: `chip` changes each chip found, `reading` each reading, `asked` the list of readings."""

    def __init__(
        self,
        chip: Callable[[Chip], Chip] = lambda chip: chip,
        reading: Callable[[Reading], Reading] = lambda reading: reading,
        asked: Callable[[list[Reading]], list[Reading]] = lambda readings: readings,
    ) -> None:
        super().__init__(FLEET)
        self._chip, self._reading, self._asked = chip, reading, asked

    def discover(self, host: Host, node: str) -> list[Chip]:
        return [self._chip(chip) for chip in super().discover(host, node)]

    def read(self, host: Host, chips: Sequence[Chip], now_ns: int) -> list[Reading]:
        known = {chip.id: chip for chip in super().discover(host, "n1")}
        asked = [known.get(chip.id, next(iter(known.values()))) for chip in chips]
        return self._asked([self._reading(reading) for reading in super().read(host, asked, now_ns)])


class Restless(Bad):
    """Finds another chip each time."""

    found = 0

    def discover(self, host: Host, node: str) -> list[Chip]:
        self.found += 1
        return super().discover(host, node)[: self.found]


class Willing(Bad):
    """Accepts what no chip can do."""

    def limit_power(self, host: Host, chip: Chip, watts: float) -> None: ...

    def partition(self, host: Host, chip: Chip, parts: int) -> None: ...


@pytest.mark.parametrize(
    ("driver", "fault"),
    [
        (Bad(lambda chip: replace(chip, id="n1:one")), "two chips have one id"),
        (Bad(lambda chip: replace(chip, id=chip.id[3:])), "id does not start with n1:"),
        (Bad(lambda chip: replace(chip, node="n2")), "node is not n1"),
        (Bad(lambda chip: replace(chip, driver="cpu")), "driver is not simulated"),
        (Bad(lambda chip: replace(chip, source="real")), "kind and source disagree"),
        (Bad(lambda chip: replace(chip, kind="npu")), "kind and source disagree"),
        (Bad(lambda chip: replace(chip, kind="sim NPU")), "kind is not a name"),
        (Bad(lambda chip: replace(chip, vendor="")), "vendor or model is empty"),
        (Bad(lambda chip: replace(chip, index=-1)), "index is negative"),
        (Bad(lambda chip: replace(chip, memory_mib=0)), "memory is not positive"),
        (Bad(lambda chip: replace(chip, run_s=None)), "run_s is for simulated chips"),
        (Bad(lambda chip: replace(chip, power=Power(5, 4, "simulated", "x"))), "watts are not 0 <= idle <= full"),
        (Bad(lambda chip: replace(chip, power=Power(1, float("nan"), "simulated", "x"))), "watts are not"),
        (Bad(lambda chip: replace(chip, power=Power(1, 2, "simulated", ""))), "power has no note"),
        (Bad(reading=lambda reading: replace(reading, at_ns=1)), "time is not the one asked"),
        (Bad(reading=lambda reading: replace(reading, utilisation=50.0)), "utilisation is not 0 to 1"),
        (Bad(reading=lambda reading: replace(reading, memory_used_mib=-1)), "memory used is negative"),
        (Bad(reading=lambda reading: replace(reading, power_w=float("nan"))), "power is negative"),
        (Bad(reading=lambda reading: replace(reading, power_source=None)), "power without its source"),
        (Bad(reading=lambda reading: replace(reading, power_w=None)), "power without its source"),
        (Bad(asked=lambda readings: readings[::-1]), "in their order"),
        (Bad(asked=lambda readings: readings * 2), "once each"),
        (Bad(asked=lambda readings: [Reading("n9:x", NOW_NS), *readings]), "of the chips asked"),
        (Bad(asked=lambda readings: readings or [Reading("n1:sim-npu-0", 1)]), "no chips asked"),
        (Restless(), "a second discover gives other chips"),
        (Willing(), "partition into 0 parts is not refused"),
        (Willing(), "limit_power to -1 W is not refused"),
    ],
)
def test_a_broken_rule_is_told(driver: Driver, fault: str) -> None:
    assert any(fault in told for told in faults(driver, Host(), "n1", NOW_NS))


def test_a_chip_may_be_left_out_of_a_read() -> None:
    assert faults(Bad(asked=lambda readings: readings[::2]), Host(), "n1", NOW_NS) == []
