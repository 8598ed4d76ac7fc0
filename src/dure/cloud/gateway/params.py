"""The bodies of `/v1` requests: checked once, sent on as they came."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from dure.cloud.gateway.errors import ApiError

MAX_BODY = 8 << 20
_Count = Annotated[int, Meta(ge=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_USAGE = b'"stream_options":{"include_usage":true}'
_PATH = re.compile(r"^(.*?)(?: - at `\$(.*)`)?$", re.S)
_MISSING = re.compile(r"missing required field `(.*?)`")


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Tool(Struct):
    type: str


class _Message(Struct):
    role: str


class _Common(Struct):
    model: str
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | UnsetType | None = UNSET
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None


class ChatBody(_Common, kw_only=True):
    """`/v1/chat/completions`: the parameters that are checked; others pass."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[_Tool] | None = None
    response_format: _Tool | None = None


class CompletionBody(_Common, kw_only=True):
    """`/v1/completions`: the parameters that are checked; others pass."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    best_of: _Count | None = None
    suffix: str | None = None


class Ask(Struct, frozen=True):
    """A checked request. `body` goes to the engine; `hide_usage`: the client did not ask for the usage chunk."""

    model: str
    stream: bool
    body: bytes
    hide_usage: bool


def parse_ask(kind: type[ChatBody | CompletionBody], body: bytes) -> Ask:
    """Check a body and make a stream tell its usage. Raises ApiError 400 naming the parameter or the byte."""
    try:
        asked = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _bad_parameter(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        where = "" if "(byte" in str(error) else f" (byte {len(body)})"
        raise ApiError(400, f"The body is not JSON: {error}{where}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply", code="invalid_json") from None
    if not asked.stream:
        return Ask(asked.model, False, body, False)
    options = asked.stream_options
    if isinstance(options, _StreamOptions) and options.include_usage:
        return Ask(asked.model, True, body, False)
    return Ask(asked.model, True, _with_usage(body, absent=options is UNSET), True)


def _with_usage(body: bytes, absent: bool) -> bytes:
    if absent:
        # A splice costs 1 µs whatever the body's size; the object is not empty, for it has a model.
        brace = body.index(b"{") + 1
        return b"%b%b,%b" % (body[:brace], _USAGE, body[brace:])
    fields = msgspec.json.decode(body, type=dict[str, Raw])
    options = msgspec.json.decode(fields["stream_options"], type=dict[str, Raw] | None) or {}
    fields["stream_options"] = Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(fields)


def _bad_parameter(text: str) -> ApiError:
    found = _PATH.match(text)
    assert found is not None  # the pattern matches any text
    why, path = found[1], (found[2] or "").lstrip(".")
    if missing := _MISSING.search(why):
        path, why = f"{path}.{missing[1]}".lstrip("."), "required, but missing"
    if not path:
        return ApiError(400, f"The body must be a JSON object: {why}", code="invalid_json")
    return ApiError(400, f"{path}: {why}", code="invalid_value", param=path)
