"""The rules every driver keeps, checked over any of them: in the tests, and on a customer's rack."""

from __future__ import annotations

import re
from collections.abc import Callable

from dure.hardware.driver import Driver, Host
from dure.model.chip import Chip, Reading
from dure.model.errors import DureError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def faults(driver: Driver, host: Host, node: str, now_ns: int) -> list[str]:
    """Discover and read twice; every broken rule as a sentence. It never changes a chip's limits or parts."""
    chips = driver.discover(host, node)
    found = [] if _NAME.fullmatch(driver.name) else [f"name {driver.name!r} is not a name"]
    ids = [chip.id for chip in chips]
    if len(set(ids)) != len(ids):
        found.append("two chips have one id")
    if [chip.id for chip in driver.discover(host, node)] != ids:
        found.append("a second discover gives other chips")
    for chip in chips:
        found += [f"{chip.id}: {fault}" for fault in _chip_faults(chip, driver.name, node)]
    for at_ns in (now_ns, now_ns + 1_000_000_000):
        readings = driver.read(host, chips, at_ns)
        told = [reading.chip for reading in readings]
        if told != [name for name in ids if name in set(told)]:
            found.append("readings are not of the chips asked, in their order, once each")
        for reading in readings:
            found += [f"{reading.chip}: {fault}" for fault in _reading_faults(reading, at_ns)]
    if driver.read(host, [], now_ns + 2_000_000_000):
        found.append("no chips asked, but readings given")
    for chip in chips[:1]:
        found += _refusals(driver, host, chip)
    return found


def _chip_faults(chip: Chip, driver: str, node: str) -> list[str]:
    power = chip.power
    broken = {
        f"id does not start with {node}:": not (chip.id.startswith(f"{node}:") and len(chip.id) > len(node) + 1),
        f"node is not {node}": chip.node != node,
        f"driver is not {driver}": chip.driver != driver,
        "kind is not a name": not _NAME.fullmatch(chip.kind),
        "kind and source disagree about being simulated": chip.kind.startswith("sim-") != (chip.source == "simulated"),
        "vendor or model is empty": not (chip.vendor and chip.model),
        "index is negative": chip.index < 0,
        "memory is not positive (None: unknown)": chip.memory_mib is not None and chip.memory_mib <= 0,
        "run_s is for simulated chips, positive": (chip.run_s is not None) != (chip.source == "simulated")
        or (chip.run_s is not None and chip.run_s <= 0),
        "watts are not 0 <= idle <= full": power is not None and not 0 <= power.idle_w <= power.full_w,
        "power has no note": power is not None and not power.note,
    }
    return [fault for fault, is_broken in broken.items() if is_broken]


def _reading_faults(reading: Reading, at_ns: int) -> list[str]:
    broken = {
        "time is not the one asked": reading.at_ns != at_ns,
        "utilisation is not 0 to 1": reading.utilisation is not None and not 0 <= reading.utilisation <= 1,
        "memory used is negative": reading.memory_used_mib is not None and reading.memory_used_mib < 0,
        "power is negative": reading.power_w is not None and not reading.power_w >= 0,
        "power without its source, or a source without power": (reading.power_w is None)
        != (reading.power_source is None),
    }
    return [fault for fault, is_broken in broken.items() if is_broken]


def _refusals(driver: Driver, host: Host, chip: Chip) -> list[str]:
    """What no chip can do is refused with a DureError: 0 parts, a negative cap."""
    acts: dict[str, Callable[[], None]] = {
        "partition into 0 parts": lambda: driver.partition(host, chip, 0),
        "limit_power to -1 W": lambda: driver.limit_power(host, chip, -1.0),
    }
    found = []
    for act, do in acts.items():
        try:
            do()
        except DureError:
            continue
        found.append(f"{act} is not refused with a DureError")
    return found
