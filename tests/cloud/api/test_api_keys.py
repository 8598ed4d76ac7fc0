"""Who may ask what: every path wants a key, a project's key sees its project alone, some want an admin's."""

from __future__ import annotations

import socket

import msgspec
import pytest
from msgspec import Struct

from dure.model.chip import Node
from dure.model.view import ChipView, KeyMade, KeyView, ProjectView, ServerInfo, StoryLine, Submitted, WorkloadView
from dure.model.wire import Hello
from dure.model.workload import Ask, ChipAsk, Serve
from tests.cloud.api.served import ADMIN, FakeAgent, Served, cores, job

GET = ["info", "chips", "workloads", "workloads/w1", "workloads/w1/why", "workloads/w1/log", "models", "report/usage"]
GET += ["projects", "keys", "events", "schema", "schema/openapi.json"]
POST = ["workloads", "workloads/w1/stop", "projects", "keys"]
ALL = [("GET", path) for path in GET] + [("POST", path) for path in POST]


class OpenApi(Struct):
    paths: dict[str, dict[str, object]]


def raw(control: Served, text: bytes) -> bytes:
    """The first bytes of the answer to a request that no client library would send."""
    with socket.create_connection(("127.0.0.1", control.port), 20) as sock:
        sock.sendall(text)
        return sock.recv(65_536)


def of_project(control: Served, project: str = "other") -> str:
    """A new project's key."""
    control.post("/api/projects", {"name": project}).as_(ProjectView)
    return control.post("/api/keys", {"project": project}).as_(KeyMade).secret


def test_no_path_answers_without_a_known_key(control: Served) -> None:
    wrong = ["", "dk-wrong", f"{ADMIN}x", ADMIN.upper(), "키".encode().decode("latin-1")]
    for method, path in ALL:
        for headers in ({}, *({"Authorization": f"Bearer {key}"} for key in wrong)):
            body = b"{}" if method == "POST" else None
            error = control.request(method, f"/api/{path}", body, None, headers).error(401)
            assert error.what == "Not allowed" and "admin.key" in error.do
    assert [type(event).__name__ for event in control.events()] == ["ProjectCreated", "KeyCreated"]


def test_no_other_spelling_of_a_path_gets_round_the_key(control: Served) -> None:
    spellings = ["//api/chips", "/api//chips", "///api/chips/", "/%61pi/chips", "/api%2fchips", "/api/./chips"]
    for path in spellings:
        assert control.request("GET", path, key=None).status in (401, 404), path


def test_every_path_of_the_document_wants_a_key_and_is_tried_above(control: Served) -> None:
    document = msgspec.json.decode(control.request("GET", "/api/schema/openapi.json").body, type=OpenApi)
    named = {
        (m.upper(), p.replace("{workload_id}", "w1").replace("{what}", "usage"))
        for p, ms in document.paths.items()
        for m in ms
    }
    open_ = {("GET", "/"), ("POST", "/login")}
    assert named - open_ == {(method, f"/api/{path}") for method, path in ALL if not path.startswith("schema")}
    assert b"<script" not in control.request("GET", "/api/schema").body, "a page that loads scripts from elsewhere"


def test_only_a_bearer_key_counts(control: Served) -> None:
    for text in ("Basic dk-admin", "Bearer", "dk-admin", "Bearer dk-admin dk-admin", "Bearer,dk-admin"):
        control.request("GET", "/api/info", key=None, headers={"Authorization": text}).error(401)


def test_the_scheme_may_be_in_any_case(control: Served) -> None:
    control.request("GET", "/api/info", key=None, headers={"Authorization": f"bEARER  {ADMIN} "}).as_(ServerInfo)


