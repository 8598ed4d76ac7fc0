"""What control and the agent answer goes through the gateway byte by byte."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.cloud.gateway.parts import KEY, LINK_KEY, Cloud, FakeControl, until

pytestmark = pytest.mark.slow  # real processes


def test_requests_and_answers_pass_both_ways(cloud: Cloud) -> None:
    headers = {"X-Mine": "1", "Authorization": "Bearer anything", "Connection": "X-Hop", "X-Hop": "1", "Cookie": "a=b"}
    answer = httpx.post(f"{cloud.url}/api/workloads?a=%20b&c", content=b"x" * 3_000_000, headers=headers, timeout=20)
    assert (answer.status_code, answer.text, answer.headers["x-from"]) == (201, "got 3000000", "control")
    assert "x-secret" not in answer.headers
    (method, path, seen, size) = cloud.control.requests[-1]
    assert (method, path, size) == ("POST", "/api/workloads?a=%20b&c", 3_000_000)
    assert (seen["x-mine"], seen["authorization"], seen["cookie"]) == ("1", "Bearer anything", "a=b")
    assert "x-hop" not in seen and seen["host"] == f"127.0.0.1:{cloud.gateway.port}"


def test_pages_and_methods(cloud: Cloud) -> None:
    for method, path in [
        ("GET", "/"),
        ("POST", "/login"),
        ("GET", "/logout"),
        ("DELETE", "/api/x/y"),
        ("GET", "/page/a"),
    ]:
        assert httpx.request(method, cloud.url + path, timeout=20).headers["x-from"] == "control"
        assert cloud.control.requests[-1][:2] == (method, path)
    head = httpx.head(f"{cloud.url}/", timeout=20)
    assert (head.status_code, head.content) == (200, b"")


def test_metrics_need_a_key_and_go_with_the_link_key(cloud: Cloud) -> None:
    assert httpx.get(f"{cloud.url}/metrics").status_code == 401
    assert httpx.get(f"{cloud.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert cloud.control.requests[-1][2]["authorization"] == f"Bearer {LINK_KEY}"


def test_an_answer_streams_and_a_client_that_leaves_is_noticed(cloud: Cloud) -> None:
    with httpx.stream("GET", f"{cloud.url}/api/slow", timeout=20) as answer:
        assert next(answer.iter_raw()) == b"first"
    until(lambda: cloud.control.pages_left == 1)


def test_uploads_past_64_mib_are_refused(cloud: Cloud) -> None:
    with socket.create_connection(("127.0.0.1", cloud.gateway.port), timeout=20) as made:
        made.sendall(b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000000\r\n\r\n")
        assert made.recv(12) == b"HTTP/1.1 413"

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    with contextlib.suppress(httpx.TransportError):  # or the server closed while we were still sending: as good
        assert httpx.post(f"{cloud.url}/api/x", content=endless(), timeout=20).status_code == 413
    until(lambda: cloud.control.uploads_cut == 1)


@pytest.mark.slow
def test_requests_wait_for_control_to_come_back(cloud: Cloud) -> None:
    """Control's socket is not its own: while it restarts, it is only silent. Here even its port is gone."""
    until(lambda: cloud.control.linked == 1)
    cloud.control.close()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{cloud.url}/api/info", timeout=20)
        cloud.control = FakeControl(cloud.control.routes, cloud.control.port)
        assert waiting.result(20).status_code == 200
    cloud.control.close()
    answer = httpx.get(f"{cloud.url}/api/info", timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (503, "away", "2")
    cloud.control = FakeControl(cloud.control.routes)
