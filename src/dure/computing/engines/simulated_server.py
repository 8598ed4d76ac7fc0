"""The server process: `python -I simulated_server.py CONFIG.json`. OpenAI's API in canned words, without delay.

A whole stream is 22 events in one write: 20 of one word, the finish with the usage, `[DONE]`. One token is one word.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
import sys
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop
from msgspec import Struct

TEXT = "simulated: these words come from no model; they are here so that everything around a model can be tried out."
WORDS = TEXT.split()
MOST_HEAD_BYTES = 65_536
MOST_BODY_BYTES = 16 << 20

Status = Literal["200 OK", "400 Bad Request", "401 Unauthorized", "404 Not Found", "413 Content Too Large"]


class Config(Struct, frozen=True):
    model: str
    port: int
    key: str


class Message(Struct, frozen=True):
    content: str | list[object] | None = None


class Ask(Struct, frozen=True):
    """What is read of a request; the rest is ignored."""

    messages: tuple[Message, ...] = ()
    prompt: str | list[object] = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(Struct, frozen=True):
    """Content of a message or of a piece of one."""

    content: str
    role: str = "assistant"


class Choice(Struct, frozen=True, omit_defaults=True):
    index: int
    finish_reason: str | None
    message: Said | None = None
    delta: Said | dict[str, str] | None = None
    text: str | None = None


class Answer(Struct, frozen=True, omit_defaults=True):
    id: str
    object: str
    model: str
    created: int
    choices: tuple[Choice, ...]
    usage: Usage | None = None


decode_ask = msgspec.json.Decoder(Ask).decode
encode = msgspec.json.encode


def http(status: Status, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nserver: simulated\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def problem(status: Status, message: str) -> bytes:
    return http(status, encode({"error": {"message": message, "type": "invalid_request_error", "code": status[:3]}}))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def finish_reason(usage: Usage) -> str:
    return "stop" if usage.completion_tokens == len(WORDS) else "length"


class Speaker:
    """Makes the answers; those of one length are rendered once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.auth = f"Bearer {config.key}".encode()
        self.streams: dict[tuple[bool, int], tuple[bytes, ...]] = {}

    def reply(self, head: bytes, body: bytes) -> bytes:
        method, path, *_ = head.split(b" ", 2)
        if path == b"/health":
            return http("200 OK", b'{"status":"ok"}')
        found = head.lower().find(b"\r\nauthorization:")
        if found < 0 or not hmac.compare_digest(head[found + 16 :].split(b"\r\n", 1)[0].strip(), self.auth):
            return problem("401 Unauthorized", "Invalid API key")
        if method == b"GET" and path == b"/v1/models":
            return http("200 OK", encode({"object": "list", "data": [{"id": self.config.model, "object": "model"}]}))
        if method != b"POST" or path not in (b"/v1/chat/completions", b"/v1/completions"):
            return problem("404 Not Found", "no such path")
        try:
            ask = decode_ask(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return problem("400 Bad Request", str(error))
        limit = ask.max_tokens if ask.max_completion_tokens is None else ask.max_completion_tokens
        count = len(WORDS) if limit is None else limit
        if count < 1:
            return problem("400 Bad Request", "max_tokens must be at least 1")
        asked = len(str(ask.prompt).split()) + sum(len(str(m.content).split()) for m in ask.messages)
        chat, count = path == b"/v1/chat/completions", min(count, len(WORDS))
        usage = Usage(asked, count, asked + count)
        return self.stream(chat, usage) if ask.stream else self.whole(chat, usage)

    def whole(self, chat: bool, usage: Usage) -> bytes:
        text = " ".join(WORDS[: usage.completion_tokens])
        message = Said(text) if chat else None
        choice = Choice(0, finish_reason(usage), message=message, text=None if chat else text)
        return http("200 OK", encode(self.answer(chat, "", choice, usage)))

    def answer(self, chat: bool, piece: str, choice: Choice, usage: Usage | None = None) -> Answer:
        kind = f"chat.completion{piece}" if chat else "text_completion"
        return Answer("simulated-1", kind, self.config.model, 1, (choice,), usage=usage)

    def stream(self, chat: bool, usage: Usage) -> bytes:
        """Only the event with the usage differs between streams of one length."""
        count = usage.completion_tokens
        words = self.streams.get((chat, count))
        if words is None:
            texts = [word if at == 0 else f" {word}" for at, word in enumerate(WORDS[:count])]
            choices = [Choice(0, None, delta=Said(t)) if chat else Choice(0, None, text=t) for t in texts]
            words = tuple(b"data: %s\n\n" % encode(self.answer(chat, ".chunk", choice)) for choice in choices)
            self.streams[chat, count] = words
        last = Choice(0, finish_reason(usage), delta={} if chat else None, text=None if chat else "")
        end = b"data: %s\n\n" % encode(self.answer(chat, ".chunk", last, usage))
        events = b"".join(map(chunk, (*words, end, b"data: [DONE]\n\n")))
        return (
            b"HTTP/1.1 200 OK\r\nserver: simulated\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + events + b"0\r\n\r\n"
        )


class Connection(asyncio.Protocol):
    """One caller; keeps the connection open, answers pipelined requests in order."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while self.waiting and not self.transport.is_closing():
            end = self.waiting.find(b"\r\n\r\n")
            if end < 0:
                if len(self.waiting) > MOST_HEAD_BYTES:
                    self.refuse("400 Bad Request", "the head of the request is too long")
                return
            head = self.waiting[:end]
            size = self.body_size(head)
            if size is None or size > MOST_BODY_BYTES:
                self.refuse(
                    "413 Content Too Large" if size else "400 Bad Request", "this length of a body is not accepted"
                )
                return
            if len(self.waiting) < end + 4 + size:
                return
            body = self.waiting[end + 4 : end + 4 + size]
            self.waiting = self.waiting[end + 4 + size :]
            if head.count(b" ", 0, head.find(b"\r\n") if b"\r\n" in head else None) < 2:
                self.refuse("400 Bad Request", "not a request")
                return
            self.transport.write(self.speaker.reply(head, body))
            if b"\r\nconnection: close" in head.lower():
                self.transport.close()

    def body_size(self, head: bytes) -> int | None:
        """Bytes of the body; None: a length that is no number, or a chunked body (nobody here sends one)."""
        lower = head.lower()
        if b"\r\ntransfer-encoding:" in lower:
            return None
        found = lower.find(b"\r\ncontent-length:")
        text = b"0" if found < 0 else lower[found + 17 :].split(b"\r\n", 1)[0].strip()
        return int(text) if text.isdigit() and len(text) < 20 else None

    def refuse(self, status: Status, message: str) -> None:
        self.transport.write(problem(status, message))
        self.transport.close()


async def serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    speaker = Speaker(config)
    server = await loop.create_server(lambda: Connection(speaker), "127.0.0.1", config.port, backlog=1024)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    print(f"simulated: serving {config.model} on http://127.0.0.1:{config.port}", flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Config)))