def test_what_is_not_http_is_told_so(control: Served) -> None:
    for text in (b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET /api/info HTTP/9.9\r\n\r\n"):
        assert b" 400 " in raw(control, text)
    control.get("/api/info", ServerInfo)


def test_keys_are_shown_once_and_stored_nowhere(control: Served) -> None:
    made = control.post("/api/keys", {"project": "default"}).as_(KeyMade)
    assert made.secret.startswith("dk-") and len(made.secret) > 40 and made.id == "k2"
    views = control.get("/api/keys", list[KeyView], made.secret)
    assert views == [KeyView("k1", "default", True), KeyView("k2", "default", False)]
    kept = b"".join(msgspec.json.encode(entry) for entry in control.entries())
    assert made.secret.encode() not in kept and ADMIN.encode() not in kept
    assert made.secret.encode() not in control.request("GET", "/api/events").body


def test_what_is_the_admins_is_refused_to_a_project(control: Served) -> None:
    key, before = of_project(control), control.log.head
    asked: list[tuple[str, str, bytes | None]] = [
        ("GET", "/api/events", None),
        ("GET", "/api/report/usage", None),
        ("GET", "/api/report/nope", None),
        ("POST", "/api/projects", b'{"name":"mine"}'),
        ("POST", "/api/keys", b'{"project":"other"}'),
    ]
    for method, path, body in asked:
        error = control.request(method, path, body, key).error(403)
        assert error.what == "This needs an admin key" and "k2" in error.why and control.log.head == before


def test_a_project_neither_sees_nor_touches_another(control: Served) -> None:
    agent = control.join()
    own = control.submit(Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 500))).as_(Submitted).id
    job_ = control.submit(job("echo", "secret")).as_(Submitted).id
    refused = control.submit(job("echo", "secret", chips=ChipAsk("npu"))).error(409).workload
    key = of_project(control)
    for id in (own, job_, refused):
        for path in ("", "/why", "/log"):
            answer = control.request("GET", f"/api/workloads/{id}{path}", key=key)
            assert "secret" not in answer.body.decode()
            assert answer.error(404) == control.request("GET", f"/api/workloads/{id}{path}", key=ADMIN + "")._replace(
                body=b'{"error":{"what":"No workload %s","do":"List them with: dure ps --all"}}' % str(id).encode(),
                status=404,
            ).error(404), "another's must look like none"
        control.post(f"/api/workloads/{id}/stop", key=key).error(404)
    assert control.get("/api/workloads?all=true", list[WorkloadView], key) == []
    assert [view.runs for view in control.get("/api/chips", list[ChipView], key) if view.runs] == []
    assert [view.runs for view in control.get("/api/chips", list[ChipView]) if view.runs] != []
    assert control.get("/api/projects", list[ProjectView], key) == [ProjectView("other", 1, 0)]
    assert [view.project for view in control.get("/api/keys", list[KeyView], key)] == ["other"]
    agent.close()


def test_a_project_asks_for_itself_alone(control: Served) -> None:
    key = of_project(control)
    serve = Ask(Serve("simulated-echo"), ChipAsk("cpu", 1, 500))
    before = control.log.head
    for asks in ([serve], [msgspec.structs.replace(serve, project="other"), serve]):
        error = control.submit(*asks, key=key).error(403)
        assert "k2" in error.why and "default" in error.why
    assert control.log.head == before, "some of the batch was taken"
    agent = control.join()
    mine = control.submit(msgspec.structs.replace(serve, project="other"), key=key).as_(Submitted).id
    view = control.get(f"/api/workloads/{mine}", WorkloadView, key)
    assert (view.by, view.ask.project) == ("k2", "other")
    assert [chip.runs for chip in control.get("/api/chips", list[ChipView], key) if chip.runs] == [(f"{mine}.0.1",)]
    assert control.get(f"/api/workloads/{mine}/why", list[StoryLine], key)[0].text.startswith("submitted by k2")
    assert control.post(f"/api/workloads/{mine}/stop", key=key).as_(WorkloadView).phase == "stopping"
    control.get(f"/api/workloads/{mine}", WorkloadView)
    agent.close()


def test_a_link_wants_the_link_key(control: Served) -> None:
    for path in ("/link/agent", "/link/gateway"):
        for key in ("", "wrong", ADMIN, "link-secre"):
            with pytest.raises(Exception, match="403"):
                FakeAgent(control.port, key, path)
    assert not control.loop.agents and not control.loop.gateways
    agent = FakeAgent(control.port)
    agent.say(Hello(Node("n", "h", 1, "0", "b"), cores(1), ()))
    agent.close()


def test_projects_have_plain_names(control: Served) -> None:
    assert control.post("/api/projects", {"name": "two"}).as_(ProjectView) == ProjectView("two", 0, 0)
    for name in ("two", "default"):
        assert control.post("/api/projects", {"name": name}).error(409).what == f"Project {name} is there already"
    for bad in ("", "Two", "../up", "a" * 64, "a b", "두레", "a\nb", 7, None):
        control.post("/api/projects", {"name": bad}).error(400)
    assert [view.name for view in control.get("/api/projects", list[ProjectView])] == ["default", "two"]


def test_no_key_for_a_project_that_is_not_there(control: Served) -> None:
    error = control.post("/api/keys", {"project": "nowhere"}).error(404)
    assert "default" in error.what and error.do == "Create it with: dure project create nowhere"
    for body in (b"{}", b"[]", b'{"project":7}', b'{"project":"../x"}', b"", b"{"):
        control.request("POST", "/api/keys", body).error(400)
