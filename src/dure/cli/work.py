"""Verbs on jobs and endpoints: submit, stop, deploy, undeploy, chat."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer

from dure.cli.render import emit, note, printable, tell_refusal
from dure.cli.settings import connect
from dure.cli.watch import until_it_answers
from dure.client import Client, Message, Tokens
from dure.model.errors import DureError
from dure.model.units import WHOLE_CHIP_MILLI
from dure.model.workload import Ask, ChipAsk, Command, Serve, parse_chips

app = typer.Typer()


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    ctx: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(metavar="-- CMD")] = None,
    chips: Annotated[str, typer.Option(metavar="KIND:N[:MILLI]", help="Chips to run on; MILLI of each.")] = "cpu:1:100",
    project: Annotated[str, typer.Option(metavar="P", help="Whose work it is.")] = "default",
) -> None:
    """Run a command as a job; its id alone goes to stdout."""
    if not command:
        raise typer.BadParameter("no command to run. Write it behind --, e.g. dure submit -- echo hello")
    try:
        ask = _checked(Ask(Command(tuple(command)), parse_chips(chips), project))
    except DureError as error:
        raise typer.BadParameter(str(error)) from error
    emit(_submit(connect(ctx), ask) + "\n")


def _checked(ask: Ask) -> Ask:
    """The same ask, or why the cloud would not take its shape."""
    try:
        return msgspec.convert(msgspec.to_builtins(ask), Ask)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from error


def _submit(client: Client, ask: Ask) -> str:
    """The id of the admitted workload; a refusal is told and ends the command with 1."""
    [answer] = client.submit([ask])
    if answer.refusal:
        tell_refusal(answer.refusal, answer.id)
        raise typer.Exit(1)
    return answer.id


@app.command()
def stop(ctx: typer.Context, id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Stop a workload: TERM, then KILL."""
    view = connect(ctx).stop(id)
    emit(f"{printable(view.id)} {view.phase}\n")


@app.command()
def deploy(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    replicas: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many serve it.")] = 1,
    chip: Annotated[str, typer.Option(metavar="KIND", help="Kind of chip; one whole chip a replica.")] = "cpu",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it answers.")] = False,
) -> None:
    """Serve a model behind /v1, and wait until it answers.

    The endpoint's id alone goes to stdout. Ctrl-C ends the waiting, not the endpoint.
    """
    ask = _checked(Ask(Serve(model), ChipAsk(chip, 1, WHOLE_CHIP_MILLI), replicas=replicas))
    client = connect(ctx)
    id = _submit(client, ask)
    emit(id + "\n")
    if no_wait:
        return
    view = until_it_answers(client, id, model)
    if view.phase != "active":
        why = view.reason.why if view.reason else ""
        raise DureError(f"{model} does not answer: {id} is {view.phase}", why, f"See: dure why {id}; dure logs {id}")


@app.command()
def undeploy(ctx: typer.Context, model: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    """Stop every endpoint of a model; prints their ids."""
    client = connect(ctx)
    serving = [w.id for w in client.workloads() if isinstance(w.ask.work, Serve) and w.ask.work.model == model]
    if not serving:
        raise DureError(f"No endpoint serves {model}", do="See what is served with: dure models")
    for id in serving:
        client.stop(id)
        emit(id + "\n")


@app.command()
def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
) -> None:
    """Ask a deployed model one question.

    The answer streams to stdout; its tokens and their rate over the whole answer go to stderr.
    """
    client, asked, used = connect(ctx), time.monotonic(), None
    for part in client.chat(model, [Message("user", prompt)]):
        if isinstance(part, Tokens):
            used = part
        else:
            emit(printable(part, keep="\n\t") if sys.stdout.isatty() else part)
    seconds = time.monotonic() - asked
    emit("\n")
    if used is None:
        note("tokens unknown: the engine did not count them")
    else:
        note(rate(used, seconds))


def rate(used: Tokens, seconds: float) -> str:
    """What an answer used, over the whole time from asking to its end.

    >>> rate(Tokens(5, 8), 2.0)
    '5 tokens in · 8 out in 2.00 s · 4.0 tok/s'
    """
    speed = used.completion_tokens / seconds
    return f"{used.prompt_tokens} tokens in · {used.completion_tokens} out in {seconds:.2f} s · {speed:.1f} tok/s"
