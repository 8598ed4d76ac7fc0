"""Chat: pieces of text, what they used, and streams that go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from dure.client import ApiError, Client, Message, Tokens
from tests.client.fake_control import KEY, Answer, FakeControl

CHAT = "POST /v1/chat/completions"
ASKED = [Message("user", "안녕?")]


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def client(control: FakeControl) -> Iterator[Client]:
    with closing(Client(control.url, KEY, 5)) as made:
        yield made


def test_a_stream_gives_pieces_then_tokens(control: FakeControl, client: Client) -> None:
    first = b': hello\r\nevent: x\r\ndata:{"choices":[{"delta":{"role":"assistant","content":null}}]}\r\n\r\n'
    control.on(CHAT, first + event("안") + event("녕") + USAGE + DONE)
    assert list(client.chat("small", ASKED, max_tokens=9)) == ["안", "녕", Tokens(5, 2)]
    assert json.loads(control.seen[0].body) == {
        "model": "small",
        "messages": [{"role": "user", "content": "안녕?"}],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_whole_answer(control: FakeControl, client: Client) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    control.on(CHAT, {"choices": [{"message": {"role": "assistant", "content": "hi"}}], "usage": usage})
    assert list(client.chat("small", ASKED, stream=False)) == ["hi", Tokens(5, 2)]
    assert json.loads(control.seen[0].body) == {"model": "small", "messages": [{"role": "user", "content": "안녕?"}]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (event("a") + b'data: {"error":{"message":"engine died"}}\n\n', "engine died"),
        (event("a"), "without its end mark"),
        (b"", "without its end mark"),
        (event("a") + b"data: {oops\n\n", "not understood"),
        (Answer(event("a") + DONE, cut=len(event("a")) - 9), "not understood|end mark"),
        (Answer({"error": {"message": "The model `x` does not exist"}}, 404), "does not exist"),
        (Answer({"error": {"message": "all slots are taken"}}, 429), "all slots are taken"),
    ],
)
def test_a_stream_that_goes_wrong_is_an_error(
    control: FakeControl, client: Client, answer: object, message: str
) -> None:
    control.on(CHAT, answer)
    with pytest.raises(ApiError, match=message):
        list(client.chat("small", ASKED))


def test_a_stream_left_early_leaves_the_client_usable(control: FakeControl, client: Client) -> None:
    control.on(CHAT, event("a") + event("b") + USAGE + DONE)
    for part in client.chat("small", ASKED):
        assert part == "a"
        break
    assert list(client.chat("small", ASKED)) == ["a", "b", Tokens(5, 2)]
