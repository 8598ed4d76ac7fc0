"""Links of agents and gateways: one a node, unreadable frames, and what is lost with them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from dure.cloud.keys import digest
from dure.model import event as ev
from dure.model.chip import Node
from dure.model.usage import TokenRow
from dure.model.view import ChipView, ServerInfo, WorkloadView
from dure.model.wire import (
    Beat,
    Hello,
    Lease,
    LogChunk,
    Recorded,
    Replica,
    Resume,
    Routes,
    RunStatus,
    Start,
    ToGateway,
    Usage,
    engine_key,
)
from dure.model.workload import Ask, ChipAsk, Serve
from tests.cloud.api.served import ADMIN, LINK, PATIENCE_S, FakeAgent, Served, cores, job, until

ECHO = Ask(Serve("simulated-echo", slots=7), ChipAsk("cpu", 1, 500))
ROW = TokenRow("k1", "default", "simulated-echo", "w1.0.1", 29_833_333, 1, 5, 7)


def linked(control: Served, node: str = "n") -> bool | None:
    return control.get("/api/info", ServerInfo).nodes.get(node)


def lost(control: Served) -> list[str]:
    return [event.why for event in control.events() if isinstance(event, ev.NodeLost)]


class FakeGateway(FakeAgent):
    def __init__(self, port: int) -> None:
        super().__init__(port, LINK, "/link/gateway")

    def next(self) -> Routes | Recorded:
        answer: Routes | Recorded = msgspec.json.decode(self.socket.recv(timeout=PATIENCE_S), type=ToGateway)
        return answer

    def tell(self, said: Resume | Usage) -> Routes | Recorded:
        self.socket.send(msgspec.json.encode(said).decode())
        return self.next()


def test_a_node_is_linked_from_its_hello_until_its_link_closes(control: Served) -> None:
    assert linked(control) is None
    agent = control.join()
    assert linked(control) is True and agent.hear(Lease).seconds > 0
    agent.close()
    until(lambda: linked(control) is False)
    assert lost(control) == ["its link closed"]
    assert [view.linked for view in control.get("/api/chips", list[ChipView])] == [False] * 4
    control.join().close()
    until(lambda: len(lost(control)) == 2)


def test_what_cannot_be_read_closes_the_link(control: Served) -> None:
    frames: list[str | bytes] = ["{", "", "null", "[]", '{"type":"nope"}', '{"type":"beat","runs":5}', "\x00", "두레"]
    frames += [b"\x00\xff", '{"type":"hello","node":{"id":7}}', '{"type":"beat","runs":[{"run":"r","phase":"flying"}]}']
    frames += ["[" * 100_000]
    for frame in frames:
        agent, before = control.join(), len(lost(control))
        agent.socket.send(frame)
        assert agent.closed() == (4400, "unreadable frame"), frame[:80]
        until(lambda before=before: len(lost(control)) == before + 1)  # type: ignore[misc]
        assert "unreadable" in lost(control)[-1] and linked(control) is False
        agent.close()
    assert control.post("/api/projects", {"name": "alive"}).status == 201


def test_a_second_link_of_a_node_takes_the_place_of_the_first(control: Served) -> None:
    first = control.join()
    control.submit(job())
    assert first.hear(Start).spec.run == "w1.0.1"
    first.beat(RunStatus("w1.0.1", "running", 5, 42))
    until(lambda: control.get("/api/workloads/w1", WorkloadView).runs[0].phase == "running")
    held = control.loop.agents["n"]
    second = control.join(runs=(RunStatus("w1.0.1", "running", 6, 42),))
    until(lambda: control.loop.agents["n"] is not held)
    first.beat()  # it knows of no runs: were it heard, w1 would be lost
    assert first.closed()[0] == 4409
    assert linked(control) is True and lost(control) == []
    assert control.get("/api/workloads/w1", WorkloadView).runs[0].phase == "running"
    control.submit(job())
    assert second.hear(Start).spec.run == "w2.0.1"
    first.close()
    second.close()
    until(lambda: linked(control) is False)


def test_a_link_speaks_for_one_node_and_says_which_first(control: Served) -> None:
    mute = FakeAgent(control.port)
    mute.beat()
    assert mute.closed()[0] == 4409
    mute.close()
    chunk = FakeAgent(control.port)
    chunk.say(LogChunk(1, 0, b"x"))
    assert chunk.closed()[0] == 4409
    chunk.close()
    two = control.join()
    two.say(Hello(Node("m", "h", 1, "0", "b"), cores(1, "m"), ()))
    assert two.closed()[0] == 4409
    two.close()
    until(lambda: not control.loop.agents)
    nameless = FakeAgent(control.port)
    nameless.say(Hello(Node("", "h", 1, "0", "b"), (), ()))
    assert nameless.closed()[0] == 4409
    nameless.close()
    assert set(control.get("/api/info", ServerInfo).nodes) == {"n"}


def test_a_link_may_greet_again(control: Served) -> None:
    agent = control.join(cores(1))
    agent.say(Hello(Node("n", "h", 1, "0", "b"), cores(3), ()))
    until(lambda: len(control.get("/api/chips", list[ChipView])) == 3)
    assert linked(control) is True
    agent.close()


def test_beats_about_others_runs_change_nothing(control: Served) -> None:
    one, other = control.join(node="n"), control.join(cores(1, "m", "npu"), node="m")
    control.submit(job())
    one.beat(RunStatus("w1.0.1", "running", 5, 42))
    until(lambda: control.get("/api/workloads/w1", WorkloadView).runs[0].phase == "running")
    other.beat(RunStatus("w1.0.1", "ended"), RunStatus("w9.0.1", "running"), RunStatus("../x", "ended"))
    seen = control.loop.core.seen_ns["m"]
    other.beat()
    until(lambda: control.loop.core.seen_ns["m"] > seen)
    assert control.get("/api/workloads/w1", WorkloadView).runs[0].phase == "running"
    one.close()
    other.close()


def test_a_hello_of_ten_thousand_chips_is_no_matter(control: Served) -> None:
    agent = control.join(cores(10_000, kind="sim-npu"))
    assert len(control.get("/api/chips", list[ChipView])) == 10_000
    agent.close()


def test_a_gateway_gets_routes_at_once_and_on_every_change(control: Served) -> None:
    gateway = FakeGateway(control.port)
    routes = gateway.next()
    assert isinstance(routes, Routes) and routes.models == {}
    assert [(grant.key, grant.project) for grant in routes.keys.values()] == [("k1", "default")]
    assert list(routes.keys) == [digest(ADMIN)]
    agent = control.join()
    while isinstance(routes := gateway.next(), Routes) and routes.models:
        pass
    control.submit(ECHO)
    assert gateway.next() == replace(routes, models={"simulated-echo": ()})
    agent.beat(RunStatus("w1.0.1", "running", 5, 42, "http://127.0.0.1:9"))
    replica = Replica("w1.0.1", "http://127.0.0.1:9", engine_key(LINK, "w1.0.1"), 7)
    assert gateway.next() == replace(routes, models={"simulated-echo": (replica,)})
    control.post("/api/workloads/w1/stop")
    assert gateway.next() == replace(routes, models={})
    control.post("/api/keys", {"project": "default"})
    last = gateway.next()
    assert isinstance(last, Routes) and [grant.key for grant in last.keys.values()] == ["k1", "k2"]
    gateway.close()
    until(lambda: not control.loop.gateways)
    agent.close()


def test_usage_is_recorded_once_by_whichever_gateway_tells_it(control: Served) -> None:
    gateway, other = FakeGateway(control.port), FakeGateway(control.port)
    assert isinstance(gateway.next(), Routes) and isinstance(other.next(), Routes)
    assert gateway.tell(Resume("gateway-0")) == Recorded("gateway-0", 0)
    usage = Usage("gateway-0", 0, 100, "d" * 64, (ROW,))
    assert gateway.tell(usage) == Recorded("gateway-0", 100)
    assert other.tell(usage) == Recorded("gateway-0", 100)
    assert other.tell(replace(usage, start=50, upto=150)) == Recorded("gateway-0", 100), "a gap or an overlap"
    assert other.tell(replace(usage, start=100, upto=90)) == Recorded("gateway-0", 100)
    assert other.tell(Resume("gateway-0")) == Recorded("gateway-0", 100)
    assert other.tell(Resume("두레")) == Recorded("두레", 0)
    used = [event for event in control.events() if isinstance(event, ev.TokensUsed)]
    assert [(event.upto, event.rows) for event in used] == [(100, (ROW,))]
    gateway.close()
    other.close()


def test_a_gateway_that_cannot_be_read_is_closed(control: Served) -> None:
    for frame in ("{", b"\x00", '{"type":"usage"}', msgspec.json.encode(Beat(())).decode()):
        gateway = FakeGateway(control.port)
        assert isinstance(gateway.next(), Routes)
        gateway.socket.send(frame)
        assert gateway.closed() == (4400, "unreadable frame")
        gateway.close()
        until(lambda: not control.loop.gateways)
