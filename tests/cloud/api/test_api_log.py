"""Output of a run over HTTP, with an agent behind that answers, is silent, or is not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from dure.cloud import loop as loop_module
from dure.model.view import LogView, Submitted
from dure.model.wire import LogChunk, ReadLog, RunStatus
from dure.model.workload import Ask, ChipAsk, Exit, Serve
from tests.cloud.api.served import FakeAgent, Served, job, until

RUNNING = RunStatus("w1.0.1", "running", 5, 42)
ENDED = RunStatus("w1.0.1", "ended", 9, exit=Exit("exited", 0))


class Node:
    """An agent that serves `output` of every run from a thread, until its link is closed."""

    def __init__(self, control: Served) -> None:
        self.output, self.missing = b"", False
        self.asked: list[ReadLog] = []
        self.agent: FakeAgent = control.join()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                order = self.agent.hear(ReadLog)
                self.asked.append(order)
                data = b"" if self.missing else self.output[order.offset : order.offset + 4]
                self.agent.say(LogChunk(order.request, order.offset, data, self.missing))
        except Exception:  # the thread's edge: the link was closed
            return

    def close(self) -> None:
        self.agent.close()
        self._thread.join(20)


@pytest.fixture
def node(control: Served) -> Iterator[Node]:
    with closing(Node(control)) as made:
        yield made


def read(control: Served, query: str = "") -> LogView:
    return control.get(f"/api/workloads/w1/log{query}", LogView)


def moved(control: Served, node: Node, status: RunStatus) -> None:
    node.agent.beat(status)
    until(lambda: control.loop.core.state.runs[status.run].phase == status.phase)


def test_output_is_paged_to_its_end(control: Served, node: Node) -> None:
    control.submit(job())
    assert read(control) == LogView("w1.0.1", b"", 0, False), "nothing yet: it has not begun"
    moved(control, node, RUNNING)
    assert read(control) == LogView("w1.0.1", b"", 0, False)
    node.output = b"ab\xff\x00\r\n"
    assert read(control) == LogView("w1.0.1", b"ab\xff\x00", 4, False)
    assert read(control, "?offset=4&run=w1.0.1") == LogView("w1.0.1", b"\r\n", 6, False)
    assert read(control, "?offset=6") == LogView("w1.0.1", b"", 6, False)
    moved(control, node, ENDED)
    assert read(control) == LogView("w1.0.1", b"ab\xff\x00", 4, False)
    assert read(control, "?offset=6") == LogView("w1.0.1", b"", 6, True)
    assert [order.run for order in node.asked] == ["w1.0.1"] * len(node.asked)


def test_a_reader_that_waits_gets_what_comes(control: Served, node: Node) -> None:
    control.submit(job())
    got: list[LogView] = []
    reader = threading.Thread(target=lambda: got.append(read(control, "?wait_s=20")))
    reader.start()
    moved(control, node, RUNNING)
    until(lambda: node.asked)
    assert not got
    node.output = b"news"
    reader.join(20)
    assert got == [LogView("w1.0.1", b"news", 4, False)]


def test_a_reader_that_waits_is_told_the_end_at_once(control: Served, node: Node) -> None:
    control.submit(job())
    moved(control, node, RUNNING)
    got: list[LogView] = []
    reader = threading.Thread(target=lambda: got.append(read(control, "?wait_s=30")))
    reader.start()
    until(lambda: node.asked)
    moved(control, node, ENDED)
    reader.join(20)
    assert got == [LogView("w1.0.1", b"", 0, True)]


def test_output_that_is_gone_ends_rather_than_hangs(control: Served, node: Node) -> None:
    node.missing = True
    control.submit(job())
    moved(control, node, RUNNING)
    assert read(control) == LogView("w1.0.1", b"", 0, False)
    moved(control, node, ENDED)
    assert read(control, "?wait_s=30") == LogView("w1.0.1", b"", 0, True)


def test_a_refused_job_has_no_output(control: Served, node: Node) -> None:
    control.submit(job(chips=ChipAsk("npu"))).error(409)
    assert read(control, "?wait_s=30") == LogView("", b"", 0, True)


def test_a_waiting_job_has_no_output_yet(control: Served, node: Node) -> None:
    control.submit(job(chips=ChipAsk("cpu", 4, 1000)), job(chips=ChipAsk("cpu", 4, 1000)))
    view = control.get("/api/workloads/w2/log", LogView)
    assert view == LogView("", b"", 0, False) and not node.asked
    control.post("/api/workloads/w2/stop")
    assert control.get("/api/workloads/w2/log?wait_s=30", LogView).ended


def test_each_replica_has_its_own_output(control: Served, node: Node) -> None:
    control.submit(Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 100), replicas=2)).as_(Submitted)
    node.output = b"hi"
    for run in ("w1.0.1", "w1.1.1"):
        moved(control, node, RunStatus(run, "running", 5, 42, "http://127.0.0.1:1"))
        assert read(control, f"?run={run}") == LogView(run, b"hi", 2, False)
    assert read(control).run == "w1.0.1"


def test_another_workloads_run_is_not_found(control: Served, node: Node) -> None:
    control.submit(job(), job())
    for run in ("w2.0.1", "w1.0.2", "../../etc", "%00", "w1.0.1%0a"):
        control.request("GET", f"/api/workloads/w1/log?run={run}").error(404)
    assert not node.asked


def test_what_is_no_number_is_refused(control: Served, node: Node) -> None:
    control.submit(job())
    for query in (
        "offset=-1",
        "offset=x",
        "offset=1.5",
        "wait_s=-1",
        "wait_s=31",
        "wait_s=nan",
        "wait_s=inf",
        "wait_s=",
    ):
        control.request("GET", f"/api/workloads/w1/log?{query}").error(400)
    moved(control, node, RUNNING)
    assert read(control, f"?offset={2**62}").data == b""


def test_a_node_that_is_away_is_told_so(control: Served, node: Node) -> None:
    control.submit(job())
    moved(control, node, RUNNING)
    node.close()
    until(lambda: "n" not in control.loop.agents)
    error = control.request("GET", "/api/workloads/w1/log").error(503)
    assert "w1.0.1" in error.what and "n is away" in error.why


def test_a_silent_node_is_told_so(control: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_ANSWER_S", 0.05)
    with closing(control.join()) as agent:
        control.submit(job())
        agent.beat(RUNNING)
        until(lambda: control.loop.core.state.runs["w1.0.1"].phase == "running")
        assert "does not answer" in control.request("GET", "/api/workloads/w1/log").error(503).why
        assert not control.loop._chunks, "nobody waits, and nothing is kept"
