"""Turns as callers see them: submissions, stops, projects, keys, usage; what is decided, answered and ordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dure.computing import inbox as ib
from dure.computing import turn as turn_module
from dure.model import event as ev
from dure.model.usage import TokenRow
from dure.model.view import Submitted
from dure.model.wire import Forget, Lease, Recorded, Start, Stop, Usage
from dure.model.workload import ChipAsk, Exit, Refusal, Serve
from tests.computing.small import JOB, SERVE, Small, beat, chips, hello, over, status


def cloud(count: int = 2) -> Small:
    small = Small()
    small.turn(hello("a", chips("a", count)))
    return small


def kinds(small: Small) -> list[str]:
    return [type(event).__name__ for event in small.events]


def test_a_job_from_submission_to_end() -> None:
    small = cloud()
    assert small.submit(JOB) == (Submitted("w1"),)
    assert kinds(small) == ["WorkloadSubmitted", "RunPlaced"]
    assert [order.spec.run for order in small.orders("a", Start)] == ["w1.0.1"]
    small.turn(beat("a", status("w1.0.1", "starting")), after_s=1)
    assert kinds(small) == ["RunMoved"] and small.orders("a", Lease) == [Lease(turn_module.LEASE_S)]
    small.turn(beat("a", status("w1.0.1", cpu_s=1)), after_s=1)
    small.turn(beat("a", status("w1.0.1", cpu_s=2)), after_s=1)
    assert kinds(small) == [], "nothing new, nothing told"
    small.turn(beat("a", over("w1.0.1", cpu_s=3)), after_s=1)
    assert kinds(small) == ["RunsMetered", "RunEnded", "WorkloadEnded"]
    assert small.state.workloads["w1"].phase == "done"
    assert small.orders("a", (Start, Stop)) == [] and small.orders("a", Forget) == [Forget("w1.0.1")]
    small.turn(beat("a"))
    assert kinds(small) == []
    small.assert_replayable()


def test_many_asks_at_once_get_ids_in_their_order() -> None:
    small = cloud()
    bad = replace(JOB, chips=ChipAsk("tpu"))
    done = small.submit(JOB, bad, JOB, SERVE, JOB)
    assert [each.id for each in done] == ["w1", "w2", "w3", "w4", "w5"]
    assert [each.refusal is None for each in done] == [True, False, True, True, True]
    assert list(small.state.runs) == ["w1.0.1", "w3.0.1"], "the oldest first"
    assert small.submit() == ()


def test_waits_are_told_once_and_again_when_the_reason_is_another() -> None:
    small = cloud(1)
    small.submit(JOB, JOB, JOB)
    assert [event.workload for event in small.of(ev.WorkloadWaits)] == ["w2", "w3"]
    small.turn(ib.Tick(), after_s=100)
    small.turn(hello("a", chips("a", 1), [status("w1.0.1")]))
    assert small.of(ev.WorkloadWaits) == []
    small.turn(beat("a", over("w1.0.1")))
    assert small.of(ev.RunPlaced)[0].run == "w2.0.1"
    assert small.of(ev.WorkloadWaits) == []
    reason = small.state.workloads["w3"].reason
    assert reason is not None and reason.counts == {"less than 1000 milli free": 1}


def test_a_turn_places_so_many_and_says_that_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "PLACED_A_TURN", 4)
    small = cloud(10)
    small.submit(*[JOB] * 10)
    assert len(small.of(ev.RunPlaced)) == 4 and small.core.more
    small.turn()
    assert len(small.of(ev.RunPlaced)) == 4 and small.core.more
    small.turn()
    assert len(small.of(ev.RunPlaced)) == 2 and not small.core.more
    assert list(small.state.runs) == [f"w{number}.0.1" for number in range(1, 11)]


def test_a_stop_is_ordered_at_once_and_ends_when_the_node_says_so() -> None:
    small = cloud()
    small.submit(JOB)
    small.turn(beat("a", status("w1.0.1")))
    small.turn(ib.StopWork("w1", "k2", 5))
    assert small.orders("a", Stop) == [Stop("w1.0.1")] and small.replies() == ["w1"]
    small.turn(ib.StopWork("w1", "k3", 6))
    assert small.events == [] and small.replies() == ["w1"], "asked twice, told once"
    small.turn(beat("a", status("w1.0.1")))
    assert small.orders("a", Stop) == [Stop("w1.0.1")], "until it is obeyed"
    small.turn(beat("a", over("w1.0.1", Exit("exited", code=0))))
    assert small.of(ev.WorkloadEnded) == [ev.WorkloadEnded("w1", "stopped", "stopped by k2")]
    small.turn(ib.StopWork("w1", "k2", 7))
    assert small.events == [] and small.replies() == ["w1"]
    small.assert_replayable()


def test_a_stop_of_what_waits_ends_at_once() -> None:
    small = cloud(1)
    small.submit(JOB, JOB)
    small.turn(ib.StopWork("w2", "k1", 5))
    assert kinds(small) == ["StopAsked", "WorkloadEnded"]
    small.turn(beat("a", over("w1.0.1")))
    assert small.of(ev.RunPlaced) == []


def test_a_stop_in_the_same_turn_as_the_ask_starts_nothing() -> None:
    small = cloud()
    small.turn(ib.Submit((JOB,), "k1", 1), ib.StopWork("w1", "k1", 2))
    assert kinds(small) == ["WorkloadSubmitted", "StopAsked", "WorkloadEnded"]
    assert small.orders("a", Start) == []


def test_a_stop_before_the_start_has_arrived_is_seen() -> None:
    """The node makes a tombstone of a stop it does not know the run of; that end is the run's."""
    small = cloud()
    small.submit(JOB)
    small.turn(ib.StopWork("w1", "k1", 2))
    small.turn(beat("a"))
    assert small.orders("a", Stop) == [Stop("w1.0.1")] and small.orders("a", Start) == []
    small.turn(beat("a", over("w1.0.1", Exit("stopped"))))
    assert small.of(ev.WorkloadEnded)[0].phase == "stopped"
    assert small.orders("a", Forget) == [Forget("w1.0.1")]


