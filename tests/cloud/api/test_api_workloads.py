"""Submitting, stopping, and being told why: over HTTP, with everything a client can get wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dure.cloud.api import resources
from dure.model.errors import LogUnwritable
from dure.model.event import Entry
from dure.model.view import ChipView, EventView, ModelView, Report, ServerInfo, StoryLine, Submitted, WorkloadView
from dure.model.wire import RunStatus, Start, Stop
from dure.model.workload import Ask, ChipAsk, Command, Exit, Serve
from dure.store.memory import MemoryLog
from tests.cloud.api.served import Answer, Served, job, until

BAD = [
    b"", b"{", b"null", b"7", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}", b"[null]", b"[[]]", b"NaN", b"{'work':1}",
    b'{"work":null}', b'{"work":{"type":"nope"}}', b'{"work":{"argv":["x"]}}', b'{"work":{"type":"command"}}',
    b'{"work":{"type":"command","argv":[]}}', b'{"work":{"type":"command","argv":"true"}}',
    b'{"work":{"type":"command","argv":[""]}}', b'{"work":{"type":"command","argv":[7]}}',
    b'{"work":{"type":"command","argv":["\\ud800"]}}', b'{"work":{"type":"command","argv":["x"],"env":["A"]}}',
    b'{"work":{"type":"serve","model":"UPPER"}}', b'{"work":{"type":"serve","model":"m","slots":0}}',
    b'{"work":{"type":"serve","model":"m","slots":1e99}}', b'{"work":{"type":"serve","model":"../../etc/passwd"}}',
]  # fmt: skip
BAD_CHIPS = [
    '"count":0', '"count":-1', '"count":1000001', '"count":99999999999999999999999999', '"count":1.5', '"count":true',
    '"count":null', '"count":"many"', '"milli":0', '"milli":1001', '"milli":-100', '"kind":""', '"kind":"CPU"',
    '"kind":"cpu:1"', '"kind":"../cpu"', '"kind":"\\u0000"',
]  # fmt: skip
ECHO = Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 500))


class FullLog(MemoryLog):
    """A log whose disk can be full, or slow while `gate` is clear."""

    full = trying = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def append(self, entries: Sequence[Entry]) -> int:
        self.trying = True
        assert self.gate.wait(20)
        if self.full:
            raise LogUnwritable("the log cannot be written", "the disk is full", "Free some space")
        return super().append(entries)


def test_what_is_no_ask_is_told_why_and_nothing_happens(control: Served) -> None:
    before = control.log.head
    chips = ('{"work":{"type":"command","argv":["x"]},"chips":{' + text + "}}" for text in BAD_CHIPS)
    for body in (*BAD, *(text.encode() for text in chips)):
        error = control.request("POST", "/api/workloads", body).error(400)
        assert error.why or error.what != "Validation failed for POST /api/workloads", (body[:80], error)
    for field, value in (("project", "No Such"), ("replicas", 0), ("replicas", 1001), ("replicas", -1), ("chips", 5)):
        ask = {"work": {"type": "command", "argv": ["x"]}, field: value}
        assert field in control.post("/api/workloads", ask).error(400).why
    assert control.log.head == before


def test_what_an_ask_does_not_know_is_passed_over_and_numbers_may_be_quoted(control: Served) -> None:
    agent = control.join()
    body = b'{"work":{"type":"command","argv":["x"],"new":1},"chips":{"count":"1","milli":200.0},"later":[{}]}'
    id = control.request("POST", "/api/workloads", body).as_(Submitted).id
    assert control.get(f"/api/workloads/{id}", WorkloadView).ask == job("x", chips=ChipAsk("cpu", 1, 200))
    agent.close()


LEAF = st.none() | st.integers() | st.text() | st.booleans()
NAMES = st.sampled_from(["work", "type", "argv", "chips", "count", "x"])
JSON = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_no_json_at_all_breaks_it(control: Served, value: object) -> None:
    answer = control.post("/api/workloads", value)
    assert answer.status == 400 or (answer.status == 200 and value == [])


def test_a_job_is_admitted_and_on_disk_when_it_is_answered(control: Served) -> None:
    agent = control.join()
    answer = control.submit(job("echo", "두레 🌾", "a\nb"))
    assert answer.status == 201 and answer.as_(Submitted) == Submitted("w1")
    names = [type(event).__name__ for event in control.events()]
    assert names[-2:] == ["WorkloadSubmitted", "RunPlaced"]
    start = agent.hear(Start)
    assert start.spec.run == "w1.0.1" and start.spec.work == Command(("echo", "두레 🌾", "a\nb"))
    view = control.get("/api/workloads/w1", WorkloadView)
    assert view.by == "k1" and view.phase == "active" and view.runs[0].phase == "placed"
    assert control.get("/api/workloads", list[WorkloadView]) == [view]
    story = control.get("/api/workloads/w1/why", list[StoryLine])
    assert [line.text.split()[0] for line in story] == ["submitted", "run"] and "두레" in story[0].text
    chips = control.get("/api/chips", list[ChipView])
    assert [(chip.free_milli, chip.runs) for chip in chips] == [(900, ("w1.0.1",)), *[(1000, ())] * 3]
    assert control.get("/api/info", ServerInfo).nodes == {"n": True}
    agent.close()


def test_a_refused_job_has_a_number_a_reason_and_counts(control: Served) -> None:
    agent = control.join()
    error = control.submit(job(chips=ChipAsk("cpu", 999, 1000))).error(409)
    assert error.what == "Refused" and error.workload == "w1" and error.refusal is not None
    assert "999" in error.why and error.refusal.counts == {"nodes too small": 1} and error.refusal.code == "shape"
    story = control.get("/api/workloads/w1/why", list[StoryLine])
    assert len(story) == 1 and "refused by place" in story[0].text and "999" in story[0].text
    view = control.get("/api/workloads/w1", WorkloadView)
    assert view.phase == "failed" and view.reason == error.refusal and view.runs == ()
    assert control.get("/api/workloads", list[WorkloadView]) == []
    assert control.get("/api/workloads?all=true", list[WorkloadView]) == [view]
    for ask, code in (
        (job(chips=ChipAsk("warp-core")), "shape"),
        (job(project="nowhere"), "no_such"),
        (Ask(Serve("gpt-9")), "unknown_model"),
        (Ask(Command(("true",)), replicas=2), "shape"),
    ):
        refusal = control.submit(ask).error(409).refusal
        assert refusal is not None and refusal.code == code and refusal.why
    agent.close()


def test_a_batch_is_answered_in_order_some_refused(control: Served) -> None:
    agent = control.join()
    asks = [job(), job(chips=ChipAsk("npu")), ECHO, job(project="nowhere"), job()]
    done = control.submit(*asks).as_(list[Submitted])
    assert [one.id for one in done] == ["w1", "w2", "w3", "w4", "w5"]
    assert [one.refusal.code if one.refusal else None for one in done] == [None, "shape", None, "no_such", None]
    assert control.post("/api/workloads", []).as_(list[Submitted]) == []
    assert control.post("/api/workloads", [job()]).as_(list[Submitted]) == [Submitted("w6")]
    error = control.request("POST", "/api/workloads", msgspec.json.encode([job(), {"work": 1}])).error(400)
    assert error.why and len(control.get("/api/workloads?all=true", list[WorkloadView])) == 6
    agent.close()


def test_a_batch_may_not_be_endless(control: Served) -> None:
    before = control.log.head
    error = control.submit(*[job()] * (resources.MAX_ASKS + 1)).error(413)
    assert str(resources.MAX_ASKS) in error.why and control.log.head == before
    assert len(control.submit(*[job()] * resources.MAX_ASKS).as_(list[Submitted])) == resources.MAX_ASKS


def test_clients_at_once_get_numbers_of_their_own(control: Served) -> None:
    ids: list[str] = []

    def ask() -> None:
        for _ in range(10):
            ids.append(control.submit(ECHO, ECHO).as_(list[Submitted])[1].id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == len(set(ids)) == 80


def test_stopping_is_idempotent_and_ends_with_the_run(control: Served) -> None:
    agent = control.join()
    control.submit(job())
    control.submit(job(chips=ChipAsk("cpu", 4, 1000)))
    for _ in range(2):
        view = control.post("/api/workloads/w1/stop").as_(WorkloadView)
        assert view.phase == "stopping"
    assert agent.hear(Stop).run == "w1.0.1"
    assert control.post("/api/workloads/w2/stop").as_(WorkloadView).phase == "stopped", "it only waited"
    agent.beat(RunStatus("w1.0.1", "ended", 5, exit=Exit("stopped")))
    until(lambda: control.get("/api/workloads/w1", WorkloadView).phase == "stopped")
    assert control.post("/api/workloads/w1/stop").as_(WorkloadView).phase == "stopped"
    story = [line.text for line in control.get("/api/workloads/w1/why", list[StoryLine])]
    assert story.count("stop asked by k1") == 1 and story[-1] == "stopped: stopped by k1"
    assert control.request("POST", "/api/workloads/w1/stop", b"rubbish").status == 200, "the body does not matter"
    agent.close()


def test_a_waiting_job_says_why(control: Served) -> None:
    agent = control.join()
    control.submit(job(chips=ChipAsk("cpu", 4, 1000)), job(chips=ChipAsk("cpu", 1, 100)))
    view = control.get("/api/workloads/w2", WorkloadView)
    assert view.phase == "waiting" and view.reason is not None and view.reason.code == "busy"
    assert sum(view.reason.counts.values()) == 4
    assert "waits (busy)" in control.get("/api/workloads/w2/why", list[StoryLine])[-1].text
    agent.close()


IDS = [
    "w9",
    "w0",
    "W1",
    "0",
    "-1",
    "..",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "w1%00",
    "%ff%fe",
    "%ED%A0%80",
    "두레",
]
IDS += ["' OR 1=1 --", "*", "%25", "w1;", "w1?x", "a" * 5000, "%F0%9F%8C%BE"]


def test_an_id_that_is_none_is_not_found(control: Served) -> None:
    agent = control.join()
    control.submit(job())
    for id in IDS:
        path = "".join(char if char.isascii() and char not in " ?" else "%3F" for char in id)
        for method, rest in (("GET", ""), ("GET", "/why"), ("GET", "/log"), ("POST", "/stop")):
            control.request(method, f"/api/workloads/{path}{rest}").error(404)
    agent.close()


def test_a_full_disk_is_507_and_nothing_has_happened(tmp_path: Path) -> None:
    log = FullLog()
    with closing(Served(tmp_path, log)) as control:
        agent = control.join()
        control.submit(job()).as_(Submitted)
        log.full = True
        for answer in (
            control.submit(job()),
            control.submit(job(), job()),
            control.post("/api/workloads/w1/stop"),
            control.post("/api/projects", {"name": "p2"}),
            control.post("/api/keys", {"project": "default"}),
        ):
            error = answer.error(507)
            assert error.why == "the disk is full" and error.do == "Free some space"
        assert len(control.get("/api/workloads?all=true", list[WorkloadView])) == 1
        assert control.get("/api/workloads/w1", WorkloadView).phase == "active"
        log.full = False
        assert control.submit(job()).as_(Submitted).id == "w2"
        assert control.post("/api/projects", {"name": "p2"}).status == 201
        agent.close()


def test_nobody_is_shown_what_is_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FullLog()
    with closing(Served(tmp_path, log)) as control:
        real, waiting = control.loop.on_disk.wait, threading.Event()

        async def spied() -> bool:
            waiting.set()
            return await real()

        monkeypatch.setattr(control.loop.on_disk, "wait", spied)
        log.full, log.trying = True, False
        log.gate.clear()
        seen: list[Answer] = []
        asks = threading.Thread(target=lambda: seen.append(control.submit(job())))
        asks.start()
        until(lambda: log.trying)
        assert len(control.loop.core.state.workloads) == 1, "the fold is ahead"
        reads = threading.Thread(target=lambda: seen.append(control.request("GET", "/api/workloads?all=true")))
        reads.start()
        assert waiting.wait(20)
        log.gate.set()
        for thread in (asks, reads):
            thread.join(20)
        assert sorted(answer.status for answer in seen) == [200, 507]
        assert [answer.body for answer in seen if answer.status == 200] == [b"[]"]


def test_a_fault_of_ours_is_named_and_its_inside_goes_to_the_log(
    control: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> list[ModelView]:
        raise ZeroDivisionError("a secret inside")

    monkeypatch.setattr("dure.cloud.api.views.models", broken)
    with caplog.at_level(logging.ERROR):
        answer = control.request("GET", "/api/models")
    error = answer.error(500)
    assert error.why == "ZeroDivisionError" and "control.log" in error.do and b"secret" not in answer.body
    assert "a secret inside" in caplog.text and "/api/models" in caplog.text and "Traceback" in caplog.text


def test_wrong_methods_and_unknown_paths_are_in_the_same_shape(control: Served) -> None:
    control.request("DELETE", "/api/workloads/w1").error(405)
    control.request("PUT", "/api/workloads", b"{}").error(405)
    control.request("GET", "/api/nothing").error(404)
    control.request("GET", "/nothing").error(404)


def test_models_name_the_endpoints_that_serve_them(control: Served) -> None:
    agent = control.join()
    control.submit(ECHO)
    models = {view.name: view for view in control.get("/api/models", list[ModelView])}
    assert models["simulated-echo"].endpoints == ("w1",) and models["smollm2-135m"].endpoints == ()
    assert models["smollm2-135m"].licence == "Apache-2.0" and models["smollm2-135m"].size_bytes == 98_362_432
    control.post("/api/workloads/w1/stop")
    agent.beat(RunStatus("w1.0.1", "ended", exit=Exit("stopped")))
    until(lambda: not [view for view in control.get("/api/models", list[ModelView]) if view.endpoints])
    agent.close()


def test_events_come_in_pages(control: Served) -> None:
    control.submit(*[job()] * 30)
    everything = control.get("/api/events?limit=1000", list[EventView])
    assert [view.offset for view in everything] == list(range(control.log.head)) and len(everything) == 32
    paged: list[EventView] = []
    while page := control.get(f"/api/events?after={len(paged)}&limit=7", list[EventView]):
        assert len(page) <= 7
        paged += page
    kinds = {view.kind for view in paged}
    assert paged == everything and kinds == {"project_created", "key_created", "workload_refused"}
    for query in ("after=-1", "after=x", "after=1.5", "limit=0", "limit=1001", "limit=-5", "after=", "limit=nan"):
        control.request("GET", f"/api/events?{query}").error(400)
    for after in (32, 2**31, 2**63, 10**40):
        assert control.get(f"/api/events?after={after}", list[EventView]) == []


def test_reports_come_by_what_they_may_and_no_other(control: Served) -> None:
    agent = control.join()
    control.submit(job())
    for what in ("usage", "energy", "cost"):
        for by in ("project", "workload", "model", "chip"):
            report = control.get(f"/api/report/{what}?by={by}", Report)
            assert report.by == by and report.columns[0] == by and len(report.totals) == len(report.columns)
    assert control.get("/api/report/usage", Report).by == "project"
    control.request("GET", "/api/report/nope").error(404)
    control.request("GET", "/api/report/usage?by=colour").error(400)
    agent.close()
