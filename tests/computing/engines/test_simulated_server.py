"""The instant engine as a real process: plain HTTP, good and bad."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from dure.computing.engines import ENGINES
from dure.computing.engines.engine import Seat
from dure.model.workload import Serve

KEY = "ek-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    chosen = free_port()
    launch = ENGINES["simulated"].launch(Path(), Serve("simulated-echo"), Seat(1, chosen, KEY))
    config = tmp_path_factory.mktemp("engine") / "engine.json"
    config.write_bytes(launch.config)
    with subprocess.Popen([*launch.argv, str(config)], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    socket.create_connection(("127.0.0.1", chosen)).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield chosen
        finally:
            process.terminate()


def exchange(port: int, sent: bytes, pieces: int = 1) -> bytes:
    """Everything answered to `sent` until the server closes (after `connection: close`)."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
        step = max(1, len(sent) // pieces)
        for at in range(0, len(sent), step):
            caller.sendall(sent[at : at + step])
        got = b""
        while more := caller.recv(65_536):
            got += more
        return got


def request(path: str, body: bytes = b"", key: str = KEY, close: bool = True, more: str = "") -> bytes:
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}"
    head += f"Content-Length: {len(body)}\r\n" + ("Connection: close\r\n" if close else "")
    return head.encode() + b"\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_openai_s_own_client_is_content(port: int) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY) as client:
        assert [model.id for model in client.models.list()] == ["simulated-echo"]
        for count, finish in ((5, "length"), (100, "stop")):
            answer = client.chat.completions.create(
                model="simulated-echo", messages=[{"role": "user", "content": "one two three"}], max_tokens=count
            )
            assert answer.choices[0].finish_reason == finish
            assert answer.usage is not None and answer.choices[0].message.content is not None
            assert answer.usage.prompt_tokens == 3
            assert len(answer.choices[0].message.content.split()) == answer.usage.completion_tokens == min(count, 20)
        for _ in range(3):
            chunks = list(
                client.chat.completions.create(
                    model="simulated-echo", messages=[{"role": "user", "content": "hi"}], stream=True
                )
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text.startswith("simulated: ") and len(text.split()) == 20
            assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 20
        assert client.completions.create(model="m", prompt="hi", max_tokens=2).choices[0].text == "simulated: these"


def test_a_stream_is_22_events(port: int) -> None:
    got = exchange(port, request("/v1/chat/completions", b'{"stream": true}'))
    assert got.count(b"data: ") == 22 and got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    sizes = re.findall(rb"\r\n([0-9a-f]+)\r\ndata: ", got)
    assert len(sizes) == 22


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (request("/health", key="none"), 200),
        (request("/v1/models", key="none"), 401),
        (request("/v1/models", key=KEY + "x"), 401),
        (request("/v1/models"), 200),
        (request("/nowhere"), 404),
        (request("/v1/chat/completions", b"{"), 400),
        (request("/v1/chat/completions", b'"text"'), 400),
        (request("/v1/chat/completions", b"\xff\xfe"), 400),
        (request("/v1/chat/completions", b'{"max_tokens": 0}'), 400),
        (request("/v1/chat/completions", b'{"max_tokens": "5"}'), 400),
        (request("/v1/chat/completions", b'{"messages": 5}'), 400),
        (request("/v1/chat/completions", json.dumps({"messages": [{"content": "두레 " * 9}]}).encode()), 200),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"x" * 70_000, 400),
    ],
)
def test_answers(port: int, sent: bytes, expected: int) -> None:
    assert status(exchange(port, sent)) == expected


@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
def test_pipelined_and_torn_requests_are_answered_in_order(port: int, pieces: int) -> None:
    body = b'{"max_tokens": 1, "prompt": "a b"}'
    sent = request("/health", close=False) + request("/v1/completions", body, close=False) + request("/v1/models")
    got = exchange(port, sent, pieces)
    assert [int(code) for code in re.findall(rb"HTTP/1.1 (\d+)", got)] == [200, 200, 200]
    assert got.index(b'"status"') < got.index(b"text_completion") < got.index(b'"list"')


def test_a_large_prompt(port: int) -> None:
    body = json.dumps({"prompt": "word " * 1_000_000, "max_tokens": 1}).encode()
    assert b'"prompt_tokens":1000000' in exchange(port, request("/v1/completions", body))
