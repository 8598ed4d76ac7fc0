"""Who is let into the queue, and who refuses the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from dure.computing import inbox as ib
from dure.computing.admit import admit
from dure.model.event import WorkloadRefused
from dure.model.workload import Ask, ChipAsk, Command, Refusal, Serve
from tests.computing.small import JOB, SERVE, Small, chips, hello


def cloud(*projects: str) -> Small:
    """Two nodes, of 2 and 3 chips; the second is away."""
    small = Small()
    small.turn(*(ib.MakeProject(project, "test", 0) for project in projects))
    small.turn(hello("a", chips("a", 2)), hello("b", chips("b", 3)))
    small.turn(ib.AgentGone("b", "cut"))
    return small


def verdict(small: Small, ask: Ask) -> Refusal | None:
    return admit(small.state, small.core.columns, small.core.models, ask)


def test_what_fits_is_admitted() -> None:
    small = cloud()
    assert verdict(small, JOB) is None
    assert verdict(small, replace(SERVE, replicas=1000)) is None


def test_what_would_fit_were_the_cloud_empty_and_whole_is_admitted() -> None:
    small = cloud()
    small.submit(JOB, JOB)
    assert verdict(small, replace(JOB, chips=ChipAsk("npu", 3, 1000))) is None


@pytest.mark.parametrize(
    ("ask", "code", "who", "says"),
    [
        (replace(JOB, project="ghost"), "no_such", "admit", "no project ghost; projects: default"),
        (replace(JOB, replicas=2), "shape", "admit", "a job has one process, not 2 replicas"),
        (replace(SERVE, work=Serve("nope")), "unknown_model", "catalogue", "no model nope; models: m"),
        (replace(JOB, chips=ChipAsk("tpu", 1, 1)), "shape", "place", "no chip of kind tpu; kinds here: npu"),
        (
            replace(JOB, chips=ChipAsk("npu", 1_000_000, 1000)),
            "shape",
            "place",
            "asks 1000000 npu chips on one node; the largest of 2 node(s) has 3 of 5 in all",
        ),
    ],
)
def test_who_refuses_and_why(ask: Ask, code: str, who: str, says: str) -> None:
    refusal = verdict(cloud(), ask)
    assert refusal is not None
    assert (refusal.code, refusal.who, refusal.why) == (code, who, says)


def test_jobs_of_several_projects_want_isolation_endpoints_do_not() -> None:
    small = cloud("other")
    refusal = verdict(small, JOB)
    assert refusal is not None
    assert (refusal.code, refusal.who) == ("isolation", "admit")
    assert "jobs of 2 projects" in refusal.why
    assert verdict(small, SERVE) is None
    assert verdict(small, replace(SERVE, project="other")) is None


def test_an_empty_cloud_and_an_empty_catalogue_say_so() -> None:
    small = Small()
    refusal = verdict(small, JOB)
    assert refusal is not None and refusal.counts == {"chips of this kind": 0}
    refusal = admit(small.state, small.core.columns, (), SERVE)
    assert refusal is not None and refusal.code == "unknown_model"


asks = st.builds(
    Ask,
    st.one_of(
        st.builds(Command, st.tuples(st.text(min_size=1))), st.builds(Serve, st.sampled_from(("m", "x", "m" * 63)))
    ),
    st.builds(ChipAsk, st.sampled_from(("npu", "tpu", "k" * 63)), st.integers(1, 10**6), st.integers(1, 1000)),
    st.sampled_from(("default", "ghost")),
    st.integers(1, 1000),
)


@given(asks, st.booleans())
def test_law_4_every_refusal_names_who_and_why_and_is_in_the_log(ask: Ask, several: bool) -> None:
    small = cloud(*(["other"] if several else []))
    before = json.encode(small.state)
    refusal = verdict(small, ask)
    assert json.encode(small.state) == before, "admission decides, it does not change"
    done = small.submit(ask)[0]
    assert done.refusal == refusal
    told = small.of(WorkloadRefused)
    assert [event.refusal for event in told] == ([] if refusal is None else [refusal])
    if refusal is not None:
        assert refusal.why and refusal.who
        held = small.state.workloads[done.id]
        assert (held.phase, held.reason, held.runs) == ("failed", refusal, {})
    small.assert_replayable()
