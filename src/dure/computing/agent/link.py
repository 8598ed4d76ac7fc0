"""The agent's end of its link to control: hello, a beat each second and on every change, orders obeyed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

import aiohttp
import msgspec

from dure.computing.agent.node import NodeRuns
from dure.model.chip import Chip, Node
from dure.model.errors import DureError
from dure.model.wire import AgentSays, Beat, Hello, Order

Meter: TypeAlias = Callable[[], tuple[int, str] | None]
"""The node's cumulative energy in µJ and the meter's name; None without a meter. May block."""

BEAT_S = 1.0
_APART_S = 0.05
_APART_A_RUN_S = 0.00005
"""Changes within it share a beat, and a beat of many runs is dear: hundreds of runs a second must not
mean hundreds of beats, nor thousands of runs tens of megabytes a second."""
_SILENT_S = 10.0
_AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)
_decode = msgspec.json.Decoder(Order).decode
_log = logging.getLogger("dure.agent")


class Link:
    """One node's link. `keep` runs until it is cancelled; control may come and go meanwhile."""

    def __init__(self, url: str, key: str, node: Node, chips: tuple[Chip, ...], runs: NodeRuns) -> None:
        self.url, self.key, self.node, self.chips, self.runs = url, key, node, chips, runs
        self._last = Beat(())
        self._said = asyncio.Event()
        """Set after each beat."""

    async def keep(self, meter: Meter) -> None:
        """Connect, talk, and connect again for ever."""
        tries = 0
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.key}"}) as session:
            while True:
                try:
                    async with session.ws_connect(self.url, heartbeat=_SILENT_S, max_msg_size=1 << 26) as socket:
                        tries = 0
                        await self._talk(socket, meter)
                        _log.info("control closed the link")
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    if tries in (0, len(_AGAIN_S)):
                        _log.warning("no link to control at %s: %s", self.url, error)
                await asyncio.sleep(_AGAIN_S[min(tries, len(_AGAIN_S) - 1)])
                tries += 1

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse, meter: Meter) -> None:
        await self.runs.measure()
        await self._send(socket, Hello(self.node, self.chips, self.runs.statuses()))
        _log.info("linked to control at %s", self.url)
        beats = asyncio.create_task(self._beats(socket, meter))
        listens = asyncio.create_task(self._listen(socket))
        try:
            done, _ = await asyncio.wait({beats, listens}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (beats, listens):
                task.cancel()
            await asyncio.gather(beats, listens, return_exceptions=True)

    async def _beats(self, socket: aiohttp.ClientWebSocketResponse, meter: Meter) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            if loop.time() >= next_s:
                next_s = loop.time() + BEAT_S
                await self.runs.measure()
                energy = await asyncio.to_thread(meter)
                self._last = Beat((), *energy) if energy is not None else Beat(())
            self.runs.changed.clear()
            beat = Beat(self.runs.statuses(), self._last.energy_uj, self._last.meter)
            await self._send(socket, beat)
            self._said.set()
            await asyncio.sleep(min(BEAT_S, _APART_S + _APART_A_RUN_S * len(beat.runs)))
            try:
                async with asyncio.timeout(next_s - loop.time()):
                    await self.runs.changed.wait()
            except TimeoutError:
                pass

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                _log.warning("control sent a frame of type %s", message.type)
                continue
            try:
                answer = await self.runs.obey(_decode(message.data))
                if answer is not None:
                    await self._send(socket, answer)
            except (msgspec.MsgspecError, DureError) as error:
                _log.warning("an order is not obeyed: %s", error)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, said: AgentSays) -> None:
        await socket.send_str(msgspec.json.encode(said).decode())

    async def say_all(self, timeout_s: float) -> None:
        """Wait until control has been told every status there is now, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(2):  # the first beat may have been put together before the last change
                    self._said.clear()
                    self.runs.changed.set()
                    await self._said.wait()
        except TimeoutError:
            _log.warning("control was not told how the last runs ended")
