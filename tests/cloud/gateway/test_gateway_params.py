"""Bodies of requests: refused by name, or passed on as they came."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cloud.gateway.errors import ApiError, reshape
from dure.cloud.gateway.params import ChatBody, CompletionBody, parse_ask

CHAT: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refused(body: bytes, kind: type[ChatBody | CompletionBody] = ChatBody) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_ask(kind, body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("messages", "hi"),
        ("messages", []),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("max_tokens", 1.5),
        ("max_completion_tokens", -1),
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("n", 0),
        ("n", 10**30),
        ("stream", "yes"),
        ("stream_options", [1]),
        ("stop", 5),
        ("stop", [5]),
        ("seed", "x"),
        ("presence_penalty", -3),
        ("logit_bias", []),
        ("top_logprobs", 21),
        ("tools", {}),
    ],
)
def test_a_bad_parameter_is_named(field: str, value: object) -> None:
    error = refused(json.dumps({**CHAT, field: value}).encode())
    assert error.param is not None and error.param.split("[")[0] == field
    assert msgspec.json.decode(error.body)["error"]["param"] == error.param


def test_where_in_a_list_is_told() -> None:
    assert refused(b'{"model":"m","messages":[{"role":"user"},{"content":"x"}]}').param == "messages[1].role"


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(missing: str) -> None:
    error = refused(json.dumps({key: value for key, value in CHAT.items() if key != missing}).encode())
    assert error.param == missing and "missing" in error.what


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": nope}',
        b"\xff\xfe",
        b'{"model":"m",}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model":"\xff"}',
    ],
)
def test_what_is_not_json_says_where(body: bytes) -> None:
    error = refused(body)
    assert error.code == "invalid_json"
    assert "byte" in error.what or "deep" in error.what or "object" in error.what


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert "object" in refused(body).what


def test_a_body_without_stream_passes_byte_for_byte() -> None:
    body = b' { "odd" : [1, {"x": 0}], "model":"m",\n"messages":[{"role":"user","content":"\\u00e9 \xec\x95\x88"}]} '
    ask = parse_ask(ChatBody, body)
    assert (ask.body, ask.stream, ask.hide_usage, ask.model) == (body, False, False, "m")


def test_a_stream_that_asks_for_usage_passes_byte_for_byte() -> None:
    body = json.dumps({**CHAT, "stream": True, "stream_options": {"include_usage": True}}).encode()
    ask = parse_ask(ChatBody, body)
    assert (ask.body, ask.stream, ask.hide_usage) == (body, True, False)


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda key: key not in {*CHAT, "stream_options"}), st.integers(), max_size=3
    ),
    st.sampled_from(
        [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False, "x": 1}}]
    ),
    st.sampled_from([None, 1]),
)
def test_a_stream_is_made_to_tell_its_usage_and_nothing_else_changes(
    extra: dict[str, int], options: dict[str, object], indent: int | None
) -> None:
    extra = {key: value for key, value in extra.items() if key not in ChatBody.__struct_fields__}
    sent = {**extra, **CHAT, "stream": True, **options}
    ask = parse_ask(ChatBody, json.dumps(sent, indent=indent).encode())
    got = json.loads(ask.body)
    assert ask.stream and ask.hide_usage
    before = options.get("stream_options")
    assert got.pop("stream_options") == {**(before if isinstance(before, dict) else {}), "include_usage": True}
    sent.pop("stream_options", None)
    assert got == sent


def test_an_escaped_key_is_seen() -> None:
    body = b'{"model":"m","messages":[{"role":"u"}],"stream":true,"stream\\u005foptions":{"include_usage":true}}'
    assert not parse_ask(ChatBody, body).hide_usage


def test_prompts_of_completions() -> None:
    for prompt in ("hi", ["a", "b"], [1, 2], [[1], [2]]):
        assert parse_ask(CompletionBody, json.dumps({"model": "m", "prompt": prompt}).encode()).model == "m"
    assert refused(b'{"model":"m","prompt":{}}', CompletionBody).param == "prompt"
    assert refused(b'{"model":"m"}', CompletionBody).param == "prompt"


def test_an_engines_error_gets_openais_shape_once() -> None:
    theirs = b'{"error":{"message":"too long","type":"x","code":400}}'
    assert reshape(400, theirs) == theirs
    for junk in (b"", b"<html>", b'{"error":"text"}', b"\xff" * 5000, b"[" * 100_000):
        error = msgspec.json.decode(reshape(400, junk))["error"]
        assert error["message"] and error["code"] == "engine_error"
