"""Which cloud a command speaks to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from dure.client import Client, find

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


class Settings(Struct, frozen=True):
    """What the options and the environment say; None: look in the home."""

    home: Path
    url: str | None
    key: str | None


def connect(ctx: typer.Context) -> Client:
    """The client of the cloud this command speaks to, closed when the command ends."""
    settings = ctx.find_object(Settings)
    assert settings is not None, "the app's callback sets it"
    client = find(settings.home, settings.url, settings.key)
    ctx.call_on_close(client.close)
    return client
