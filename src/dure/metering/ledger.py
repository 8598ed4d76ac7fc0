"""The ledger: who used what, folded from the log's events in place.

Chip time is kept three times over, each by its own sum: the total of a chip, the part of each
project, and the idle rest. `check_chip_time` compares them (law 2). Time is the ledger's own clock,
which is the events' time with every step back left out.

All integers; sums outgrow 64 bits, so snapshots of a ledger are JSON (MessagePack has no such ints).
"""

from __future__ import annotations

from collections import Counter
from copy import copy, deepcopy

from msgspec import Struct
from msgspec.structs import replace

from dure.model import event as ev
from dure.model.chip import Chip
from dure.model.units import WHOLE_CHIP_MILLI, Source
from dure.model.usage import RunMeter, TokenRow
from dure.model.workload import Serve, Slice

KEPT_ENDED = 10_000
"""Ended workloads with a row of their own; the rows of older ones are added up per project, model and kind."""
UNKNOWN = "-"
"""The model of a job, and the project or kind of what no event has named."""


class Tokens(Struct):
    """Sums of TokenRow; the same meanings."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unknown_in: int = 0
    cancelled: int = 0
    failed: int = 0

    def add(self, other: Tokens | TokenRow) -> None:
        self.answers += other.answers
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.unknown_in += other.unknown_in
        self.cancelled += other.cancelled
        self.failed += other.failed


class Row(Struct):
    """What a workload (or a sum of workloads) used. `tokens` is by the project of the caller's key,
    which need not be the `project` that holds the chips. `unmetered_cpu_ns`: CPU time without an energy."""

    project: str = UNKNOWN
    model: str = UNKNOWN
    kind: str = UNKNOWN
    ended: bool = False
    chip_milli_ns: int = 0
    cpu_ns: int = 0
    unmetered_cpu_ns: int = 0
    runs_ended: int = 0
    energy_uj: dict[Source, int] = {}
    basis: dict[Source, str] = {}
    tokens: dict[str, Tokens] = {}

    def add_held(self, other: Row) -> None:
        """Everything but the tokens."""
        self.chip_milli_ns += other.chip_milli_ns
        self.cpu_ns += other.cpu_ns
        self.unmetered_cpu_ns += other.unmetered_cpu_ns
        self.runs_ended += other.runs_ended
        for source, energy_uj in other.energy_uj.items():
            self.energy_uj[source] = self.energy_uj.get(source, 0) + energy_uj
        self.basis.update(other.basis)

    def add_tokens(self, caller: str, tokens: Tokens | TokenRow) -> None:
        self.tokens.setdefault(caller, Tokens()).add(tokens)


class ChipTime(Struct):
    """One chip's time in milli·ns, true up to `since_ns` of the ledger's clock. `held`: project -> milli now."""

    kind: str
    since_ns: int
    linked: bool = False
    held: dict[str, int] = {}
    total: int = 0
    idle: int = 0
    projects: dict[str, int] = {}


class KindTime(Struct):
    simulated: bool = False
    total: int = 0
    idle: int = 0


class OpenRun(Struct):
    workload: str
    project: str
    slices: tuple[Slice, ...]
    since_ns: int

    @property
    def milli(self) -> int:
        return sum(piece.milli for piece in self.slices)


class Ledger(Struct):
    """`at_ns` is the last event's time, `clock_ns` the ledger's clock; `nodes` maps a node to its chips now.
    `older` is by "PROJECT MODEL KIND", `keys` by key and model."""

    at_ns: int = 0
    clock_ns: int = 0
    clock_steps: int = 0
    chips: dict[str, ChipTime] = {}
    kinds: dict[str, KindTime] = {}
    nodes: dict[str, list[str]] = {}
    runs: dict[str, OpenRun] = {}
    workloads: dict[str, Row] = {}
    ended: list[str] = []
    older: dict[str, Row] = {}
    keys: dict[str, dict[str, Tokens]] = {}
    idle_energy_uj: dict[Source, int] = {}


def apply(ledger: Ledger, at_ns: int, event: ev.Event) -> None:
    """Fold one event decided at `at_ns` (UTC ns). Deterministic; costs the chips of the run or node it names."""
    if isinstance(event, ev.ControlStarted):
        for chip in ledger.chips.values():  # before the clock: nobody saw the nodes since the last event
            _link(ledger, chip, False)
    _advance(ledger, at_ns)
    match event:
        case ev.WorkloadSubmitted():
            ask = event.workload.ask
            model = ask.work.model if isinstance(ask.work, Serve) else UNKNOWN
            ledger.workloads.setdefault(event.workload.id, Row(ask.project, model, ask.chips.kind))
        case ev.RunPlaced():
            _placed(ledger, event)
        case ev.RunEnded():
            _run_ended(ledger, event.run)
        case ev.WorkloadEnded():
            _workload_ended(ledger, event.workload)
        case ev.RunsMetered():
            _metered(ledger, event)
        case ev.TokensUsed():
            for row in event.rows:
                _row(ledger, _workload_of(row.run), row.project, row.model).add_tokens(row.project, row)
                ledger.keys.setdefault(row.key, {}).setdefault(row.model, Tokens()).add(row)
        case ev.NodeJoined():
            _joined(ledger, event)
        case ev.NodeLost():
            for chip_id in ledger.nodes.get(event.node, ()):
                _link(ledger, ledger.chips[chip_id], False)
        case _:
            pass


def settle(ledger: Ledger, now_ns: int) -> Ledger:
    """A ledger with all chip time counted up to `now_ns` (UTC ns), to read a report from.

    Only what counting changes is copied (a whole copy costs ten times as much); do not fold into it.
    """
    settled = copy(ledger)
    settled.kinds = {name: copy(kind) for name, kind in ledger.kinds.items()}
    settled.chips = {chip_id: replace(chip, projects=chip.projects.copy()) for chip_id, chip in ledger.chips.items()}
    settled.runs = {run_id: copy(run) for run_id, run in ledger.runs.items()}
    settled.workloads, settled.ended = ledger.workloads.copy(), ledger.ended.copy()
    settled.older = deepcopy(ledger.older)
    for workload in {run.workload for run in ledger.runs.values()} & ledger.workloads.keys():
        settled.workloads[workload] = copy(ledger.workloads[workload])
    _advance(settled, max(now_ns, ledger.at_ns))
    for chip in settled.chips.values():
        _accrue(settled, chip)
    for run in settled.runs.values():
        _accrue_run(settled, run)
    return settled


def check_chip_time(ledger: Ledger) -> list[str]:
    """Law 2: what does not add up, a sentence each; empty when all does. Changes nothing."""
    wrong = []
    by_chips: Counter[str] = Counter()
    for chip_id, chip in ledger.chips.items():
        span_ns = ledger.clock_ns - chip.since_ns
        held = sum(chip.projects.values())
        if held + chip.idle != chip.total:
            wrong.append(f"chip {chip_id}: held {held} + idle {chip.idle} != total {chip.total} milli·ns")
        for project, milli_ns in chip.projects.items():
            by_chips[project] += milli_ns
        for project, milli in chip.held.items():
            by_chips[project] += milli * span_ns
    by_workloads: Counter[str] = Counter()
    for row in (*ledger.workloads.values(), *ledger.older.values()):
        by_workloads[row.project] += row.chip_milli_ns
    for run in ledger.runs.values():
        by_workloads[run.project] += run.milli * (ledger.clock_ns - run.since_ns)
    for project in sorted(by_chips.keys() | by_workloads.keys()):
        if by_chips[project] != by_workloads[project]:
            wrong.append(
                f"project {project}: chips say {by_chips[project]}, workloads {by_workloads[project]} milli·ns"
            )
    kinds = (sum(kind.total for kind in ledger.kinds.values()), sum(kind.idle for kind in ledger.kinds.values()))
    chips = (sum(chip.total for chip in ledger.chips.values()), sum(chip.idle for chip in ledger.chips.values()))
    if kinds != chips:
        wrong.append(f"(total, idle) by kind {kinds} != by chip {chips} milli·ns")
    return wrong


def _advance(ledger: Ledger, at_ns: int) -> None:
    if at_ns < ledger.at_ns:
        ledger.clock_steps += 1
    else:
        ledger.clock_ns += at_ns - ledger.at_ns
    ledger.at_ns = at_ns


def _accrue(ledger: Ledger, chip: ChipTime) -> None:
    """Count a chip's time up to the ledger's clock, at the rates that held since it was last counted."""
    span_ns = ledger.clock_ns - chip.since_ns
    chip.since_ns = ledger.clock_ns
    if not span_ns:
        return
    held = sum(chip.held.values())
    total = (WHOLE_CHIP_MILLI if chip.linked else held) * span_ns
    # never negative: a chip held twice over must show in the check, not vanish in its idle time
    idle = max(0, WHOLE_CHIP_MILLI - held) * span_ns if chip.linked else 0
    kind = ledger.kinds[chip.kind]
    chip.total += total
    kind.total += total
    chip.idle += idle
    kind.idle += idle
    for project, milli in chip.held.items():
        chip.projects[project] = chip.projects.get(project, 0) + milli * span_ns


def _accrue_run(ledger: Ledger, run: OpenRun) -> None:
    span_ns = ledger.clock_ns - run.since_ns
    run.since_ns = ledger.clock_ns
    _row(ledger, run.workload, run.project).chip_milli_ns += run.milli * span_ns


def _link(ledger: Ledger, chip: ChipTime, linked: bool) -> None:
    _accrue(ledger, chip)
    chip.linked = linked


def _joined(ledger: Ledger, event: ev.NodeJoined) -> None:
    now = {chip.id: chip for chip in event.chips}
    for chip_id in ledger.nodes.get(event.node.id, ()):
        if chip_id not in now:
            _link(ledger, ledger.chips[chip_id], False)
    ledger.nodes[event.node.id] = list(now)
    for chip in now.values():
        _seen(ledger, chip)


def _seen(ledger: Ledger, chip: Chip) -> None:
    account = _chip(ledger, chip.id, chip.kind)
    _link(ledger, account, True)
    account.kind = chip.kind
    kind = ledger.kinds.setdefault(chip.kind, KindTime())
    kind.simulated = kind.simulated or chip.source == "simulated"


def _chip(ledger: Ledger, chip_id: str, kind: str) -> ChipTime:
    chip = ledger.chips.get(chip_id)
    if chip is None:
        chip = ledger.chips[chip_id] = ChipTime(kind, ledger.clock_ns)
        ledger.kinds.setdefault(kind, KindTime())
    return chip


def _placed(ledger: Ledger, event: ev.RunPlaced) -> None:
    if event.run in ledger.runs:
        return
    row = _row(ledger, event.workload)
    ledger.runs[event.run] = OpenRun(event.workload, row.project, event.plan.slices, ledger.clock_ns)
    for piece in event.plan.slices:
        chip = _chip(ledger, piece.chip, row.kind)
        _accrue(ledger, chip)
        chip.held[row.project] = chip.held.get(row.project, 0) + piece.milli


def _run_ended(ledger: Ledger, run_id: str) -> None:
    run = ledger.runs.pop(run_id, None)
    if run is None:
        return
    _accrue_run(ledger, run)
    _row(ledger, run.workload, run.project).runs_ended += 1
    for piece in run.slices:
        chip = ledger.chips[piece.chip]
        _accrue(ledger, chip)
        left = chip.held.pop(run.project, 0) - piece.milli
        if left:
            chip.held[run.project] = left


def _metered(ledger: Ledger, event: ev.RunsMetered) -> None:
    for meter in event.rows:
        _add_meter(_row(ledger, _workload_of(meter.run)), meter)
    if event.idle_energy_uj is not None:  # only a node's counter gives one
        ledger.idle_energy_uj["measured"] = ledger.idle_energy_uj.get("measured", 0) + event.idle_energy_uj


def _add_meter(row: Row, meter: RunMeter) -> None:
    row.cpu_ns += meter.cpu_ns
    if meter.energy_uj is None or meter.energy_source is None:
        row.unmetered_cpu_ns += meter.cpu_ns
    else:
        row.energy_uj[meter.energy_source] = row.energy_uj.get(meter.energy_source, 0) + meter.energy_uj
        row.basis[meter.energy_source] = meter.basis


def _workload_of(run: str) -> str:
    return run.rsplit(".", 2)[0]


def _row(ledger: Ledger, workload: str, project: str = UNKNOWN, model: str = UNKNOWN) -> Row:
    """A workload's row; for one the ledger does not (or no longer) know, a new one that counts as ended."""
    row = ledger.workloads.get(workload)
    if row is None:
        row = ledger.workloads[workload] = Row(project, model)
        _workload_ended(ledger, workload)
    return row


def _workload_ended(ledger: Ledger, workload: str) -> None:
    row = ledger.workloads.get(workload)
    if row is None or row.ended:
        return
    row.ended = True
    ledger.ended.append(workload)
    if len(ledger.ended) > KEPT_ENDED:
        old = ledger.workloads.pop(ledger.ended.pop(0))
        key = f"{old.project} {old.model} {old.kind}"
        total = ledger.older.setdefault(key, Row(old.project, old.model, old.kind, ended=True))
        total.add_held(old)
        for caller, tokens in old.tokens.items():
            total.add_tokens(caller, tokens)