def test_a_stop_of_an_endpoint_stops_every_replica_and_the_one_that_waits() -> None:
    small = cloud(2)
    held = small.job(replace(SERVE, replicas=3))
    small.turn(beat("a", status("w1.0.1"), over("w1.1.1", Exit("failed"))))
    assert list(small.state.needs) == ["w1.1"] and held.phase == "waiting"
    small.turn(ib.StopWork("w1", "k1", 2))
    live = {order.run for order in small.orders("a", Stop)}
    assert live == {"w1.0.1", "w1.2.1"}
    assert small.of(ev.WorkloadEnded) == [] and small.state.needs == {}
    small.turn(beat("a", *(over(run) for run in live)), after_s=100)
    assert small.of(ev.WorkloadEnded)[0].phase == "stopped" and small.of(ev.RunPlaced) == []


@pytest.mark.parametrize("name", ["w9", "", "w1.0", "두레", "w" * 100_000])
def test_a_stop_of_nothing_is_refused(name: str) -> None:
    small = cloud()
    small.submit(JOB)
    small.turn(ib.StopWork(name, "k1", 2))
    (refusal,) = small.replies()
    assert isinstance(refusal, Refusal) and refusal.code == "no_such" and small.events == []


def test_projects_and_keys() -> None:
    small = cloud()
    small.turn(ib.MakeProject("lab", "k1", 1), ib.MakeProject("lab", "k2", 2), ib.MakeProject("default", "k2", 3))
    assert small.events == [ev.ProjectCreated("lab", "k1")] and small.replies() == ["lab", "lab", "default"]
    small.turn(ib.MakeKey("lab", "aa", False, "k1", 4), ib.MakeKey("default", "bb", True, "k1", 5))
    assert small.replies() == ["k1", "k2"]
    assert {key.id: (key.project, key.admin) for key in small.state.keys.values()} == {
        "k1": ("lab", False),
        "k2": ("default", True),
    }
    small.turn(ib.MakeKey("ghost", "cc", False, "k1", 6))
    (refusal,) = small.replies()
    assert refusal == Refusal("no_such", "no project ghost; projects: default, lab", "control") and small.events == []
    small.assert_replayable()


