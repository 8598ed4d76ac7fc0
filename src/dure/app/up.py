"""`dure up`: starts the cloud on this machine, asks its first question, and keeps it running."""

from __future__ import annotations

import argparse
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

from dure.app.first import ask_first_prompt
from dure.app.processes import Child
from dure.app.settings import child_environment, prices_of
from dure.client import Client, find
from dure.cloud.keys import new_secret
from dure.hardware.drivers.simulated import load_fleet
from dure.model.errors import DureError

PORT = 8420
READY_S = 30.0


def main(argv: Sequence[str]) -> int:
    """Exit code 0 after a clean end, 1 when a step failed (DureError), 130 never: Ctrl-C is a clean end."""
    parser = argparse.ArgumentParser(prog="dure up", description="Start the cloud on this machine.")
    parser.add_argument("--once", action="store_true", help="ask one prompt, print the bill line, stop")
    parser.add_argument("--home", type=Path, default=Path("~/.dure"))
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--fleet", type=Path, help="TOML file of simulated chips")
    parser.add_argument("--no-model", action="store_true", help="deploy nothing at start")
    told = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if told.fleet is not None:
        load_fleet(told.fleet)
    home = prepare(told.home.expanduser().absolute())
    with open(home / "up.lock", "a+") as lock:
        _only_one(lock.fileno(), home)
        public, control, agent = _bind(told.port), _bind(0), _bind(0)
        children = _children(home, public, control, agent, told.fleet)
        url = f"http://127.0.0.1:{public.getsockname()[1]}"
        try:
            return _run(home, children, url, told, stop)
        finally:
            _end(home, children)


def _run(home: Path, children: list[Child], url: str, told: argparse.Namespace, stop: threading.Event) -> int:
    for child in children:
        child.start(lambda: _write_pids(home, children))
    _wait_ready(url, children, stop)
    (home / "url").write_text(url + "\n")
    client = find(home, url, None)
    _wait_node(client, children, stop)
    if not told.no_model and not stop.is_set():
        ask_first_prompt(client, url, prices_of(home), stop)
    print(f"ready: {url}/", flush=True)
    while not (told.once or stop.is_set()):
        stop.wait(0.5)
        for child in children:
            if child.unusable is not None:
                raise child.unusable
    return 0


def prepare(home: Path) -> Path:
    """The home with its folders and link key. Raises DureError when it cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        for folder in ("run", "runs", "locks", "logs", "models", "usage"):
            (home / folder).mkdir(exist_ok=True)
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


def _only_one(lock: int, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        url = (home / "url").read_text().strip() if (home / "url").exists() else "its address is in HOME/url"
        do = "Use it, stop it, or give another --home DIR"
        raise DureError(f"A cloud of the home {home} runs already", url, do) from None


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
    home: Path, public: socket.socket, control: socket.socket, agent: socket.socket, fleet: Path | None
) -> list[Child]:
    """Control first: the others link to it. They end in the order agent, gateway, control."""
    node = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower())[:40] or "node"
    shared = ["--home", str(home), "--parent", str(os.getpid()), "--node", node]
    shared += ["--control", str(control.getsockname()[1]), "--agent", str(agent.getsockname()[1])]
    if fleet is not None:
        shared += ["--fleet", str(fleet.absolute())]
    made = []
    for name, listening in (("control", control), ("gateway", public), ("agent", agent)):
        fd = listening.fileno()
        argv = [sys.executable, "-m", "dure.app", name, *shared, "--fd", str(fd)]
        log = home / "logs" / f"{name}.log"
        made.append(Child(name, argv, child_environment(fetches=name == "agent"), fd, log))
    return made


def _write_pids(home: Path, children: list[Child]) -> None:
    pids = {"up": os.getpid(), **{child.name: child.pid for child in children}}
    part = home / "run" / f"pids.{threading.get_ident()}"
    part.write_text(json.dumps(pids))
    part.replace(home / "run" / "pids.json")


def _wait_ready(url: str, children: list[Child], stop: threading.Event) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    for _ in _until(children, stop, "The gateway did not become ready"):
        try:
            with socket.create_connection((host, int(port)), 2) as probe:
                probe.settimeout(5)
                probe.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                if b" 200 " in probe.recv(64):
                    return
        except OSError:
            continue


def _wait_node(client: Client, children: list[Child], stop: threading.Event) -> None:
    for _ in _until(children, stop, "The agent did not join"):
        if any(client.info().nodes.values()):
            return


def _until(children: list[Child], stop: threading.Event, what: str) -> Iterator[None]:
    """Tries until the time is up. Raises DureError then, or when a process cannot run at all."""
    deadline = time.monotonic() + READY_S
    while not stop.is_set():
        for child in children:
            if child.unusable is not None:
                raise child.unusable
        if time.monotonic() > deadline:
            raise DureError(what, f"{READY_S:.0f} s passed", "See HOME/logs")
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
    for path in (home / "url", home / "run" / "pids.json"):
        path.unlink(missing_ok=True)
