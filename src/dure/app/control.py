"""The control process: opens the log, folds it, then serves the API and the links."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import uvicorn
import uvloop

from dure import __version__
from dure.app.child import serve
from dure.app.settings import prices_of
from dure.cloud.api.app import make_app
from dure.cloud.api.resources import Control
from dure.cloud.keys import digest, new_secret
from dure.cloud.loop import Loop
from dure.computing.catalogue import load
from dure.computing.inbox import MakeKey, MakeProject, Started
from dure.model.errors import DureError
from dure.store.sqlite import SqliteLog

DEFAULT_PROJECT = "default"
STOP_S = 2
_MAX_FRAME = 256 << 20
_GC = (100_000, 20, 1000)
"""The state lives long and has no cycles: measured, 11,050 batched submissions/s by default, 13,170 with these."""


def run(home: Path, fd: int, again: bool) -> None:
    """Serve on the inherited listening socket until SIGTERM. Raises DureError when the home is unusable.

    The whole log is checked unless this is control `again`, which runs wait for: that takes 5 s for each 40 MB.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    log = SqliteLog(home / "log.sqlite")
    try:
        if not again:
            log.verify()
        catalogue = load(home / "models.toml")
        link_key = (home / "link.key").read_text().strip()
        gc.disable()  # a replay makes many objects and no garbage
        loop = Loop(log, tuple(catalogue), time.time_ns, link_key)
        gc.enable()
        gc.freeze()
        gc.set_threshold(*_GC)
        control = Control(loop, catalogue, prices_of(home), link_key, home, time.time_ns)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(control, fd))
    finally:
        log.close()


async def _serve(control: Control, fd: int) -> None:
    turning = asyncio.create_task(control.loop.run())
    await _first_start(control)
    listening = socket.socket(fileno=fd)
    config = uvicorn.Config(
        make_app(control),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=_MAX_FRAME,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal once more when it has stopped: the log is then to be closed, not left open.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    serving = asyncio.create_task(server.serve([listening]))
    done, _ = await asyncio.wait({turning, serving}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    turning.cancel()


async def _first_start(control: Control) -> None:
    """Project `default` and an admin key whose text is in HOME/admin.key, whatever was there before."""
    loop = control.loop
    loop.put(Started(__version__))
    if DEFAULT_PROJECT not in loop.core.state.projects:
        await loop.ask(lambda token: MakeProject(DEFAULT_PROJECT, "up", token), str)
    path = control.home / "admin.key"
    try:
        secret = path.read_text(errors="replace").strip() if path.exists() else ""
        if digest(secret) in loop.core.state.keys:
            return
        secret = new_secret()
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        raise DureError(f"The admin key cannot be written to {path}", str(error), "Free space there") from error
    await loop.ask(lambda token: MakeKey(DEFAULT_PROJECT, digest(secret), True, "up", token), str)


if __name__ == "__main__":
    sys.exit(serve(lambda told: run(told.home, told.fd, told.again)))
