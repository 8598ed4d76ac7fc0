"""`admit`: may this ask enter the queue at all? Pure."""

from __future__ import annotations

from collections.abc import Collection

from dure.computing.place.columns import Columns
from dure.computing.place.place import fits_ever
from dure.computing.state import State
from dure.model.workload import Ask, Command, Refusal


def admit(state: State, columns: Columns, models: Collection[str], ask: Ask) -> Refusal | None:
    """None when admitted; else who refuses, and why. `models` are the catalogue's names."""
    if ask.project not in state.projects:
        known = ", ".join(state.projects)
        return Refusal("no_such", f"no project {ask.project}; projects: {known}", "admit")
    if isinstance(ask.work, Command):
        if ask.replicas != 1:
            return Refusal("shape", f"a job has one process, not {ask.replicas} replicas", "admit")
        if len(state.projects) > 1:
            why = (
                f"jobs of {len(state.projects)} projects would run on one machine without isolation, which this "
                "release does not have; endpoints are open to every project"
            )
            return Refusal("isolation", why, "admit")
    elif ask.work.model not in models:
        return Refusal("unknown_model", f"no model {ask.work.model}; models: {', '.join(sorted(models))}", "catalogue")
    return fits_ever(columns, ask.chips)
