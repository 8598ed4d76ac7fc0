"""The first prompt of a new cloud: deploy the bundled model, ask, and show what the answer cost."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from dure.client import Client
from dure.client.chat import Message
from dure.client.waiting import fetched, watch
from dure.metering.cost import Prices, Used, charge
from dure.metering.report import bill_line
from dure.model.errors import DureError
from dure.model.units import NS_PER_S
from dure.model.view import Figure, RunView
from dure.model.workload import Ask, ChipAsk, Serve

MODEL = "smollm2-135m"
PROMPT = "Write one sentence about the sea."
"""The bundled model is small and knows English only; this it can do."""


def ask_first_prompt(client: Client, url: str, prices: Prices, stop: threading.Event) -> None:
    """Prints the answer and its bill line. Raises DureError when any step failed."""
    workload = _deployed(client)
    run = _wait_answering(client, workload, stop)
    if run is None:
        return
    print(f"> {PROMPT}", flush=True)
    began = time.monotonic()
    text, tokens_in, tokens_out = _answer(client)
    seconds = time.monotonic() - began
    if not text.strip() or tokens_out == 0:
        raise DureError("The bundled model gave an empty answer", do="See HOME/runs/*/out.log")
    print(text.strip(), flush=True)
    amount_mwon = charge(Used(MODEL, tokens_in=tokens_in, tokens_out=tokens_out), prices)
    energy = _energy(client, workload, run, time.time_ns())
    print(f"{bill_line(tokens_out, seconds, energy, amount_mwon, prices)} · {url}/", flush=True)


def _deployed(client: Client) -> str:
    """The endpoint of the bundled model, deployed now unless it is there from an earlier start."""
    for model in client.models():
        if model.name == MODEL and model.endpoints:
            return model.endpoints[0]
    done = client.submit([Ask(Serve(MODEL), ChipAsk("cpu", 1, 1000))])[0]
    if done.refusal is not None:
        raise DureError(f"{MODEL} cannot be deployed", done.refusal.why, "Start with --no-model to go without it")
    return done.id


def _wait_answering(client: Client, workload: str, stop: threading.Event) -> RunView | None:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    told = -1
    with bar:
        task = bar.add_task(f"fetching {MODEL}", total=None, visible=False)
        for view in watch(client, workload):
            if stop.is_set():
                return None
            if part := fetched(view):
                bar.update(task, completed=part[0], total=part[1], visible=True)
                if bar.disable and part[0] * 4 // part[1] > told:
                    told = part[0] * 4 // part[1]
                    said = f"fetching {MODEL}: {part[0] / 1e6:.0f} of {part[1] / 1e6:.0f} MB"
                    print(said, file=sys.stderr, flush=True)
    if not view.runs or view.runs[0].phase != "running":
        raise DureError(f"{MODEL} does not answer: it is {view.phase}", do=f"See: dure why {view.id}")
    return view.runs[0]


def _answer(client: Client) -> tuple[str, int, int]:
    pieces, tokens_in, tokens_out = [], 0, 0
    for piece in client.chat(MODEL, [Message("user", PROMPT)], max_tokens=48):
        if isinstance(piece, str):
            pieces.append(piece)
        else:
            tokens_in, tokens_out = piece.prompt_tokens, piece.completion_tokens
    return "".join(pieces), tokens_in, tokens_out


def _energy(client: Client, workload: str, before: RunView, after_ns: int) -> Figure:
    """CPU time of the engine between the first sight of it ready and now × the core's watts."""
    deadline = time.monotonic() + 10
    while True:
        run = client.workload(workload).runs[0]
        if run.cpu_at_ns > after_ns:
            break
        if time.monotonic() > deadline:
            return Figure(None, "modelled", "the node sent no CPU time")
        time.sleep(0.1)
    mine = {piece.chip for piece in run.slices}
    power = next((view.chip.power for view in client.chips() if view.chip.id in mine), None)
    if power is None:
        return Figure(None, "modelled", "no watts known for this core")
    cpu_ns = run.cpu_ns - before.cpu_ns
    kind = "example" if power.note.startswith("example") else power.source
    basis = f"{cpu_ns / NS_PER_S:.2f} CPU s × {power.full_w:g} W a core, {kind}"
    return Figure(round(cpu_ns * power.full_w * 1e6 / NS_PER_S), "modelled", basis)
