"""Errors of the control API: every 4xx and 5xx is `{"error": {what, why, do}}`."""

from __future__ import annotations

import logging
from typing import Any

from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException

from dure.model.errors import DureError, LogUnwritable
from dure.model.view import ErrorView, Failed

AnyRequest = Request[Any, Any, Any]
_log = logging.getLogger("dure.control")


class Problem(DureError):
    """An answer that is an error: its HTTP status and body."""

    def __init__(self, status: int, error: ErrorView) -> None:
        super().__init__(error.what, error.why, error.do)
        self.status, self.error = status, error


def not_found(what: str, do: str = "") -> Problem:
    return Problem(404, ErrorView(what, do=do))


def answer(status: int, error: ErrorView) -> Response[Failed]:
    return Response(Failed(error), status_code=status, media_type=MediaType.JSON)


def on_dure_error(_: AnyRequest, error: DureError) -> Response[Failed]:
    if isinstance(error, Problem):
        return answer(error.status, error.error)
    status = 507 if isinstance(error, LogUnwritable) else 503
    return answer(status, ErrorView(error.what, error.why, error.do))


def on_http_error(_: AnyRequest, error: HTTPException) -> Response[Failed]:
    """Litestar's own refusals (malformed body, unknown path, wrong method), in our shape."""
    extra = error.extra if isinstance(error.extra, list) else []
    causes = "; ".join(
        "there is no body" if message == "'data'" else f"{item.get('key', 'body')}: {message}"
        for item in extra
        if isinstance(item, dict) and (message := str(item.get("message", "")))
    )
    do = "See /api/schema for what this path takes" if error.status_code == 400 else ""
    return answer(error.status_code, ErrorView(error.detail, causes, do))


def on_too_deep(_: AnyRequest, error: RecursionError) -> Response[Failed]:
    return answer(400, ErrorView("The body is not read", "it is nested too deeply", "See /api/schema"))


def on_crash(request: AnyRequest, error: Exception) -> Response[Failed]:
    """A fault of ours: named by its type alone, never with its inside, which goes to the process's log."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(500, ErrorView("Control failed on this request", type(error).__name__, "See HOME/logs/control.log"))
