"""What every engine promises, and what each launches."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.computing.catalogue import load
from dure.computing.engines import ENGINES
from dure.computing.engines.engine import Engine, Seat
from dure.model.artifact import ModelEntry
from dure.model.workload import Serve

SEAT = Seat(2, 12345, "ek-secret")


def entry(size_bytes: int) -> ModelEntry:
    return ModelEntry("m", "simulated:", "0" * 64, size_bytes, "MIT", "x")


def test_every_model_of_the_catalogue_has_its_engine() -> None:
    assert {model.engine for model in load(None).values()} <= set(ENGINES)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_launch_keeps_its_key_out_of_sight(engine: Engine) -> None:
    launch = engine.launch(Path("/models/두레 x"), Serve("m", slots=3, context_tokens=256), SEAT)
    assert SEAT.key not in " ".join(launch.argv) + str(launch.env) and SEAT.key.encode() in launch.config
    assert launch.ready_path.startswith("/") and Path(launch.argv[-1]).is_file() and "-I" in launch.argv


@pytest.mark.parametrize(
    "engine", [engine for engine in ENGINES.values() if engine.package], ids=lambda engine: engine.name
)
def test_the_installed_version_is_supported_and_a_strange_one_is_not(engine: Engine) -> None:
    assert engine.supports(metadata.version(engine.package))
    assert not any(engine.supports(version) for version in ("", "0", "2026", "2026.9.1", "2027.1.1", "2026.x", "두레"))


@given(st.integers(1, 10**12), st.integers(1, 256), st.integers(128, 1_048_576))
def test_a_footprint_holds_the_file_and_grows_with_the_slots(size: int, slots: int, context: int) -> None:
    small, large = Serve("m", slots, context), Serve("m", slots + 1, context)
    engine = ENGINES["llama_cpp"]
    assert engine.footprint(entry(size), small) > size >> 20
    assert engine.footprint(entry(size), small) <= engine.footprint(entry(size), large)


def test_the_footprint_of_the_bundled_model_is_near_the_measured_one() -> None:
    """Measured resident sizes: 197 MiB with 1 slot and 890 MiB with 16, of 2048 tokens each; 330 MiB with 4."""
    model = load(None)["smollm2-135m"]
    for slots, measured_mib in ((1, 197), (4, 330), (16, 890)):
        assert ENGINES["llama_cpp"].footprint(model, Serve(model.name, slots, 2048)) == pytest.approx(
            measured_mib, rel=0.15
        )


def test_the_bundled_model_is_launched_with_what_was_asked() -> None:
    launch = ENGINES["llama_cpp"].launch(Path("/m"), Serve("smollm2-135m", 4, 2048), SEAT)
    told = msgspec.json.decode(launch.config, type=dict[str, str | int])
    assert told["slots"] == 4 and told["context_tokens"] == 2048 and told["threads"] == 2 and told["model"] == "/m"
