"""The orders that bring a node to what the log says, for every pair of what is and what should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.computing.reconcile import reconcile
from dure.model.event import RunMoved, StopAsked
from dure.model.wire import Forget, Order, RunSpec, RunStatus, Start, Stop
from dure.model.workload import Command, RunPhase, Slice
from tests.computing.small import JOB, Small, beat, chips, hello, over, status

PHASES: tuple[RunPhase, ...] = ("placed", "fetching", "starting", "running")
RUN = "w1.0.1"


def cloud(phase: RunPhase = "placed", stop: bool = False) -> Small:
    """One job, placed on the one node, which control believes in `phase`."""
    small = Small()
    small.turn(hello("a", chips("a", 2)))
    small.submit(JOB)
    if phase != "placed":
        small.core.replay(small.now_ns, RunMoved(RUN, "w1", phase))
    if stop:
        small.core.replay(small.now_ns, StopAsked("w1", "k1"))
    return small


def orders(small: Small, *actual: RunStatus) -> list[Order]:
    live = [run for run in small.state.runs.values() if run.phase != "ended"]
    return reconcile(small.state, live, {each.run: each for each in actual})


def test_a_start_says_all_the_node_needs() -> None:
    spec = RunSpec(RUN, "w1", "default", Command(("true",)), (Slice("a:npu0", 1000),))
    assert orders(cloud()) == [Start(spec)]


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_as_it_should_be_is_left_alone(phase: RunPhase) -> None:
    assert orders(cloud(), status(RUN, phase)) == []


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_run_that_went_on_and_is_not_there_is_not_started_again(phase: RunPhase) -> None:
    assert orders(cloud(phase)) == []


@pytest.mark.parametrize("seen", [None, *PHASES])
def test_a_stop_is_ordered_until_the_end_is_seen(seen: RunPhase | None) -> None:
    shown = [] if seen is None else [status(RUN, seen)]
    assert orders(cloud(stop=True), *shown) == [Stop(RUN)]
    assert orders(cloud("running", stop=True), *shown) == [Stop(RUN)]


@pytest.mark.parametrize("stop", [False, True])
def test_an_end_not_in_the_log_yet_is_neither_forgotten_nor_stopped(stop: bool) -> None:
    assert orders(cloud(stop=stop), over(RUN)) == []


@pytest.mark.parametrize("run", ["w9.0.1", "w1.0.7", "", "두레", "../../etc"])
def test_runs_the_log_does_not_know_are_stopped_then_forgotten(run: str) -> None:
    small = cloud("running")
    assert orders(small, status(RUN), status(run)) == [Stop(run)]
    assert orders(small, status(RUN), over(run)) == [Forget(run)]


def test_a_run_that_ended_in_the_log_is_stopped_then_forgotten() -> None:
    small = cloud("running")
    small.turn(beat("a", over(RUN)))
    assert small.state.runs[RUN].phase == "ended"
    assert orders(small, status(RUN)) == [Stop(RUN)]
    assert orders(small, over(RUN)) == [Forget(RUN)]


@given(st.sampled_from(PHASES), st.booleans(), st.lists(st.sampled_from((RUN, "w1.0.0", "w7.0.1")), unique=True))
def test_orders_depend_on_nothing_but_what_is_shown(phase: RunPhase, stop: bool, shown: list[str]) -> None:
    small = cloud(phase, stop)
    actual = [status(run) for run in shown]
    first = orders(small, *actual)
    assert orders(small, *actual) == first
    assert len({type(order).__name__ + str(order) for order in first}) == len(first), "each order once"