def test_a_second_project_closes_the_door_to_jobs_and_stops_none() -> None:
    small = cloud()
    small.submit(JOB)
    small.turn(ib.MakeProject("lab", "k1", 1))
    refused = small.submit(JOB)[0].refusal
    assert refused is not None and refused.code == "isolation"
    assert small.state.workloads["w1"].phase == "active"
    assert small.submit(replace(SERVE, project="lab"))[0].refusal is None


def test_gateways_hear_of_what_changes_their_routes() -> None:
    small = cloud()
    said: list[tuple[ib.Item, bool]] = [
        (ib.Submit((JOB,), "k1", 1), False),
        (ib.Submit((SERVE,), "k1", 1), True),
        (beat("a", status("w1.0.1"), status("w2.0.1", "starting")), False),
        (beat("a", status("w1.0.1"), status("w2.0.1", url="http://x")), True),
        (beat("a", status("w1.0.1"), status("w2.0.1", url="http://x")), False),
        (beat("a", status("w1.0.1"), status("w2.0.1", url="http://y")), True),
        (ib.MakeKey("default", "aa", False, "k1", 1), True),
        (beat("a", over("w1.0.1"), status("w2.0.1", url="http://y")), False),
        (beat("a", over("w2.0.1", Exit("lost"))), True),
        (ib.StopWork("w2", "k1", 1), True),
        (hello("a", chips("a", 2)), True),
    ]
    for item, pushes in said:
        small.turn(item)
        assert (ib.Push() in small.effects) == pushes, item


def usage(start: int, upto: int, journal: str = "g1") -> ib.UsageIn:
    row = TokenRow("k1", "default", "m", "w1.0.1", 1, upto - start, 0, upto - start)
    return ib.UsageIn(3, Usage(journal, start, upto, f"{start}-{upto}", (row,)))


@pytest.mark.parametrize(("start", "upto"), [(0, 10), (0, 25), (10, 20), (15, 30), (21, 30), (20, 20), (40, 50)])
def test_a_usage_frame_that_does_not_go_on_from_what_is_recorded_is_not(start: int, upto: int) -> None:
    small = cloud()
    small.turn(usage(0, 20))
    assert small.effects == [ib.Record(3, Recorded("g1", 20))]
    small.turn(usage(start, upto))
    assert small.events == [] and small.effects == [ib.Record(3, Recorded("g1", 20))]
    small.turn(usage(20, 30), usage(0, 5, "g2"))
    assert small.state.journals == {"g1": 30, "g2": 5}


@given(st.lists(st.tuples(st.integers(-5, 60), st.integers(-5, 60)), max_size=60), st.integers(0, 20))
def test_every_byte_of_a_journal_is_recorded_exactly_once(frames: list[tuple[int, int]], restart_at: int) -> None:
    """A gateway that sends anything, but after each answer what is next: each byte is one token."""
    small = cloud()
    for number, (start, upto) in enumerate(frames):
        if number == restart_at:
            small.restart()
        small.turn(usage(start, upto))
        (effect,) = small.effects
        assert isinstance(effect, ib.Record) and effect.recorded.upto == small.state.journals.get("g1", 0)
    recorded = small.state.journals.get("g1", 0)
    small.turn(usage(recorded, 100))
    told = [entry.event for entry in small.log if isinstance(entry.event, ev.TokensUsed)]
    assert [event.upto for event in told] == sorted({event.upto for event in told})
    assert sum(event.rows[0].tokens_out for event in told) == 100
    assert small.core.ledger.keys["k1"]["m"].tokens_out == 100
    small.assert_replayable()


def test_a_model_the_catalogue_lost_goes_on_where_it_runs() -> None:
    small = cloud()
    held = small.job(SERVE)
    small.core.models = ()
    small.turn(beat("a", over("w1.0.1", Exit("lost"))))
    small.turn(ib.Tick(), after_s=1)
    assert small.run(held).id == "w1.0.2"
    refused = small.submit(replace(SERVE, work=Serve("m")))[0].refusal
    assert refused is not None and refused.code == "unknown_model"
