"""Streams: whatever the blocks, the client gets the same events, and usage is read."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cloud.gateway import sse
from dure.cloud.gateway.sse import Events, Tokens, usage_of
from tests.cloud.gateway.parts import chunk

WORDS = [chunk("one"), chunk('say "usage": [DONE] "error"'), chunk("끝")]
STREAM = "".join([*WORDS, chunk(None, (7, 3)), "data: [DONE]\n\n"]).encode()


def fed(events: Events, data: bytes, cuts: list[int]) -> bytes:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return b"".join(events.feed(data[a:b]) for a, b in pairwise(at)) + events.end()


@given(st.lists(st.integers(0, 2000)), st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
def test_any_cut_gives_the_same_events_and_usage(cuts: list[int], hide: bool, newline: bytes) -> None:
    events = Events(hide)
    want = "".join(WORDS if hide else [*WORDS, chunk(None, (7, 3))]).encode().replace(b"\n", newline)
    assert fed(events, STREAM.replace(b"\n", newline), cuts) == want
    assert events.tokens == Tokens(7, 3)
    assert (events.done, events.failed, events.content) == (True, False, 3)


def test_whole_events_pass_at_once_and_halves_wait() -> None:
    events = Events(True)
    one = WORDS[0].encode()
    assert events.feed(one) == one
    assert events.feed(one[:20]) == b""
    assert events.feed(one[20:]) == one


def test_usage_in_a_chunk_with_text_is_kept_for_the_client() -> None:
    events = Events(True)
    both = chunk("last", (4, 2)).encode()
    assert events.feed(both) == both
    assert events.tokens == Tokens(4, 2)


def test_usage_null_on_every_chunk_is_no_usage() -> None:
    events = Events(True)
    data = b'data: {"choices": [{"delta": {"content": "x"}}], "usage": null}\n\n'
    assert events.feed(data) == data
    assert events.tokens is None and events.content == 1


def test_the_first_chunk_without_text_is_not_counted() -> None:
    for blank in ("", " "):
        events = Events(True)
        for value in ('""', '"a"', '"b"'):
            events.feed(
                f'data:{blank}{{"choices":{blank}[{{"delta":{blank}{{"content":{blank}{value}}}}}]}}\n\n'.encode()
            )
        assert events.content == 2


def test_texts_of_completions_are_counted() -> None:
    events = Events(True)
    events.feed(b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\n')
    assert events.content == 2


def test_an_error_in_the_stream_is_a_failure() -> None:
    events = Events(True)
    data = b'data: {"error":{"message":"out of memory"}}\n\n'
    assert events.feed(data) == data
    assert events.failed


def test_a_last_event_without_its_blank_line_still_counts() -> None:
    events = Events(True)
    assert events.feed(STREAM.rstrip()) + events.end() == "".join(WORDS).encode()
    assert events.done and events.tokens == Tokens(7, 3)


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    with pytest.raises(ValueError, match="larger"):
        Events(True).feed(b"data: " + b"x" * 200)


@pytest.mark.parametrize("junk", [b"", b"[]", b"{", b'{"usage":5}', b'{"usage":{"prompt_tokens":"x"}}', b"[" * 100_000])
def test_usage_of_junk_is_unknown(junk: bytes) -> None:
    assert usage_of(junk) is None


def test_usage_of_a_plain_answer() -> None:
    assert usage_of(b'{"id":1,"usage":{"prompt_tokens":4,"completion_tokens":6,"details":{}}}') == Tokens(4, 6)
