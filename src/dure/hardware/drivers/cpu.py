"""CPU cores as chips: what Linux says in /proc and /sys (x86 and Arm)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dure.hardware.driver import Host, unsupported
from dure.model.chip import Chip, Power, Reading
from dure.model.errors import DureError

EXAMPLE_WATTS_PER_CORE = 10.0

_FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "sse4_2", "fma"),
    *("asimd", "sve", "sve2", "i8mm", "bf16", "asimddp"),
)
"""Instruction sets that decide how fast an engine runs, in the kernel's spelling."""

# Numbers of the kernel's arch/arm64/include/asm/cputype.h; others are shown as numbers.
_ARM_IMPLEMENTERS = {0x41: "Arm", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x61: "Apple", 0x6D: "Microsoft", 0xC0: "Ampere"}
_ARM_PARTS = {
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD84): "Neoverse-V3",
    (0xC0, 0xAC3): "Ampere-1",
}

_Ticks = tuple[int, int]
"""(busy, all) clock ticks of one core since boot."""


class CpuDriver:
    """One chip a core that this process may run on; `index` is the operating system's CPU number."""

    name = "cpu"

    def __init__(self, watts_per_core: float | None = None) -> None:
        """`watts_per_core`: W of one core at full work, as configured; None takes an example and says so."""
        if watts_per_core is not None and not (math.isfinite(watts_per_core) and 0 < watts_per_core <= 1000):
            raise DureError(f"{watts_per_core} W per core is not a power", do="Give more than 0 and at most 1000 W")
        origin = "configured" if watts_per_core is not None else "example: Dure's default, not measured on this machine"
        watts = EXAMPLE_WATTS_PER_CORE if watts_per_core is None else watts_per_core
        note = f"{origin}; {watts:g} W while a core is busy, idle draw not modelled (0 W)"
        self._power = Power(0.0, watts, "configured", note)
        self._ticks: dict[int, _Ticks] = {}

    def discover(self, host: Host, node: str) -> list[Chip]:
        cpus = sorted(host.allowed_cpus())
        described = _cpuinfo(host.read("proc/cpuinfo") or "")
        numa = _numa_nodes(host)
        memory_mib = _memory_mib(host)
        chips = []
        for cpu in cpus:
            fields = described.get(cpu, {})
            vendor, model = _identity(fields)
            flags = set((fields.get("flags") or fields.get("features") or "").split())
            chips.append(
                Chip(
                    id=f"{node}:cpu{cpu}",
                    node=node,
                    kind="cpu",
                    index=cpu,
                    vendor=vendor,
                    model=model,
                    source="real",
                    driver=self.name,
                    tested_on="metal",
                    memory_mib=memory_mib and memory_mib // len(cpus),
                    numa=numa.get(cpu),
                    features=tuple(feature for feature in _FEATURES if feature in flags),
                    power=self._power,
                )
            )
        return chips

    def read(self, host: Host, chips: Sequence[Chip], now_ns: int) -> list[Reading]:
        """Utilisation since the last read (the first gives None); time stolen by a hypervisor is not work."""
        text = host.read("proc/stat")
        if text is None:
            raise DureError("the CPUs cannot be read", "/proc/stat is not readable", "Mount /proc")
        before, self._ticks = self._ticks, _ticks(text)
        return [
            Reading(chip.id, now_ns, utilisation=_utilisation(before.get(chip.index), self._ticks[chip.index]))
            for chip in chips
            if chip.index in self._ticks
        ]

    def limit_power(self, host: Host, chip: Chip, watts: float) -> None:
        raise unsupported(self.name, "limit power core by core")

    def partition(self, host: Host, chip: Chip, parts: int) -> None:
        raise unsupported(self.name, "be partitioned; ask for a share in milli instead")


def _cpuinfo(text: str) -> dict[int, dict[str, str]]:
    """CPU number -> its fields, names in lower case. Blocks without a number (a board's name) are left out."""
    described: dict[int, dict[str, str]] = {}
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
        number = fields.get("processor", "")
        if re.fullmatch(r"[0-9]{1,7}", number):
            described[int(number)] = fields
    return described


