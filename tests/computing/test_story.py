"""What `dure why` says: every event in one sentence, with its figures."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.computing.story import tell, told
from dure.model import event as ev
from dure.model.chip import Node
from dure.model.usage import RunMeter, TokenRow
from dure.model.workload import Ask, ChipAsk, Command, EndReason, Exit, Plan, Refusal, Slice, Workload
from tests.computing.small import JOB, SERVE, START_NS, chips

BUSY = Refusal("busy", "npu:1: of 2 npu chips 2 less than 1000 milli free", "place", {"less than 1000 milli free": 2})
METERS = (
    RunMeter("w1.0.1", 1_500_000_000, 3_600_000_000, "measured", "rapl"),
    RunMeter("w2.0.1", 500_000_000, 1_800_000_000, "simulated", "time held"),
    RunMeter("w3.0.1", 0, None, None, "no meter"),
)
TOLD: list[tuple[ev.Event, str]] = [
    (ev.ControlStarted("0.1.0"), "control 0.1.0 started"),
    (ev.ProjectCreated("lab", "k1"), "project lab created by k1"),
    (ev.KeyCreated("k2", "lab", "ab" * 32, False, "k1"), "key k2 of project lab created by k1"),
    (ev.NodeJoined(Node("a", "a", 1, "0", "1"), chips("a", 3)), "node a joined with 3 chips"),
    (ev.NodeLost("a", "its link closed"), "node a unlinked: its link closed"),
    (ev.WorkloadSubmitted(Workload("w1", JOB, "k1", 1)), "submitted by k1 to project default: npu:1 for true"),
    (
        ev.WorkloadSubmitted(Workload("w1", SERVE, "k1", 1)),
        "submitted by k1 to project default: 1 replica(s) of m on npu:1, 4 slots each",
    ),
    (
        ev.WorkloadRefused(Workload("w1", JOB, "k1", 1), BUSY),
        "refused by place: npu:1: of 2 npu chips 2 less than 1000 milli free (2 less than 1000 milli free) "
        "[npu:1 for true]",
    ),
    (ev.WorkloadWaits("w1", BUSY), "waits (busy): npu:1: of 2 npu chips 2 less than 1000 milli free"),
    (ev.StopAsked("w1", "k1"), "stop asked by k1"),
    (ev.WorkloadEnded("w1", "failed", "exited with code 3"), "failed: exited with code 3"),
    (
        ev.RunPlaced("w1.0.1", "w1", 0, 1, Plan("a", (Slice("a:npu0", 250),), "fullest of 2 chips that fit")),
        "run w1.0.1 placed on a, 250 milli of a:npu0: fullest of 2 chips that fit",
    ),
    (
        ev.RunPlaced("w1.0.1", "w1", 0, 1, Plan("a", tuple(Slice(f"c{n}", 1000) for n in range(6)), "why")),
        "run w1.0.1 placed on a, 1000 milli of c0, 1000 milli of c1, 1000 milli of c2, 1000 milli of c3 "
        "and 2 more: why",
    ),
    (
        ev.RunMoved("w1.0.1", "w1", "running", 42, "http://127.0.0.1:5"),
        "run w1.0.1 runs, pid 42, answers at http://127.0.0.1:5",
    ),
    (ev.RunMoved("w1.0.1", "w1", "fetching", detail="98 MB"), "run w1.0.1 fetches its model: 98 MB"),
    (ev.RunMoved("w1.0.1", "w1", "starting"), "run w1.0.1 starts"),
    (
        ev.RunAdopted("w1.0.1", "w1", "control", 42),
        "run w1.0.1 adopted after a restart of control: it went on meanwhile, pid 42",
    ),
    (
        ev.RunAdopted("w1.0.1", "w1", "link"),
        "run w1.0.1 adopted after its node's link was cut: it went on meanwhile",
    ),
    (ev.RunEnded("w1.0.1", "w1", Exit("signalled", signal=9)), "run w1.0.1 was killed by signal 9"),
    (ev.RunsMetered("a", METERS), "3 run(s) on a metered: 2.0 CPU s, 1 Wh measured, 0.5 Wh simulated"),
    (ev.RunsMetered("a", (), 7, 7), "0 run(s) on a metered: 0.0 CPU s"),
    (
        ev.TokensUsed(
            "j",
            10,
            "00",
            (TokenRow("k1", "lab", "m", "w1.0.1", 1, 2, 30, 40), TokenRow("k2", "lab", "m", "w1.0.1", 1, 1, 5, 6)),
        ),
        "3 answers, 46 tokens out recorded",
    ),
]


@pytest.mark.parametrize(("event", "text"), TOLD, ids=lambda value: type(value).__name__)
def test_told_in_a_sentence(event: ev.Event, text: str) -> None:
    assert tell(event) == text


@pytest.mark.parametrize("kind", get_args(ev.Event), ids=lambda kind: str(kind.__name__))
def test_every_event_is_told(kind: type) -> None:
    assert any(isinstance(event, kind) for event, _ in TOLD), "an example is missing here"


@pytest.mark.parametrize("reason", get_args(EndReason))
def test_every_end_is_told_in_its_own_words(reason: EndReason) -> None:
    texts = {told(Exit(each, code=1, signal=1)) for each in get_args(EndReason)}
    assert len(texts) == len(get_args(EndReason))
    assert told(Exit(reason, detail="why")) == told(Exit(reason)) + " (why)"


NASTY = "a\nb\r\x1b[2Jc\x00\u2028d\tе\u202e"


@pytest.mark.parametrize(
    "event",
    [
        ev.WorkloadSubmitted(Workload("w1", Ask(Command(("sh", "-c", NASTY))), NASTY, 1)),
        ev.WorkloadRefused(Workload("w1", Ask(Command((NASTY,))), "k1", 1), BUSY),
        ev.RunMoved("w1.0.1", "w1", "starting", detail=NASTY, url=NASTY),
        ev.RunEnded("w1.0.1", "w1", Exit("failed", detail=NASTY)),
        ev.WorkloadEnded("w1", "failed", NASTY),
        ev.NodeLost(NASTY, NASTY),
        ev.ProjectCreated("두레", NASTY),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_others_wrote_cannot_break_the_line_or_the_terminal(event: ev.Event) -> None:
    text = tell(event)
    assert text.isprintable(), text
    assert "a b" in text


def test_other_scripts_are_told_as_they_are() -> None:
    assert tell(ev.ProjectCreated("두레-β", "k1")) == "project 두레-β created by k1"


def test_a_long_command_is_cut() -> None:
    text = tell(ev.WorkloadSubmitted(Workload("w1", Ask(Command(("x" * 100_000,)), ChipAsk()), "k1", START_NS)))
    assert len(text) < 200


@given(st.text(), st.text())
def test_whatever_a_node_says_is_one_line(detail: str, url: str) -> None:
    for event in (ev.RunMoved("w1.0.1", "w1", "running", 1, url, detail), ev.RunEnded("w1.0.1", "w1", _lost(detail))):
        text = tell(event)
        assert text.startswith("run w1.0.1 ") and text.isprintable()


def _lost(detail: str) -> Exit:
    return Exit("lost", detail=detail)
