"""llama.cpp's HTTP server out of the xllamacpp wheel, in a process of its own."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import msgspec

from dure.computing.engines.engine import Launch, Seat
from dure.model.artifact import ModelEntry
from dure.model.workload import Serve

_SERVER = Path(__file__).with_name("llama_cpp_server.py")
_MIB = 1 << 20
_BASE_MIB = 64
_REFERENCE_BYTES = 98_362_432
_REFERENCE_TOKEN_BYTES = 23_040


class LlamaCpp:
    """GGUF models on CPU cores."""

    name = "llama_cpp"
    package = "xllamacpp"

    def supports(self, version: str) -> bool:
        """Versions are YEAR.MONTH.BUILD; the parameters set here were checked with those of 2026 from October."""
        year, _, rest = version.partition(".")
        month = rest.partition(".")[0]
        return year == "2026" and month.isdigit() and int(month) >= 10

    def footprint(self, entry: ModelEntry, work: Serve) -> int:
        """The file + a key-value cache + 64 MiB.

        The cache of one token is 23,040 bytes for the 98 MB SmolLM2-135M (30 layers x 2 x 3 heads x 64 x 2 bytes) and
        is taken to grow with the square root of the file: 0.7 to 1.5 times the truth for the common dense models.
        """
        token_bytes = _REFERENCE_TOKEN_BYTES * math.sqrt(entry.size_bytes / _REFERENCE_BYTES)
        return _BASE_MIB + math.ceil((entry.size_bytes + work.slots * work.context_tokens * token_bytes) / _MIB)

    def launch(self, artifact: Path, work: Serve, seat: Seat) -> Launch:
        config = {
            "model": str(artifact),
            "alias": work.model,
            "port": seat.port,
            "key": seat.key,
            "threads": seat.threads,
            "slots": work.slots,
            "context_tokens": work.context_tokens,
        }
        return Launch((sys.executable, "-I", str(_SERVER)), msgspec.json.encode(config))
