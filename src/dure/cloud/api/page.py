"""The plain page at `/`: chips, workloads, last events, for who opens the address in a browser."""

from __future__ import annotations

import asyncio
import html
import secrets
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from litestar import MediaType, Response, get, post
from litestar.datastructures import Cookie
from litestar.enums import RequestEncodingType
from litestar.params import Body
from msgspec import Struct

from dure.cloud.api import views
from dure.cloud.api.problems import AnyRequest
from dure.cloud.api.resources import Control, control_of
from dure.cloud.keys import digest
from dure.computing.state import KeyState
from dure.model.units import WHOLE_CHIP_MILLI
from dure.model.workload import Command

SESSION = "dure_session"
LAST_EVENTS = 20
LISTED = 50
_STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}body{max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{margin:0}h2{margin:2rem 0 .5rem;font-size:1.1rem}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.dim{opacity:.65}
input,button{font:inherit;padding:.4rem .6rem}
"""


_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it a browser says `Origin: null` when the form is sent, which the gateway refuses.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Login(Struct):
    key: str


def _page(body: str, refresh: bool = False) -> str:
    again = '<meta http-equiv="refresh" content="5">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Dure 두레</title>{again}'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>'
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[object]], empty: str) -> str:
    """Headings that start with `#` are of numbers."""
    names = list(head)
    kinds = [' class="n"' if name.startswith("#") else "" for name in names]
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{html.escape(str(cell))}</td>" for k, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    if not body:
        return f'<p class="dim">{empty}</p>'
    top = "".join(f"<th{k}>{html.escape(name.lstrip('#'))}</th>" for k, name in zip(kinds, names, strict=True))
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _chips(control: Control) -> str:
    groups: dict[tuple[str, ...], list[int]] = {}
    health: Counter[tuple[str, ...]] = Counter()
    state = control.loop.core.state
    for held in state.chips.values():
        chip = held.chip
        group = (chip.kind, chip.vendor, chip.model, chip.source, chip.node)
        groups.setdefault(group, []).append(WHOLE_CHIP_MILLI - held.held)
        health[group] += chip.health == "healthy" and chip.node in state.nodes and state.nodes[chip.node].linked
    rows = [(*group, len(free), health[group], f"{sum(free) / 1000:g}") for group, free in groups.items()]
    head = ("kind", "vendor", "model", "source", "node", "#chips", "#healthy", "#free")
    return _table(head, rows, "No chips yet: no node has joined.")


def _workloads(control: Control) -> str:
    core, rows = control.loop.core, []
    for held in islice(reversed(core.state.workloads.values()), LISTED):
        view = views.workload(core, held)
        work = view.ask.work
        what = " ".join(work.argv)[:60] if isinstance(work, Command) else work.model
        why = view.reason.why if view.reason else ""
        rows.append((view.id, view.ask.project, what, str(view.ask.chips), view.phase, why))
    return _table(
        ("id", "project", "what", "chips", "phase", "why"), rows, "No workloads yet: dure submit -- echo hello"
    )


async def _overview(control: Control) -> str:
    log = control.loop.log
    last = await asyncio.to_thread(log.read, max(0, log.head - LAST_EVENTS), LAST_EVENTS)
    told = [
        (datetime.fromtimestamp(view.at_ns / 1e9, UTC).strftime("%H:%M:%S"), view.kind, view.text)
        for view in reversed(views.events(last))
    ]
    simulated = any(held.chip.source == "simulated" for held in control.loop.core.state.chips.values())
    note = '<p class="dim">Some chips here are simulated; their power and speed are not measurements.</p>'
    return (
        f"<h1>Dure 두레</h1>{note if simulated else ''}<h2>Chips</h2>{_chips(control)}"
        f"<h2>Workloads</h2>{_workloads(control)}"
        f"<h2>Last events</h2>{_table(('time UTC', 'event', 'what'), told, 'Nothing has happened.')}"
    )


def _answer(page: str, status: int = 200) -> Response[str]:
    return Response(page, media_type=MediaType.HTML, status_code=status, headers=_HEADERS)


def _login(wrong: bool = False) -> str:
    said = "<p><b>That key is not known, or is no admin key.</b></p>" if wrong else ""
    return _page(
        f"<h1>Dure 두레</h1>{said}"
        "<p>Give the admin key; it is in the file <code>admin.key</code> of the cloud's home.</p>"
        '<form method="post" action="/login">'
        '<input name="key" type="password" size="50" autofocus aria-label="admin key"> '
        "<button>Open</button></form>"
    )


@get("/", media_type=MediaType.HTML, opt={"open": True})
async def front(request: AnyRequest) -> Response[str]:
    sessions: dict[str, KeyState] = request.app.state.sessions
    if request.cookies.get(SESSION, "") not in sessions:
        return _answer(_login())
    return _answer(_page(await _overview(control_of(request)), refresh=True))


@post("/login", opt={"open": True})
async def login(
    request: AnyRequest, data: Annotated[Login, Body(media_type=RequestEncodingType.URL_ENCODED)]
) -> Response[str]:
    key = control_of(request).loop.core.state.keys.get(digest(data.key.strip()))
    if key is None or not key.admin:
        return _answer(_login(wrong=True), 401)
    session = secrets.token_urlsafe(32)
    request.app.state.sessions[session] = key
    cookie = Cookie(SESSION, value=session, httponly=True, samesite="strict", path="/")
    return Response("", status_code=303, headers=_HEADERS | {"location": "/"}, cookies=[cookie])
