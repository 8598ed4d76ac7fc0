"""What every acceptance script needs: checks that print one line each, and a cloud seen only from outside."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
DURE = str(ROOT / ".venv/bin/dure")
PYTHON = str(ROOT / ".venv/bin/python")
T = TypeVar("T")
MODEL = "smollm2-135m"
TEMPORARY = Path(tempfile.mkdtemp(prefix="dure-acceptance-"))
FIRST_HOME = TEMPORARY / "first" / "home"
"""Home of the first `make up`; the others take the model from it."""
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("DURE_", "PYTHON", "MAKE", "MFLAGS", "VIRTUAL_ENV"))}


@dataclass
class Check:
    """One line of the result. `run` returns what was measured, and raises what failed."""

    name: str
    limit_s: int
    run: Callable[..., str]


@dataclass
class Report:
    """Prints one line a check. Checks with a limit of their own over 300 s do not use up the common time."""

    deadline: float
    failed: list[str] = field(default_factory=list)
    count: int = 0

    def line(self, ok: bool, name: str, measured: str) -> None:
        self.count += 1
        self.failed += [] if ok else [name]
        text = " ".join(measured.split())
        print(f"{'ok' if ok else 'not ok'} {self.count} {name}: {text[:400]}", flush=True)

    def run(self, check: Check, *arguments: object) -> None:
        started = time.monotonic()
        left = int(self.deadline - started)
        if left <= 0:
            return self.line(False, check.name, "not run: the script's time is over")
        own_time = check.limit_s > 300
        try:
            with time_limit(check.limit_s if own_time else min(check.limit_s, left)):
                measured = check.run(*arguments)
        except Exception as error:  # the edge of the loop: whatever failed is this check's line
            self.line(False, check.name, f"{type(error).__name__}: {error}" if str(error) else repr(error))
        else:
            self.line(True, check.name, measured)
        self.deadline += time.monotonic() - started if own_time else 0
        return None


def check(name: str, limit_s: int = 60) -> Callable[[Callable[..., str]], Check]:
    return lambda run: Check(name, limit_s, run)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def over(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    previous = signal.signal(signal.SIGALRM, over)
    signal.alarm(max(1, seconds))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def until(found: Callable[[], T], seconds: float, what: str) -> T:
    """Poll until `found` gives something true; what it gave. Errors while waiting count as nothing yet."""
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            if value := found():
                return value
        except (OSError, http.client.HTTPException, ValueError, KeyError, AssertionError) as error:
            last = f" ({type(error).__name__}: {error})"
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s{last}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run(argv: Sequence[str], timeout_s: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command to its end in a session of its own, everything it started killed when it takes too long."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=ENV | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def said_clearly(done: subprocess.CompletedProcess[str], *words: str, code: int | None = None) -> str:
    """The command failed as it should: an exit code of 1 or 2, a short text, no traceback, the words in it."""
    text = done.stderr.strip() or done.stdout.strip()
    assert done.returncode in ((1, 2) if code is None else (code,)), f"exit {done.returncode}: {text[-300:]}"
    assert text and "Traceback" not in text, text[-300:] or "said nothing"
    assert len(text.splitlines()) <= 12, f"{len(text.splitlines())} lines: {text[:300]}"
    missing = [word for word in words if word.lower() not in text.lower()]
    assert not missing, f"{missing} not in: {text}"
    return f"exit {done.returncode}, {text!r}"


def processes(home: Path) -> dict[int, tuple[int, str]]:
    """pid -> (start time, command line) of every process that names `home` in its arguments or environment."""
    found, needle = {}, str(home).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, IndexError):
            line = (entry / "cmdline").read_bytes()
            if needle in line or needle in (entry / "environ").read_bytes():
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if stat[0] != "Z":
                    found[int(entry.name)] = (int(stat[19]), line.replace(b"\0", b" ").decode(errors="replace"))
    return found


class Cloud:
    """`dure up` on a home of its own. `port` is fixed for its life, so that a restart has the same address."""

    def __init__(self, name: str, *options: str, models: Path | None = None, home: Path | None = None) -> None:
        self.home = home or TEMPORARY / name / "home"
        self.home.parent.mkdir(parents=True, exist_ok=True)
        if models and models.is_dir():
            shutil.copytree(models, self.home / "models", copy_function=shutil.copy2, dirs_exist_ok=True)
        self.options, self.port = options, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = TEMPORARY / f"{name}.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 60, wait: bool = True) -> float:
        """Seconds until `ready:` was said."""
        began = time.monotonic()
        argv = [DURE, "up", "--home", str(self.home), "--port", str(self.port), *self.options]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=ENV, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        if wait:
            self.said("ready: ", timeout_s)
        return time.monotonic() - began

    def said(self, words: str, timeout_s: float) -> str:
        """The line with these words that `up` printed."""

        def line() -> str:
            lines = self.output.read_text(errors="replace").splitlines()
            found = next((text for text in lines if words in text), "")
            if not found and self.process and self.process.poll() is not None:
                raise RuntimeError(f"up ended with {self.process.returncode}: {' '.join(lines[-4:])}")
            return found

        return until(line, timeout_s, f"up to say {words!r}")

    def interrupt(self) -> float:
        """Ctrl-C, as a terminal gives it: to the whole foreground group. Seconds until `up` was gone."""
        began = time.monotonic()
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(30)
        return time.monotonic() - began

    def close(self) -> None:
        """Stop it, and end by its pid whatever is left of it."""
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            self.interrupt()
        for _ in range(20):
            for pid in processes(self.home):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not processes(self.home):
                break
            time.sleep(0.1)
        if self.process:
            self.process.wait(5)

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def pids(self) -> dict[str, int]:
        return dict(json.loads((self.home / "run/pids.json").read_text()))

    def request(self, method: str, path: str, body: bytes | None = None, timeout_s: float = 30) -> tuple[int, bytes]:
        """(status, body); `path` with a leading slash on the public port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def api(self, path: str, body: object = None) -> Any:
        """The decoded answer of the control API; AssertionError when it is an error."""
        status, data = self.request(
            "GET" if body is None else "POST", path, json.dumps(body).encode() if body is not None else None
        )
        assert status < 400, f"{path}: {status} {data[:300]!r}"
        return json.loads(data)

    def dure(self, *arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        return run([DURE, *arguments], timeout_s, DURE_HOME=str(self.home))

    def submit(self, *command: str, chips: str = "cpu:1:100") -> str:
        """The id of a new job."""
        done = self.dure("submit", "--chips", chips, "--", *command)
        assert done.returncode == 0, f"submit: exit {done.returncode} {done.stderr}"
        return done.stdout.strip()

    def phase(self, workload: str) -> str:
        return str(self.api(f"/api/workloads/{workload}")["phase"])

    def story(self, workload: str) -> list[str]:
        return [str(line["text"]) for line in self.api(f"/api/workloads/{workload}/why")]

    def last_run(self, workload: str) -> dict[str, Any]:
        return dict(self.api(f"/api/workloads/{workload}")["runs"][0])

    def endpoint(self) -> dict[str, Any]:
        """The run that serves the bundled model."""
        asks = ((w, w["ask"]["work"].get("model")) for w in self.api("/api/workloads"))
        return dict(next(w for w, model in asks if model == MODEL)["runs"][0])

    def slots_busy(self) -> int:
        """Slots at work, seen at the engine itself."""
        replica = self.endpoint()
        secret = (self.home / "link.key").read_text().strip().encode()
        key = "ek-" + hmac.new(secret, replica["id"].encode(), hashlib.sha256).hexdigest()[:40]
        host = replica["url"].removeprefix("http://").split("/")[0]
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("GET", "/slots", headers={"Authorization": f"Bearer {key}"})
            return sum(bool(slot["is_processing"]) for slot in json.loads(connection.getresponse().read()))
        finally:
            connection.close()


def run_group(report: Report, cloud: Cloud | None, checks: Sequence[Check]) -> None:
    """Checks that share one running cloud; if it does not start, each of them says so."""
    try:
        if cloud:
            with time_limit(240):
                cloud.start(230)
    except Exception as error:  # the edge of the loop
        for each in checks:
            report.line(False, each.name, f"no cloud: {error}")
    else:
        for each in checks:
            report.run(each, *([cloud] if cloud else []))
    finally:
        if cloud:
            with time_limit(60):
                cloud.close()


def finish(report: Report) -> int:
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    failed = f"; failed: {', '.join(report.failed)}" if report.failed else ""
    print(f"# {report.count - len(report.failed)} of {report.count} ok{failed}", file=sys.stderr)
    return 1 if report.failed else 0
