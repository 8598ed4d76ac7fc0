"""What a run executes: a job's command, or an endpoint's engine with its model's file."""

from __future__ import annotations

import os
import socket
from importlib import metadata
from pathlib import Path

from dure.computing.agent.runs import Process
from dure.computing.catalogue import load
from dure.computing.engines import ENGINES
from dure.computing.engines.engine import Engine, Seat
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError
from dure.model.workload import Command, Serve


def job(work: Command, env: dict[str, str]) -> Process:
    """`env` is what every run gets; the job's own adds to it but cannot say whose run it is."""
    own = {name: value for name, value in work.env.items() if not name.startswith("DURE_")}
    return Process(work.argv, env | own)


def model_of(home: Path, work: Serve) -> tuple[ModelEntry, Engine]:
    """The model's entry, and its engine in a version that is known. Raises DureError."""
    entry = load(home / "models.toml").get(work.model)
    if entry is None:
        raise DureError(f"this node's catalogue has no model {work.model}")
    engine = ENGINES.get(entry.engine)
    if engine is None:
        raise DureError(f"model {entry.name} wants engine {entry.engine}", f"known: {', '.join(ENGINES)}")
    if engine.package:
        try:
            version = metadata.version(engine.package)
        except metadata.PackageNotFoundError:
            raise DureError(f"engine {engine.name} is not installed", f"no package {engine.package}") from None
        if not engine.supports(version):
            raise DureError(f"engine {engine.name} does not know {engine.package} {version}")
    return entry, engine


def needs_file(entry: ModelEntry) -> bool:
    return not entry.source.startswith("simulated:")


def replica(engine: Engine, work: Serve, artifact: Path | None, env: dict[str, str], key: str) -> Process:
    """One replica on a free loopback port. The port may be taken before the engine binds it; then it ends and
    is started again elsewhere."""
    seat = Seat(int(env["OMP_NUM_THREADS"]), _free_port(), key)
    launch = engine.launch(artifact or Path(os.devnull), work, seat)
    return Process(launch.argv, env | launch.env, f"http://127.0.0.1:{seat.port}", launch.ready_path, launch.config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
