"""Telemetry of 10,000 simulated chips: one sample and one scrape, against copying as many bytes.

    python bench/hardware.py [--chips N] [--rounds N]

CPU time of the calling thread in ms. The agent reads each second and is scraped at will; none of it may hold its loop.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from dure.hardware.driver import Host
from dure.hardware.drivers.simulated import Fleet, Kind, SimulatedDriver
from dure.hardware.telemetry import Telemetry
from dure.model.units import NS_PER_S


def cpu_ms(act: Callable[[], object], rounds: int) -> list[float]:
    """CPU time of each of `rounds` calls after one to warm up, sorted, ms."""
    act()
    taken = []
    for _ in range(rounds):
        start_ns = time.thread_time_ns()
        act()
        taken.append((time.thread_time_ns() - start_ns) / 1e6)
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Telemetry of simulated chips")
    parser.add_argument("--chips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    driver = SimulatedDriver(Fleet("bench", "sim", (Kind("sim-npu", given.chips, 40, 180, memory_mib=49_152),)))
    host = Host()
    chips = tuple(driver.discover(host, "node-1"))
    held = {chip.id: 1 + number % 1000 for number, chip in enumerate(chips)}
    driver.held = held
    telemetry = Telemetry(chips)
    runs = {f"w{number}.0.1": number * 1_000_003 for number in range(100)}
    now_ns = 1_700_000_000 * NS_PER_S
    readings = driver.read(host, chips, now_ns)
    telemetry.take(readings, now_ns)
    text = telemetry.render(held, runs, (1_500_000, "RAPL intel-rapl:0"))
    lines = text.splitlines(keepends=True)
    pieces = telemetry.chunks(held, runs, None)
    slowest_ms = max(cpu_ms(lambda: next(pieces, None), sum(1 for _ in telemetry.chunks(held, runs, None))))
    acts: dict[str, Callable[[], object]] = {
        "read": lambda: driver.read(host, chips, now_ns),
        "take": lambda: telemetry.take(readings, now_ns),
        "render": lambda: telemetry.render(held, runs, (1_500_000, "RAPL intel-rapl:0")),
        "bound: join the same lines": lambda: b"".join(lines),
    }
    print(f"{given.chips:,} chips, {len(lines):,} lines, {len(text):,} bytes")
    for name, act in acts.items():
        taken = cpu_ms(act, given.rounds)
        print(f"{name}: {statistics.median(taken):.2f} ms median, {taken[-1]:.2f} ms worst of {len(taken)}")
    print(f"slowest piece of a render: {slowest_ms:.2f} ms")


if __name__ == "__main__":
    main()
