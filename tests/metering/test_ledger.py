"""The fold: who used what, and law 2 for chip time against a recomputation that shares no code."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.metering import ledger as subject
from dure.metering.ledger import Ledger, apply, check_chip_time, settle
from dure.model import event as ev
from dure.model.chip import Chip, Node
from dure.model.usage import RunMeter, TokenRow
from dure.model.workload import Ask, ChipAsk, Command, Exit, Plan, Refusal, Serve, Slice, Workload

Timed = tuple[int, ev.Event]
Times = Counter[tuple[str, str]]
"""(chip, "total" | "idle" | "project NAME") -> milli·ns."""


def chip(node: str, name: str, kind: str = "cpu") -> Chip:
    source = "simulated" if kind.startswith("sim-") else "real"
    return Chip(f"{node}:{name}", node, kind, 0, "v", "m", source, "cpu", "none")  # type: ignore[arg-type]


def joined(node: str, *names: str, kind: str = "cpu") -> ev.NodeJoined:
    return ev.NodeJoined(Node(node, node, 1024, "0", "boot"), tuple(chip(node, name, kind) for name in names))


def submitted(workload: str, project: str = "default", model: str | None = None) -> ev.WorkloadSubmitted:
    work = Command(("true",)) if model is None else Serve(model)
    return ev.WorkloadSubmitted(Workload(workload, Ask(work, ChipAsk(), project), "k1", 0))


def placed(workload: str, *slices: tuple[str, int], attempt: int = 1) -> ev.RunPlaced:
    plan = Plan(slices[0][0].partition(":")[0], tuple(Slice(*each) for each in slices), "here")
    return ev.RunPlaced(f"{workload}.0.{attempt}", workload, 0, attempt, plan)


def run_ended(workload: str, attempt: int = 1) -> ev.RunEnded:
    return ev.RunEnded(f"{workload}.0.{attempt}", workload, Exit("exited", 0))


def tokens(run: str, project: str = "default", key: str = "k1", **counts: int) -> ev.TokensUsed:
    return ev.TokensUsed("j", 1, "d", (TokenRow(key, project, "m", run, 0, **counts),))


def fold(*events: Timed) -> Ledger:
    ledger = Ledger()
    for at_ns, event in events:
        apply(ledger, at_ns, event)
    return ledger


def times(ledger: Ledger) -> Times:
    found: Times = Counter()
    for chip_id, time in ledger.chips.items():
        found[chip_id, "total"], found[chip_id, "idle"] = time.total, time.idle
        for project, milli_ns in time.projects.items():
            found[chip_id, f"project {project}"] = milli_ns
    return +found


def test_chip_time_follows_the_run_and_the_link() -> None:
    ledger = fold(
        (100, joined("a", "cpu0", "cpu1")),
        (100, submitted("w1", "alpha")),
        (110, placed("w1", ("a:cpu0", 400))),
        (130, ev.NodeLost("a", "gone")),
        (140, run_ended("w1")),
        (150, joined("a", "cpu0")),
    )
    done = settle(ledger, 170)
    assert times(done) == {
        ("a:cpu0", "total"): 1000 * 30 + 400 * 10 + 1000 * 20,
        ("a:cpu0", "idle"): 1000 * 10 + 600 * 20 + 1000 * 20,
        ("a:cpu0", "project alpha"): 400 * 30,
        ("a:cpu1", "total"): 1000 * 30,
        ("a:cpu1", "idle"): 1000 * 30,
    }
    assert done.workloads["w1"].chip_milli_ns == 400 * 30
    assert done.workloads["w1"].runs_ended == 1
    assert (done.kinds["cpu"].total, done.kinds["cpu"].idle) == (84_000, 72_000)
    assert check_chip_time(done) == check_chip_time(ledger) == []


def test_a_chip_that_is_gone_still_counts_while_it_is_held() -> None:
    ledger = fold(
        (0, joined("a", "cpu0", "cpu1")),
        (0, submitted("w1")),
        (0, placed("w1", ("a:cpu1", 1000))),
        (10, joined("a", "cpu0")),
        (30, run_ended("w1")),
    )
    assert times(settle(ledger, 40)) == {
        ("a:cpu0", "total"): 40_000,
        ("a:cpu0", "idle"): 40_000,
        ("a:cpu1", "total"): 30_000,
        ("a:cpu1", "project default"): 30_000,
    }


def test_a_start_of_control_unlinks_since_the_last_event() -> None:
    ledger = fold((0, joined("a", "cpu0")), (0, submitted("w1")), (0, placed("w1", ("a:cpu0", 100))))
    apply(ledger, 20, submitted("w2"))
    apply(ledger, 50, ev.ControlStarted("2"))
    assert times(settle(ledger, 60)) == {
        ("a:cpu0", "total"): 1000 * 20 + 100 * 40,
        ("a:cpu0", "idle"): 900 * 20,
        ("a:cpu0", "project default"): 100 * 60,
    }


def test_a_step_back_of_the_clock_counts_nothing_and_is_told() -> None:
    ledger = fold((100, joined("a", "cpu0")), (50, submitted("w1")), (80, submitted("w2")))
    assert ledger.clock_steps == 1
    assert times(settle(ledger, 90)) == {("a:cpu0", "total"): 40_000, ("a:cpu0", "idle"): 40_000}
    assert times(settle(ledger, 10)) == times(settle(ledger, 80))
    assert settle(ledger, 10).clock_steps == 1


def test_a_chip_held_twice_over_breaks_the_law_visibly() -> None:
    ledger = fold(
        (0, joined("a", "cpu0")),
        (0, submitted("w1")),
        (0, submitted("w2")),
        (0, placed("w1", ("a:cpu0", 1000))),
        (0, placed("w2", ("a:cpu0", 500))),
    )
    [wrong] = check_chip_time(settle(ledger, 10))
    assert "a:cpu0" in wrong


@pytest.mark.parametrize("field", ["total", "idle"])
def test_the_check_sees_a_wrong_chip_and_a_wrong_kind(field: str) -> None:
    ledger = settle(fold((0, joined("a", "cpu0"))), 10)
    setattr(ledger.chips["a:cpu0"], field, 1)
    assert len(check_chip_time(ledger)) == 2
    ledger = settle(fold((0, joined("a", "cpu0"))), 10)
    setattr(ledger.kinds["cpu"], field, 1)
    assert len(check_chip_time(ledger)) == 1


def test_the_check_sees_workloads_that_lack_time() -> None:
    ledger = fold(
        (0, joined("a", "cpu0")), (0, submitted("w1")), (0, placed("w1", ("a:cpu0", 10))), (9, run_ended("w1"))
    )
    assert check_chip_time(ledger) == []
    ledger.workloads["w1"].chip_milli_ns -= 1
    assert check_chip_time(ledger) == ["project default: chips say 90, workloads 89 milli·ns"]


def test_a_run_placed_or_ended_twice_counts_once() -> None:
    events: list[Timed] = [(0, joined("a", "cpu0")), (0, submitted("w1")), *[(5, placed("w1", ("a:cpu0", 10)))] * 2]
    ledger = fold(*events, (10, run_ended("w1")), (20, run_ended("w1")), (30, run_ended("nobody")))
    assert ledger.workloads["w1"].runs_ended == 1
    assert ledger.workloads["w1"].chip_milli_ns == 50
    assert not ledger.chips["a:cpu0"].held
    assert check_chip_time(settle(ledger, 40)) == []


def test_a_run_on_two_slices_of_one_chip_lets_both_go() -> None:
    ledger = fold((0, joined("a", "cpu0")), (0, submitted("w1")), (0, placed("w1", ("a:cpu0", 10), ("a:cpu0", 20))))
    assert ledger.chips["a:cpu0"].held == {"default": 30}
    apply(ledger, 10, run_ended("w1"))
    assert not ledger.chips["a:cpu0"].held
    assert ledger.workloads["w1"].chip_milli_ns == 300


def test_tokens_count_for_the_workload_the_caller_and_the_key() -> None:
    ledger = fold(
        (0, submitted("w1", "owner", "m")),
        (1, tokens("w1.0.1", "caller", "k7", answers=2, tokens_in=30, tokens_out=12, unknown_in=1, cancelled=1)),
        (2, tokens("w1.1.3", "caller", "k7", answers=1, tokens_in=5, tokens_out=8, failed=1)),
        (3, tokens("w1.0.1", "owner", "k8", answers=1)),
    )
    row = ledger.workloads["w1"]
    assert row.tokens["caller"] == subject.Tokens(3, 35, 20, 1, 1, 1) == ledger.keys["k7"]["m"]
    assert row.tokens["owner"] == subject.Tokens(answers=1)
    assert (row.project, row.model) == ("owner", "m")


@pytest.mark.parametrize("run", ["w9.0.1", "w9", "", "한글.0.1", "a.b.c.d", "../../x"])
def test_tokens_of_a_run_unknown_still_count(run: str) -> None:
    ledger = fold((1, tokens(run, "caller", answers=1, tokens_out=4)))
    row = ledger.workloads[run.rsplit(".", 2)[0]]
    assert (row.project, row.model, row.tokens["caller"].tokens_out) == ("caller", "m", 4)


def test_energy_is_kept_by_source_and_the_unmetered_apart() -> None:
    rows = (
        RunMeter("w1.0.1", 10, 7, "modelled", "old"),
        RunMeter("w1.0.1", 5, 3, "modelled", "new"),
        RunMeter("w1.1.1", 2, 100, "measured", "RAPL"),
        RunMeter("w1.0.1", 4, None, None, "no watts known for cpu"),
        RunMeter("w1.0.1", 0, 0, "simulated", "still"),
    )
    ledger = fold((0, submitted("w1")), (1, ev.RunsMetered("a", rows, 50, 1000)), (2, ev.RunsMetered("a", (), 8, 1)))
    row = ledger.workloads["w1"]
    assert row.energy_uj == {"modelled": 10, "measured": 100, "simulated": 0}
    assert row.basis == {"modelled": "new", "measured": "RAPL", "simulated": "still"}
    assert (row.cpu_ns, row.unmetered_cpu_ns) == (21, 4)
    assert ledger.idle_energy_uj == {"measured": 58}


def test_no_meter_leaves_idle_energy_unknown() -> None:
    assert fold((0, submitted("w1")), (1, ev.RunsMetered("a", ()))).idle_energy_uj == {}


def test_rows_of_old_workloads_are_added_up_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "KEPT_ENDED", 3)
    ledger = fold((0, joined("a", "cpu0")))
    for i in range(10):
        name, project = f"w{i}", "even" if i % 2 == 0 else "odd"
        apply(ledger, 10 * i, submitted(name, project))
        apply(ledger, 10 * i, placed(name, ("a:cpu0", 100)))
        apply(ledger, 10 * i + 4, ev.RunsMetered("a", (RunMeter(f"{name}.0.1", 1, 2, "modelled", "b"),)))
        apply(ledger, 10 * i + 5, run_ended(name))
        apply(ledger, 10 * i + 5, tokens(f"{name}.0.1", project, tokens_out=3))
        apply(ledger, 10 * i + 5, ev.WorkloadEnded(name, "done", ""))
        apply(ledger, 10 * i + 5, ev.WorkloadEnded(name, "done", ""))
    assert list(ledger.workloads) == ledger.ended == ["w7", "w8", "w9"]
    assert {row.project: row.chip_milli_ns for row in ledger.older.values()} == {"even": 2000, "odd": 1500}
    apply(ledger, 200, tokens("w0.0.1", "even", tokens_out=5))  # a late one
    assert len(ledger.workloads) == 3
    rows = [*ledger.workloads.values(), *ledger.older.values()]
    assert sum(row.tokens[row.project].tokens_out for row in rows) == 35
    assert sum(row.energy_uj.get("modelled", 0) for row in rows) == 20
    assert sum(row.runs_ended for row in rows) == 10
    assert check_chip_time(settle(ledger, 300)) == []


def test_a_refused_workload_leaves_no_row() -> None:
    workload = submitted("w1").workload
    assert not fold((0, ev.WorkloadRefused(workload, Refusal("shape", "no", "admit")))).workloads


def test_settling_leaves_the_live_ledger_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "KEPT_ENDED", 1)
    events: list[Timed] = [(0, joined("a", "cpu0"))]
    for name in ("w1", "w2"):  # ended, but their runs still hold
        events += [(1, submitted(name)), (2, placed(name, ("a:cpu0", 10))), (3, ev.WorkloadEnded(name, "failed", ""))]
    ledger = fold(*events, (4, submitted("w3")), (4, ev.WorkloadEnded("w3", "stopped", "")))
    before = msgspec.json.encode(ledger)
    assert check_chip_time(settle(ledger, 1000)) == []
    assert msgspec.json.encode(ledger) == before


def test_sums_beyond_64_bits_survive_a_snapshot() -> None:
    ledger = settle(fold((0, joined("a", "cpu0"))), 10**20)
    again = msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger)
    assert again.chips["a:cpu0"].total == 10**23
    assert again == ledger


# The law, against a naive recomputation

NODES = {"a": ("c0", "c1", "c2"), "b": ("c0",)}
PROJECTS = ("alpha", "beta")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "lose", "start", "place", "place", "end", "other"]),
        st.one_of(st.integers(0, 10**12), st.integers(0, 3), st.integers(-50, -1)),
        st.sampled_from(sorted(NODES)),
        st.integers(0, 7),
        st.integers(0, 2000),
    ),
    max_size=40,
)


def history(steps: list[tuple[str, int, str, int, int]]) -> list[Timed]:
    """Joins with any chips, losses, restarts, runs that never overcommit a chip, and a clock that steps."""
    events: list[Timed] = [(10**18, ev.ControlStarted("v"))]
    free = {f"{node}:{name}": 1000 for node, names in NODES.items() for name in names}
    live: dict[str, list[tuple[str, int]]] = {}
    at_ns = 10**18
    for i, (step, gap_ns, node, mask, number) in enumerate(steps):
        at_ns += gap_ns
        names = [name for bit, name in enumerate(NODES[node]) if mask >> bit & 1]
        match step:
            case "join":
                events.append((at_ns, joined(node, *names)))
            case "lose":
                events.append((at_ns, ev.NodeLost(node, "")))
            case "start":
                events.append((at_ns, ev.ControlStarted("v")))
            case "place":
                chips = [chip_id for name in names if free[chip_id := f"{node}:{name}"]]
                held = [(chip_id, 1 + number % free[chip_id]) for chip_id in chips]
                if held:
                    live[f"w{i}"] = held
                    free |= {chip_id: free[chip_id] - milli for chip_id, milli in held}
                    if number % 5:
                        events.append((at_ns, submitted(f"w{i}", PROJECTS[number % 2])))
                    events.append((at_ns, placed(f"w{i}", *held)))
            case "end" if live:
                workload = sorted(live)[number % len(live)]
                free |= {chip_id: free[chip_id] + milli for chip_id, milli in live.pop(workload)}
                events.append((at_ns, run_ended(workload)))
                events.append((at_ns, ev.WorkloadEnded(workload, "done", "")))
            case _:
                events.append((at_ns, submitted(f"x{i}")))
    return events


def recomputed(events: list[Timed], now_ns: int) -> Times:
    """Every chip's time between each two events, summed one by one."""
    found: Times = Counter()
    linked: set[str] = set()
    project: dict[str, str] = {}
    runs: dict[str, ev.RunPlaced] = {}
    for (at_ns, event), (next_ns, following) in zip(
        events, [*events[1:], (max(now_ns, events[-1][0]), None)], strict=True
    ):
        match event:
            case ev.NodeJoined():
                linked = {c for c in linked if not c.startswith(event.node.id)} | {c.id for c in event.chips}
            case ev.NodeLost():
                linked = {c for c in linked if not c.startswith(event.node)}
            case ev.WorkloadSubmitted():
                project[event.workload.id] = event.workload.ask.project
            case ev.RunPlaced():
                runs[event.run] = event
            case ev.RunEnded():
                del runs[event.run]
        if isinstance(event, ev.ControlStarted) or isinstance(following, ev.ControlStarted):
            linked = set()
        span_ns = max(0, next_ns - at_ns)
        held = [(p, run) for run in runs.values() for p in run.plan.slices]
        for chip_id in linked:
            found[chip_id, "total"] += 1000 * span_ns
            found[chip_id, "idle"] += (1000 - sum(p.milli for p, _ in held if p.chip == chip_id)) * span_ns
        for piece, run in held:
            found[piece.chip, f"project {project.get(run.workload, '-')}"] += piece.milli * span_ns
            if piece.chip not in linked:
                found[piece.chip, "total"] += piece.milli * span_ns
    return +found


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 10**13))
def test_law_2_for_chip_time(steps: list[tuple[str, int, str, int, int]], later_ns: int) -> None:
    events = history(steps)
    ledger, now_ns = fold(*events), events[-1][0] + later_ns
    done = settle(ledger, now_ns)
    assert check_chip_time(ledger) == check_chip_time(done) == []
    assert times(done) == recomputed(events, now_ns)


@settings(max_examples=50, deadline=None)
@given(STEPS, st.integers(0, 40))
def test_a_snapshot_in_the_middle_changes_nothing(steps: list[tuple[str, int, str, int, int]], cut: int) -> None:
    events = history(steps)
    ledger = fold(*events[:cut])
    settle(ledger, ledger.at_ns + 5)
    ledger = msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger)
    for at_ns, event in events[cut:]:
        apply(ledger, at_ns, event)
    assert msgspec.json.encode(ledger) == msgspec.json.encode(fold(*events))