def _identity(fields: dict[str, str]) -> tuple[str, str]:
    """Vendor and model; `unknown` where the kernel does not say."""
    vendor = fields.get("vendor_id", "")
    for word in ("Genuine", "Authentic"):  # x86 says GenuineX, AuthenticX or XGenuine
        vendor = vendor.replace(word, "")
    model = fields.get("model name", "")
    implementer, part = _hexadecimal(fields.get("cpu implementer")), _hexadecimal(fields.get("cpu part"))
    if implementer is not None:
        vendor = vendor or _ARM_IMPLEMENTERS.get(implementer, f"implementer {implementer:#04x}")
        if part is not None:
            model = model or _ARM_PARTS.get((implementer, part), f"part {part:#05x}")
    return vendor.strip() or "unknown", model.strip() or "unknown"


def _hexadecimal(text: str | None) -> int | None:
    return int(text, 16) if text and re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else None


def _numa_nodes(host: Host) -> dict[int, int]:
    """CPU number -> NUMA node; empty where the kernel shows none."""
    try:
        folders = [path.name for path in (host.root / "sys/devices/system/node").iterdir()]
    except OSError:
        return {}
    found: dict[int, int] = {}
    for folder in sorted(folders):
        if re.fullmatch(r"node[0-9]{1,7}", folder):
            cpus = host.read(f"sys/devices/system/node/{folder}/cpulist") or ""
            found.update(dict.fromkeys(_cpulist(cpus), int(folder[4:])))
    return found


def _cpulist(text: str) -> list[int]:
    """The kernel's list form; parts that are not of it are left out.

    >>> _cpulist("0-2,8\\n")
    [0, 1, 2, 8]
    """
    cpus: list[int] = []
    for part in text.strip().split(","):
        if match := re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part):
            cpus += range(int(match[1]), int(match[2] or match[1]) + 1)
    return cpus


def _memory_mib(host: Host) -> int | None:
    """MiB this process may use: the machine's, or its control group's limit where that is lower."""
    match = re.search(r"^MemTotal:\s+([0-9]{1,15}) kB", host.read("proc/meminfo") or "", re.MULTILINE)
    if match is None:
        return None
    limits = [int(match[1]) * 1024]
    for line in (host.read("proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            limits += _group_limits(host, "sys/fs/cgroup", group, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _group_limits(host, "sys/fs/cgroup/memory", group, "memory.limit_in_bytes")
    return min(limits) // 2**20


def _group_limits(host: Host, mount: str, group: str, file: str) -> list[int]:
    """Limits of the group and all above it. Inside a container the mount is often the group itself."""
    parts = [part for part in group.split("/") if part]
    if ".." in parts:  # outside our view: only the mount's own limit is ours
        parts = []
    found = []
    for depth in range(len(parts) + 1):
        text = (host.read("/".join([mount, *parts[:depth], file])) or "").strip()
        if re.fullmatch(r"[0-9]{1,20}", text):
            found.append(int(text))
    return found


def _ticks(stat: str) -> dict[int, _Ticks]:
    """Per CPU. Columns: user nice system idle iowait irq softirq steal; guests are within user and nice."""
    found: dict[int, _Ticks] = {}
    for match in re.finditer(r"^cpu([0-9]{1,7})((?: +[0-9]{1,20}){4,})", stat, re.MULTILINE):
        columns = [int(column) for column in match[2].split()][:8]
        asleep = columns[3] + sum(columns[4:5]) + sum(columns[7:8])
        found[int(match[1])] = (sum(columns) - asleep, sum(columns))
    return found


def _utilisation(before: _Ticks | None, after: _Ticks) -> float | None:
    if before is None or after[1] <= before[1]:
        return None
    return min(1.0, max(0.0, (after[0] - before[0]) / (after[1] - before[1])))  # iowait may run backwards
