"""Control's HTTP application. Keys are checked here, once, for every path but the page's own."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from dure import __version__
from dure.cloud.api import links, page, resources
from dure.cloud.api.problems import AnyRequest, answer, on_crash, on_dure_error, on_http_error, on_too_deep
from dure.cloud.api.resources import Control
from dure.cloud.keys import digest
from dure.model.errors import DureError
from dure.model.view import ErrorView, Failed

BODY_MAX_BYTES = 64 * 2**20


async def _check_key(request: AnyRequest) -> Response[Failed] | None:
    control: Control = request.app.state.control
    if request.method == "GET":  # nobody is shown what is not on disk
        await control.loop.on_disk.wait()
    if request.route_handler.opt.get("open"):
        return None
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = control.loop.core.state.keys.get(digest(secret.strip())) if scheme.lower() == "bearer" else None
    if key is None:
        why = "no key was sent" if not secret else "the key is not known"
        return answer(401, ErrorView("Not allowed", why, "Send `Authorization: Bearer KEY`; see HOME/admin.key"))
    request.state.key = key
    return None


def make_app(control: Control) -> Litestar:
    """The ASGI application over a running Loop."""
    handlers: dict[Any, Any] = {DureError: on_dure_error, HTTPException: on_http_error, Exception: on_crash}
    handlers[RecursionError] = on_too_deep
    return Litestar(
        [*resources.HANDLERS, links.agent_link, links.gateway_link, page.front, page.login],
        before_request=_check_key,
        exception_handlers=handlers,
        openapi_config=OpenAPIConfig(
            "Dure control API", __version__, path="/api/schema", render_plugins=[JsonRenderPlugin()]
        ),
        logging_config=None,
        state=State({"control": control, "sessions": {}}),
        request_max_body_size=BODY_MAX_BYTES,
    )
