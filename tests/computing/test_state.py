"""The fold: what chips, runs, workloads and needs become of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from dure.computing import inbox as ib
from dure.computing.place.place import fits_ever
from dure.computing.state import State, backoff_ns, columns_of
from dure.computing.turn import Core
from dure.model import event as ev
from dure.model.units import NS_PER_S
from dure.model.workload import ChipAsk, Exit, Refusal
from tests.computing.small import JOB, SERVE, Small, beat, chip, chips, hello, over, status

CRASH = Exit("signalled", signal=11)


def cloud(count: int = 2) -> Small:
    small = Small()
    small.turn(hello("a", chips("a", count)))
    return small


@given(st.integers(1, 10_000))
def test_the_wait_doubles_up_to_a_minute(failures: int) -> None:
    assert backoff_ns(failures) == min(60, 2 ** (failures - 1)) * NS_PER_S
    assert backoff_ns(0) == NS_PER_S


def test_an_endpoint_that_crashes_waits_longer_each_time() -> None:
    small = cloud()
    held = small.job(SERVE)
    waits = []
    for attempt in range(1, 10):
        run = small.run(held)
        assert (run.id, run.attempt) == (f"w1.0.{attempt}", attempt)
        small.turn(beat("a", over(run.id, CRASH)), after_s=1)
        waits.append((small.state.needs["w1.0"] - small.now_ns) // NS_PER_S)
        assert held.phase == "waiting" and held.reason is not None
        assert held.reason.why == (
            f"attempt {attempt} was killed by signal 11; attempt {attempt + 1} after {waits[-1]} s"
        )
        assert held.reason.retry_at_ns == small.state.needs["w1.0"]
        small.turn(ib.Tick(), after_s=waits[-1] - 0.001)
        assert not small.of(ev.RunPlaced), "too early"
        small.turn(ib.Tick(), after_s=0.001)
        again = small.state.workloads["w1"]
        assert small.of(ev.RunPlaced) and (again.phase, again.reason) == ("active", None)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(("served_s", "waits"), [(60, 8), (60.001, 1), (3600, 1)])
def test_more_than_a_minute_of_service_begins_the_waits_anew(served_s: float, waits: int) -> None:
    small = cloud()
    held = small.job(SERVE)
    for _ in range(3):
        small.turn(beat("a", over(small.run(held).id, CRASH)))
        small.turn(ib.Tick(), after_s=10)
    small.turn(beat("a", status(small.run(held).id)))
    small.turn(beat("a", over(small.run(held).id, CRASH)), after_s=served_s)
    assert small.state.needs["w1.0"] - small.now_ns == waits * NS_PER_S
    small.assert_replayable()


def test_time_before_it_answers_is_no_service() -> None:
    small = cloud()
    held = small.job(SERVE)
    small.turn(beat("a", over(small.run(held).id, CRASH)))
    small.turn(ib.Tick(), after_s=1)
    small.turn(beat("a", status(small.run(held).id, "fetching")), after_s=3600)
    small.turn(beat("a", over(small.run(held).id, CRASH)), after_s=3600)
    assert small.state.needs["w1.0"] - small.now_ns == 2 * NS_PER_S


def test_a_job_that_crashes_is_not_tried_again() -> None:
    small = cloud()
    held = small.job(JOB)
    small.turn(beat("a", over(small.run(held).id, CRASH)))
    assert (held.phase, held.reason) == ("failed", Refusal("stopped", "was killed by signal 11", "run"))
    assert small.state.needs == {} and small.state.chips["a:npu0"].held == 0


def test_chips_come_and_go() -> None:
    small = cloud(3)
    small.turn(hello("a", (chip("a", 0), chip("a", 2, health="draining"), chip("a", 3))))
    assert list(small.state.chips) == ["a:npu0", "a:npu2", "a:npu3"]
    usable = {name: row[3] for name, row in small.core.columns.snapshot().items()}
    assert usable == {"a:npu0": True, "a:npu2": False, "a:npu3": True}
    small.turn(ib.AgentGone("a", "cut"))
    assert not any(row[3] for row in small.core.columns.snapshot().values())
    assert not small.state.nodes["a"].linked
    small.turn(hello("a", ()))
    assert small.state.chips == {} and small.core.columns.kinds == {}
    small.assert_replayable()


def test_a_chip_that_is_gone_stays_until_its_runs_have_ended() -> None:
    small = cloud(2)
    held = small.job(replace(JOB, chips=ChipAsk("npu", 2, 1000)))
    run = small.run(held)
    small.turn(hello("a", (chip("a", 0),), [status(run.id)]))
    assert small.state.chips["a:npu1"].held == 1000
    small.assert_replayable()
    small.turn(beat("a", over(run.id)))
    assert list(small.state.chips) == ["a:npu0"]
    assert fits_ever(small.core.columns, ChipAsk("npu", 2, 1000)) is not None, "nothing waits for what is not there"
    small.assert_replayable()


def test_a_chip_that_comes_back_while_its_run_goes_on_is_kept() -> None:
    small = cloud(2)
    run = small.run(small.job(replace(JOB, chips=ChipAsk("npu", 2, 1000))))
    small.turn(hello("a", (), [status(run.id)]))
    small.turn(hello("a", chips("a", 2), [status(run.id)]))
    small.turn(beat("a", over(run.id)))
    assert {name: row[2:] for name, row in small.core.columns.snapshot().items()} == {
        "a:npu0": (1000, True),
        "a:npu1": (1000, True),
    }


def test_a_chip_that_is_of_another_kind_now_is_placed_as_that() -> None:
    small = cloud(1)
    run = small.run(small.job(replace(JOB, chips=ChipAsk("npu", 1, 400))))
    small.turn(hello("a", [replace(chip("a", 0), kind="gpu")], [status(run.id)]))
    assert small.core.columns.snapshot() == {"a:npu0": ("gpu", "a", 600, True)}
    assert small.submit(JOB)[0].refusal is not None
    assert small.run(small.job(replace(JOB, chips=ChipAsk("gpu", 1, 600)))).plan.slices[0].chip == "a:npu0"
    small.assert_replayable()


def test_control_that_starts_believes_no_node_until_it_has_heard_of_it() -> None:
    small = cloud()
    held = small.job(JOB)
    small.restart()
    assert not small.state.nodes["a"].linked
    assert small.run(small.state.workloads[held.workload.id]).phase == "placed", "and no run is lost for it"
    waits = small.job(JOB)
    assert waits.reason is not None and waits.reason.counts == {"node away or chip unhealthy": 2}


def test_events_of_ended_workloads_are_forgotten_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dure.computing.state.KEPT_ENDED", 20)
    monkeypatch.setattr("dure.metering.ledger.KEPT_ENDED", 20)
    small = cloud(1)
    endpoint = small.job(replace(SERVE, chips=ChipAsk("npu", 1, 1)))
    for number in range(60):
        job = small.job(replace(JOB, chips=ChipAsk("npu", 1 if number % 3 else 9, 999)))
        if job.phase != "failed":
            small.turn(beat("a", over(job.runs[0]), status(endpoint.runs[0])), after_s=1)
        assert len(small.state.ended) <= 22
        assert set(small.state.ended) | {"w1"} == set(small.state.workloads)
        assert set(small.state.runs) == {run for held in small.state.workloads.values() for run in held.runs.values()}
    assert small.state.ended[-20:] == [f"w{number}" for number in range(42, 62)]
    assert small.state.next_workload == 62
    small.assert_replayable()


def test_a_snapshot_in_the_middle_is_as_good_as_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dure.computing.state.KEPT_ENDED", 5)
    small = cloud(2)
    for number in range(12):
        job = small.job(JOB)
        small.turn(beat("a", over(job.runs[0])), after_s=1)
        if number == 7:
            raw, ledger, start = json.encode(small.state), json.encode(small.core.ledger), len(small.log)
    small.submit(JOB, JOB, JOB, SERVE)
    core = Core(("m",), json.decode(raw, type=State), json.decode(ledger, type=type(small.core.ledger)))
    for entry in small.log[start:]:
        core.replay(entry.at_ns, entry.event)
    core.reindex()
    assert json.encode(core.state) == json.encode(small.state)
    assert json.encode(core.ledger) == json.encode(small.core.ledger)
    later = small.now_ns + NS_PER_S
    said = [beat("a", over("w13.0.1"), over("w14.0.1"))]
    assert core.turn(later, said)[0] == small.core.turn(later, said)[0]
    assert columns_of(core.state).snapshot() == small.core.columns.snapshot()


def test_a_core_made_of_a_state_knows_what_lives_and_what_waits() -> None:
    small = cloud(1)
    small.submit(JOB, JOB)
    core = Core(("m",), json.decode(json.encode(small.state), type=State))
    events, _ = core.turn(small.now_ns, [beat("a", over("w1.0.1"))])
    assert [event.run for event in events if isinstance(event, ev.RunEnded | ev.RunPlaced)] == ["w1.0.1", "w2.0.1"]
