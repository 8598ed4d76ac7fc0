"""Inference engines. A new one is one file here and one row in ENGINES."""

from __future__ import annotations

from dure.computing.engines.engine import Engine
from dure.computing.engines.llama_cpp import LlamaCpp
from dure.computing.engines.simulated import Simulated

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (LlamaCpp(), Simulated())}
