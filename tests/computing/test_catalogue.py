"""The catalogue: what is packaged, and what a home adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dure.computing.artifacts import parse_source
from dure.computing.catalogue import load
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError

ENTRY = f"""
[[model]]
name = "mine"
source = "file:/models/mine.gguf"
sha256 = "{"ab" * 32}"
size_bytes = 5
licence = "MIT"
engine = "llama_cpp"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "models.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_packaged_models() -> None:
    models = load(None)
    assert set(models) >= {"smollm2-135m", "simulated-echo"}
    bundled = models["smollm2-135m"]
    assert (bundled.engine, bundled.licence, bundled.size_bytes) == ("llama_cpp", "Apache-2.0", 98_362_432)
    assert bundled.languages == ("en",)
    assert models["simulated-echo"].engine == "simulated"
    assert parse_source(models["simulated-echo"].source) is None
    assert all(name == entry.name and type(entry) is ModelEntry for name, entry in models.items())


def test_a_home_adds_models_and_may_replace_one(tmp_path: Path) -> None:
    extra = write(tmp_path, ENTRY + ENTRY.replace("mine", "smollm2-135m"))
    models = load(extra)
    assert models["mine"] == ModelEntry("mine", "file:/models/mine.gguf", "ab" * 32, 5, "MIT", "llama_cpp")
    assert models["smollm2-135m"].licence == "MIT"
    assert "simulated-echo" in models


def test_no_file_is_no_addition(tmp_path: Path) -> None:
    assert load(tmp_path / "models.toml") == load(None)
    assert load(write(tmp_path, "")) == load(None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[model]\n", "models.toml is not a list"),
        (b"\xff\xfe", "models.toml is not a list"),
        ("model = 3", "Expected `array`"),
        ("x = 1", "unknown field `x`"),
        (ENTRY.replace("size_bytes = 5", "size_bytes = 0"), ">= 1"),
        (ENTRY.replace("size_bytes = 5", 'size_bytes = "5"'), "Expected `int`"),
        (ENTRY.replace("abab", "ABAB"), "sha256"),
        (ENTRY.replace('licence = "MIT"\n', ""), "missing required field `licence`"),
        (ENTRY + "langauges = []", "unknown field `langauges`"),
        (ENTRY.replace('"mine"', '"../mine"'), "name"),
        (ENTRY.replace('"mine"', '"모델"'), "name"),
        (ENTRY.replace("file:/", "file:"), "model mine: 'file:models/mine.gguf' is not a source"),
        (ENTRY + ENTRY, "names the model mine twice"),
        ("[" * 5000, "models.toml"),
        ("#" * (2 << 20), "larger than 1,048,576 bytes"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_place(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DureError) as caught:
        load(path)
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.do


def test_a_folder_instead_of_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DureError, match="Is a directory"):
        load(tmp_path)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_models_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    try:
        load(write(tmp_path, data))
    except DureError as error:
        assert "models.toml" in error.what
