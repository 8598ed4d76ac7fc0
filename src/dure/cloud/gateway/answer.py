"""One `/v1` answer: a replica is asked, its bytes pass through, the journal is written before the end is sent."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable

import aiohttp

from dure.cloud.gateway.asgi import Leaver, Receive, Request, Send, read_body, send_whole
from dure.cloud.gateway.errors import ApiError, reshape
from dure.cloud.gateway.journal import Journal, Line, Outcome
from dure.cloud.gateway.params import MAX_BODY, Ask, ChatBody, CompletionBody, parse_ask
from dure.cloud.gateway.routes import Table, Target
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
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
log = logging.getLogger(__name__)


class Engines:
    """Connections to engines: `pooled` keeps them alive, `fresh` opens one for a second try."""

    def __init__(self, pooled: aiohttp.ClientSession, fresh: aiohttp.ClientSession) -> None:
        self.pooled, self.fresh = pooled, fresh

    async def ask(self, target: Target, path: str, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer's head and first bytes. Raises what aiohttp raises, or ApiError 503 when it is not serving."""
        try:
            return await self._first(self.pooled, target, path, body)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # A kept-alive connection that the engine closed meanwhile looks just so; nothing was answered yet.
            return await self._first(self.fresh, target, path, body)

    async def _first(
        self, session: aiohttp.ClientSession, target: Target, path: str, body: bytes
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        data = body if len(body) < 1 << 20 else io.BytesIO(body)
        response = await session.post(target.urls[path], data=data, headers=target.headers, allow_redirects=False)
        try:
            block = await response.content.readany()
        except BaseException:
            response.close()
            raise
        if response.status in _AWAY:
            response.close()
            raise ApiError(503, f"Its engine answered {response.status}", code="engine_away", retry_s=2)
        return response, block


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

    def __init__(self, table: Table, journal: Journal, engines: Engines, now_ns: Callable[[], int]) -> None:
        self._table, self._journal, self._engines, self._now_ns = table, journal, engines, now_ns

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
                response, block = await self._engines.ask(target, path, ask.body)
                try:
                    if response.status == 200 and response.headers.get("Content-Type", "").startswith(
                        "text/event-stream"
                    ):
                        exchange.events = Events(ask.hide_usage)
                        return await _stream(exchange, exchange.events, response, block, leaver, send)
                    return await _plain(exchange, response, block, leaver, send)
                finally:
                    response.close()  # cuts off an engine that is still working; a finished connection is back already
            except (ApiError, *_BROKEN) as error:
                log.warning("%s did not answer: %s %s", target.run, type(error).__name__, error)
                failed = target
            finally:
                target.outstanding -= 1
            if second:
                raise ApiError(503, f"The engines of {ask.model!r} do not answer", code="engine_away", retry_s=2)
            second = True
            target = self._table.pick(ask.model, but=failed)


async def _plain(
    exchange: Exchange, response: aiohttp.ClientResponse, block: bytes, leaver: Leaver, send: Send
) -> None:
    status = response.status
    body = block if response.content.at_eof() else block + await response.content.read()
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


async def _stream(
    exchange: Exchange, events: Events, response: aiohttp.ClientResponse, block: bytes, leaver: Leaver, send: Send
) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _SSE})
    content = response.content
    broken = ""
    try:
        out = events.feed(block)
        while block and not events.done and not content.at_eof():
            if out:
                await send({"type": "http.response.body", "body": out, "more_body": True})
            block = await content.readany()
            out = events.feed(block)
        last = out + events.end()
    except (*_BROKEN, ValueError) as error:
        broken = f"The engine broke off: {type(error).__name__}"
        last = b"data: " + ApiError(503, broken, code="engine_broke").body + b"\n\n"
    exchange.record("failed" if broken or events.failed else "ok")
    leaver.ended = True
    await send({"type": "http.response.body", "body": last + DONE if events.done else last})
    if events.done and not content.at_eof():
        with contextlib.suppress(*_BROKEN):  # so that the connection can be used again
            async with asyncio.timeout(1):
                await content.read()
