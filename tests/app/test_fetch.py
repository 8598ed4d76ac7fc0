"""The fetching process: lines on stdout, the token's file, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from dure.app.fetch import Failed, Fetched, Fetching, _reporter, main

pytestmark = pytest.mark.slow  # real processes

TOKEN = "hf_abcdefSECRET"


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """Any line of the process, read as a strict caller does."""

    done: int | None = None
    total: int | None = None
    path: str | None = None
    error: dict[str, str] | None = None


def lines(text: str) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in text.splitlines()]


def add_model(home: Path, source: str, body: bytes = b"weights") -> None:
    home.mkdir(exist_ok=True)
    (home / "models.toml").write_text(
        f'[[model]]\nname = "m"\nsource = "{source}"\nsha256 = "{sha256(body).hexdigest()}"\n'
        f'size_bytes = {len(body)}\nlicence = "MIT"\nengine = "llama_cpp"\n'
    )


def process(home: Path, **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "dure.app.fetch", "--home", str(home), "m"]
    return subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.01)


@pytest.fixture
def silent_server() -> Iterator[tuple[socket.socket, str]]:
    """Takes connections and says nothing until told to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server, f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_model_is_fetched_and_its_path_said_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    add_model(tmp_path, f"file:{tmp_path}/m.gguf")
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--home", str(tmp_path), "m"]) == 0
    said = lines(capsys.readouterr().out)
    assert said[-2] == Line(done=7, total=7)
    assert said[-1].path is not None and Path(said[-1].path).read_bytes() == b"weights"
    assert Path(said[-1].path).parent == tmp_path / "models" / "sha256"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unknown_model_is_an_error_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path), "x" * 10_000]) == 1
    [line] = lines(capsys.readouterr().out)
    assert line.error is not None and set(line.error) == {"what", "why", "do"}
    assert "smollm2-135m" in line.error["why"] and len(line.error["what"]) < 200


def test_a_broken_catalogue_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models.toml").write_text("[[model")
    assert main(["--home", str(tmp_path), "m"]) == 1
    [line] = lines(capsys.readouterr().out)
    assert line.error is not None and "models.toml" in line.error["what"]
    with pytest.raises(SystemExit) as caught:
        main(["m"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (TOKEN, 0o644, "can be read by others"),
        ("", 0o600, "holds no token"),
        (f"{TOKEN}\r\nHost: evil", 0o600, "holds no token"),
        ("두레" + TOKEN, 0o600, "holds no token"),
    ],
)
def test_a_token_file_that_is_wrong_is_refused_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, mode: int, says: str
) -> None:
    add_model(tmp_path, "hf:o/r@main#m.gguf")
    (tmp_path / "hf.token").write_text(text)
    (tmp_path / "hf.token").chmod(mode)
    assert main(["--home", str(tmp_path), "m"]) == 1
    out, err = capsys.readouterr()
    assert says in out and TOKEN not in out + err


@pytest.mark.parametrize("where", ["file", "environment"])
def test_the_token_goes_to_the_hub_and_nowhere_else(
    tmp_path: Path, silent_server: tuple[socket.socket, str], where: str
) -> None:
    server, url = silent_server
    add_model(tmp_path, "hf:o/r@main#m.gguf")
    env = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN}
    if where == "file":
        (tmp_path / "hf.token").write_text(TOKEN + "\n")
        (tmp_path / "hf.token").chmod(0o600)
        env["HF_TOKEN"] = "another"
    child = process(tmp_path, **env)
    with child, server.accept()[0] as connection:
        request = connection.recv(65_536).decode()
        assert f"Authorization: Bearer {TOKEN}\r\n" in request
        assert request.startswith("GET /o/r/resolve/main/m.gguf HTTP/1.1\r\n")
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.close()
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "gated" in out and TOKEN not in out


def test_a_wrong_token_in_the_environment_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(tmp_path, "hf:o/r@main#m.gguf")
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\nHost: evil")
    assert main(["--home", str(tmp_path), "m"]) == 1
    out, err = capsys.readouterr()
    assert "HF_TOKEN holds no token" in out and TOKEN not in out + err


def test_terminated_it_ends_pip_too_and_cleans_up(tmp_path: Path, silent_server: tuple[socket.socket, str]) -> None:
    server, url = silent_server
    add_model(tmp_path, "pypi:fake-model==1.0#m.gguf")
    child = process(tmp_path, PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=f"{url}/simple", PIP_NO_CACHE_DIR="1")
    with child, server.accept()[0]:
        pips = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert len(pips) == 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    until(lambda: not Path(f"/proc/{pips[0]}").exists(), "pip is gone")
    assert [path.suffix for path in (tmp_path / "models" / "sha256").iterdir()] == [".lock"]


def test_terminated_half_way_it_keeps_what_came(tmp_path: Path, silent_server: tuple[socket.socket, str]) -> None:
    server, url = silent_server
    body = bytes(200_000)
    add_model(tmp_path, f"{url}/m.gguf", body)
    child = process(tmp_path)
    with child, server.accept()[0] as connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body[:150_000])
        assert child.stdout is not None
        assert lines(child.stdout.readline())[0].total == 200_000
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    [part] = (tmp_path / "models" / "sha256").glob("*.part")
    assert part.stat().st_size > 0


def test_it_ends_when_nobody_listens_any_more(tmp_path: Path, silent_server: tuple[socket.socket, str]) -> None:
    server, url = silent_server
    add_model(tmp_path, f"{url}/m.gguf", bytes(200_000))
    child = process(tmp_path)
    with child, server.accept()[0] as connection:
        assert child.stdout is not None
        child.stdout.close()
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(150_000))
        assert child.wait(30) == 1


def test_progress_is_said_at_most_five_times_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    report = _reporter(lambda: now)
    for step in range(1001):  # a step a millisecond
        now = step / 1000
        report(step, 1000)
    said = lines(capsys.readouterr().out)
    assert len(said) == 6
    assert said[0].done == 0 and said[-1].done == 1000


def test_the_lines_are_what_callers_read() -> None:
    assert msgspec.json.encode(Fetching(1, 2)) == b'{"done":1,"total":2}'
    assert msgspec.json.encode(Fetched("/p")) == b'{"path":"/p"}'
    assert msgspec.json.decode(b'{"error":{"what":"a","why":"b","do":"c"}}', type=Failed).error.why == "b"
