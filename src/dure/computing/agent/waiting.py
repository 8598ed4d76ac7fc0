"""Waiting without blocking the loop: for a process to end, for an engine to answer."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

from dure.computing.agent.processes import open_pidfd

_PROBE_TIMEOUT_S = 2.0


async def gone(pid: int, start: int) -> None:
    """Returns once exactly that process has ended."""
    fd = open_pidfd(pid, start)
    if fd is None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def answers_200(url: str, path: str) -> bool:
    """Does GET `path` at `url` (plain HTTP) answer 200 now?"""
    at = urlsplit(url)
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return status.split(b" ")[1:2] == [b"200"]
