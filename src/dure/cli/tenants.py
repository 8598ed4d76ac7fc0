"""Verbs of an admin: projects and keys."""

from __future__ import annotations

from typing import Annotated

import typer

from dure.cli.render import emit, emit_json, note, printable, table
from dure.cli.settings import Json, connect

app = typer.Typer()
project = typer.Typer(help="Projects: who work, keys and usage belong to.", no_args_is_help=True)
key = typer.Typer(help="Keys: what a caller shows.", no_args_is_help=True)
app.add_typer(project, name="project")
app.add_typer(key, name="key")


@project.command("create")
def create_project(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Create a project."""
    emit(printable(connect(ctx).create_project(name).name) + "\n")


@project.command("list")
def list_projects(ctx: typer.Context, json: Json = False) -> None:
    """List the projects."""
    found = connect(ctx).projects()
    if json:
        return emit_json(found)
    rows = [[view.name, f"{view.keys:,}", f"{view.workloads:,}"] for view in found]
    emit(table(["NAME", "KEYS", "WORKLOADS"], rows, right=("KEYS", "WORKLOADS")))


@key.command("create")
def create_key(
    ctx: typer.Context, project: Annotated[str, typer.Option(metavar="P", help="The project it opens.")] = "default"
) -> None:
    """Create a key; the secret alone goes to stdout, this once."""
    made = connect(ctx).create_key(project)
    emit(printable(made.secret) + "\n")
    note(f"key {made.id} of project {made.project}: its secret is stored nowhere, keep it now")


@key.command("list")
def list_keys(ctx: typer.Context, json: Json = False) -> None:
    """List the keys, without their secrets."""
    found = connect(ctx).keys()
    if json:
        return emit_json(found)
    emit(table(["ID", "PROJECT", "ADMIN"], [[view.id, view.project, "yes" if view.admin else "no"] for view in found]))
