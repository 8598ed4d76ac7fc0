"""One `/v1` answer: a replica is asked, its bytes pass through, the journal is written before the end is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from dure.cloud.gateway.asgi import Leaver, Receive, Request, Send, read_body, send_whole
from dure.cloud.gateway.engines import Reply, ask_engine
from dure.cloud.gateway.errors import ApiError, reshape
from dure.cloud.gateway.journal import Journal, Line, Outcome
from dure.cloud.gateway.params import MAX_BODY, Ask, ChatBody, CompletionBody, parse_ask
from dure.cloud.gateway.routes import Table
from dure.cloud.gateway.sse import DONE, Events, Tokens, usage_of
from dure.model.wire import KeyGrant

_KINDS: dict[str, type[ChatBody | CompletionBody]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
}
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_AWAY = frozenset({401, 403, 502, 503, 504})
"""An engine that answers so is not serving (it loads, or does not know our key): another replica may."""
_BROKEN = (OSError, TimeoutError)
log = logging.getLogger(__name__)


class Exchange:
    """What is known of one answer in progress; `record` writes its line, once."""

    def __init__(self, grant: KeyGrant, model: str, journal: Journal, now_ns: Callable[[], int]) -> None:
        self.run: str | None = None
        self.events: Events | None = None
        self._grant, self._model, self._journal, self._now_ns = grant, model, journal, now_ns
        self._recorded = False

    def record(self, outcome: Outcome, tokens: Tokens | None = None) -> None:
        """Keep the answer's usage; nothing for a request that no engine was asked."""
        if self._recorded or self.run is None:
            return
        self._recorded = True
        tokens_out = 0
        if self.events is not None:
            tokens, tokens_out = self.events.tokens, self.events.content
        if tokens is not None:
            tokens_out = tokens.completion_tokens
        tokens_in = None if tokens is None else tokens.prompt_tokens
        grant, now = self._grant, self._now_ns()
        self._journal.append(Line(now, grant.key, grant.project, self._model, self.run, tokens_in, tokens_out, outcome))


class Answers:
    """`/v1/chat/completions` and `/v1/completions`."""

    def __init__(self, table: Table, journal: Journal, now_ns: Callable[[], int]) -> None:
        self._table, self._journal, self._now_ns = table, journal, now_ns

    async def __call__(self, request: Request, grant: KeyGrant, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ApiError while nothing has been sent."""
        if self._journal.broken and not self._journal.mend():
            raise ApiError(
                503, "Usage cannot be kept (is the disk full?), so nothing is served", code="disk", retry_s=5
            )
        ask = parse_ask(_KINDS[request.path], await read_body(request, receive, MAX_BODY))
        exchange = Exchange(grant, ask.model, self._journal, self._now_ns)
        leaver = Leaver(receive)
        try:
            await self._serve(exchange, request.path, ask, leaver, send)
        except asyncio.CancelledError:
            # The client left, or the server stops: either way there is nobody left to raise it to.
            exchange.record("cancelled" if leaver.gone else "failed")
        except ApiError as error:
            if error.status >= 500:
                exchange.record("failed")
            raise
        finally:
            leaver.stop()

    async def _serve(self, exchange: Exchange, path: str, ask: Ask, leaver: Leaver, send: Send) -> None:
        target = self._table.pick(ask.model)
        second = False
        while True:
            target.outstanding += 1
            exchange.run = target.run
            try:
                reply, block = await ask_engine(target, path, ask.body)
                try:
                    if reply.status in _AWAY:
                        raise ApiError(503, f"Its engine answered {reply.status}", code="engine_away", retry_s=2)
                    if reply.status == 200 and reply.content_type.startswith(b"text/event-stream"):
                        exchange.events = Events(ask.hide_usage)
                        return await _stream(exchange, exchange.events, reply, block, leaver, send)
                    return await _plain(exchange, reply, block, leaver, send)
                finally:
                    reply.close()  # cuts off an engine that is still working; a finished connection is back already
            except (ApiError, *_BROKEN) as error:
                log.warning("%s did not answer: %s %s", target.run, type(error).__name__, error)
                failed = target
            finally:
                target.outstanding -= 1
            if second:
                raise ApiError(503, f"The engines of {ask.model!r} do not answer", code="engine_away", retry_s=2)
            second = True
            target = self._table.pick(ask.model, but=failed)


async def _plain(exchange: Exchange, reply: Reply, block: bytes, leaver: Leaver, send: Send) -> None:
    status, blocks = reply.status, [block]
    while not reply.finished:
        blocks.append(await reply.read())
    body = b"".join(blocks)
    if status == 200:
        exchange.record("ok", usage_of(body))
    elif status < 400:
        raise ApiError(503, f"Its engine answered {status}", code="engine_away", retry_s=2)
    else:
        body = reshape(status, body)
        if status >= 500:
            exchange.record("failed")
    leaver.ended = True
    await send_whole(send, status, body, [(b"content-type", b"application/json")])


async def _stream(exchange: Exchange, events: Events, reply: Reply, block: bytes, leaver: Leaver, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _SSE})
    broken = ""
    try:
        out = events.feed(block)
        while not events.done and not reply.finished:
            if out:
                await send({"type": "http.response.body", "body": out, "more_body": True})
            out = events.feed(await reply.read())
        last = out + events.end()
    except (*_BROKEN, ValueError) as error:
        broken = f"The engine broke off: {type(error).__name__}"
        last = b"data: " + ApiError(503, broken, code="engine_broke").body + b"\n\n"
    exchange.record("failed" if broken or events.failed else "ok")
    leaver.ended = True
    await send({"type": "http.response.body", "body": last + DONE if events.done else last})
    if events.done and not reply.finished:
        with contextlib.suppress(*_BROKEN):  # the rest, so that the connection can be used again
            async with asyncio.timeout(1):
                while not reply.finished:
                    await reply.read()
