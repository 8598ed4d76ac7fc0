"""The gateway's ASGI application: who may ask, and who answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
from msgspec import Struct

from dure.cloud.gateway.answer import Answers
from dure.cloud.gateway.asgi import Receive, Request, Scope, Send, check_site, parse, send_whole
from dure.cloud.gateway.errors import JSON, ApiError
from dure.cloud.gateway.forward import Forwarder
from dure.cloud.gateway.routes import Table

WAIT_ROUTES_S = 5.0
_PAGES = frozenset({"/", "/login", "/logout"})
log = logging.getLogger(__name__)


class Model(Struct, frozen=True):
    """One line of `/v1/models`. When a model was made is not known here: `created` is 0."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "dure"


class ModelList(Struct, frozen=True):
    data: list[Model]
    object: str = "list"


class Gateway:
    """Routes by path. `/v1` and `/metrics` need a key; control checks the rest itself."""

    def __init__(
        self, table: Table, answers: Answers, control: Forwarder, agent: Forwarder, site: tuple[frozenset[str], str]
    ) -> None:
        """`site`: the host names it answers for, and the link key that the agent asks for."""
        self._table, self._answers, self._control, self._agent = table, answers, control, agent
        self._hosts, self._link_key = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            request = parse(scope)
            check_site(request, self._hosts)
            if request.path.startswith("/v1/"):
                await self._openai(request, receive, send)
            else:
                await self._other(request, receive, send)
        except ApiError as error:
            await send_whole(send, error.status, error.body, error.headers)

    async def _openai(self, request: Request, receive: Receive, send: Send) -> None:
        if request.path in ("/v1/chat/completions", "/v1/completions"):
            _only(request, "POST")
            await self._wait_routes()
            await self._answers(request, self._table.grant(request.authorization), receive, send)
        elif request.path == "/v1/models":
            _only(request, "GET")
            await self._wait_routes()
            self._table.grant(request.authorization)
            models = ModelList([Model(name) for name in sorted(self._table.models)])
            await send_whole(send, 200, msgspec.json.encode(models), [JSON])
        else:
            raise _unknown(request)

    async def _other(self, request: Request, receive: Receive, send: Send) -> None:
        path = request.path
        if path == "/healthz":
            await send_whole(send, 200, b'{"status":"ok"}', [JSON])
        elif path == "/readyz":
            ready = self._table.ready.is_set()
            body = b'{"status":"ready"}' if ready else b'{"status":"waiting for routes from control"}'
            await send_whole(send, 200 if ready else 503, body, [JSON])
        elif path == "/metrics":
            _only(request, "GET")
            await self._wait_routes()
            self._table.grant(request.authorization)
            await self._agent(request, receive, send, self._link_key)
        elif path in _PAGES or (path.startswith(("/api/", "/page")) and _is_plain(path)):
            await self._control(request, receive, send)
        else:
            raise _unknown(request)

    async def _wait_routes(self) -> None:
        """A gateway that just started has no keys yet: wait for them rather than refuse a good key."""
        if not self._table.ready.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_ROUTES_S):
                    await self._table.ready.wait()
            if not self._table.ready.is_set():
                raise ApiError(503, "Starting: control has not sent its routes yet", code="starting", retry_s=2)


def _only(request: Request, method: str) -> None:
    if request.method != method:
        raise ApiError(405, f"{request.path} takes {method}, not {request.method}", code="method_not_allowed")


def _is_plain(path: str) -> bool:
    """No `.`, `..` or empty segments: nothing that the process behind could read as another path."""
    return not {"", ".", ".."} & set(path[1:].rstrip("/").split("/")) and "\\" not in path


def _unknown(request: Request) -> ApiError:
    return ApiError(404, f"No such path: {request.path[:200]!r}", code="not_found")
