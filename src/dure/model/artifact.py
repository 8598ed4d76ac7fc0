"""Models as catalogue entries: where one file comes from, and what it must be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from dure.model.workload import Name


class ModelEntry(Struct, frozen=True):
    """One model: one file.

    `source` is `pypi:PACKAGE==VERSION#PATH/IN/WHEEL`, `file:/ABS/PATH`, `https://…` (plain `http://`
    only to loopback), or `hf:OWNER/REPO@REVISION#PATH`. `sha256` is of the file itself.
    """

    name: Name
    source: str
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, Meta(ge=1)]
    licence: str
    engine: str
    languages: tuple[str, ...] = ()
    note: str = ""
