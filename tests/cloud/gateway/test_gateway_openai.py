"""A real gateway process between the openai package, a fake engine and a fake control."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dure.cloud.gateway.routes import QUEUE
from dure.model.wire import Replica, Routes
from tests.cloud.gateway.parts import KEY, Cloud, GatewayProcess, routes_for, until

pytestmark = pytest.mark.slow  # real processes

HI: list[Any] = [{"role": "user", "content": "hi"}]


def client(cloud: Cloud, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=key, max_retries=0, timeout=20)


def post(cloud: Cloud, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    body = {"model": "m", "messages": HI, **fields}
    sent = {"Authorization": f"Bearer {KEY}", **(headers or {})}
    return httpx.post(f"{cloud.url}/v1/chat/completions", json=body, headers=sent, timeout=20)


def test_openais_client_works(cloud: Cloud) -> None:
    with client(cloud) as api:
        assert [model.id for model in api.models.list()] == ["m"]
        answer = api.chat.completions.create(model="m", messages=HI, max_tokens=5)
        assert answer.choices[0].message.content == "hello there"
        assert answer.usage is not None and answer.usage.total_tokens == 7
        for _ in range(3):
            stream = api.chat.completions.create(model="m", messages=HI, stream=True)
            chunks = list(stream)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three "
        with_usage = list(
            api.chat.completions.create(model="m", messages=HI, stream=True, stream_options={"include_usage": True})
        )
        assert with_usage[-1].usage is not None and with_usage[-1].usage.prompt_tokens == 7
        assert api.completions.create(model="m", prompt="hi").choices[0].text == "hello there"
    until(lambda: cloud.control.answers == 6)
    (row,) = {(row.key, row.project, row.model, row.run) for row in cloud.control.rows}
    assert row == ("k1", "default", "m", "w1.0.1")
    assert sum(row.tokens_in for row in cloud.control.rows) == 5 + 4 * 7 + 5
    assert sum(row.tokens_out for row in cloud.control.rows) == 2 + 4 * 3 + 2
    assert not any(row.unknown_in or row.cancelled or row.failed for row in cloud.control.rows)


def test_openais_client_gets_openais_errors(cloud: Cloud) -> None:
    with client(cloud) as api, client(cloud, key="sk-wrong") as stranger:
        with pytest.raises(openai.BadRequestError) as bad:
            api.chat.completions.create(model="m", messages=HI, temperature=9)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.NotFoundError) as unknown:
            api.chat.completions.create(model="nope", messages=HI)
        assert unknown.value.code == "model_not_found" and "deployed: m" in unknown.value.message
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="m", messages=HI)
        with pytest.raises(openai.BadRequestError, match="context is too long"):
            api.chat.completions.create(model="m", messages=HI, user="status-400")
        with pytest.raises(openai.InternalServerError) as failed:
            api.chat.completions.create(model="m", messages=HI, user="status-500")
        assert failed.value.status_code == 500
    assert post(cloud, {"Authorization": ""}).status_code == 401
    until(lambda: cloud.control.answers == 1)  # the 500: work was tried; the other refusals are no answers
    assert cloud.control.rows[0].failed == 1


def test_the_engine_gets_its_own_key_and_the_same_bytes(cloud: Cloud) -> None:
    body = b'{ "model":"m", "messages":[{"role":"user","content":"caf\\u00e9"}],\n"odd":[1]}'
    headers = {"Authorization": f"Bearer {KEY}", "Cookie": "secret=1"}
    assert httpx.post(f"{cloud.url}/v1/chat/completions", content=body, headers=headers).status_code == 200
    assert cloud.engine.bodies == [body]
    assert cloud.engine.headers[0]["authorization"] == "Bearer ek-w1.0.1"
    assert "cookie" not in cloud.engine.headers[0]


def test_a_stream_comes_as_it_is_made_and_its_usage_chunk_is_ours(cloud: Cloud) -> None:
    fields = {"model": "m", "messages": HI, "stream": True, "user": "drip"}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{cloud.url}/v1/chat/completions", json=fields, headers=headers, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no" and answer.headers["cache-control"] == "no-cache"
        lines = answer.iter_lines()
        assert "one " in next(lines)  # while the engine goes on until it is released
        cloud.engine.release.set()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert not any('"usage"' in line for line in rest)


def test_a_client_that_leaves_stops_the_work(cloud: Cloud) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    fields = {"model": "m", "messages": HI, "stream": True, "user": "drip"}
    with httpx.stream("POST", f"{cloud.url}/v1/chat/completions", json=fields, headers=headers, timeout=20) as answer:
        lines = answer.iter_lines()
        for _ in range(9):
            next(lines)
    until(lambda: cloud.engine.closed_early == 1 and cloud.engine.open == 0)
    with pytest.raises(httpx.ReadTimeout):  # leaves before the first byte
        httpx.post(f"{cloud.url}/v1/chat/completions", json={**fields, "user": "hang"}, headers=headers, timeout=0.5)
    until(lambda: cloud.engine.closed_early == 2 and cloud.engine.open == 0)
    until(lambda: cloud.control.answers == 2)
    assert sum(row.cancelled for row in cloud.control.rows) == 2
    assert sum(row.unknown_in for row in cloud.control.rows) == 2
    assert sum(row.tokens_out for row in cloud.control.rows) >= 4


def test_full_replicas_say_429_and_slots_come_back(cloud: Cloud) -> None:
    room = 1 + QUEUE
    cloud.control.push(routes_for(cloud.engine.replica(slots=1)))
    sockets = [raw_request(cloud, user="hang") for _ in range(room)]
    until(lambda: cloud.engine.open == room)
    busy = post(cloud)
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    sockets.pop().close()
    until(lambda: cloud.engine.open == room - 1)
    until(lambda: post(cloud).status_code == 200)
    cloud.engine.release.set()
    for one in sockets:
        assert one.recv(12) == b"HTTP/1.1 200"
        one.close()


def raw_request(cloud: Cloud, **fields: object) -> socket.socket:
    body = json.dumps({"model": "m", "messages": HI, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    made = socket.create_connection(("127.0.0.1", cloud.gateway.port), timeout=20)
    made.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


def test_a_body_past_8_mib_is_refused_early(cloud: Cloud) -> None:
    with socket.create_connection(("127.0.0.1", cloud.gateway.port), timeout=20) as made:  # by its length, unread
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        made.sendall(f"{head}Content-Length: {10 << 20}\r\n\r\n".encode())
        assert made.recv(12) == b"HTTP/1.1 413"
    headers = {"Authorization": f"Bearer {KEY}"}
    sent = httpx.post(f"{cloud.url}/v1/completions", content=b"x" * (10 << 20), headers=headers, timeout=20)
    assert sent.status_code == 413  # also for a client that reads only once it has sent everything

    def endless() -> Any:  # while reading, without a length
        while True:
            yield b"x" * 65_536

    with httpx.Client(timeout=20) as http:
        try:
            answer = http.post(f"{cloud.url}/v1/completions", content=endless(), headers=headers)
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the server closed while we were still sending: as good
    big = post(cloud, messages=[{"role": "user", "content": "x" * (7 << 20)}])
    assert big.status_code == 200 and len(cloud.engine.bodies[-1]) > 7 << 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "localhost:80:x"}, 421),
        ({"Host": "localhost@evil"}, 421),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_other_sites_are_refused(door: Cloud, headers: dict[str, str], status: int) -> None:
    assert post(door, headers).status_code == status
    assert "access-control-allow-origin" not in post(door, headers).headers
    assert httpx.get(f"{door.url}/api/x", headers=headers).status_code == status


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Cloud(tmp_path_factory.mktemp("door"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/link/gateway", 404),
        ("GET", "/api/../link/gateway", 404),
        ("GET", "/api/%2e%2e/link/gateway", 404),
        ("GET", "/api//link", 404),
        ("GET", "/api/x%5c..%5clink", 404),
        ("GET", "/page/../../link/agent", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/metrics", 401),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("PUT", "/healthzz", 404),
    ],
)
def test_paths(door: Cloud, method: str, path: str, status: int) -> None:
    before = len(door.control.requests)
    connection = http.client.HTTPConnection("127.0.0.1", door.gateway.port, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status
    assert json.loads(response.read())
    connection.close()
    assert len(door.control.requests) == before


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nAuthorization: Bearer "
        + KEY.encode(),
    ],
)
def test_junk_harms_nobody_else(door: Cloud, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", door.gateway.port), timeout=20) as made:
        made.sendall(junk)
        made.shutdown(socket.SHUT_WR)
        assert made.recv(4096)[:10] in (b"", b"HTTP/1.1 4")
    assert post(door).status_code == 200


@pytest.mark.slow
def test_many_at_once(cloud: Cloud) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda n: post(cloud, stream=bool(n % 2)).status_code, range(60)))
    assert statuses == [200] * 60
    until(lambda: cloud.control.answers == 60)


def test_an_engine_that_went_away_is_passed_over(cloud: Cloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = Replica("w1.1.1", f"http://127.0.0.1:{unused.getsockname()[1]}", "ek", 4)
    cloud.control.push(routes_for(cloud.engine.replica(), dead, model="both"))
    for _ in range(4):
        until(lambda: post(cloud, model="both").status_code == 200)
    cloud.control.push(routes_for(dead, model="gone"))
    until(lambda: post(cloud, model="gone").status_code == 503)
    answer = post(cloud, model="gone")
    assert answer.headers["retry-after"] and answer.json()["error"]["type"] == "server_error"
    cloud.control.push(Routes(cloud.control.routes.keys, {"idle": ()}))
    until(lambda: post(cloud, model="idle").status_code == 503)
    assert post(cloud, user="abort", model="m").status_code == 404


def test_a_stale_connection_is_tried_once_more(cloud: Cloud) -> None:
    """An engine that closes a kept-alive connection just when it is used again."""
    answers = 0

    def serve(listener: socket.socket) -> None:
        nonlocal answers
        listener.settimeout(20)
        for turn in range(3):
            made, _ = listener.accept()
            made.settimeout(20)
            if not read_request(made):
                continue
            body = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
            made.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            answers += 1
            if turn == 0:
                read_request(made)  # the second request on this connection: hang up without an answer
            made.close()
            if answers == 2:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, listener)
        stale = Replica("w1.2.1", f"http://127.0.0.1:{listener.getsockname()[1]}", "ek", 4)
        cloud.control.push(routes_for(stale, model="stale"))
        until(lambda: post(cloud, model="stale").status_code == 200)
        assert post(cloud, model="stale").status_code == 200
        served.result(20)
    until(lambda: cloud.control.answers == 2)
    assert not any(row.failed for row in cloud.control.rows)


def read_request(made: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (block := made.recv(65_536)):
            return False
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += made.recv(65_536)
    return True


def test_a_stream_that_breaks_says_so(cloud: Cloud) -> None:
    with client(cloud) as api, pytest.raises(openai.APIError, match="broke off"):
        list(api.chat.completions.create(model="m", messages=HI, stream=True, user="break"))
    until(lambda: cloud.control.answers == 1)
    (row,) = cloud.control.rows
    assert (row.failed, row.tokens_out, row.unknown_in) == (1, 3, 1)


@pytest.mark.slow
def test_before_routes_it_waits_then_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    gateway = GatewayProcess(tmp_path, port, port)
    try:
        answer = httpx.get(f"{gateway.url}/readyz", timeout=20)
        assert answer.status_code == 503
        assert httpx.get(f"{gateway.url}/healthz", timeout=20).status_code == 200
        answer = httpx.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        answer = httpx.get(f"{gateway.url}/api/info", timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "away")
        assert gateway.stop() == 0
    finally:
        gateway.close()
