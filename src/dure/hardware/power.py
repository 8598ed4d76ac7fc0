"""Energy of the whole node, from the CPU packages' RAPL counters where they are readable.

Files and units: the kernel's Documentation/ABI/testing/sysfs-class-powercap.
"""

from __future__ import annotations

import re

from dure.hardware.driver import Host

_CLASS = "sys/class/powercap"


class NodeMeter:
    """Sums the package zones `intel-rapl:N`; their parts (`intel-rapl:N:M`) and other zones would count twice.

    Read it more often than a counter wraps: a range of 2^18 J lasts 14 minutes at 300 W.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last: dict[str, int] = {}
        self._total_uj = 0
        self.reason = ""
        """Why the last read gave None, and what to do."""

    def read(self) -> tuple[int, str] | None:
        """µJ of all packages since the first read, and the meter's name; None: no meter, see `reason`.

        A zone missing or unreadable later makes the read None rather than too small.
        """
        zones = sorted(self._last) or self._packages()
        if not zones:
            self.reason = (
                f"no RAPL package zone under /{_CLASS} (a virtual machine, or the kernel has no driver for it)"
            )
            return None
        now: dict[str, int] = {}
        for zone in zones:
            value = self._number(zone, "energy_uj")
            if value is None:
                return None
            now[zone] = value
        grown = 0
        for zone, before in self._last.items():
            delta = now[zone] - before
            if delta < 0:
                span = self._number(zone, "max_energy_range_uj")
                if span is None:
                    return None
                delta += span
            grown += max(delta, 0)
        self._total_uj += grown
        self._last = now
        self.reason = ""
        return self._total_uj, f"RAPL {', '.join(zones)}"

    def _packages(self) -> list[str]:
        try:
            found = [path.name for path in (self._host.root / _CLASS).iterdir()]
        except OSError:
            return []
        return sorted(
            zone
            for zone in found
            if re.fullmatch(r"intel-rapl:\d+", zone)
            and (self._host.read(f"{_CLASS}/{zone}/name") or "").startswith("package")
        )

    def _number(self, zone: str, file: str) -> int | None:
        path = f"{_CLASS}/{zone}/{file}"
        try:
            text = (self._host.root / path).read_text(encoding="ascii").strip()
            if text.isdigit():
                return int(text)
            self.reason = f"/{path} is not a number: {text[:40]!r}"
        except PermissionError:
            self.reason = f"/{path} may be read by root only; let the agent's user read it: chmod o+r /{path}"
        except OSError as error:
            self.reason = f"/{path}: {error.strerror}"
        except ValueError:  # not ASCII, or thousands of digits
            self.reason = f"/{path} is not a number"
        return None
