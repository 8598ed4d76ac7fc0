from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.hardware.driver import Host
from dure.hardware.drivers.simulated import Fleet, Kind, SimulatedDriver, load_fleet
from dure.model.errors import DureError

GOOD = {"kind": '"sim-npu"', "count": "4", "idle_w": "40", "full_w": "180"}
HOST = Host(root=Path("/nonexistent"))


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def entry(**changes: str | None) -> str:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return "[[chips]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())


def test_the_fleet_of_the_docstring(tmp_path: Path) -> None:
    fleet = load_fleet(
        written(
            tmp_path,
            'node = "hall-1"\n'
            + entry(count="5", racks="2", vendor='"두레"', memory_mib="49152", speed="2.0", run_s="1")
            + entry(kind='"sim-gpu"', count="1"),
        )
    )
    chips = SimulatedDriver(fleet).discover(HOST, "n1")
    assert [chip.id for chip in chips] == [*(f"n1:sim-npu-{index}" for index in range(5)), "n1:sim-gpu-0"]
    assert [chip.rack for chip in chips[:5]] == ["hall-1-rack1"] * 3 + ["hall-1-rack2"] * 2
    first, last = chips[0], chips[-1]
    assert (first.vendor, first.memory_mib, first.run_s, first.source) == ("두레", 49152, 0.5, "simulated")
    assert first.power is not None and (first.power.idle_w, first.power.full_w) == (40, 180)
    assert first.power.source == "simulated" and "fleet.toml" in first.power.note
    assert (last.vendor, last.memory_mib, last.run_s, last.rack) == ("Simulated", None, 1.0, "hall-1-rack1")
    assert {chip.node for chip in chips} == {"n1"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": '"npu"'}, "kind: 'npu' must start with 'sim-'"),
        ({"kind": '"sim-"'}, "kind: "),
        ({"kind": '"sim-../../etc"'}, "kind: "),
        ({"kind": '"sim-NPU"'}, "kind: "),
        ({"kind": "5"}, "kind: Expected `str`, got `int`"),
        ({"kind": None}, "`kind`"),
        ({"count": None}, "`count`"),
        ({"count": "0"}, "count: "),
        ({"count": "-3"}, "count: "),
        ({"count": "1000001"}, "count: "),
        ({"count": "1" + "0" * 30}, "count: "),
        ({"count": "1" + "0" * 5000}, "not TOML"),
        ({"count": "2.5"}, "count: Expected `int`"),
        ({"count": '"4"'}, "count: Expected `int`, got `str`"),
        ({"count": "true"}, "count: Expected `int`, got `bool`"),
        ({"idle_w": "-1"}, "idle_w: "),
        ({"idle_w": "nan"}, "idle_w: "),
        ({"full_w": "inf"}, "full_w: "),
        ({"full_w": "1" + "0" * 400}, "full_w: "),
        ({"full_w": "39"}, "full_w: 39 must be above 0 and not below idle_w 40"),
        ({"full_w": "0", "idle_w": "0"}, "full_w: "),
        ({"full_w": None}, "`full_w`"),
        ({"racks": "0"}, "racks: "),
        ({"racks": "5"}, "racks: 5 racks for 4 chips"),
        ({"speed": "0"}, "speed: "),
        ({"speed": "nan"}, "speed: "),
        ({"run_s": "-1"}, "run_s: "),
        ({"memory_mib": "0"}, "memory_mib: "),
        ({"vendor": '""'}, "vendor: "),
        ({"vendor": '"a\\nb"'}, "vendor: "),
        ({"colour": '"red"'}, "unknown field `colour`"),
    ],
)
def test_a_bad_field_is_named_with_its_entry_and_file(
    tmp_path: Path, changes: dict[str, str | None], told: str
) -> None:
    path = written(tmp_path, entry(kind='"sim-first"') + entry(**changes))
    with pytest.raises(DureError) as caught:
        load_fleet(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
    assert "entry 2" in str(caught.value) or "not TOML" in told
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no [[chips]] entry"),
        ("chips = []", "has no [[chips]] entry"),
        ("chips = 5", "has no [[chips]] entry"),
        ("chips = [5]", "chips entry 1"),
        ("[[chips]\n", "at line 1"),
        (entry() + "kind =\n", "at line 6"),
        (entry() + entry(), "chips entry 2: kind: 'sim-npu' stands in an earlier entry too"),
        (entry(count="999999") + entry(kind='"sim-b"', count="2"), "count: 1,000,001 chips in all"),
        ("node = 5\n" + entry(), "node: Expected `str`"),
        ('node = "a/b"\n' + entry(), "node: "),
        ("nodes = 5\n" + entry(), "unknown field 'nodes'"),
        (b"\xff\xfe", "not UTF-8"),
        ("x = " + "[" * 5000, "nested too deeply"),
        ("#" * 1_000_001, "longer than 1,000,000 bytes"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DureError) as caught:
        load_fleet(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DureError, match="No such file"):
        load_fleet(tmp_path / "absent.toml")
    with pytest.raises(DureError, match="Is a directory"):
        load_fleet(tmp_path)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_value_in_an_entry_is_accepted_or_explained(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("fleet") / "f.toml"
    try:
        path.write_text(entry(vendor=json.dumps(value)), encoding="utf-8", errors="replace")
        load_fleet(path)
    except DureError as error:
        assert str(path) in str(error)


def test_kinds_ending_in_digits_never_share_an_id() -> None:
    kinds = tuple(Kind(f"sim-a{end}", 20, 1, 2) for end in ("", "1", "-1", "-1-1"))
    chips = SimulatedDriver(Fleet("f", "sim", kinds)).discover(HOST, "n1")
    assert len({chip.id for chip in chips}) == 80


def test_readings_follow_the_share_held() -> None:
    kinds = (Kind("sim-npu", 3, 40, 180, memory_mib=1000), Kind("sim-bare", 1, 0, 10))
    driver = SimulatedDriver(Fleet("f", "sim", kinds))
    chips = driver.discover(HOST, "n1")
    driver.held = {"n1:sim-npu-1": 500, "n1:sim-npu-2": 1_000_000, "n1:sim-bare-0": 1000, "n1:gone": 1000}
    idle, half, over, bare = driver.read(HOST, chips, 1_700_000_000_000_000_000)
    assert (idle.utilisation, idle.power_w, idle.memory_used_mib) == (0, 40, 0)
    assert half.utilisation is not None and 0.45 <= half.utilisation <= 0.5
    assert half.power_w == pytest.approx(40 + 140 * half.utilisation)
    assert half.memory_used_mib == 500 and half.power_source == "simulated"
    assert over.utilisation is not None and 0.9 <= over.utilisation <= 1 and over.memory_used_mib == 1000
    assert bare.memory_used_mib is None


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.dictionaries(st.integers(0, 9), st.integers(-(2**40), 2**40)))
def test_the_same_asked_gives_the_same(now_ns: int, held: dict[int, int]) -> None:
    fleet = Fleet("f", "sim", (Kind("sim-npu", 10, 40, 180),))
    first, second = SimulatedDriver(fleet), SimulatedDriver(fleet)
    chips = first.discover(HOST, "n1")
    first.held = second.held = {f"n1:sim-npu-{index}": milli for index, milli in held.items()}
    assert first.read(HOST, chips, now_ns)[3:7] == second.read(HOST, chips[3:7], now_ns)


def test_readings_waver_with_time_and_chip() -> None:
    driver = SimulatedDriver(Fleet("f", "sim", (Kind("sim-npu", 50, 40, 180),)))
    chips = driver.discover(HOST, "n1")
    driver.held = {chip.id: 1000 for chip in chips}
    told = {reading.utilisation for second in range(10) for reading in driver.read(HOST, chips, second * 10**9)}
    assert len(told) > 300
