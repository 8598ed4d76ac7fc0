"""An engine that answers at once with canned words: for tests and load figures. Its answers say simulated."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from dure.computing.engines.engine import Launch, Seat
from dure.model.artifact import ModelEntry
from dure.model.workload import Serve

_SERVER = Path(__file__).with_name("simulated_server.py")


class Simulated:
    """Serves the models without a file."""

    name = "simulated"
    package = ""

    def supports(self, version: str) -> bool:
        return True

    def footprint(self, entry: ModelEntry, work: Serve) -> int:
        """The resident size of its server, measured on x86-64 with Python 3.11, rounded up."""
        return 32

    def launch(self, artifact: Path, work: Serve, seat: Seat) -> Launch:
        config = {"model": work.model, "port": seat.port, "key": seat.key}
        return Launch((sys.executable, "-I", str(_SERVER)), msgspec.json.encode(config))
