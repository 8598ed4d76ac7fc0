"""The node side of a turn: hellos, beats, ends, adoption, farewells, meters."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dure.computing import inbox as ib
from dure.model import event as ev
from dure.model.units import NS_PER_S
from dure.model.usage import RunMeter
from dure.model.wire import Forget, Lease, Start, Stop
from dure.model.workload import Ask, ChipAsk, Command, Exit
from tests.computing.small import JOB, SERVE, Small, beat, chip, chips, hello, over, status

CORE = Ask(Command(("true",)), ChipAsk("cpu", 1, 1000))
SHUTDOWN = Exit("shutdown")


def cloud(count: int = 2, kind: str = "npu") -> Small:
    small = Small()
    small.turn(hello("a", chips("a", count, kind)))
    return small


def running(small: Small, ask: Ask) -> str:
    """The run of a new workload of one replica, once its node has told that it runs."""
    run = small.run(small.job(ask)).id
    small.turn(beat("a", status(run)))
    return run


def test_a_lost_start_is_given_again_until_the_run_shows() -> None:
    small = cloud()
    small.submit(JOB)
    spec = small.orders("a", Start)[0].spec
    for _ in range(2):
        small.turn(beat("a"), after_s=1)
        assert small.orders("a", Start) == [Start(spec)] and small.events == []
    small.turn(beat("a", status("w1.0.1", "starting")))
    assert small.orders("a", Start) == []


def test_the_same_beat_twice_changes_nothing_more() -> None:
    small = cloud()
    small.submit(JOB, SERVE)
    said = beat("a", over("w1.0.1"), status("w2.0.1", url="http://x"))
    small.turn(said, said)
    told = [type(event).__name__ for event in small.events]
    assert told == ["RunEnded", "WorkloadEnded", "RunMoved"]
    small.turn(said)
    assert small.events == [] and small.orders("a", Forget) == [Forget("w1.0.1")]
    small.turn(beat("a", over("w2.0.1"), over("w2.0.1")))
    assert len(small.of(ev.RunEnded)) == 1


def test_phases_only_go_forward() -> None:
    small = cloud()
    run = running(small, SERVE)
    small.turn(beat("a", status(run, "fetching")), beat("a", status(run, "placed")))
    assert small.events == [] and small.state.runs[run].phase == "running"


@pytest.mark.parametrize("phase", ["fetching", "starting", "running"])
def test_a_run_its_node_no_longer_knows_is_lost(phase: str) -> None:
    small = cloud()
    small.submit(JOB)
    small.turn(beat("a", replace(status("w1.0.1"), phase=phase)))
    small.turn(beat("a"))
    assert small.of(ev.RunEnded)[0].exit == Exit("lost", detail="its node no longer knows it")
    assert small.state.chips["a:npu0"].held == 0


def test_an_end_without_an_exit_is_a_loss() -> None:
    small = cloud()
    run = running(small, JOB)
    small.turn(beat("a", replace(over(run), exit=None)))
    assert small.of(ev.RunEnded)[0].exit.reason == "lost" and small.state.workloads["w1"].phase == "failed"


def test_stale_runs_are_stopped_and_forgotten() -> None:
    small = cloud()
    run = running(small, SERVE)
    small.turn(beat("a", over(run)))
    small.turn(ib.Tick(), after_s=1)
    small.turn(beat("a", status(run), status("w1.0.2"), status("w7.0.1"), over("w8.0.1")))
    assert small.orders("a", Stop) == [Stop(run), Stop("w7.0.1")]
    assert small.orders("a", Forget) == [Forget("w8.0.1")]
    assert small.state.runs["w1.0.2"].phase == "running"


def test_a_node_cannot_end_or_move_a_run_of_another() -> None:
    small = cloud(1)
    small.turn(hello("b", chips("b", 1)))
    run = running(small, JOB)
    small.turn(beat("b", over(run)), beat("b", status(run, url="http://evil")))
    assert small.events == [] and small.state.runs[run].url is None


def test_a_beat_from_a_node_that_never_said_hello_is_ignored() -> None:
    small = cloud()
    run = running(small, JOB)
    small.turn(beat("ghost", over(run), energy_uj=5), beat("", status(run)), ib.AgentGone("ghost", "cut"))
    assert (small.events, small.effects) == ([], [])


def test_every_beat_renews_the_lease_of_its_node() -> None:
    small = cloud()
    small.turn(hello("b", chips("b", 1)), beat("a"))
    assert len(small.orders("a", Lease)) == 1 and len(small.orders("b", Lease)) == 1


def test_a_node_that_is_cut_keeps_its_runs_and_gets_no_more() -> None:
    small = cloud()
    run = running(small, JOB)
    small.turn(ib.AgentGone("a", "its link closed"), ib.AgentGone("a", "its link closed"))
    assert small.events == [ev.NodeLost("a", "its link closed")]
    small.submit(JOB)
    assert small.of(ev.WorkloadWaits) and small.state.runs[run].phase == "running"
    small.turn(hello("a", chips("a", 2), [status(run)]))
    assert [event.run for event in small.of(ev.RunPlaced)] == ["w2.0.1"]


@pytest.mark.parametrize(
    ("control", "agent", "who"),
    [(True, False, "control"), (False, True, "agent"), (True, True, "control and agent"), (False, False, "link")],
)
def test_who_was_restarted_when_a_run_is_adopted(control: bool, agent: bool, who: str) -> None:
    small = cloud()
    run = running(small, JOB)
    small.submit(JOB)
    if control:
        small.restart()
    small.turn(hello("a", chips("a", 2), [status(run), over("w9.0.1")], boot="2" if agent else "1"))
    assert small.of(ev.RunAdopted) == [ev.RunAdopted(run, "w1", who, 7)]
    assert [order.spec.run for order in small.orders("a", Start)] == ["w2.0.1"], "never started yet: not adopted"
    small.turn(hello("a", chips("a", 2), [status(run), status("w2.0.1")], boot="2" if agent else "1"))
    assert {event.who for event in small.of(ev.RunAdopted)} == {"link"}


@pytest.mark.parametrize("ask", [JOB, SERVE])
def test_a_shutdown_places_nothing_on_that_node(ask: Ask) -> None:
    small = cloud(2)
    small.submit(ask, ask, ask)
    small.turn(beat("a", status("w1.0.1"), status("w2.0.1")))
    small.turn(beat("a", over("w1.0.1", SHUTDOWN), status("w2.0.1")))
    small.turn(beat("a", over("w1.0.1", SHUTDOWN), over("w2.0.1", SHUTDOWN)), after_s=1)
    assert [event.why for entry in small.log if isinstance(event := entry.event, ev.NodeLost)] == [
        "its agent is shutting down"
    ]
    assert small.orders("a", Start) == [] and [run.phase for run in small.state.runs.values()] == ["ended", "ended"]
    if ask is SERVE:
        assert sorted(small.state.needs) == ["w1.0", "w2.0", "w3.0"]
        small.turn(hello("a", chips("a", 2), boot="2"), after_s=1)
        assert len(small.of(ev.RunPlaced)) == 2, "at the next start, without a wait"
    else:
        assert [held.phase for held in small.state.workloads.values()] == ["stopped", "stopped", "waiting"]


@pytest.mark.parametrize("control", [False, True])
def test_a_new_agent_that_tells_of_its_predecessors_shutdown_is_not_going(control: bool) -> None:
    """The last words of the old one were lost: control was killed first."""
    small = cloud(1)
    run = running(small, SERVE)
    small.turn(ib.AgentGone("a", "cut"))
    if control:
        small.restart()
    small.turn(hello("a", chips("a", 1), [over(run, SHUTDOWN)], boot="2"))
    assert small.of(ev.NodeLost) == [] and small.state.nodes["a"].linked
    assert [event.run for event in small.of(ev.RunPlaced)] == ["w1.0.2"]


def test_an_agent_that_links_again_while_it_shuts_down_is_going() -> None:
    small = cloud(1)
    run = running(small, SERVE)
    small.turn(ib.AgentGone("a", "cut"))
    small.turn(hello("a", chips("a", 1), [over(run, SHUTDOWN)], boot="1"))
    assert not small.state.nodes["a"].linked and small.of(ev.RunPlaced) == []


def test_a_node_speaks_only_for_chips_of_its_own_each_once() -> None:
    small = Small()
    small.turn(hello("b", chips("b", 1)))
    stolen, foreign = replace(chip("b"), node="a"), replace(chip("a", 5), node="b")
    small.turn(hello("a", (chip("a"), chip("a"), stolen, foreign, chip("nowhere"))))
    assert {name: row[1] for name, row in small.core.columns.snapshot().items()} == {"b:npu0": "b", "a:npu0": "a"}
    small.submit(JOB, JOB, JOB)
    assert sorted(run.plan.slices[0].chip for run in small.state.runs.values()) == ["a:npu0", "b:npu0"]


def rows(small: Small) -> list[RunMeter]:
    return [row for event in small.of(ev.RunsMetered) for row in event.rows]


def test_runs_are_metered_each_minute_and_at_their_end_without_gap_or_overlap() -> None:
    small = cloud(1)
    run = running(small, JOB)
    metered: list[RunMeter] = []
    for second in range(1, 151):
        small.turn(beat("a", status(run, cpu_s=second / 2)), after_s=1)
        metered += rows(small)
    assert [row.cpu_ns for row in metered] == [30_000_000_000] * 2
    small.turn(beat("a", over(run, cpu_s=75.5)), after_s=1)
    metered += rows(small)
    assert sum(row.cpu_ns for row in metered) == 75_500_000_000
    assert sum(row.energy_uj or 0 for row in metered) == 151 * 100 * 1_000_000, "100 W for 151 s"
    assert {row.energy_source for row in metered} == {"simulated"}
    small.assert_replayable()


def test_cpu_time_is_told_once_whoever_restarts_and_whatever_a_beat_says_late() -> None:
    small = cloud(1)
    run = running(small, JOB)
    small.turn(beat("a", status(run, cpu_s=50)), after_s=61)
    small.restart()
    small.turn(hello("a", chips("a", 1), [status(run, cpu_s=50)], boot="2"))
    small.turn(beat("a", status(run, cpu_s=40)), after_s=60)
    small.turn(beat("a", over(run, cpu_s=70)), after_s=60)
    told = [row.cpu_ns for entry in small.log if isinstance(entry.event, ev.RunsMetered) for row in entry.event.rows]
    assert sum(told) == 70_000_000_000 and min(told) >= 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_nodes_energy_counter_is_split_over_its_runs_and_idle(first: int) -> None:
    """Whichever run the node names first."""
    small = cloud(2, "cpu")
    small.turn(beat("a", energy_uj=1000))
    assert small.events == [ev.RunsMetered("a", (), None, 1000)], "from here on it counts"
    small.submit(CORE, CORE)
    small.turn(beat("a", status("w1.0.1"), status("w2.0.1"), energy_uj=1000))
    said = [status("w1.0.1", cpu_s=30), over("w2.0.1", cpu_s=30)]
    small.turn(beat("a", said[first], said[1 - first], energy_uj=1000 + 120_000_000), after_s=60)
    told = small.of(ev.RunsMetered)
    assert [(row.run, row.energy_uj, row.energy_source) for row in told[0].rows] == [
        ("w1.0.1", 30_000_000, "measured"),
        ("w2.0.1", 30_000_000, "measured"),
    ]
    assert told[0].idle_energy_uj == 60_000_000, "120 core seconds, 60 of them at work"
    assert told[1:] == [], "the minute is metered with the end"
    small.assert_replayable()


def test_on_a_node_with_a_counter_one_beat_meters_once_however_many_end() -> None:
    small = cloud(3, "cpu")
    small.submit(CORE, CORE, CORE)
    small.turn(beat("a", *(status(f"w{number}.0.1") for number in (1, 2, 3)), energy_uj=0))
    said = [over("w1.0.1", cpu_s=10), over("w2.0.1", cpu_s=20), status("w3.0.1", cpu_s=30)]
    small.turn(beat("a", *said, energy_uj=90_000_000), after_s=30)
    (told,) = small.of(ev.RunsMetered)
    assert [row.energy_uj for row in told.rows] == [10_000_000, 20_000_000, 30_000_000]
    assert told.idle_energy_uj == 30_000_000


def test_a_new_agents_counter_is_never_compared_with_the_old_ones() -> None:
    small = cloud(1, "cpu")
    small.turn(beat("a", energy_uj=5_000_000))
    run = running(small, CORE)
    small.turn(beat("a", status(run, cpu_s=30), energy_uj=50_000_000), after_s=60)
    small.turn(hello("a", chips("a", 1, "cpu"), [status(run, cpu_s=31)], boot="2"), after_s=1)
    assert "a" not in small.state.counters and rows(small) == []
    small.turn(beat("a", status(run, cpu_s=31), energy_uj=2_000_000))
    assert small.state.counters["a"].counter_uj == 2_000_000
    small.turn(beat("a", status(run, cpu_s=91), energy_uj=62_000_000), after_s=60)
    assert [row.energy_uj for row in rows(small)] == [60_000_000]
    assert small.of(ev.RunsMetered)[0].idle_energy_uj == 0


def test_a_link_that_was_cut_does_not_break_the_counter() -> None:
    small = cloud(1, "cpu")
    run = running(small, CORE)
    small.turn(beat("a", status(run), energy_uj=0))
    small.turn(ib.AgentGone("a", "cut"))
    small.turn(hello("a", chips("a", 1, "cpu"), [status(run, cpu_s=60)]), after_s=60)
    small.turn(beat("a", status(run, cpu_s=120), energy_uj=120_000_000), after_s=60)
    told = [entry.event for entry in small.log if isinstance(entry.event, ev.RunsMetered)]
    measured = sum((event.idle_energy_uj or 0) + sum(row.energy_uj or 0 for row in event.rows) for event in told)
    assert measured == 120_000_000


def test_usage_is_metered_up_to_now_before_a_report() -> None:
    small = Small()
    small.turn(hello("a", chips("a", 2)))
    small.submit(JOB)
    small.turn(beat("a", status("w1.0.1", cpu_s=2)), after_s=1)
    small.turn(ib.MeterNow(9), after_s=1)
    (metered,) = [event for event in small.events if isinstance(event, ev.RunsMetered)]
    assert [(row.run, row.cpu_ns) for row in metered.rows] == [("w1.0.1", 2 * NS_PER_S)]
    small.turn(beat("a", over("w1.0.1", cpu_s=3)), after_s=1)
    (rest,) = [event for event in small.events if isinstance(event, ev.RunsMetered)]
    assert [row.cpu_ns for row in rest.rows] == [NS_PER_S]
    small.assert_replayable()
