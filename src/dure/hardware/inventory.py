"""All chips of a host, over all drivers; one that fails never hides the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from dure.hardware.driver import Driver, Host, LibraryAbsent
from dure.model.chip import Chip, Reading

State = Literal["library absent", "no chip", "chip failing"]


class Problem(Struct, frozen=True):
    """Why a driver gave no chips, or not all of them."""

    driver: str
    state: State
    why: str


class Inventory(Struct, frozen=True):
    """`problems` also lists drivers that merely found no chip; only `chip failing` calls for a repair."""

    chips: tuple[Chip, ...]
    problems: tuple[Problem, ...]


def discover(drivers: Sequence[Driver], host: Host, node: str) -> Inventory:
    """Ask every driver in turn. A chip whose id another already has is left out and reported."""
    chips: dict[str, Chip] = {}
    problems: list[Problem] = []
    for driver in drivers:
        try:
            found = driver.discover(host, node)
        except LibraryAbsent as error:
            problems.append(Problem(driver.name, "library absent", str(error)))
            continue
        except Exception as error:  # a vendor's SDK raises what it likes
            problems.append(Problem(driver.name, "chip failing", _told(error)))
            continue
        if not found:
            problems.append(Problem(driver.name, "no chip", "the driver found no chip on this host"))
        for chip in found:
            if chips.setdefault(chip.id, chip) is not chip:
                problems.append(Problem(driver.name, "chip failing", f"{chip.id} is there twice; the first is kept"))
    return Inventory(tuple(chips.values()), tuple(problems))


def read(
    drivers: Sequence[Driver], host: Host, chips: Sequence[Chip], now_ns: int
) -> tuple[list[Reading], list[Problem]]:
    """Readings of `chips`, each from its own driver; a driver that raises leaves its chips out."""
    readings: list[Reading] = []
    problems: list[Problem] = []
    for driver in drivers:
        own = [chip for chip in chips if chip.driver == driver.name]
        if not own:
            continue
        try:
            readings += driver.read(host, own, now_ns)
        except Exception as error:  # a vendor's SDK raises what it likes
            problems.append(Problem(driver.name, "chip failing", _told(error)))
    return readings, problems


def _told(error: Exception) -> str:
    return f"{error}" or type(error).__name__
