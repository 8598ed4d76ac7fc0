"""An engine's event stream: passed on event by event, its usage read, its end held back."""

from __future__ import annotations

import msgspec
from msgspec import Struct

DONE = b"data: [DONE]\n\n"
MAX_EVENT = 8 << 20


class Tokens(Struct, frozen=True):
    """`usage` of an answer, as OpenAI's API has it."""

    prompt_tokens: int | None = None
    completion_tokens: int = 0


class _Chunk(Struct, frozen=True):
    choices: list[msgspec.Raw] | None = None
    usage: Tokens | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Plain(Struct, frozen=True):
    usage: Tokens | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_plain = msgspec.json.Decoder(_Plain)


def usage_of(body: bytes) -> Tokens | None:
    """The usage in a plain answer; None where the engine did not tell."""
    try:
        return _plain.decode(body).usage
    except (msgspec.DecodeError, RecursionError):
        return None


class Events:
    """One answer's stream. `feed` takes bytes as they come and gives whole events to pass on.

    `tokens` is what the engine said last, `content` the chunks with text seen so far, `done` that
    the end (`[DONE]`, never given out) was seen, `failed` that the engine reported an error.
    `hide_usage` drops the chunk that carries only usage.
    """

    def __init__(self, hide_usage: bool) -> None:
        self.tokens: Tokens | None = None
        self.content = 0
        self.done = False
        self.failed = False
        self._hide_usage = hide_usage
        self._tail = b""
        self._text = b""

    def feed(self, block: bytes) -> bytes:
        """Whole events of `block` and what was left before. Raises ValueError on an endless event."""
        if self.done:
            return b""
        if self._tail or not block.endswith(b"\n\n"):
            block = self._tail + block
            end = _last_end(block)
            block, self._tail = block[:end], block[end:]
            if len(self._tail) > MAX_EVENT:
                raise ValueError(f"an event is larger than {MAX_EVENT >> 20} MiB")
        if not block:
            return b""
        if not self._text and b"{" in block:
            # Engines write JSON with or without blanks, all of it alike; the first chunk often has an empty text.
            head = block[:1000]
            field = b'"text' if b'"text"' in head else b"content"
            self._text = field + (b'": "' if b'"choices": ' in head else b'":"')
            self.content -= head.count(self._text + b'"')
        self.content += block.count(self._text) if self._text else 0
        # Searches over the bytes instead of JSON per chunk; inside a JSON string these cannot stand unescaped.
        marks = block.find(b'"usage"'), block.find(b'"error"'), block.find(b"[DONE]", -64)
        found = [mark for mark in marks if mark >= 0]
        return self._sift(block, min(found)) if found else block

    def _sift(self, block: bytes, mark: int) -> bytes:
        """`block` without the events of it, from the one around `mark` on, that are not for the client."""
        gap = b"\r\n\r\n" if block.endswith(b"\r\n\r\n") else b"\n\n"
        before = block.rfind(gap, 0, mark)
        start = before + len(gap) if before >= 0 else 0
        kept = [event + gap for event in block[start:].split(gap) if event and self._keep(event)]
        return block[:start] + b"".join(kept)

    def end(self) -> bytes:
        """The engine closed the stream: an event it did not finish with a blank line."""
        return self.feed(b"\n\n") if self._tail else b""

    def _keep(self, event: bytes) -> bool:
        data = event.partition(b"data:")[2].strip()
        if self.done or data == b"[DONE]":
            self.done = True
            return False
        if b'"usage"' not in data and b'"error"' not in data:
            return True
        try:
            chunk = _chunk.decode(data)
        except (msgspec.DecodeError, RecursionError):
            return True
        self.failed |= bytes(chunk.error) != b"null"
        if chunk.usage is None:
            return True
        self.tokens = chunk.usage
        return bool(chunk.choices) or not self._hide_usage


def _last_end(block: bytes) -> int:
    lf, crlf = block.rfind(b"\n\n"), block.rfind(b"\r\n\r\n")
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)
