"""The API's resources: each handler parses, asks the loop, and renders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from litestar import MediaType, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Struct, json

from dure import __version__
from dure.cloud.api import views
from dure.cloud.api.problems import AnyRequest, Problem, not_found
from dure.cloud.keys import digest, new_secret
from dure.cloud.loop import Loop
from dure.computing.inbox import MakeKey, MakeProject, MeterNow, StopWork, Submit
from dure.computing.state import KeyState, WorkloadState
from dure.metering import report as reports
from dure.metering.cost import Prices
from dure.model.artifact import ModelEntry
from dure.model.errors import LogUnwritable
from dure.model.view import (
    ChipView,
    ErrorView,
    EventView,
    Failed,
    KeyMade,
    KeyView,
    LogView,
    ModelView,
    ProjectView,
    Report,
    ServerInfo,
    StoryLine,
    Submitted,
    WorkloadView,
)
from dure.model.workload import Ask, Name, Refusal

LOG_POLL_S = 0.2
MAX_ASKS = 1000
"""Asks in one request: what the loop decides in one go."""
_PIECE = 100
_encode = json.Encoder().encode


class Control(Struct, frozen=True):
    """What the handlers work on."""

    loop: Loop
    catalogue: Mapping[str, ModelEntry]
    prices: Prices
    link_key: str
    home: Path
    clock_ns: Callable[[], int]


def control_of(request: AnyRequest) -> Control:
    control: Control = request.app.state.control
    return control


def key_of(request: AnyRequest) -> KeyState:
    key: KeyState = request.state.key
    return key


def scope_of(request: AnyRequest) -> str | None:
    """The project a key is bound to; None: an admin key sees all."""
    key = key_of(request)
    return None if key.admin else key.project


def need_admin(request: AnyRequest) -> KeyState:
    key = key_of(request)
    if not key.admin:
        why = f"key {key.id} belongs to project {key.project}"
        raise Problem(403, ErrorView("This needs an admin key", why, "Use the key in HOME/admin.key"))
    return key


def workload_of(request: AnyRequest, workload_id: str) -> WorkloadState:
    held = control_of(request).loop.core.state.workloads.get(workload_id)
    if held is None or scope_of(request) not in (None, held.workload.ask.project):
        raise not_found(f"No workload {workload_id}", "List them with: dure ps --all")
    return held


async def in_pieces(views_: Iterable[Struct]) -> Response[bytes]:
    """A list rendered and encoded a few at a time: a long one must not hold up everybody else."""
    parts = []
    for at, view in enumerate(views_, 1):
        parts.append(_encode(view))
        if at % _PIECE == 0:
            await asyncio.sleep(0)
    return Response(b"[" + b",".join(parts) + b"]", media_type=MediaType.JSON)


@get("/api/info")
async def info(request: AnyRequest) -> ServerInfo:
    control = control_of(request)
    nodes = {node_id: node.linked for node_id, node in control.loop.core.state.nodes.items()}
    return ServerInfo(__version__, str(control.home), control.loop.log.head, nodes)


@get("/api/chips", responses={200: ResponseSpec(list[ChipView])})
async def chips(request: AnyRequest) -> Response[bytes]:
    """Each chip as it is when its turn comes; a key of a project sees that project's runs on it."""
    state, scope = control_of(request).loop.core.state, scope_of(request)
    return await in_pieces(views.chip(state, held, scope) for held in list(state.chips.values()))


@get("/api/workloads", responses={200: ResponseSpec(list[WorkloadView])})
async def workloads(request: AnyRequest, all: FromQuery[bool] = False) -> Response[bytes]:
    """Each workload as it is when its turn comes; those that ended only with `all`."""
    core = control_of(request).loop.core
    return await in_pieces(views.workload(core, held) for held in views.listed(core, scope_of(request), all))


@post("/api/workloads")
async def submit(request: AnyRequest, data: JSONBody[Ask | list[Ask]]) -> Response[Any]:
    """One ask: 201, or 409 with the refusal. A list of up to 1000: 200 with one answer each, in order."""
    key = key_of(request)
    asks = tuple(data) if isinstance(data, list) else (data,)
    if len(asks) > MAX_ASKS:
        raise Problem(413, ErrorView(f"{len(asks)} asks are too many for one request", f"it takes {MAX_ASKS}"))
    for ask in asks:
        if not key.admin and ask.project != key.project:
            why = f"key {key.id} belongs to project {key.project}, the ask says {ask.project}"
            raise Problem(403, ErrorView("Not your project", why, f"Ask with project {key.project}"))
    done = await control_of(request).loop.ask(lambda token: Submit(asks, key.id, token), tuple)
    assert isinstance(done, tuple)
    if isinstance(data, list):
        return Response(list(done), status_code=200)
    first: Submitted = done[0]
    if first.refusal is None:
        return Response(first, status_code=201)
    error = ErrorView("Refused", first.refusal.why, "", first.refusal, first.id)
    return Response(Failed(error), status_code=409)


@get("/api/workloads/{workload_id:str}")
async def workload(request: AnyRequest, workload_id: FromPath[str]) -> WorkloadView:
    return views.workload(control_of(request).loop.core, workload_of(request, workload_id))


