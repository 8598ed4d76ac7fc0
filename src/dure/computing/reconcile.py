"""`reconcile`: the orders that bring a node's actual runs to the desired ones. Pure, level-triggered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dure.computing.state import RunState, State
from dure.model.wire import Forget, Order, RunSpec, RunStatus, Start, Stop


def reconcile(state: State, desired: Iterable[RunState], actual: Mapping[str, RunStatus]) -> list[Order]:
    """Orders for one node. `desired` are its runs that have not ended in the log; `actual` all it reports.

    An order may be given twice; the node takes each as idempotent. A run whose stop is asked is
    stopped even when the node does not show it yet: its start may be under way on the same link.
    """
    orders: list[Order] = []
    wanted = {run.id: run for run in desired}
    for status in actual.values():
        if status.run in wanted:
            continue
        known = state.runs.get(status.run)
        if status.phase == "ended":
            orders.append(Forget(status.run))
        elif known is None or known.phase == "ended":
            orders.append(Stop(status.run))
    for run in wanted.values():
        seen = actual.get(run.id)
        if seen is not None and seen.phase == "ended":
            continue
        if state.workloads[run.workload].stop_by is not None:
            orders.append(Stop(run.id))
        elif seen is None and run.phase == "placed":
            orders.append(Start(spec_of(state, run)))
    return orders


def spec_of(state: State, run: RunState) -> RunSpec:
    ask = state.workloads[run.workload].workload.ask
    return RunSpec(run.id, run.workload, ask.project, ask.work, run.plan.slices)
