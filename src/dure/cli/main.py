"""The `dure` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dure.cli import look, tenants, work
from dure.cli.render import complain
from dure.cli.settings import Settings
from dure.model.errors import DureError

app = typer.Typer(
    help="One cloud out of a data centre of mixed AI chips.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
HOME_HELP = "Folder of a cloud on this machine: its address, keys, log and models."


@app.callback()
def dure(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="DURE_URL", metavar="URL", help="Address of the cloud.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="DURE_KEY", metavar="KEY", help="Key to show; others see it in ps, the variable they do not."
        ),
    ] = None,
    home: Annotated[Path, typer.Option(envvar="DURE_HOME", metavar="DIR", help=HOME_HELP)] = Path("~/.dure"),
) -> None:
    ctx.obj = Settings(home.expanduser(), url, key)


@app.command()
def up(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Deploy, answer one prompt, print the bill line, stop.")] = False,
    home: Annotated[Path | None, typer.Option(metavar="DIR", help="As dure --home.")] = None,
    port: Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on.")] = None,
    fleet: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of simulated chips to add.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not deploy the bundled model.")] = False,
) -> None:
    """Start the cloud on this machine.

    It deploys the bundled model, asks it one prompt, and serves until Ctrl-C.
    """
    settings = ctx.find_object(Settings)
    assert settings is not None, "the callback sets it"
    args = ["--home", str(home.expanduser() if home else settings.home)]
    args += ["--once"] if once else []
    args += ["--port", str(port)] if port is not None else []
    args += ["--fleet", str(fleet)] if fleet else []
    args += ["--no-model"] if no_model else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "dure.app", "up", *args])


for room in (look, work, tenants):
    app.add_typer(room.app)


def main(args: Sequence[str] | None = None) -> None:
    """Always ends in SystemExit: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    try:
        app(args, prog_name="dure")
    except DureError as error:
        complain(error)
        sys.exit(1)
