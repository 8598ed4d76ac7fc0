"""An engine that answers at once with canned bytes: what a gateway adds stands alone. `python -m bench.instant_engine`.

Prints its port. Chat answers 300 bytes of JSON with usage; with `"stream":true` 22 events written in one go.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import cast

import uvloop


def _event(delta: str, finish: str = "null") -> str:
    return (
        'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"instant",'
        f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}\n\n'
    )


_USAGE = '{"prompt_tokens":12,"completion_tokens":18,"total_tokens":30}'
_EVENTS = [
    _event('{"role":"assistant","content":null}'),
    *(_event(f'{{"content":"word{n} "}}') for n in range(18)),
    _event("{}", '"stop"'),
    'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"instant","choices":[],'
    f'"usage":{_USAGE}}}\n\n',
    "data: [DONE]\n\n",
]
EVENTS = len(_EVENTS)
_PLAIN = (
    '{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"instant","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, again and again."},'
    f'"finish_reason":"stop"}}],"usage":{_USAGE}}}'
).encode()
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_PLAIN) + _PLAIN
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + (
    b"".join(b"%x\r\n%b\r\n" % (len(event), event.encode()) for event in _EVENTS) + b"0\r\n\r\n"
)


class Engine(asyncio.Protocol):
    """One connection; requests carry a Content-Length, as every client of a benchmark sends."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        while (head := buffer.find(b"\r\n\r\n")) >= 0:
            at = buffer[:head].lower().find(b"content-length:")
            length = int(buffer[at + 15 : head].split(b"\r\n", 1)[0]) if at >= 0 else 0
            end = head + 4 + length
            if len(buffer) < end:
                break
            self._transport.write(_SSE if b'"stream":true' in buffer[head:end] else _JSON)
            buffer = buffer[end:]
        self._buffer = buffer


async def _serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    server = await asyncio.get_running_loop().create_server(Engine, sock=listener)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(_serve(parser.parse_args().port))
