"""Chat through `/v1/chat/completions`, as any OpenAI client would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dure.client.connection import Connection, decode
from dure.client.errors import ApiError
from dure.model.view import ErrorView

_PATH = "/v1/chat/completions"
_TIMEOUT_S = 600.0
"""Between two pieces of an answer: the first may wait in the endpoint's queue."""


class Message(Struct, frozen=True):
    """`role` is `system`, `user` or `assistant`."""

    role: str
    content: str


class Tokens(Struct, frozen=True):
    """What an answer used, as the engine counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = False


class _Body(Struct, frozen=True, omit_defaults=True):
    model: str
    messages: Sequence[Message]
    max_tokens: int | UnsetType = UNSET
    stream: bool = False
    stream_options: _StreamOptions | UnsetType = UNSET


class _Text(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Text = _Text()
    message: _Text = _Text()


class _Failure(Struct, frozen=True):
    message: str = ""


class _Answer(Struct, frozen=True):
    """A whole answer, or one event of a stream."""

    choices: tuple[_Choice, ...] = ()
    usage: Tokens | None = None
    error: _Failure | None = None


def ask_whole(
    connection: Connection, model: str, messages: Sequence[Message], max_tokens: int | None
) -> Iterator[str | Tokens]:
    """The answer in one piece, then what it used."""
    body = msgspec.json.encode(_Body(model, messages, UNSET if max_tokens is None else max_tokens))
    answer = connection.call("POST", _PATH, _Answer, body, wait_s=_TIMEOUT_S)
    yield from _parts(answer)


def ask_stream(
    connection: Connection, model: str, messages: Sequence[Message], max_tokens: int | None
) -> Iterator[str | Tokens]:
    """The answer as it comes, then what it used. Leaving early closes the connection, which stops the work."""
    limit = UNSET if max_tokens is None else max_tokens
    body = msgspec.json.encode(_Body(model, messages, limit, True, _StreamOptions(True)))
    for line in connection.lines(_PATH, body, _TIMEOUT_S):
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue  # a comment, an event's name, or the blank line between two events
        if data == b"[DONE]":
            return
        answer = decode(data, _Answer, f"POST {_PATH}")
        if answer.error:
            raise ApiError(200, ErrorView("The answer broke off", answer.error.message, "Ask again"))
        yield from _parts(answer)
    raise ApiError(200, ErrorView("The answer broke off", "the stream ended without its end mark", "Ask again"))


def _parts(answer: _Answer) -> Iterator[str | Tokens]:
    for choice in answer.choices[:1]:
        if text := choice.delta.content or choice.message.content:
            yield text
    if answer.usage:
        yield answer.usage
