"""`dure up`: starts the cloud on this machine, asks its first question, and keeps it running."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dure.app.child import explain
from dure.app.first import ask_first_prompt
from dure.app.processes import Child
from dure.app.settings import child_environment, prices_of
from dure.client import ApiError, Client, find
from dure.cloud.keys import new_secret
from dure.computing.agent.runs import GRACE_S, folders
from dure.hardware.drivers.simulated import load_fleet
from dure.model.errors import DureError

PORT = 8420
READY_S = 30.0
EARLIER_S = 15.0
LOG_BYTES_A_SECOND = 1_000_000
"""Of the log, checked and folded before control answers; measured 4 to 8 times as fast."""


class Stop(threading.Event):
    """Set by Ctrl-C. While the cloud starts, asking it raises the DureError of a process that does not come up."""

    children: Sequence[Child] = ()

    def is_set(self) -> bool:
        for child in self.children:
            child.check()
        return super().is_set()


def main(argv: Sequence[str]) -> int:
    """Exit code 0 after a clean end, 1 when a step failed (DureError), 130 never: Ctrl-C is a clean end."""
    parser = argparse.ArgumentParser(prog="dure up", description="Start the cloud on this machine.")
    parser.add_argument("--once", action="store_true", help="ask one prompt, print the bill line, stop")
    parser.add_argument("--home", type=Path, default=Path("~/.dure"))
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--fleet", type=Path, help="TOML file of simulated chips")
    parser.add_argument("--no-model", action="store_true", help="deploy nothing at start")
    told = parser.parse_args(argv)
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if told.fleet is not None:
        load_fleet(told.fleet)
    home = prepare(told.home)
    _only_one(home)
    lock = _earlier_gone(home)
    public, control, agent = _bind(told.port), _bind(0), _bind(0)
    children = _children(home, (control, public, agent), lock, told.fleet)
    try:
        return _run(home, children, f"http://127.0.0.1:{public.getsockname()[1]}", told, stop)
    finally:
        _end(home, children)


def _run(home: Path, children: list[Child], url: str, told: argparse.Namespace, stop: Stop) -> int:
    writing = threading.Lock()

    def tell_pids() -> None:
        with writing, contextlib.suppress(OSError):  # a full disk: they are told at the next change
            _write_pids(home, children)

    for child in children:
        child.start(tell_pids)
    stop.children = children
    _wait_ready(home, url, children, stop)
    if not stop.is_set():
        _write_url(home, url)
        client = find(home, url, None)
        _wait_node(client, children, stop)
    if not told.no_model and not stop.is_set():
        ask_first_prompt(client, url, prices_of(home), stop)
    stop.children = ()
    if told.once and stop.is_set():
        raise DureError("Stopped before the first prompt was answered")
    if not stop.is_set():
        print(f"ready: {url}/", flush=True)
    while not (told.once or stop.wait(0.5)):
        _tell_unusable(children)
    return 0


def _tell_unusable(children: Sequence[Child]) -> None:
    """What runs goes on without them, and they are tried again: the person at the terminal may mend it meanwhile."""
    for child in children:
        if child.unusable is not None:
            print(f"{child.name}: {child.unusable}", file=sys.stderr, flush=True)
            child.unusable = None


def _write_url(home: Path, url: str) -> None:
    try:
        (home / "url").write_text(url + "\n")
    except OSError as error:
        raise DureError(
            f"{home / 'url'} cannot be written", error.strerror or str(error), "Free space there"
        ) from error


def prepare(home: Path) -> Path:
    """The home, absolute, with its folders and link key. Raises DureError when it cannot be written."""
    try:
        home = home.expanduser().absolute()
        str(home).encode()
    except (RuntimeError, ValueError) as error:
        raise DureError(f"{str(home)!r} cannot be a home", str(error), "Give another with --home DIR") from error
    try:
        home.mkdir(0o700, parents=True, exist_ok=True)
        for folder in ("run", "runs", "locks", "logs", "models", "usage"):
            (home / folder).mkdir(0o700, exist_ok=True)
        probe = home / "run" / "probe"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
        key = home / "link.key"
        if not key.exists():
            with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(new_secret() + "\n")
    except OSError as error:
        raise DureError(
            f"The home {home} cannot be written", error.strerror or str(error), "Free space there, or give --home DIR"
        ) from error
    return home


def _locked(path: Path, within_s: float) -> int | None:
    """The file's descriptor, locked for as long as it or an heir is open; None: another has it all that time."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DureError(f"{path} cannot be opened", error.strerror or str(error), "Give another --home DIR") from error
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(file)
                return None
        time.sleep(0.05)


