"""The links of agents and gateways: one authenticated WebSocket each, frames of model/wire.py."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from msgspec import DecodeError, json

from dure.cloud.api.resources import Control
from dure.cloud.routes import routes
from dure.computing import inbox as ib
from dure.model.wire import AgentSays, Beat, GatewaySays, Hello, LogChunk, Order, Recorded, Resume, ToGateway

AnySocket = WebSocket[Any, Any, Any]
UNREADABLE, NOT_ALLOWED, NOT_THE_NODES = 4400, 4401, 4409
"""Close codes."""
_encode = json.Encoder().encode
_agent_says = json.Decoder(AgentSays)
_gateway_says = json.Decoder(GatewaySays)


def _allowed(socket: AnySocket, control: Control) -> bool:
    given = socket.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {control.link_key}".encode())


async def _send_all(socket: AnySocket, outbox: asyncio.Queue[Any]) -> None:
    while True:
        await socket.send_text(_encode(await outbox.get()).decode())


@websocket("/link/agent")
async def agent_link(socket: AnySocket) -> None:
    """One node's agent. A second link of the same node takes the place of the first, which is closed."""
    control: Control = socket.app.state.control
    if not _allowed(socket, control):
        await socket.close(NOT_ALLOWED, "link key wrong")
        return
    await socket.accept()
    outbox: asyncio.Queue[Order] = asyncio.Queue()
    sender = asyncio.create_task(_send_all(socket, outbox))
    node, why = "", "its link closed"
    agents = control.loop.agents
    try:
        while True:
            said = _agent_says.decode(await socket.receive_text())
            if isinstance(said, Hello) and said.node.id and node in ("", said.node.id):
                node = said.node.id
                agents[node] = outbox
                control.loop.put(ib.AgentHello(said))
            elif agents.get(node) is not outbox or isinstance(said, Hello):
                await socket.close(NOT_THE_NODES, "no hello, one of another node, or a newer link has its place")
                break
            elif isinstance(said, Beat):
                control.loop.put(ib.AgentBeat(node, said))
            elif isinstance(said, LogChunk):
                control.loop.log_chunk(said)
    except WebSocketDisconnect:
        pass
    except DecodeError as error:
        why = f"its link said something unreadable: {error}"
        await socket.close(UNREADABLE, "unreadable frame")
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if node and agents.get(node) is outbox:
            del agents[node]
            control.loop.put(ib.AgentGone(node, why))


@websocket("/link/gateway")
async def gateway_link(socket: AnySocket) -> None:
    """One gateway: routes to it, usage from it."""
    control: Control = socket.app.state.control
    if not _allowed(socket, control):
        await socket.close(NOT_ALLOWED, "link key wrong")
        return
    await socket.accept()
    outbox: asyncio.Queue[ToGateway] = asyncio.Queue()
    outbox.put_nowait(routes(control.loop.core.state, control.link_key))
    number = id(outbox)
    control.loop.gateways[number] = outbox
    sender = asyncio.create_task(_send_all(socket, outbox))
    try:
        while True:
            said = _gateway_says.decode(await socket.receive_text())
            if isinstance(said, Resume):
                known = control.loop.core.state.journals.get(said.journal, 0)
                outbox.put_nowait(Recorded(said.journal, known))
            else:
                control.loop.put(ib.UsageIn(number, said))
    except WebSocketDisconnect:
        pass
    except DecodeError:
        await socket.close(UNREADABLE, "unreadable frame")
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        del control.loop.gateways[number]
