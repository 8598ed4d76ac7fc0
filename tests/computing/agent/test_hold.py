"""The hold, as a real process with real children."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.computing.agent import processes
from dure.computing.agent.runs import HOLD, RunFolder, deadline_ns
from dure.model.workload import Exit
from tests.computing.agent.lab import IGNORES_TERM, SLEEPS, Lab, exit_of, lives, output, past_starting, pid_said, until

pytestmark = pytest.mark.slow  # real processes

STRAY = "setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' &"
"""A grandchild in a session of its own that ignores TERM; it says its pid."""


def stop(folder: RunFolder, grace_s: float = 5.0, reason: str = "stopped") -> None:
    status = folder.status()
    assert status is not None
    folder.ask_stop(reason, grace_s, (status.hold_pid, status.hold_start))


def kill_hold(folder: RunFolder) -> None:
    status = folder.status()
    assert status is not None
    os.kill(status.hold_pid, signal.SIGKILL)
    until(lambda: not lives(status.hold_pid))


def test_a_job_gets_little_and_its_end_is_recorded(lab: Lab) -> None:
    agents_own = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(agents_own, True)
    folder, status = lab.start(
        "w1.0.1", ["sh", "-c", "pwd; env; cat; ls /proc/self/fd | tr '\\n' ' '; echo no >&2; exit 3"]
    )
    os.close(agents_own)
    assert exit_of(folder) == Exit("exited", code=3)
    text = output(folder)
    names = set(re.findall(r"^([A-Z_]+)=", text, re.M)) - {"PWD", "SHLVL", "OLDPWD"}
    ours = {"DURE_RUN", "DURE_HOME_ID", "DURE_PROJECT", "DURE_CHIPS"}
    assert names - {"_"} == {"PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS"} | ours
    assert text.startswith(f"{folder.path}/work\n") and text.endswith("no\n")
    open_fds = text.splitlines()[-1].split()[:-1]
    assert len(open_fds) == 5, "0, 1, 2, the share's lock, the listing's own"
    ended = folder.status()
    assert ended is not None and ended.cpu_ns > 0 and ended.pid == status.pid


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sh", "-c", "kill -SEGV $$"], Exit("signalled", signal=11)),
        (["no-such-command"], Exit("failed", detail="command not found: no-such-command")),
        (["/nowhere/두레"], Exit("failed", detail="command not found: /nowhere/두레")),
        (["/etc/passwd"], Exit("failed", detail="command not executable: /etc/passwd")),
        (["echo", "a\0b"], Exit("failed", detail="embedded null byte")),
        (["true", *["x" * 100_000] * 30], Exit("failed", detail="true: Argument list too long")),
        (["printf", "%s", "두레 $HOME `id` ; '"], Exit("exited", code=0)),
    ],
)
def test_ends(lab: Lab, argv: Sequence[str], expected: Exit) -> None:
    folder, _ = lab.start("w1.0.1", argv)
    assert exit_of(folder) == expected
    if expected.code == 0:
        assert output(folder) == argv[-1]


def test_a_job_is_pinned_to_its_cores(lab: Lab) -> None:
    folder, _ = lab.start("w1.0.1", ["grep", "Cpus_allowed_list", "/proc/self/status"])
    exit_of(folder)
    assert output(folder).split() == ["Cpus_allowed_list:", str(lab.cpus[0])]


def test_stop_lets_a_job_tidy_up(lab: Lab) -> None:
    folder, _ = lab.start("w1.0.1", ["sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.02; done"])
    until(lambda: "up" in output(folder))
    stop(folder)
    assert exit_of(folder) == Exit("stopped", code=7)
    assert output(folder).endswith("bye\n")


def test_stop_kills_what_does_not_listen(lab: Lab) -> None:
    folder, _ = lab.start("w1.0.1", IGNORES_TERM)
    until(lambda: "deaf" in output(folder))
    stop(folder, 0.1, "shutdown")
    assert exit_of(folder) == Exit("shutdown", signal=9)


def test_a_stopped_process_is_ended_too(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", SLEEPS)
    assert status.pid
    os.kill(status.pid, signal.SIGSTOP)
    stop(folder, 60.0)
    assert exit_of(folder) == Exit("stopped", signal=15)


def test_a_bare_term_to_the_hold_stops_the_run(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", SLEEPS)
    os.kill(status.hold_pid, signal.SIGTERM)
    assert exit_of(folder) == Exit("stopped", signal=15)


def test_a_stop_before_the_start_wins(lab: Lab) -> None:
    folder = lab.write("w1.0.1", ["echo", "hello"])
    (folder.path / "stop").write_text('{"reason": "stopped", "grace_s": 1}')
    lab.spawn(folder)
    assert exit_of(folder) == Exit("stopped")
    assert output(folder) == ""


def test_the_lease_ends_a_run_that_nobody_renews(lab: Lab) -> None:
    folder, _ = lab.start("w1.0.1", IGNORES_TERM, lease_s=0.5, grace_s=0.1)
    assert exit_of(folder) == Exit("lease", signal=9)


def test_a_renewed_lease_keeps_it_alive(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", SLEEPS, lease_s=0.5)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        folder.renew(deadline_ns(0.5))
        time.sleep(0.05)
    assert past_starting(folder) == status
    (folder.path / "lease").write_text("broken")
    assert exit_of(folder).reason == "lease"


@pytest.mark.parametrize("last", ["while ! [ -s ../out.log ]; do sleep 0.01; done", "wait"])
def test_nothing_of_a_run_outlives_it(lab: Lab, last: str) -> None:
    """A grandchild that left the session and ignores TERM dies with the job, whether it exits or is stopped."""
    folder, _ = lab.start("w1.0.1", ["sh", "-c", f"{STRAY} {last}"], grace_s=0.2)
    stray = pid_said(folder)
    if last == "wait":
        stop(folder, 0.2)
    assert exit_of(folder).reason == ("stopped" if last == "wait" else "exited")
    assert not lives(stray)


def test_shares_of_a_chip_never_exceed_it(lab: Lab) -> None:
    lab.start("w1.0.1", SLEEPS, milli=600)
    last, _ = lab.start("w2.0.1", SLEEPS, milli=400)
    refused, _ = lab.start("w3.0.1", SLEEPS, milli=1)
    assert exit_of(refused) == Exit("failed", detail="n:cpu0: 1 of 1000 milli asked, held: w1.0.1 600, w2.0.1 400")
    stop(last)
    exit_of(last)
    fits, status = lab.start("w4.0.1", SLEEPS, milli=400)
    assert status.phase == "running", exit_of(fits)


def test_killing_the_hold_kills_the_child_and_frees_the_share(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", SLEEPS, milli=1000)
    kill_hold(folder)
    until(lambda: status.pid and not lives(status.pid))
    _, next_status = lab.start("w2.0.1", SLEEPS, milli=1000)
    assert next_status.phase == "running"
    assert sorted(path.name for path in (lab.home / "locks" / "n:cpu0").iterdir()) == [".lock", "w2.0.1"]


def test_a_share_is_only_free_when_the_last_process_is_gone(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", ["sh", "-c", f"{STRAY} wait"], milli=1000)
    stray = pid_said(folder)
    kill_hold(folder)
    until(lambda: status.pid and not lives(status.pid))
    refused, _ = lab.start("w2.0.1", SLEEPS, milli=1)
    assert "w1.0.1 1000" in exit_of(refused).detail
    os.kill(stray, signal.SIGKILL)
    until(lambda: not lives(stray))
    _, next_status = lab.start("w3.0.1", SLEEPS, milli=1000)
    assert next_status.phase == "running"


def test_a_run_never_starts_twice(lab: Lab) -> None:
    folder, status = lab.start("w1.0.1", ["sh", "-c", "echo once; while ! [ -e go ]; do sleep 0.02; done"])
    until(lambda: output(folder))
    assert os.waitpid(lab.spawn(folder), 0)[1] == 0
    assert folder.status() == status and output(folder) == "once\n"
    (folder.path / "work" / "go").touch()
    exit_of(folder)
    os.waitpid(lab.spawn(folder), 0)
    assert output(folder) == "once\n"


def test_two_holds_at_once_are_one(lab: Lab) -> None:
    """The other one has its lock but has not written its status yet."""
    folder = lab.write("w1.0.1", ["echo", "hello"])
    with open(folder.path / "hold.lock", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert folder.is_held()
        assert os.waitpid(lab.spawn(folder), 0)[1] == 0
    assert folder.status() is None and not folder.is_held()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"argv": 1}'])
def test_a_damaged_spec_starts_nothing(lab: Lab, damaged: str) -> None:
    folder = lab.write("w1.0.1", ["echo", "hello"])
    (folder.path / "spec.json").write_text(damaged)
    assert os.waitstatus_to_exitcode(os.waitpid(lab.spawn(folder), 0)[1]) == 1
    assert "hello" not in output(folder)


def test_it_is_small(lab: Lab) -> None:
    _, status = lab.start("w1.0.1", SLEEPS)
    said = Path(f"/proc/{status.hold_pid}/status").read_text()
    resident_kib = int(re.search(r"VmRSS:\s+(\d+)", said)[1])  # type: ignore[index]
    assert resident_kib < 20 * 1024


@pytest.mark.slow
def test_a_full_disk_loses_no_end(lab: Lab, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=256k tmpfs '{small}' 2>/dev/null"):
        pytest.skip("mount is not permitted here")
    try:
        tight = Lab(small / "home")
        folder, status = tight.start("w1.0.1", ["sh", "-c", "while ! [ -e go ]; do sleep 0.02; done; exit 5"])
        (folder.path / "work" / "go.part").touch()
        with open(small / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(4096))
        (folder.path / "work" / "go.part").rename(folder.path / "work" / "go")
        until(lambda: status.pid and not lives(status.pid))
        folder.renew(deadline_ns(60))
        assert lives(status.hold_pid) and folder.status() == status
        (small / "filler").unlink()
        assert exit_of(folder) == Exit("exited", code=5)
        until(lambda: not lives(status.hold_pid) or None)
        tight.clear()
    finally:
        os.system(f"umount -l '{small}'")


def test_live_cpu_time_follows_the_whole_tree(lab: Lab) -> None:
    spin = "import time,os\nwhile time.process_time() < 0.3: pass\n"
    argv = ["sh", "-c", f'"{sys.executable}" -c "{spin}"; "{sys.executable}" -c "{spin}" & wait; echo done; sleep 1000']
    folder, status = lab.start("w1.0.1", argv)
    until(lambda: "done" in output(folder))
    used = processes.cpu_ns([status.hold_pid, 2**22 + 1])
    assert list(used) == [status.hold_pid] and used[status.hold_pid] >= 550_000_000
    stop(folder)
    exit_of(folder)
    ended = folder.status()
    assert ended is not None and ended.cpu_ns >= used[status.hold_pid]


def load_hold() -> ModuleType:
    """The script as a module: only its pure parts are called."""
    found = importlib.util.spec_from_file_location("hold_under_test", HOLD)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@given(st.lists(st.tuples(st.integers(1, 1000), st.booleans()), max_size=12))
def test_law_one_share_of_a_chip_has_one_holder(asks: list[tuple[int, bool]]) -> None:
    """Take shares, some of which are given back by the death of their holder: never more than a chip is out."""
    hold = load_hold()
    out: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, (milli, dies) in enumerate(asks):
                fits = sum(share for share, _ in out.values()) + milli <= 1000
                try:
                    out[f"w{number}"] = (milli, hold.take_share(f"w{number}", "n:cpu0", milli, folder))
                    assert fits
                except hold.Refused:
                    assert not fits
                if dies and out:
                    os.close(out.pop(next(iter(out)))[1])
        finally:
            for _, fd in out.values():
                os.close(fd)
