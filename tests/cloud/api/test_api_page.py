"""The plain page: nothing without the admin key, nothing unescaped, headers that keep it to itself."""

from __future__ import annotations

import pytest

from dure.cloud.gateway.asgi import LOOPBACK, check_site, parse
from dure.model.view import KeyMade, Submitted
from dure.model.workload import ChipAsk
from tests.cloud.api.served import ADMIN, Answer, Served, cores, job

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ASKED = "Give the admin key"


def login(control: Served, body: bytes) -> Answer:
    return control.request("POST", "/login", body, None, FORM)


def open_page(control: Served) -> str:
    """The page after a login."""
    cookie = login(control, f"key={ADMIN}".encode()).headers["set-cookie"].partition(";")[0]
    answer = control.request("GET", "/", key=None, headers={"Cookie": f"other=1; {cookie}"})
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    return answer.body.decode()


def test_without_a_session_the_page_shows_a_form_and_no_data(control: Served) -> None:
    agent = control.join()
    control.submit(job("echo", "confidential"))
    for headers in (
        {},
        {"Cookie": "dure_session="},
        {"Cookie": "dure_session=guess"},
        {"Authorization": f"Bearer {ADMIN}"},
    ):
        answer = control.request("GET", "/", key=None, headers=headers)
        page = answer.body.decode()
        assert answer.status == 200 and ASKED in page and 'action="/login"' in page and 'type="password"' in page
        assert "confidential" not in page and "cpu" not in page and "A core" not in page
    agent.close()


def test_the_admin_key_opens_it(control: Served) -> None:
    answer = login(control, f"key=+{ADMIN}+".encode())
    assert answer.status == 303 and answer.headers["location"] == "/"
    flags = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags and not any(flag.startswith("domain") for flag in flags)
    assert ADMIN not in answer.headers["set-cookie"]
    again = login(control, f"key={ADMIN}".encode())
    assert again.headers["set-cookie"].partition(";")[0] != answer.headers["set-cookie"].partition(";")[0]


def test_no_other_key_opens_it(control: Served) -> None:
    plain = control.post("/api/keys", {"project": "default"}).as_(KeyMade).secret
    for key in ("wrong", plain, "", "%ff%fe", "<script>alert(1)</script>", "a" * 1_000_000):
        answer = login(control, f"key={key}".encode())
        assert answer.status == 401 and "set-cookie" not in answer.headers
        assert "not known" in answer.body.decode() and "<script" not in answer.body.decode()
    for body in (b"", b"nokey", b"key=a&key=b", b"\xff\xfe\x00"):
        login(control, body).error(400)
    control.request("POST", "/login", b'["key"]', None).error(400)


def test_every_answer_of_the_page_carries_its_headers(control: Served) -> None:
    good = login(control, f"key={ADMIN}".encode())
    cookie = good.headers["set-cookie"].partition(";")[0]
    page = control.request("GET", "/", key=None, headers={"Cookie": cookie})
    for answer in (control.request("GET", "/", key=None), login(control, b"key=wrong"), good, page):
        policy = {part.strip() for part in answer.headers["content-security-policy"].split(";")}
        assert {"default-src 'none'", "style-src 'unsafe-inline'", "frame-ancestors 'none'"} <= policy
        assert {"form-action 'self'", "base-uri 'none'"} <= policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"


def test_the_gateway_lets_the_forms_origin_through() -> None:
    """With `Referrer-Policy: no-referrer` a browser would send `Origin: null`, and nobody could log in."""
    host = (b"host", b"127.0.0.1:8420")
    scope = {"type": "http", "method": "POST", "path": "/login", "raw_path": b"/login", "query_string": b""}
    check_site(parse(scope | {"headers": [host, (b"origin", b"http://127.0.0.1:8420")]}), LOOPBACK)
    with pytest.raises(Exception, match="null"):
        check_site(parse(scope | {"headers": [host, (b"origin", b"null")]}), LOOPBACK)


def test_an_empty_cloud_says_so(control: Served) -> None:
    page = open_page(control)
    assert "No chips yet" in page and "No workloads yet" in page and "project default created by up" in page
    assert ASKED not in page and "simulated" not in page


def test_what_tenants_wrote_is_shown_as_text(control: Served) -> None:
    agent = control.join(cores(2, "n<b>", "cpu"), "n<b>")
    evil = "<script>alert('&\"')</script>"
    control.submit(job("echo", evil)).as_(Submitted)
    control.submit(job("두레", evil, chips=ChipAsk("npu"))).error(409)
    page = open_page(control)
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(&#x27;&amp;&quot;&#x27;)" in page and "n&lt;b&gt;" in page and "두레" in page
    assert "no chip of kind npu" in page
    agent.close()


def test_it_tells_simulated_chips_from_real_ones(control: Served) -> None:
    agent = control.join(cores(3))
    assert "simulated" not in open_page(control)
    agent.close()
    chips = [
        type(chip)(**{name: getattr(chip, name) for name in chip.__struct_fields__} | {"source": "simulated"})
        for chip in cores(70, "s", "sim-npu")
    ]
    agent = control.join(chips, "s")
    page = open_page(control)
    assert "not measurements" in page and '<td class="n">70</td>' in page
    agent.close()


def test_the_newest_workloads_come_first_and_no_more_than_fifty(control: Served) -> None:
    agent = control.join()
    control.submit(*[job("echo", f"job-{i:03}-") for i in range(60)])
    page = open_page(control)
    shown = [i for i in range(60) if f"job-{i:03}-" in page.partition("Last events")[0]]
    assert shown == list(range(10, 60)) and page.index("job-059-") < page.index("job-010-")
    agent.close()
