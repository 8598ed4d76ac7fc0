"""`place`: filter → fit → score → plan, or a Refusal with counts per cause. Pure."""

from __future__ import annotations

import numpy as np

from dure.computing.place.columns import CLOSED, Columns, KindColumns
from dure.model.workload import ChipAsk, Plan, Refusal, Slice


def fits_ever(columns: Columns, ask: ChipAsk) -> Refusal | None:
    """None when some node could carry the ask were it empty, linked and healthy; else why never."""
    kind = columns.kinds.get(ask.kind)
    if kind is None:
        known = ", ".join(sorted(columns.kinds)) or "none"
        return Refusal("shape", f"no chip of kind {ask.kind}; kinds here: {known}", "place", {"chips of this kind": 0})
    nodes, largest = kind.sizes()
    if largest >= ask.count:
        return None
    why = (
        f"asks {ask.count} {ask.kind} chips on one node; "
        f"the largest of {nodes} node(s) has {largest} of {len(kind.ids)} in all"
    )
    return Refusal("shape", why, "place", {"nodes too small": nodes})


def place(columns: Columns, ask: ChipAsk) -> Plan | Refusal:
    """Chips for one run, all on one node, or why not now.

    Score: best fit. A share goes to the fullest chip that still holds it; several chips go to the
    node with the fewest fitting chips left over. Ties go to the row that joined first.
    """
    kind = columns.kinds.get(ask.kind)
    if kind is None:
        return _busy(columns, KindColumns(ask.kind), ask)
    plan = _one(columns, kind, ask) if ask.count == 1 else _several(columns, kind, ask)
    return plan or _busy(columns, kind, ask)


def _one(columns: Columns, kind: KindColumns, ask: ChipAsk) -> Plan | None:
    # As unsigned numbers, what would be below 0 is above all others: one pass filters and scores.
    row = int((kind.open - ask.milli).view(np.uint16).argmin())
    left = int(kind.open[row]) - ask.milli
    if left < 0:
        return None
    fitting = np.count_nonzero(kind.open >= ask.milli)
    because = f"fullest of {fitting} chips that fit; {left} of 1000 milli left on it"
    return Plan(columns.nodes[kind.node[row]], (Slice(kind.ids[row], ask.milli),), because)


def _several(columns: Columns, kind: KindColumns, ask: ChipAsk) -> Plan | None:
    rows = np.flatnonzero(kind.open >= ask.milli)
    nodes = kind.node[rows]
    per_node = np.bincount(nodes, minlength=1)
    enough = per_node >= ask.count
    if not enough.any():
        return None
    spare = np.where(enough, per_node - ask.count, len(rows))
    first = int(spare[nodes].argmin())  # over rows: the order of `nodes` is not the state's
    node = nodes[first]
    rows = rows[nodes == node]
    rows = rows[np.argsort(kind.free[rows], kind="stable")][: ask.count]
    slices = tuple(Slice(kind.ids[row], ask.milli) for row in sorted(rows.tolist()))
    because = f"node with the fewest spare chips of {np.count_nonzero(enough)} that fit; {spare[node]} spare on it"
    return Plan(columns.nodes[node], slices, because)


def _busy(columns: Columns, kind: KindColumns, ask: ChipAsk) -> Refusal:
    never = fits_ever(columns, ask)
    if never is not None:
        return never
    away = int(np.count_nonzero(kind.open == CLOSED))
    fitting = int(np.count_nonzero(kind.open >= ask.milli))
    counts = {"node away or chip unhealthy": away, f"less than {ask.milli} milli free": len(kind.ids) - away - fitting}
    if ask.count > 1:
        counts["free, but too few on one node"] = fitting
    counts = {cause: number for cause, number in counts.items() if number}
    causes = ", ".join(f"{number} {cause}" for cause, number in counts.items())
    return Refusal("busy", f"{ask}: of {len(kind.ids)} {ask.kind} chips {causes}", "place", counts)