@post("/api/workloads/{workload_id:str}/stop", status_code=200)
async def stop(request: AnyRequest, workload_id: FromPath[str]) -> WorkloadView:
    workload_of(request, workload_id)
    by = key_of(request).id
    await control_of(request).loop.ask(lambda token: StopWork(workload_id, by, token), str)
    return views.workload(control_of(request).loop.core, workload_of(request, workload_id))


@get("/api/workloads/{workload_id:str}/why")
async def why(request: AnyRequest, workload_id: FromPath[str]) -> list[StoryLine]:
    """The workload's story from the log; also of one that memory has let go."""
    log = control_of(request).loop.log
    rows = await asyncio.to_thread(log.read, 0, 10_000, workload_id)
    told = views.story(rows)
    scope = scope_of(request)
    if not told or (scope is not None and views.project_of(rows[0][1].event) != scope):
        raise not_found(f"No workload {workload_id}", "List them with: dure ps --all")
    return told


@get("/api/workloads/{workload_id:str}/log")
async def log(
    request: AnyRequest,
    workload_id: FromPath[str],
    run: FromQuery[str | None] = None,
    offset: Annotated[int, QueryParameter(ge=0)] = 0,
    wait_s: Annotated[float, QueryParameter(ge=0, le=30)] = 0,
) -> LogView:
    """Output of a run from `offset`; waits up to `wait_s` for some when there is none yet."""
    control, now = control_of(request), asyncio.get_running_loop().time
    until = now() + wait_s
    while True:
        held = workload_of(request, workload_id)
        ended = held.phase in ("done", "failed", "stopped")
        run_id = run or next(iter(held.runs.values()), None)
        state = control.loop.core.state.runs.get(run_id or "")
        if run is not None and (state is None or state.workload != workload_id):
            raise not_found(f"No run {run} of workload {workload_id}")
        if state is not None and state.phase != "placed":
            chunk = await control.loop.read_log(state.id, state.plan.node, offset)
            over = state.phase == "ended" and (run is not None or ended)
            if chunk.data or over:
                return LogView(state.id, chunk.data, offset + len(chunk.data), over and not chunk.data)
        elif ended:
            return LogView(run_id or "", b"", offset, True)
        if now() >= until:
            return LogView(run_id or "", b"", offset, False)
        await asyncio.sleep(LOG_POLL_S)


@get("/api/models")
async def models(request: AnyRequest) -> list[ModelView]:
    control = control_of(request)
    return views.models(control.catalogue, control.loop.core.state)


@get("/api/report/{what:str}")
async def report(
    request: AnyRequest,
    what: FromPath[str],
    by: FromQuery[Literal["project", "workload", "model", "chip"]] = "project",
) -> Report:
    need_admin(request)
    control = control_of(request)
    if what not in ("usage", "energy", "cost"):
        raise not_found(f"No report {what}", "Reports: usage, energy, cost")
    with contextlib.suppress(LogUnwritable):  # then the report is as of the last minute
        await control.loop.ask(MeterNow, str)
    now_ns = control.clock_ns()
    ledger = views.frozen(control.loop.core.ledger, now_ns)
    if what == "cost":
        return await asyncio.to_thread(reports.cost, ledger, by, now_ns, control.prices)
    return await asyncio.to_thread(reports.usage if what == "usage" else reports.energy, ledger, by, now_ns)


class NewProject(Struct, frozen=True):
    name: Name


class NewKey(Struct, frozen=True):
    project: Name


@get("/api/projects")
async def projects(request: AnyRequest) -> list[ProjectView]:
    scope = scope_of(request)
    return [view for view in views.projects(control_of(request).loop.core.state) if scope in (None, view.name)]


@post("/api/projects")
async def create_project(request: AnyRequest, data: JSONBody[NewProject]) -> ProjectView:
    by = need_admin(request).id
    loop = control_of(request).loop
    if data.name in loop.core.state.projects:
        raise Problem(409, ErrorView(f"Project {data.name} is there already"))
    await loop.ask(lambda token: MakeProject(data.name, by, token), str)
    return next(view for view in views.projects(loop.core.state) if view.name == data.name)


@get("/api/keys")
async def keys(request: AnyRequest) -> list[KeyView]:
    scope = scope_of(request)
    return [view for view in views.keys(control_of(request).loop.core.state) if scope in (None, view.project)]


@post("/api/keys")
async def create_key(request: AnyRequest, data: JSONBody[NewKey]) -> KeyMade:
    by = need_admin(request).id
    secret = new_secret()
    made = await control_of(request).loop.ask(
        lambda token: MakeKey(data.project, digest(secret), False, by, token), str
    )
    if isinstance(made, Refusal):
        raise not_found(made.why, f"Create it with: dure project create {data.project}")
    return KeyMade(made, data.project, secret)


@get("/api/events")
async def events(
    request: AnyRequest,
    after: Annotated[int, QueryParameter(ge=0)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
) -> list[EventView]:
    need_admin(request)
    return views.events(await asyncio.to_thread(control_of(request).loop.log.read, after, limit))


HANDLERS = [
    info,
    chips,
    workloads,
    submit,
    workload,
    stop,
    why,
    log,
    models,
    report,
    projects,
    create_project,
    keys,
    create_key,
    events,
]
