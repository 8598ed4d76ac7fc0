"""Waiting for an endpoint, telling on stderr what it waits for."""

from __future__ import annotations

import sys
import time

from dure.cli.look import phase_of
from dure.cli.render import note
from dure.client import Client
from dure.client.waiting import fetched, watch
from dure.model.view import WorkloadView

_POLL_S = 0.25


def until_it_answers(client: Client, id: str, model: str) -> WorkloadView:
    """The workload once every replica answers, or it is over; a line each time its phase or reason changes.

    Raises DureError when it is hopeless.
    """
    said = ""
    for view in watch(client, id):
        state = phase_of(view) + (f": {view.reason.why}" if view.reason else "")
        if state != said:
            note(f"{model}: {state}")
            said = state
        if fetched(view) and sys.stderr.isatty():
            _draw_download(client, id, model)
    return view


def _draw_download(client: Client, id: str, model: str) -> None:
    """A progress bar until nothing is fetched any more."""
    from rich.console import Console  # 0.15 s, only paid where a bar is drawn
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    name = TextColumn("{task.description}", markup=False)
    parts = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*parts, console=Console(stderr=True)) as progress:
        task = progress.add_task(model)
        while part := fetched(client.workload(id)):
            progress.update(task, completed=part[0], total=part[1])
            time.sleep(_POLL_S)
