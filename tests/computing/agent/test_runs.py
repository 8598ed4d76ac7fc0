"""A run's folder: what is written, what damage and strange names do, what stays after forgetting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.computing.agent.processes import is_alive
from dure.computing.agent.runs import Process, RunFolder, cpus_of, deadline_ns, folders, home_id
from dure.model.errors import DureError
from dure.model.workload import Command
from tests.computing.agent.lab import SLEEPS, Lab, chip, exit_of, spec


@pytest.mark.parametrize("run", ["", ".", "..", "../up", "a/b", "a\0b", "W1", "두레", "x" * 65, "-rf", "w1\n"])
def test_a_path_is_no_run(tmp_path: Path, run: str) -> None:
    with pytest.raises(DureError, match="is not the id of a run"):
        RunFolder(tmp_path, run)


@given(st.text(max_size=70))
def test_a_run_never_leaves_the_home(run: str) -> None:
    try:
        path = RunFolder(Path("/home"), run).path
    except DureError:
        return
    assert Path(os.path.normpath(path)).parent == Path("/home/runs")


def test_the_engine_file_is_its_owners_alone(lab: Lab) -> None:
    folder = RunFolder(lab.home, "w1.0.1")
    folder.write(spec("w1.0.1", Command(("x",))), Process(("serve",), {}, engine=b'{"key": "secret"}'), (), 0)
    config = folder.path / "engine.json"
    assert config.stat().st_mode & 0o777 == 0o600 and config.read_bytes() == b'{"key": "secret"}'
    written = folder.written()
    assert written is not None and written.argv == ("serve", str(config))
    assert "secret" not in (folder.path / "spec.json").read_text()


def test_forgetting_keeps_the_output_and_the_work(lab: Lab) -> None:
    folder, _ = lab.start("w1.0.1", ["sh", "-c", "echo hello > kept; echo hello; touch $TMPDIR/gone"])
    exit_of(folder)
    assert [each.run for each in folders(lab.home)] == ["w1.0.1"]
    folder.forget()
    folder.forget()
    assert sorted(path.name for path in folder.path.iterdir()) == ["out.log", "work"]
    assert folders(lab.home) == [] and folder.ran() and folder.read_log(0, 100) == b"hello\n"
    assert (folder.path / "work" / "kept").exists()


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [(0, 3, b"hel"), (3, 100, b"lo\n"), (6, 10, b""), (99, 10, b""), (-5, 2, b"he"), (0, -1, b""), (2**70, 10, b"")],
)
def test_reading_output(lab: Lab, offset: int, limit: int, expected: bytes) -> None:
    folder, _ = lab.start("w1.0.1", ["echo", "hello"])
    exit_of(folder)
    assert folder.read_log(offset, limit) == expected


def test_no_output_yet_is_not_no_run(lab: Lab) -> None:
    folder = RunFolder(lab.home, "w1.0.1")
    assert folder.read_log(0, 10) is None
    folder.path.mkdir(parents=True)
    assert folder.read_log(0, 10) == b""


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"hold_pid": "x"}', "\0", "null"])
def test_damaged_files_read_as_absent(lab: Lab, text: str) -> None:
    folder = lab.write("w1.0.1", SLEEPS)
    for name in ("spec.json", "status.json"):
        (folder.path / name).write_text(text)
    assert folder.written() is None and folder.status() is None


def test_strange_things_in_the_runs_folder_are_no_runs(lab: Lab) -> None:
    runs = lab.home / "runs"
    runs.mkdir()
    (runs / "file").touch()
    (runs / "Upper").mkdir()
    (runs / "empty").mkdir()
    assert folders(lab.home) == []


def test_the_home_id_is_made_once(tmp_path: Path) -> None:
    assert home_id(tmp_path) == home_id(tmp_path)
    assert (tmp_path / "home.id").stat().st_mode & 0o777 == 0o600
    (tmp_path / "home.id").write_text("short")
    with pytest.raises(DureError, match="damaged"):
        home_id(tmp_path)


def test_only_cpu_slices_give_cores() -> None:
    chips = {each.id: each for each in (chip("cpu3", 3), chip("cpu1", 1), chip("sim-npu-0", 0, "sim-npu"))}
    assert cpus_of(spec("w", Command(("x",)), *((name, 1) for name in chips)), chips) == (1, 3)


def test_a_pid_with_another_start_is_another_process(lab: Lab) -> None:
    _, status = lab.start("w1.0.1", SLEEPS)
    assert is_alive(status.hold_pid, status.hold_start)
    assert not is_alive(status.hold_pid, status.hold_start + 1)
    assert not is_alive(2**22 + 1, 0)


def test_a_lease_is_on_the_clock_that_counts_sleep() -> None:
    assert deadline_ns(5) > deadline_ns(0)
