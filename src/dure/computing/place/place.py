"""`place`: filter → fit → score → plan, or a Refusal with counts per cause. Pure."""

from __future__ import annotations

import numpy as np

from dure.computing.place.columns import Columns, KindColumns
from dure.model.units import WHOLE_CHIP_MILLI
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
    fitting = kind.usable & (kind.free >= ask.milli)
    if ask.count == 1:
        row = int(np.where(fitting, kind.free, WHOLE_CHIP_MILLI + 1).argmin())
        if not fitting[row]:
            return _busy(columns, kind, ask)
        left = int(kind.free[row]) - ask.milli
        because = f"fullest of {int(fitting.sum())} chips that fit; {left} of 1000 milli left on it"
        return Plan(columns.nodes[kind.node[row]], (Slice(kind.ids[row], ask.milli),), because)
    nodes = kind.node[fitting]
    per_node = np.bincount(nodes, minlength=len(columns.nodes))
    enough = per_node >= ask.count
    if not enough.any():
        return _busy(columns, kind, ask)
    spare_of = np.where(enough, per_node, np.iinfo(np.int64).max)
    node = int(nodes[spare_of[nodes].argmin()])  # over rows: the order of `nodes` is not the state's
    rows = np.flatnonzero(fitting & (kind.node == node))
    rows = rows[np.argsort(kind.free[rows], kind="stable")][: ask.count]
    slices = tuple(Slice(kind.ids[row], ask.milli) for row in sorted(rows.tolist()))
    spare = int(per_node[node]) - ask.count
    because = f"node with the fewest spare chips of {int(enough.sum())} that fit; {spare} spare on it"
    return Plan(columns.nodes[node], slices, because)


def _busy(columns: Columns, kind: KindColumns, ask: ChipAsk) -> Refusal:
    never = fits_ever(columns, ask)
    if never is not None:
        return never
    away = int((~kind.usable).sum())
    short = int((kind.usable & (kind.free < ask.milli)).sum())
    fitting = len(kind.ids) - away - short
    counts = {"node away or chip unhealthy": away, f"less than {ask.milli} milli free": short}
    if ask.count > 1:
        counts["free, but too few on one node"] = fitting
    counts = {cause: number for cause, number in counts.items() if number}
    causes = ", ".join(f"{number} {cause}" for cause, number in counts.items())
    return Refusal("busy", f"{ask}: of {len(kind.ids)} {ask.kind} chips {causes}", "place", counts)
