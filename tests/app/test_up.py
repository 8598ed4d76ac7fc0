"""`dure up`: what it refuses to start on, what it starts, what it survives, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from dure.app import up as up_module
from dure.app.processes import Child
from dure.app.up import Stop, prepare
from dure.client.chat import Message, Tokens
from dure.model.errors import DureError
from dure.model.workload import Ask, ChipAsk, Command, Serve
from tests.app.ups import Up, lives, phase, running, submit, until

pytestmark = pytest.mark.slow  # real processes

FLEET = '[[chips]]\nkind = "sim-npu"\ncount = {}\nidle_w = 40\nfull_w = 180\nrun_s = 0.05\n'
SLEEPS = ("sh", "-c", "trap '' HUP; echo begun; sleep 1000 & wait")


# What it does not start on


def test_a_port_that_is_none_or_taken(up: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (65_536, -1, 10**20, taken.getsockname()[1]):
            told = up.fails(port=port)
            assert f"Port {port} of 127.0.0.1" in told and "--port" in told
    up.nothing_left()


def test_homes_that_cannot_be(up: Up, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "up.lock").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "runs").write_text("x")
    for home in (tmp_path / "file", tmp_path / "file/below", tmp_path / "cut", tmp_path / ("a" * 300)):
        up.home = home
        told = up.fails()
        assert f"{home} cannot be written" in told and "--home" in told
    for home, words in ((Path("/proc/dure"), "cannot be written"), (Path("~nobody-has-this/x"), "cannot be a home")):
        up.home = home
        assert words in up.fails()
    up.home = tmp_path / "locked"
    assert "up.lock cannot be opened" in up.fails()
    assert (tmp_path / "file").read_text() == "x"


def test_a_home_whose_name_is_no_text(tmp_path: Path) -> None:
    home = os.fsencode(tmp_path) + b"/\xff"
    done = subprocess.run(
        [os.fsencode(sys.executable), b"-m", b"dure.app.up", b"--home", home], capture_output=True, timeout=60
    )
    assert done.returncode == 1 and b"cannot be a home" in done.stderr and b"Traceback" not in done.stderr
    assert not os.path.lexists(home)


def test_fleets_that_are_none(up: Up, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    for text in ("[[chips]\nkind=", FLEET.format(-3), FLEET.format(10**12), FLEET.replace("sim-", "").format(1), "\0"):
        fleet.write_text(text)
        assert "fleet.toml" in up.fails("--fleet", str(fleet))
    for path in (tmp_path / "none.toml", tmp_path, Path("/dev/full")):
        assert str(path) in up.fails("--fleet", str(path))
    assert not up.home.exists()


def test_options_that_are_none(up: Up) -> None:
    for options in (["--port", "abc"], ["--home"], ["--nope"], ["extra"]):
        process = up.start(*options)
        code, _, err = up.ends()
        assert code == 2 and "usage:" in err, (options, process)
    assert not up.home.exists()


def test_a_home_that_was_there_keeps_its_mode_and_a_new_one_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o755)
    assert prepare(tmp_path / "mine").stat().st_mode & 0o777 == 0o755, "--home /tmp must not close /tmp to others"
    home = prepare(tmp_path / "new")
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in home.iterdir() if path.is_dir()} == {0o700}
    key = home / "link.key"
    assert key.stat().st_mode & 0o777 == 0o600
    text = key.read_text()
    assert prepare(home) == home and key.read_text() == text


# It waits for nothing without end


def a_child(log: Path) -> Child:
    return Child("agent", ["true"], {}, (), log)


def test_what_does_not_come_in_time_is_told_with_the_right_log(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("first\nsecond\n\nno link to control\n한글\n")
    with pytest.raises(DureError) as told:
        for _ in up_module._until(a_child(log), Stop(), "The agent did not join", 0.1):
            pass
    assert told.value.what == "The agent did not join" and told.value.why.endswith(
        "\n    second\n    no link to control\n    한글"
    )
    assert str(log) in told.value.why and "first" not in told.value.why


def test_a_wait_ends_with_the_stop_or_with_a_process_that_gives_up(tmp_path: Path) -> None:
    stop, child = Stop(), a_child(tmp_path / "none.log")
    stop.set()
    assert list(up_module._until(child, stop, "x", 1000)) == []
    stop.clear()
    stop.children = [child]
    child.deaths = 100
    with pytest.raises(DureError, match="agent process does not come up: it ended 100 times"):
        next(up_module._until(child, stop, "x", 1000))
    child.deaths, child.unusable = 0, DureError("It has no key")
    with pytest.raises(DureError, match="It has no key"):
        next(up_module._until(child, stop, "x", 1000))


@pytest.mark.slow
def test_a_control_that_keeps_dying_is_named_with_its_last_words(up: Up) -> None:
    (prepare(up.home) / "link.key").unlink()
    (up.home / "link.key").mkdir()
    told = up.fails()
    assert "process does not come up" in told and ".log" in told and "IsADirectoryError" in told
    up.nothing_left()


@pytest.mark.slow
def test_an_agent_that_cannot_work_is_told(up: Up) -> None:
    (prepare(up.home) / "home.id").write_text("rubbish")
    told = up.fails()
    assert "home.id" in told and "32 hexadecimal digits" in told
    up.nothing_left()


@pytest.mark.slow
def test_a_damaged_log_is_named_by_its_row(up: Up) -> None:
    client = up.ready()
    for _ in range(3):
        phase(client, submit(client, "true"), "done")
    up.signal()
    with closing(sqlite3.connect(up.home / "log.sqlite")) as db:
        find = "SELECT offset FROM log WHERE instr(body, 'workload_submitted') ORDER BY offset LIMIT 1"
        offset = db.execute(find).fetchone()[0]
        change = "UPDATE log SET body = CAST(replace(CAST(body AS TEXT), 'true', 'evil') AS BLOB) WHERE offset = ?"
        db.execute(change, (offset,))
        db.commit()
    assert f"damaged at offset {offset}\n" in up.fails()
    up.nothing_left()


# A cloud


@pytest.mark.slow
def test_a_cloud_from_its_start_to_its_end(up: Up, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET.format(3))
    client = up.ready("--fleet", str(tmp_path / "fleet.toml"))
    kinds = [view.chip.kind for view in client.chips()]
    assert kinds.count("sim-npu") == 3 and "cpu" in kinds
    pids = up.pids()
    assert set(pids) == {"up", "control", "gateway", "agent"} and set(map(lives, pids.values())) == {True}
    assert {path.stat().st_mode & 0o777 for path in up.home.glob("*.key")} == {0o600}
    second = Up(up.home)
    told = second.fails()
    assert "runs already" in told and client.connection.url in told and up.pids() == pids
    job = submit(client, "sh", "-c", "echo 두레; echo $((6*7))")
    phase(client, job, "done")
    assert client.log(job).data.decode() == "두레\n42\n"
    simulated = client.submit([Ask(Command(("any",)), ChipAsk("sim-npu", 1, 1000))])[0].id
    phase(client, simulated, "done")
    endpoint = client.submit([Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 100))])[0].id
    running(client, endpoint)
    pieces = list(client.chat("simulated-echo", [Message("user", "hello")]))
    assert isinstance(pieces[-1], Tokens) and pieces[-1].completion_tokens > 0
    code, out, err = up.signal()
    assert (code, out) == (0, "") and "Traceback" not in err
    up.nothing_left()
    assert not list(up.home.glob("log.sqlite-*")), "the log was not closed"
    again = up.ready()
    assert phase(again, job, "done") == "done"
    running(again, endpoint)
    assert up.signal(signal.SIGTERM)[0] == 0
    up.nothing_left()


@pytest.mark.slow
def test_a_command_that_cannot_run_fails_with_a_reason(up: Up) -> None:
    client = up.ready()
    for argv in (("a\0b",), ("sh", "-c", "exit\0 3"), ("/no/such/command",), ("/",), ("x" * 100_000,)):
        job = submit(client, *argv)
        phase(client, job, "failed")
        assert "could not start" in client.why(job)[-1].text, argv[0][:20]
    phase(client, submit(client, "true"), "done")
    assert up.signal()[0] == 0
    up.nothing_left()


@pytest.mark.slow
def test_once_without_a_model(up: Up) -> None:
    up.start("--once", "--no-model")
    code, out, _ = up.ends()
    assert code == 0 and out.startswith("ready: ")
    up.nothing_left()


@pytest.mark.slow
def test_once_that_was_interrupted_has_not_worked(up: Up) -> None:
    up.start("--once")
    until(lambda: (up.home / "run/pids.json").exists(), "it to begin")
    code, out, err = up.signal()
    assert code == 1 and "Stopped before" in err and out == ""
    up.nothing_left()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the folders": lambda home: (home / "link.key").exists(),
    "the first process": lambda home: (home / "run/pids.json").exists(),
    "the log": lambda home: (home / "log.sqlite").exists(),
    "the admin key": lambda home: (home / "admin.key").exists(),
    "the address": lambda home: (home / "url").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_end_during_the_start_leaves_nothing(up: Up, moment: str, number: int) -> None:
    up.start("--no-model")
    until(lambda: MOMENTS[moment](up.home), moment)
    code, _, err = up.signal(number)
    assert code == 0, err
    up.nothing_left()


@pytest.mark.slow
def test_an_end_takes_what_runs_with_it_even_when_the_agent_has_just_died(up: Up) -> None:
    client = up.ready()
    job = running(client, submit(client, *SLEEPS)).pid
    until(lambda: up.pids()["agent"] and client.workload("w1").runs[0].pid, "the job")
    os.kill(up.pids()["agent"], signal.SIGKILL)
    assert up.signal()[0] == 0
    assert job is not None and not lives(job)
    up.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["control", "gateway", "agent"])
def test_each_process_comes_back_and_work_goes_on(up: Up, name: str) -> None:
    client = up.ready()
    job = submit(client, *SLEEPS)
    before, pid = running(client, job), up.pids()[name]
    os.kill(pid, signal.SIGKILL)
    new = until(lambda: p if (p := up.pids()[name]) != pid and lives(p) else None, f"a new {name}")
    assert not lives(pid) and new != pid
    until(lambda: all(client.info().nodes.values()), "the node to be linked")
    if name != "gateway":
        until(lambda: any("adopted" in line.text for line in client.why(job)), f"{name} to adopt {job}")
    after = running(client, job)
    assert (after.id, after.pid) == (before.id, before.pid)
    phase(client, submit(client, "true"), "done")
    assert up.signal()[0] == 0
    up.nothing_left()


@pytest.mark.slow
def test_children_of_a_killed_up_end_by_themselves_and_the_next_one_adopts(up: Up) -> None:
    client = up.ready()
    job = submit(client, *SLEEPS)
    before, pids = running(client, job), up.pids()
    assert up.process is not None
    up.process.kill()
    up.process.communicate()
    again = up.ready()  # at once: it waits for them
    assert not any(lives(pid) for pid in pids.values()), "an earlier process lives beside the new ones"
    assert running(again, job).pid == before.pid
    up.process.kill()
    up.process.communicate()
    until(lambda: not any(lives(pid) for pid in up.pids().values()), "all four to end")
    assert before.pid is not None and lives(before.pid)
    last = up.ready()
    assert running(last, job).pid == before.pid
    assert up.signal()[0] == 0
    up.nothing_left()


@pytest.mark.slow
def test_a_control_that_cannot_come_back_is_told_and_comes_back_once_mended(up: Up) -> None:
    client = up.ready()
    job = submit(client, *SLEEPS)
    before = running(client, job)
    (up.home / "models.toml").write_text("[[model]\n")
    os.kill(up.pids()["control"], signal.SIGKILL)
    assert up.process is not None and up.process.stderr is not None
    line = up.process.stderr.readline()
    assert line.startswith("control: ") and "models.toml" in line
    (up.home / "models.toml").unlink()
    until(lambda: client.info(), "control to be back")
    assert running(client, job).pid == before.pid
    assert up.signal()[0] == 0
    up.nothing_left()


@pytest.mark.slow
def test_a_stop_that_is_asked_twice(up: Up) -> None:
    client = up.ready()
    running(client, submit(client, "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"))
    assert up.process is not None
    for _ in range(3):
        with suppress(ProcessLookupError):
            up.process.send_signal(signal.SIGINT)
    assert up.ends()[0] == 0
    up.nothing_left()
