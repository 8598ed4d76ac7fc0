from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.hardware.driver import Host
from dure.hardware.drivers.cpu import CpuDriver
from dure.model.chip import Chip
from dure.model.errors import DureError

TREES = Path(__file__).parent / "trees"


def host(tree: str | Path, cpus: Iterable[int] = range(4)) -> Host:
    return Host(root=TREES / tree, allowed_cpus=lambda: frozenset(cpus))


def copied(tree: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TREES / tree, tmp_path / tree))


def cores(host: Host) -> list[Chip]:
    return CpuDriver().discover(host, "n1")


def test_x86_cores() -> None:
    chips = cores(host("x86"))
    assert [chip.id for chip in chips] == ["n1:cpu0", "n1:cpu1", "n1:cpu2", "n1:cpu3"]
    assert [chip.numa for chip in chips] == [0, 0, 1, 1]
    first = chips[0]
    assert (first.vendor, first.model, first.kind, first.source) == (
        "Intel",
        "Example(R) Xeon(R) 4-core",
        "cpu",
        "real",
    )
    assert set(first.features) == {
        *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "sse4_2", "fma"),
    }


def test_arm_cores_of_two_sizes() -> None:
    chips = cores(host("arm"))
    told = [(chip.vendor, chip.model) for chip in chips]
    assert told == [("Arm", "part 0xd05"), ("Arm", "part 0xd05"), ("Arm", "Neoverse-V2"), ("Ampere", "part 0xfff")]
    assert chips[0].features == ("asimd", "asimddp")
    assert set(chips[2].features) == {"asimd", "sve", "sve2", "i8mm", "bf16", "asimddp"}
    assert {chip.numa for chip in chips} == {None}


def test_only_the_cores_we_may_use_share_the_memory() -> None:
    chips = cores(host("x86", {1, 3}))
    assert [chip.index for chip in chips] == [1, 3]
    assert {chip.memory_mib for chip in chips} == {8192 // 2}  # the slice's limit is half of MemTotal


def test_group_limits(tmp_path: Path) -> None:
    assert cores(host("arm"))[0].memory_mib == 2048 // 4  # v1: the container's mount is its group
    tree = copied("x86", tmp_path)
    (tree / "sys/fs/cgroup/site.slice/memory.max").write_text("max\n")
    assert cores(host(tree))[0].memory_mib == 16384 // 4
    (tree / "sys/fs/cgroup/site.slice/dure.service/memory.max").write_text("1073741824\n")
    assert cores(host(tree))[0].memory_mib == 1024 // 4
    (tree / "proc/self/cgroup").write_text("0::/../outside\n")
    (tree / "sys/fs/outside").mkdir()
    (tree / "sys/fs/outside/memory.max").write_text("1\n")
    assert cores(host(tree))[0].memory_mib == 16384 // 4
    (tree / "proc/self/cgroup").write_text("4:memory:/\n")
    (tree / "sys/fs/cgroup/memory").mkdir()
    (tree / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")  # v1's "no limit"
    assert cores(host(tree))[0].memory_mib == 16384 // 4


def test_an_empty_machine_is_unknown_not_zero(tmp_path: Path) -> None:
    (chip,) = cores(host(tmp_path, {7}))
    assert (chip.id, chip.vendor, chip.model, chip.memory_mib, chip.numa) == (
        "n1:cpu7",
        "unknown",
        "unknown",
        None,
        None,
    )
    assert chip.features == ()


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=100), st.text(max_size=100))
def test_any_text_in_proc_gives_a_chip(
    tmp_path_factory: pytest.TempPathFactory, info: str, stat: str, mem: str
) -> None:
    tree = tmp_path_factory.mktemp("proc")
    (tree / "proc/self").mkdir(parents=True)
    for name, text in (("cpuinfo", f"processor: 0\n{info}"), ("stat", stat), ("meminfo", mem), ("self/cgroup", mem)):
        (tree / "proc" / name).write_text(text, encoding="utf-8", errors="replace")
    driver, one = CpuDriver(), host(tree, {0})
    chips = driver.discover(one, "n1")
    assert [chip.id for chip in chips] == ["n1:cpu0"]
    assert len(driver.read(one, chips, 1)) <= 1


def test_truncated_and_repeated_fields(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nflags: avx2\n\nprocessor: x\nflags: fma\n\nprocessor: 1\nfla")
    assert [chip.features for chip in cores(host(tmp_path, {0, 1}))] == [("avx2",), ()]


def test_power_says_where_it_comes_from() -> None:
    default, given_w = (driver.discover(host("x86"), "n1")[0].power for driver in (CpuDriver(), CpuDriver(7.5)))
    assert default is not None and given_w is not None
    assert default.source == "configured" and default.note.startswith("example: ") and "not measured" in default.note
    assert given_w.full_w == 7.5 and "example" not in given_w.note and "7.5 W" in given_w.note


@pytest.mark.parametrize("watts", [0.0, -1.0, float("nan"), float("inf"), 1001.0])
def test_watts_that_are_none_are_refused(watts: float) -> None:
    with pytest.raises(DureError, match="is not a power"):
        CpuDriver(watts)


def utilisations(driver: CpuDriver, tree: Path, stat: str) -> dict[str, float | None]:
    (tree / "proc/stat").write_text(stat)
    chips = driver.discover(host(tree), "n1")
    return {reading.chip: reading.utilisation for reading in driver.read(host(tree), chips, 5)}


def test_utilisation_between_two_reads(tmp_path: Path) -> None:
    tree, driver = copied("x86", tmp_path), CpuDriver()
    first = "".join(f"cpu{cpu} 100 0 100 800 0 0 0 0 0 0\n" for cpu in range(4))
    assert set(utilisations(driver, tree, first).values()) == {None}
    second = (
        "cpu0 150 0 100 850 0 0 0 0 0 0\n"  # half busy
        "cpu1 100 0 100 800 0 0 0 0 0 0\n"  # no time passed
        "cpu2 100 0 100 800 60 20 0 20 0 0\n"  # waiting and stolen time are not work
    )
    assert utilisations(driver, tree, second) == {"n1:cpu0": 0.5, "n1:cpu1": None, "n1:cpu2": 0.2}  # cpu3 went offline
    back = "cpu0 170 0 100 840 0 0 0 0 0 0\ncpu1 90 0 100 900\ncpu3 1 0 1 8\n"  # idle and user ran backwards
    assert utilisations(driver, tree, back) == {"n1:cpu0": 1.0, "n1:cpu1": 0.0, "n1:cpu3": None}  # cpu3 is back


def test_unreadable_proc_is_said(tmp_path: Path) -> None:
    with pytest.raises(DureError, match="/proc/stat is not readable"):
        CpuDriver().read(host(tmp_path), [], 1)


def test_what_a_core_cannot_do() -> None:
    (chip, *_), driver = cores(host("x86")), CpuDriver()
    with pytest.raises(DureError, match="cpu chips cannot limit power"):
        driver.limit_power(host("x86"), chip, 5.0)
    with pytest.raises(DureError, match="cpu chips cannot be partitioned"):
        driver.partition(host("x86"), chip, 2)