def _only_one(home: Path) -> None:
    if _locked(home / "up.lock", 0) is None:
        url = (home / "url").read_text().strip() if (home / "url").exists() else "its address is in HOME/url"
        do = "Use it, stop it, or give another --home DIR"
        raise DureError(f"A cloud of the home {home} runs already", url, do)


def _earlier_gone(home: Path) -> int:
    """The lock that every process inherits: those of an `up` that was killed end by themselves, but not at once."""
    lock = _locked(home / "run" / "processes.lock", EARLIER_S)
    if lock is None:
        what = f"Processes of an earlier cloud of the home {home} do not end"
        raise DureError(what, f"waited {EARLIER_S:.0f} s", f"End those that hold {home / 'run' / 'processes.lock'}")
    return lock


def _bind(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DureError(f"Port {port} of 127.0.0.1 cannot be used", why, "Give another with --port N") from error
    return listening


def _children(
    home: Path, ports: tuple[socket.socket, socket.socket, socket.socket], lock: int, fleet: Path | None
) -> list[Child]:
    """Control first: the others link to it. `ports`: control's, the public one, the agent's."""
    control, _, agent = ports
    node = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower())[:40] or "node"
    shared = ["--home", str(home), "--parent", str(os.getpid()), "--node", node]
    shared += ["--control", str(control.getsockname()[1]), "--agent", str(agent.getsockname()[1]), "--lock", str(lock)]
    if fleet is not None:
        shared += ["--fleet", str(fleet.absolute())]
    made = []
    for name, listening in zip(("control", "gateway", "agent"), ports, strict=True):
        fd = listening.fileno()
        argv = [sys.executable, "-m", f"dure.app.{name}", *shared, "--fd", str(fd)]
        log = home / "logs" / f"{name}.log"
        made.append(Child(name, argv, child_environment(fetches=name == "agent"), (fd, lock), log))
    return made


def _write_pids(home: Path, children: list[Child]) -> None:
    pids = {"up": os.getpid(), **{child.name: child.pid for child in children}}
    part = home / "run" / "pids.part"
    part.write_text(json.dumps(pids))
    part.replace(home / "run" / "pids.json")


def _wait_ready(home: Path, url: str, children: list[Child], stop: Stop) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    log = home / "log.sqlite"
    within_s = READY_S + (log.stat().st_size / LOG_BYTES_A_SECOND if log.exists() else 0)
    for _ in _until(children[0], stop, "The cloud did not become ready", within_s):
        try:
            with socket.create_connection((host, int(port)), 2) as probe:
                probe.settimeout(5)
                probe.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                if b" 200 " in probe.recv(64):
                    return
        except OSError:
            continue


def _wait_node(client: Client, children: list[Child], stop: Stop) -> None:
    for _ in _until(children[2], stop, "The agent did not join", READY_S):
        with contextlib.suppress(ApiError):  # control may be on its way back
            if any(client.info().nodes.values()):
                return


def _until(child: Child, stop: Stop, what: str, within_s: float) -> Iterator[None]:
    """Tries until the time is up. Raises DureError then, with the last words of who is likely to blame."""
    deadline = time.monotonic() + within_s
    while not stop.is_set():
        if time.monotonic() > deadline:
            raise child.failed(what, f"{within_s:.0f} s passed")
        yield
        stop.wait(0.05)


def _end(home: Path, children: list[Child]) -> None:
    """Leave nothing behind: runs first, then the processes, then the files that say we are here."""
    for name, number, within_s in (
        ("agent", signal.SIGINT, 20.0),
        ("gateway", signal.SIGTERM, 8.0),
        ("control", signal.SIGTERM, 8.0),
    ):
        next(child for child in children if child.name == name).end(number, within_s)
    _end_left_runs(home)
    for path in (home / "url", home / "run" / "pids.json"):
        path.unlink(missing_ok=True)


def _end_left_runs(home: Path) -> None:
    """Runs whose agent was not there to stop them: it had just died, or not begun."""
    left = []
    for folder in folders(home):
        status = folder.status()
        if status is not None and folder.is_held():
            folder.ask_stop("shutdown", GRACE_S, (status.hold_pid, status.hold_start))
            left.append(folder)
    deadline = time.monotonic() + GRACE_S + 5
    while any(folder.is_held() for folder in left) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DureError as error:
        explain(error)
        sys.exit(1)
