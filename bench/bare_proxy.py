"""The peer of the gateway: the least a proxy in raw ASGI on uvicorn with an aiohttp client can do.

No keys, checks, routes, usage or errors. `python -m bench.bare_proxy UPSTREAM_URL`; prints its port.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import aiohttp
import uvicorn
from yarl import URL


class Proxy:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        url = URL(self._upstream + scope["path"])
        async with self._session.post(url, data=body, headers={"content-type": "application/json"}) as response:
            kind = response.headers["content-type"].encode()
            headers = [(b"content-type", kind)]
            start = {"type": "http.response.start", "status": response.status, "headers": headers}
            if kind.startswith(b"text/event-stream"):
                await send(start)
                async for block in response.content.iter_any():
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            else:
                whole = await response.read()
                headers.append((b"content-length", b"%d" % len(whole)))
                await send(start)
                await send({"type": "http.response.body", "body": whole})


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        Proxy(sys.argv[1]), http="httptools", ws="none", lifespan="off", access_log=False, log_config=None
    )
    uvicorn.Server(config).run(sockets=[listener])
