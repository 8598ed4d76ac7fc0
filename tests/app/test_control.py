"""The control process by itself: what it makes of its home, and how it ends."""

from __future__ import annotations

import fcntl
import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from dure.app.child import LAST_WORDS, UNUSABLE
from dure.app.settings import child_environment
from dure.app.up import prepare
from dure.model.view import KeyView

pytestmark = pytest.mark.slow


class Control:
    """A control process over `home`. `key` is what its file says now."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._lock = os.open(home / "run" / "processes.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.port: int = self._sock.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str, parent: int | None = None) -> subprocess.Popen[str]:
        fds = (self._sock.fileno(), self._lock)
        argv = [sys.executable, "-m", "dure.app.control", "--home", str(self.home), "--node", "n"]
        argv += ["--fd", str(fds[0]), "--lock", str(fds[1]), "--control", str(self.port), "--agent", "0"]
        argv += ["--parent", str(parent or os.getpid()), *more]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, pass_fds=fds)
        return self.process

    def given_up(self, *more: str, parent: int | None = None) -> tuple[int, list[str]]:
        """Exit code, and what it said last."""
        process = self.start(*more, parent=parent)
        _, text = process.communicate(timeout=60)
        return process.returncode, text.rpartition(LAST_WORDS)[2].split("\n")[1:-1] or text.split("\n")

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def get(self, path: str, key: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        self.process.communicate(timeout=60)
        return self.process.returncode

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self._sock.close()
        os.close(self._lock)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with closing(Control(prepare(tmp_path / "home"))) as made:
        yield made


def test_the_first_start_makes_a_key_and_later_ones_keep_it(control: Control) -> None:
    control.start()
    assert control.get("/api/keys", "none")[0] == 401
    key = control.key
    assert (control.home / "admin.key").stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode(control.get("/api/keys", key)[1], type=list[KeyView]) == [KeyView("k1", "default", True)]
    assert control.stop() == 0
    assert not list(control.home.glob("log.sqlite-*")), "the log was not closed"
    control.start()
    assert control.get("/api/info", key)[0] == 200 and control.key == key
    assert control.stop() == 0


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"dk-of-another-cloud\n"])
def test_a_key_file_that_opens_nothing_is_made_anew(control: Control, content: bytes | None) -> None:
    control.start()
    control.get("/api/info", "none")
    old, path = control.key, control.home / "admin.key"
    control.stop()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    control.start()
    control.get("/api/info", "none")
    assert control.key != old and path.stat().st_mode & 0o777 == 0o600
    assert control.get("/api/info", control.key)[0] == 200
    assert control.get("/api/info", old)[0] == 200, "who has the old key still may"


def test_a_killed_control_goes_on_where_it_was(control: Control) -> None:
    process = control.start()
    control.get("/api/info", "none")
    process.kill()
    process.communicate()
    control.start("--again")
    status, body = control.get("/api/events?limit=1000", control.key)
    assert status == 200 and body.count(b"control_started") == 2 and body.count(b"project_created") == 1


def test_a_key_that_cannot_be_written_is_told(control: Control) -> None:
    (control.home / "admin.key").mkdir()
    code, said = control.given_up()
    assert code == UNUSABLE and str(control.home / "admin.key") in said[0] and "directory" in said[1]


@pytest.mark.parametrize(
    ("name", "text"), [("models.toml", "[[model]\n"), ("models.toml", "[[model]]\nname=7\n"), ("prices.toml", "x = ")]
)
def test_a_broken_file_of_the_home_is_named(control: Control, name: str, text: str) -> None:
    (control.home / name).write_text(text)
    code, said = control.given_up()
    assert code == UNUSABLE and name in said[0] and 1 <= len(said) <= 3 and "Traceback" not in "".join(said)


def test_a_tampered_log_is_refused_by_its_row(control: Control) -> None:
    control.start()
    control.get("/api/info", "none")
    control.stop()
    with closing(sqlite3.connect(control.home / "log.sqlite")) as db:
        db.execute(
            "UPDATE log SET body = CAST(replace(CAST(body AS TEXT), 'default', 'defualt') AS BLOB) WHERE offset = 1"
        )
        db.commit()
    for more in ([], ["--again"]):
        code, said = control.given_up(*more)
        assert code == UNUSABLE and "offset 1" in said[0], said


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 500])
def test_a_log_that_is_none_is_refused(control: Control, content: bytes) -> None:
    (control.home / "log.sqlite").write_bytes(content)
    code, said = control.given_up()
    assert code == UNUSABLE and "log.sqlite" in said[0]


def test_it_does_not_start_for_an_up_that_is_gone(control: Control) -> None:
    code, said = control.given_up(parent=1)
    assert code == 1 and said[0] == "dure up is gone"


def test_sigterm_ends_it_even_while_a_reader_waits(control: Control) -> None:
    control.start()
    control.get("/api/info", "none")
    with socket.create_connection(("127.0.0.1", control.port), 60) as reader:
        reader.sendall(f"GET /api/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {control.key}\r\n\r\n".encode())
        assert b"200 OK" in reader.recv(4096)
        assert control.stop() == 0


def test_the_lock_it_inherits_is_let_go_only_by_its_end(control: Control) -> None:
    path = control.home / "run" / "processes.lock"
    fcntl.flock(control._lock, fcntl.LOCK_EX)
    control.start()
    control.get("/api/info", "none")
    os.close(control._lock)
    try:
        control._lock = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(control._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        control.stop()
        deadline = time.monotonic() + 20
        while True:
            try:
                fcntl.flock(control._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        assert control.process is not None and control.process.poll() is not None


def test_children_get_no_more_of_the_environment_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PATH": "/bin", "LANG": "C", "HF_TOKEN": "hf", "HF_ENDPOINT": "e", "PIP_INDEX_URL": "p", "AWS_SECRET": "s"}
    given |= {"DURE_KEY": "k", "LD_PRELOAD": "x", "PYTHONPATH": "y", "https_proxy": "z", "XDG_CACHE_HOME": "c"}
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    plain: Mapping[str, str] = child_environment(fetches=False)
    assert plain == {"PATH": "/bin", "LANG": "C"}
    more = {"HF_TOKEN", "HF_ENDPOINT", "PIP_INDEX_URL", "https_proxy", "XDG_CACHE_HOME"}
    assert set(child_environment(fetches=True)) == {"PATH", "LANG"} | more


def test_a_verb_that_is_none_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["nope"], ["control"], ["--help"]):
        done = subprocess.run([sys.executable, "-m", "dure.app", *argv], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "up" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-m", "dure.app.control"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--home" in done.stderr
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
