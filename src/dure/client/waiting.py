"""Waiting for an endpoint: until every replica answers, or there is no hope that it will."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dure.client.cloud import Client
from dure.model.errors import DureError
from dure.model.view import WorkloadView

TRIES = 3
_POLL_S = 0.2


def watch(client: Client, id: str) -> Iterator[WorkloadView]:
    """Its views, one a poll; the last is of an endpoint that answers, or that has ended.

    Raises DureError when a replica could not start (no model file, say: it will not do better), or
    has ended otherwise in `TRIES` attempts since.
    """
    first: dict[str, int] = {}
    while True:
        view = client.workload(id)
        yield view
        answering = view.phase == "active" and all(run.phase == "running" for run in view.runs)
        if answering or view.phase not in ("waiting", "active"):
            return
        for run in view.runs:
            begun = first.setdefault(run.id.rpartition(".")[0], run.attempt)
            hopeless = run.exit is not None and (run.exit.reason == "failed" or run.attempt - begun >= TRIES - 1)
            if hopeless and view.reason is not None and view.reason.code == "backoff":
                raise DureError(f"{id} does not start", view.reason.why, f"See: dure why {id}; dure logs {id}")
        time.sleep(_POLL_S)


def fetched(view: WorkloadView) -> tuple[int, int] | None:
    """(bytes done, bytes in all) over the replicas that fetch the model now."""
    parts = [run.progress for run in view.runs if run.phase == "fetching" and run.progress]
    return (sum(done for done, _ in parts), sum(total for _, total in parts)) if parts else None
