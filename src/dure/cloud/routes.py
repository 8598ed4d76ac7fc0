"""What gateways need of the state: keys and the replicas that answer."""

from __future__ import annotations

from dure.computing.state import ENDS, State
from dure.model.wire import KeyGrant, Replica, Routes, engine_key
from dure.model.workload import Serve


def routes(state: State, link_key: str) -> Routes:
    """Every key, and every endpoint's replicas that run and are not being stopped."""
    models: dict[str, tuple[Replica, ...]] = {}
    for held in state.workloads.values():
        work = held.workload.ask.work
        if not isinstance(work, Serve) or held.phase in ENDS or held.stop_by is not None:
            continue
        runs = [state.runs[run_id] for run_id in held.runs.values()]
        ready = tuple(
            Replica(run.id, run.url, engine_key(link_key, run.id), work.slots)
            for run in runs
            if run.phase == "running" and run.url is not None
        )
        models[work.model] = models.get(work.model, ()) + ready
    return Routes({digest: KeyGrant(key.id, key.project) for digest, key in state.keys.items()}, models)
