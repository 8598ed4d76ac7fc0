"""Verbs that only look: chips, models, ps, why, logs, report."""

from __future__ import annotations

import shlex
import time
from enum import StrEnum
from typing import Annotated

import typer

from dure.cli.figures import figure, heading
from dure.cli.render import duration, emit, emit_json, local_time, note, printable, size, table
from dure.cli.settings import Json, connect
from dure.model.view import ChipView, ModelView, Report, WorkloadView
from dure.model.workload import Serve

FOLLOW_WAIT_S = 20.0
"""How long one request of `logs -f` may be held while there is nothing new."""
EMPTY_PAUSE_S = 0.2
"""Before asking again after an empty answer: not every one was held that long."""
CHIP_COLUMNS = (
    "ID",
    "NODE",
    "KIND",
    "VENDOR",
    "MODEL",
    "COUNTRY",
    "SOURCE",
    "MEMORY",
    "FREE",
    "FULL POWER",
    "HEALTH",
    "TESTED ON",
)
CHIP_SPARE = ("MODEL", "TESTED ON", "COUNTRY", "VENDOR", "NODE", "FULL POWER", "MEMORY")

app = typer.Typer()


class What(StrEnum):
    usage = "usage"
    energy = "energy"
    cost = "cost"


class By(StrEnum):
    project = "project"
    workload = "workload"
    model = "model"
    chip = "chip"


@app.command()
def chips(
    ctx: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="Also the chips of nodes that are away.")] = False,
    json: Json = False,
) -> None:
    """List the chips: what they are, how they are, what is free."""
    found = connect(ctx).chips()
    shown = [view for view in found if view.linked or all]
    if json:
        return emit_json(shown)
    rows = [_chip(view) for view in shown]
    emit(table(CHIP_COLUMNS, rows, right=("MEMORY", "FREE"), spare=CHIP_SPARE))
    if len(shown) < len(found):
        note(f"{len(found) - len(shown):,} more on nodes that are away: dure chips --all")


def _chip(view: ChipView) -> list[str]:
    chip = view.chip
    memory = "unknown" if chip.memory_mib is None else f"{chip.memory_mib:,} MiB"
    power = f"{chip.power.full_w:g} W {chip.power.source}" if chip.power else "unknown"
    where = [chip.id, chip.node, chip.kind, chip.vendor, chip.model, chip.country or "unknown", chip.source]
    health = chip.health if view.linked else "away"
    return [*where, memory, f"{view.free_milli / 10:g} %", power, health, chip.tested_on]


@app.command()
def models(ctx: typer.Context, json: Json = False) -> None:
    """List the models that can be deployed, and what serves them."""
    found = connect(ctx).models()
    if json:
        return emit_json(found)
    columns = ["NAME", "SIZE", "ENGINE", "LICENCE", "LANGUAGES", "SERVED BY", "NOTE"]
    emit(table(columns, [_model(view) for view in found], right=("SIZE",), spare=["LANGUAGES", "LICENCE", "ENGINE"]))


def _model(view: ModelView) -> list[str]:
    languages, served = " ".join(view.languages), " ".join(view.endpoints)
    return [view.name, size(view.size_bytes), view.engine, view.licence, languages, served or "-", view.note]


@app.command()
def ps(
    ctx: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="Also the workloads that have ended.")] = False,
    json: Json = False,
) -> None:
    """List the workloads: where they run, or why they wait."""
    found = connect(ctx).workloads(all)
    if json:
        return emit_json(found)
    now_ns = time.time_ns()
    columns = ["ID", "PHASE", "PROJECT", "CHIPS", "NODE", "AGE", "CPU", "WORK", "REASON"]
    rows = [_workload(view, now_ns) for view in found]
    emit(table(columns, rows, right=("AGE", "CPU"), spare=["PROJECT", "CPU", "NODE"]))


def _workload(view: WorkloadView, now_ns: int) -> list[str]:
    nodes = sorted({run.node for run in view.runs})
    node = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes" if nodes else "-"
    where = [str(view.ask.chips), node, duration(now_ns - view.submitted_ns)]
    cpu = duration(sum(run.cpu_ns for run in view.runs)) if view.runs else "-"
    reason = view.reason.why if view.reason else ""
    return [view.id, phase_of(view), view.ask.project, *where, cpu, work_of(view), reason]


def phase_of(view: WorkloadView) -> str:
    """The workload's phase, and while it is active that of its runs."""
    if view.phase != "active" or not view.runs:
        return view.phase
    phases = {run.phase for run in view.runs}
    running = sum(run.phase == "running" for run in view.runs)
    if len(phases) > 1 or len(view.runs) < view.ask.replicas:
        return f"{running}/{view.ask.replicas} running"
    return phases.pop()


def work_of(view: WorkloadView) -> str:
    work = view.ask.work
    if isinstance(work, Serve):
        return f"serve {work.model}" + (f" x{view.ask.replicas}" if view.ask.replicas > 1 else "")
    text = shlex.join(work.argv[:20])
    return text if len(text) <= 60 else text[:59] + "…"


@app.command()
def why(ctx: typer.Context, id: Annotated[str, typer.Argument(metavar="ID")], json: Json = False) -> None:
    """Tell a workload's story from the log, in order."""
    lines = connect(ctx).why(id)
    if json:
        return emit_json(lines)
    emit("".join(f"{local_time(line.at_ns)}  {printable(line.text)}\n" for line in lines))


@app.command()
def logs(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
) -> None:
    """Print a workload's output, as its process wrote it."""
    client, offset, run = connect(ctx), 0, None
    while True:
        view = client.log(id, offset, FOLLOW_WAIT_S if follow else 0, run)
        offset, run = view.next, view.run or None
        emit(view.data)
        if not view.data:
            if view.ended or not follow:
                return
            time.sleep(EMPTY_PAUSE_S)


@app.command()
def report(
    ctx: typer.Context,
    what: What,
    by: Annotated[By, typer.Option(help="One row for each.")] = By.project,
    json: Json = False,
) -> None:
    """Report from the ledger, each figure with its source."""
    found = connect(ctx).report(what, by)
    emit_json(found) if json else emit(_report(found))


def _report(found: Report) -> str:
    columns = [heading(name) for name in found.columns]
    lines = [*found.rows, found.totals] if found.totals else found.rows
    rows = [[figure(name, cell) for name, cell in zip(found.columns, line, strict=True)] for line in lines]
    shares = ", ".join(f"{source} {100 * share:.1f} %" for source, share in found.shares.items())
    notes = [*([f"Sources: {shares}"] if shares else []), *found.notes]
    text = f"{printable(found.title)}\n\n{table(columns, rows, right=columns[1:], spare=columns[:1:-1])}"
    return text + ("\n" + "".join(printable(line) + "\n" for line in notes) if notes else "")
