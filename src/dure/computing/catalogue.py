"""The models there are: those packaged with Dure, and a home's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import msgspec
from msgspec import Struct

from dure.computing.artifacts import parse_source
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError

_MOST_BYTES = 1 << 20


class _Entry(ModelEntry, frozen=True, forbid_unknown_fields=True):
    """A misspelt key must not be taken for an absent one."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[_Entry, ...] = ()


def load(extra: Path | None) -> dict[str, ModelEntry]:
    """Name -> entry: the packaged models, and those of the file `extra` if it exists, which win. Raises DureError."""
    models = _parse(files("dure.computing").joinpath("models.toml").read_bytes(), "the packaged models.toml")
    if extra is not None:
        try:
            with extra.open("rb") as file:
                models |= _parse(file.read(_MOST_BYTES + 1), str(extra))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DureError(f"cannot read {extra}", error.strerror or "", "Make it readable, or remove it") from None
    return models


def _parse(data: bytes, where: str) -> dict[str, ModelEntry]:
    do = "Correct it as docs/models.md says"
    if len(data) > _MOST_BYTES:
        raise DureError(f"{where} is not read", f"it is larger than {_MOST_BYTES:,} bytes", do)
    try:
        entries = msgspec.toml.decode(data, type=_File).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DureError(f"{where} is not a list of models", str(error), do) from None
    models: dict[str, ModelEntry] = {}
    for entry in entries:
        if entry.name in models:
            raise DureError(f"{where} names the model {entry.name} twice", do="Remove one of the two")
        try:
            parse_source(entry.source)
        except DureError as error:
            raise DureError(f"{where}, model {entry.name}: {error.what}", error.why, error.do) from None
        models[entry.name] = msgspec.convert(entry, ModelEntry, from_attributes=True)
    return models
