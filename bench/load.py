"""A closed-loop load generator: c keep-alive connections, the next request when the last answer has ended.

Raw asyncio protocols and canned request bytes, so that it costs little of the machine it measures on.
`python -m bench.load URL --key K --model M -c 16 --seconds 3 [--stream]` prints a Load as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import cast

import msgspec
import uvloop
from msgspec import Struct
from yarl import URL


class Load(Struct, frozen=True):
    """Latencies are from the request's write to the answer's last byte. `errors`: answers that are not 20x or broke."""

    answers: int
    errors: int
    seconds: float
    latency_ms_p50: float
    latency_ms_p99: float

    @property
    def per_s(self) -> float:
        return self.answers / self.seconds


def request_bytes(url: str, key: str, model: str, stream: bool) -> bytes:
    """One chat request as it goes over the wire."""
    messages = [{"role": "user", "content": "Tell me about the village custom of pooling labour."}]
    fields: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 32}
    body = msgspec.json.encode({**fields, "stream": True} if stream else fields)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {URL(url).authority}\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _Caller(asyncio.Protocol):
    """One connection. An answer's end is found by its Content-Length or its last chunk."""

    def __init__(self, request: bytes, until: float, latencies: list[float]) -> None:
        self._request, self._until, self._latencies = request, until, latencies
        self._buffer = b""
        self._need = 0  # bytes of a plain answer; 0: not known yet; -1: chunked
        self.errors = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._buffer, self._need = b"", 0
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if not self._need:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            at = buffer.lower().find(b"content-length:", 0, head)
            self._need = head + 4 + int(buffer[at + 15 : head].split(b"\r\n", 1)[0]) if at >= 0 else -1
        if len(buffer) >= self._need if self._need > 0 else buffer.endswith(b"0\r\n\r\n"):
            now = time.perf_counter()
            self._latencies.append(now - self._began)
            if not buffer.startswith(b"HTTP/1.1 20") or (self._need < 0 and b"data: [DONE]" not in buffer):
                self.errors += 1
            if now < self._until:
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors += time.perf_counter() < self._until  # a server that closes on us in the middle of the run
        if not self.ended.done():
            self.ended.set_result(None)


async def drive(url: str, request: bytes, connections: int, seconds: float) -> Load:
    """Send `request` over `connections` connections for so long."""
    loop = asyncio.get_running_loop()
    host, port = URL(url).host or "127.0.0.1", URL(url).port or 80
    latencies: list[float] = []
    began = time.perf_counter()
    made = [
        await loop.create_connection(lambda: _Caller(request, began + seconds, latencies), host, port)
        for _ in range(connections)
    ]
    await asyncio.wait_for(asyncio.gather(*(caller.ended for _, caller in made)), seconds + 60)
    took = time.perf_counter() - began
    latencies.sort()
    p50, p99 = (
        latencies[min(int(len(latencies) * q), len(latencies) - 1)] * 1e3 if latencies else 0.0 for q in (0.5, 0.99)
    )
    return Load(len(latencies), sum(caller.errors for _, caller in made), took, p50, p99)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="instant")
    parser.add_argument("-c", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--stream", action="store_true")
    asked = parser.parse_args()
    payload = request_bytes(asked.url, asked.key, asked.model, asked.stream)
    print(msgspec.json.encode(uvloop.run(drive(asked.url, payload, asked.c, asked.seconds))).decode())
