"""The `openai` package against a running cloud, as any user has it."""

from __future__ import annotations

import time

import openai
from harness import MODEL, Check, Cloud, check, until
from openai.types.chat import ChatCompletionMessageParam

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello and name three colours."}]


def client(cloud: Cloud, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=key or cloud.key, max_retries=0, timeout=60)


@check("2a models")
def models(cloud: Cloud) -> str:
    names = [model.id for model in client(cloud).models.list()]
    assert MODEL in names, names
    return ", ".join(names)


@check("2b chat")
def chat(cloud: Cloud) -> str:
    answer = client(cloud).chat.completions.create(model=MODEL, messages=HELLO, max_tokens=24)
    text, usage = answer.choices[0].message.content, answer.usage
    assert text and usage and usage.prompt_tokens > 0 and usage.completion_tokens > 0, answer
    return f"{text!r}, {usage.prompt_tokens} tokens in, {usage.completion_tokens} out"


@check("2c three streams in a row on one client")
def three_streams(cloud: Cloud) -> str:
    one, said = client(cloud), []
    for _ in range(3):
        stream = one.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16, stream=True)
        chunks = [chunk for chunk in stream if chunk.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text and chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1:]
        said.append(f"{len(chunks)} chunks")
    return ", ".join(said)


@check("2d completions")
def completions(cloud: Cloud) -> str:
    answer = client(cloud).completions.create(model=MODEL, prompt="One, two, three,", max_tokens=8)
    assert answer.choices[0].text and answer.usage, answer
    return repr(answer.choices[0].text)


@check("2e bad parameter is 400")
def bad_parameter(cloud: Cloud) -> str:
    try:
        client(cloud).chat.completions.create(model=MODEL, messages=HELLO, temperature="hot")  # type: ignore[call-overload]
    except openai.BadRequestError as error:
        assert "temperature" in str(error), error
        return f"400 {error}"
    raise AssertionError("accepted")


@check("2f unknown model is 404")
def unknown_model(cloud: Cloud) -> str:
    try:
        client(cloud).chat.completions.create(model="no-such-model", messages=HELLO)
    except openai.NotFoundError as error:
        return f"404 {error}"
    raise AssertionError("accepted")


@check("2g wrong key is 401")
def wrong_key(cloud: Cloud) -> str:
    try:
        client(cloud, "wrong").chat.completions.create(model=MODEL, messages=HELLO)
    except openai.AuthenticationError as error:
        return f"401 {error}"
    raise AssertionError("accepted")


@check("2h max_tokens is honoured")
def max_tokens(cloud: Cloud) -> str:
    one, extra = client(cloud), {"ignore_eos": True}
    answer = one.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7, extra_body=extra)
    assert answer.usage and answer.usage.completion_tokens == 7, answer.usage
    assert answer.choices[0].finish_reason == "length", answer.choices[0].finish_reason
    return "7 asked, 7 given, finish_reason length"


@check("2i a stream closed early frees its slot at the engine")
def closed_stream(cloud: Cloud) -> str:
    until(lambda: cloud.slots_busy() == 0, 20, "an idle engine")
    stream = client(cloud).chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1800, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(iter(stream))
    busy = cloud.slots_busy()
    assert busy == 1, f"{busy} slots busy while one stream flows"
    stream.close()
    began = time.monotonic()
    until(lambda: cloud.slots_busy() == 0, 5, "the slot to be free")
    return f"1 slot busy, free {time.monotonic() - began:.2f} s after the close (1,800 tokens were asked)"


OPENAI_CALLS: list[Check] = [
    models, chat, three_streams, completions, bad_parameter, unknown_model, wrong_key, max_tokens, closed_stream
]  # fmt: skip
