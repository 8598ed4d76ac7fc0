"""Writes docs/cli.md: `python -m dure.cli.docs > docs/cli.md`. A test compares."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.core import TyperGroup

from dure.cli.main import app

_HEAD = """\
# The `dure` command

This page is written by `python -m dure.cli.docs`; edit the commands, not the page.

Output goes to stdout, everything else to stderr. An error is three lines: what failed, why, what to do.
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
`--json` prints one document: the control API's values, all their fields, in ledger units (ns, µJ, milli-won).
A table is as wide as the terminal: where that is narrow, its less needed columns are left out. `--json` has them all.

The cloud is found by `--url` and `--key`, else by `DURE_URL` and `DURE_KEY`, else by the files that `dure up` wrote
in its home (`--home`, `DURE_HOME`, `~/.dure`).
"""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return "\n".join([_HEAD, *_sections(group, typer.Context(group, info_name="dure"))])


def _sections(command: TyperGroup, ctx: typer.Context) -> Iterator[str]:
    """A section a verb, the groups' own first."""
    yield _section(ctx)
    for name in command.list_commands(ctx):
        verb = command.get_command(ctx, name)
        assert verb is not None, f"{name} is listed"
        inner = typer.Context(verb, info_name=name, parent=ctx)
        if isinstance(verb, TyperGroup):
            yield from _sections(verb, inner)
        else:
            yield _section(inner)


def _section(ctx: typer.Context) -> str:
    ctx.terminal_width = 100
    return f"## `{ctx.command_path}`\n\n```\n{ctx.get_help()}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
