"""`turn(now, inbox) -> (events, effects)`: the whole core, synchronous. Effects happen after the events are on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from dure.computing import inbox as ib
from dure.computing.admit import admit
from dure.computing.place.place import place
from dure.computing.queue import Queue
from dure.computing.reconcile import reconcile, spec_of
from dure.computing.state import ENDS, RunState, State, WorkloadState, apply, columns_of
from dure.computing.story import told
from dure.metering.energy import HeldRun, NodeCounter, NodeLogged, measure
from dure.metering.ledger import Ledger
from dure.metering.ledger import apply as account
from dure.model import event as ev
from dure.model.units import NS_PER_MINUTE, NS_PER_S
from dure.model.view import Submitted
from dure.model.wire import Beat, Hello, Lease, Recorded, RunStatus, Start, Stop
from dure.model.workload import Ask, ChipAsk, Command, Exit, Plan, Refusal, Serve, Workload, WorkloadPhase

LEASE_S = 120.0
"""A run lives this long without a word from control; restarts of control and agent take seconds."""
PLACED_A_TURN = 1000
_RANK = {"placed": 0, "fetching": 1, "starting": 2, "running": 3, "ended": 4}


class Core:
    """State of the cloud and the only function that changes it.

    `models`: names of the catalogue. `more` is True when a turn left placements for the next one.
    """

    def __init__(self, models: Collection[str], state: State | None = None, ledger: Ledger | None = None) -> None:
        self.models = models
        self.state = state or State()
        self.ledger = ledger or Ledger()
        self.columns = columns_of(self.state)
        self.seen: dict[str, Beat] = {}
        self.seen_ns: dict[str, int] = {}
        """Volatile: each node's last beat, and when it came."""
        self.statuses: dict[str, RunStatus] = {}
        """Volatile: each live run as its node last showed it."""
        self.more = False
        self._live: dict[str, dict[str, None]] = {}
        self._queue = Queue()
        self._met: set[str] = set()
        self._events: list[ev.Event] = []
        self._effects: list[ib.Effect] = []
        self._now = 0
        self.reindex()

    def reindex(self) -> None:
        """Make the volatile indexes anew from the state, after a replay."""
        self._live, self._queue = {}, Queue()
        for run in self.state.runs.values():
            if run.phase != "ended":
                self._live.setdefault(run.plan.node, {})[run.id] = None
        for need, not_before_ns in self.state.needs.items():
            self._queue.add(need, _shape(self.state, need), not_before_ns)

    def replay(self, at_ns: int, event: ev.Event) -> None:
        """Fold one event of the log; call `reindex` after the last."""
        apply(self.state, self.columns, at_ns, event)
        account(self.ledger, at_ns, event)

    def turn(self, now_ns: int, items: Sequence[ib.Item]) -> tuple[list[ev.Event], list[ib.Effect]]:
        self._now, self._events, self._effects = now_ns, [], []
        for item in items:
            self._take(item)
        self._place_all()
        return self._events, self._effects

    def _take(self, item: ib.Item) -> None:
        match item:
            case ib.AgentBeat():
                self._beat(item.node, item.beat)
            case ib.Submit():
                done = tuple(self._submit(ask, item.by) for ask in item.asks)
                self._effects.append(ib.Reply(item.reply, done))
            case ib.StopWork():
                self._stop(item)
            case ib.UsageIn():
                self._usage(item)
            case ib.AgentHello():
                self._hello(item.hello)
            case ib.AgentGone():
                if item.node in self.state.nodes and self.state.nodes[item.node].linked:
                    self._emit(ev.NodeLost(item.node, item.why))
            case ib.MakeProject():
                if item.project not in self.state.projects:
                    self._emit(ev.ProjectCreated(item.project, item.by))
                self._effects.append(ib.Reply(item.reply, item.project))
            case ib.MakeKey():
                self._make_key(item)
            case ib.MeterNow():
                for node in [node for node in self.seen if self._live.get(node)]:
                    self._meter(node)
                self._effects.append(ib.Reply(item.reply, ""))
            case ib.Started():
                self._emit(ev.ControlStarted(item.version))
            case ib.Tick():
                pass

    def _emit(self, event: ev.Event) -> None:
        apply(self.state, self.columns, self._now, event)
        account(self.ledger, self._now, event)
        self._events.append(event)

    def _submit(self, ask: Ask, by: str) -> Submitted:
        workload = Workload(f"w{self.state.next_workload}", ask, by, self._now)
        refusal = admit(self.state, self.columns, self.models, workload.ask)
        if refusal is not None:
            self._emit(ev.WorkloadRefused(workload, refusal))
            return Submitted(workload.id, refusal)
        self._emit(ev.WorkloadSubmitted(workload))
        for replica in range(workload.ask.replicas):
            self._queue.add(f"{workload.id}.{replica}", workload.ask.chips, 0)
        if isinstance(workload.ask.work, Serve):
            self._effects.append(ib.Push())
        return Submitted(workload.id)

    def _stop(self, item: ib.StopWork) -> None:
        held = self.state.workloads.get(item.workload)
        if held is None:
            refusal = Refusal("no_such", f"no workload {item.workload} in memory", "control")
            self._effects.append(ib.Reply(item.reply, refusal))
            return
        if held.phase not in ENDS and held.stop_by is None:
            self._emit(ev.StopAsked(item.workload, item.by))
            live = _live_runs(self.state, held)
            for run in live:
                self._effects.append(ib.Tell(run.plan.node, Stop(run.id)))
            if not live:
                self._emit(_ended_by_stop(held))
            if isinstance(held.workload.ask.work, Serve):
                self._effects.append(ib.Push())
        self._effects.append(ib.Reply(item.reply, item.workload))

    def _make_key(self, item: ib.MakeKey) -> None:
        if item.project not in self.state.projects:
            known = ", ".join(self.state.projects)
            value: str | Refusal = Refusal("no_such", f"no project {item.project}; projects: {known}", "control")
        else:
            value = f"k{len(self.state.keys) + 1}"
            self._emit(ev.KeyCreated(value, item.project, item.digest, item.admin, item.by))
            self._effects.append(ib.Push())
        self._effects.append(ib.Reply(item.reply, value))

    def _usage(self, item: ib.UsageIn) -> None:
        usage = item.usage
        recorded = self.state.journals.get(usage.journal, 0)
        if usage.start == recorded and usage.upto > recorded:
            self._emit(ev.TokensUsed(usage.journal, usage.upto, usage.digest, usage.rows))
            recorded = usage.upto
        self._effects.append(ib.Record(item.link, Recorded(usage.journal, recorded)))

    # The node side: hello, beat, ends

    def _hello(self, hello: Hello) -> None:
        node = hello.node.id
        before = self.state.nodes.get(node)
        new_control, new_agent = node not in self._met, before is not None and before.node.boot != hello.node.boot
        who = " and ".join(name for name, new in (("control", new_control), ("agent", new_agent)) if new) or "link"
        self._met.add(node)
        chips = {chip.id: chip for chip in hello.chips if chip.node == node and chip.id.startswith(f"{node}:")}
        self._emit(ev.NodeJoined(hello.node, tuple(chips.values())))  # its own chips, each once
        self._queue.capacity_came()
        for status in hello.runs:
            run = self.state.runs.get(status.run)
            if run is not None and run.phase not in ("placed", "ended") and status.phase != "ended":
                self._emit(ev.RunAdopted(run.id, run.workload, who, status.pid))
        last = Beat(()) if new_agent else self.seen.get(node, Beat(()))
        self._beat(node, Beat(hello.runs, last.energy_uj, last.meter), going=not new_agent)
        self._effects.append(ib.Push())

    def _beat(self, node: str, beat: Beat, going: bool = True) -> None:
        """`going` False: a run that ended in a shutdown does so by an earlier agent's, not by this one's."""
        if node not in self.state.nodes:
            return
        self.seen[node], self.seen_ns[node] = beat, self._now
        actual = {status.run: status for status in beat.runs}
        live = self._live.setdefault(node, {})
        # All before the first end: one run's end may meter the others too.
        self.statuses.update((run_id, status) for run_id, status in actual.items() if run_id in live)
        for status in actual.values():
            if status.run not in live:
                continue
            run = self.state.runs[status.run]
            if status.phase == "ended":
                exit = status.exit or Exit("lost", detail="the node gave no exit")
                if exit.reason == "shutdown" and going and self.state.nodes[node].linked:
                    # Before the end, so that nothing is placed anew on a node that is going.
                    self._emit(ev.NodeLost(node, "its agent is shutting down"))
                self._end_run(run, exit)
            elif _RANK[status.phase] > _RANK[run.phase] or (status.url is not None and status.url != run.url):
                self._emit(
                    ev.RunMoved(run.id, run.workload, status.phase, status.pid, status.url, detail=status.detail)
                )
                if status.url is not None:
                    self._effects.append(ib.Push())
        for run_id in [run_id for run_id in live if run_id not in actual]:
            run = self.state.runs[run_id]
            if run.phase != "placed":
                self._end_run(run, Exit("lost", detail="its node no longer knows it"))
        first_reading = beat.energy_uj is not None and node not in self.state.counters
        oldest_ns = min((self.state.runs[run_id].metered_at_ns for run_id in live), default=self._now)
        if first_reading or oldest_ns // NS_PER_MINUTE < self._now // NS_PER_MINUTE:
            self._meter(node)
        desired = [self.state.runs[run_id] for run_id in live]
        for order in reconcile(self.state, desired, actual):
            self._effects.append(ib.Tell(node, order))
        self._effects.append(ib.Tell(node, Lease(LEASE_S)))

    def _meter(self, node: str, ended: RunState | None = None) -> None:
        """Log the usage of the node's live runs, or of the one that `ended`.

        A node's own energy counter is split over all its runs, so there all of them are metered: once
        for all that end in one beat.
        """
        beat = self.seen.get(node, Beat(()))
        if ended is None or beat.energy_uj is not None:
            runs = [self.state.runs[run_id] for run_id in self._live.get(node, ())]
            chips = {chip_id: self.state.chips[chip_id].chip for chip_id in self.state.nodes[node].chips}
        else:
            runs = [ended]
            chips = {piece.chip: self.state.chips[piece.chip].chip for piece in ended.plan.slices}
        held = []
        for run in runs:
            status = self.statuses.get(run.id)
            cpu_ns = max(run.metered_cpu_ns, status.cpu_ns if status else 0)
            held.append(HeldRun(run.id, run.plan.slices, run.metered_at_ns, run.metered_cpu_ns, cpu_ns))
        if (
            ended is not None
            and ended.metered_at_ns == self._now
            and all(run.cpu_ns == run.logged_cpu_ns for run in held)
        ):
            return
        counter = NodeCounter(node, beat.energy_uj, beat.meter)
        event = measure(chips, held, counter, self.state.counters.get(node, NodeLogged()), self._now)
        if event is not None:
            self._emit(event)

    def _end_run(self, run: RunState, exit: Exit) -> None:
        self._meter(run.plan.node, run)
        self.statuses.pop(run.id, None)
        self._live.get(run.plan.node, {}).pop(run.id, None)
        self._emit(ev.RunEnded(run.id, run.workload, exit))
        self._queue.capacity_came()
        held = self.state.workloads[run.workload]
        if isinstance(held.workload.ask.work, Command):
            phase, why = _verdict(exit, held.stop_by)
            self._emit(ev.WorkloadEnded(run.workload, phase, why))
            return
        self._effects.append(ib.Push())
        if held.stop_by is not None:
            if not _live_runs(self.state, held):
                self._emit(_ended_by_stop(held))
            return
        need = f"{run.workload}.{run.replica}"
        retry_ns = self.state.needs[need]
        self._queue.add(need, held.workload.ask.chips, retry_ns)
        wait_s = (retry_ns - self._now) / NS_PER_S
        when = "at the next start" if exit.reason == "shutdown" else f"after {wait_s:.0f} s"
        why = f"attempt {run.attempt} {told(exit)}; attempt {run.attempt + 1} {when}"
        self._emit(ev.WorkloadWaits(run.workload, Refusal("backoff", why, "reconcile", {}, retry_ns)))

    # Placement

    def _place_all(self) -> None:
        still: Callable[[str], bool] = self.state.needs.__contains__
        self._queue.due(self._now, still)
        placed, self.more = 0, False
        for need, shape in self._queue.heads(still):
            if placed >= PLACED_A_TURN:
                self.more = True
                break
            plan = place(self.columns, shape)
            if isinstance(plan, Refusal):
                self._queue.block(shape, plan)
            else:
                self._queue.placed(need, shape)
                event = _next_run(self.state, need, plan)
                self._emit(event)
                self._live.setdefault(plan.node, {})[event.run] = None
                self._effects.append(ib.Tell(plan.node, Start(spec_of(self.state, self.state.runs[event.run]))))
                placed += 1
        for need, refusal in self._queue.untold(still):
            workload = need.rpartition(".")[0]
            reason = self.state.workloads[workload].reason
            if reason is None or reason.code != refusal.code:
                self._emit(ev.WorkloadWaits(workload, refusal))


def _shape(state: State, need: str) -> ChipAsk:
    return state.workloads[need.rpartition(".")[0]].workload.ask.chips


def _next_run(state: State, need: str, plan: Plan) -> ev.RunPlaced:
    workload, _, replica = need.rpartition(".")
    before = state.workloads[workload].runs.get(int(replica))
    attempt = 1 if before is None else int(before.rpartition(".")[2]) + 1
    return ev.RunPlaced(f"{need}.{attempt}", workload, int(replica), attempt, plan)


def _live_runs(state: State, held: WorkloadState) -> list[RunState]:
    runs = [state.runs[run_id] for run_id in held.runs.values()]
    return [run for run in runs if run.phase != "ended"]


def _ended_by_stop(held: WorkloadState) -> ev.WorkloadEnded:
    return ev.WorkloadEnded(held.workload.id, "stopped", f"stopped by {held.stop_by}")


def _verdict(exit: Exit, stop_by: str | None) -> tuple[WorkloadPhase, str]:
    if stop_by is not None:
        return "stopped", f"stopped by {stop_by}"
    if exit.reason == "shutdown":
        return "stopped", "the cloud was shut down"
    return ("done", told(exit)) if exit.ok else ("failed", told(exit))
