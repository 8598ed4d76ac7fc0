"""The gateway's link to control: routes come in, usage goes out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging

import aiohttp
import msgspec

from dure.cloud.gateway.journal import Journal, JournalFile, Sums, fold_into, rows
from dure.cloud.gateway.routes import Table
from dure.model.errors import DureError
from dure.model.wire import GatewaySays, Recorded, Resume, Routes, ToGateway, Usage

TICK_S = 0.5
ANSWER_S = 30.0
_BACKOFF_S = (0.1, 2.0)
_MAX_FRAME = 256 << 20
_MAX_PIECE = 4 << 20
log = logging.getLogger(__name__)
_frame = msgspec.json.Decoder(ToGateway)


class Link:
    """Connects for ever; between connections the table stays as control last told it. `up` is set while linked."""

    def __init__(self, session: aiohttp.ClientSession, url: str, link_key: str, table: Table, journal: Journal) -> None:
        self.up = asyncio.Event()
        self._session, self._url, self._table, self._journal = session, url, table, journal
        self._headers = {"Authorization": f"Bearer {link_key}"}
        self._tick = asyncio.Event()
        self._recorded: asyncio.Queue[Recorded] = asyncio.Queue()

    async def run(self) -> None:
        """Until cancelled."""
        delay, told = _BACKOFF_S[0], ""
        while True:
            try:
                async with self._session.ws_connect(
                    self._url, headers=self._headers, heartbeat=10, max_msg_size=_MAX_FRAME
                ) as socket:
                    self.up.set()
                    delay, told = _BACKOFF_S[0], ""
                    await self._talk(socket)
                why = "control closed it"
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, DureError) as error:
                why = f"{type(error).__name__}: {error}"
            finally:
                self.up.clear()
            if why != told:  # once per cause, not ten times a second
                log.warning("link to control is down (%s); serving from the last routes", why)
                told = why
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_S[1])

    async def settle(self, within_s: float) -> None:
        """Report all usage now, at most so long; without a link the journal keeps it for the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.up.is_set() and not self._journal.settled:
                    self._tick.set()
                    await asyncio.sleep(0.02)

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._recorded = asyncio.Queue()
        tasks = [asyncio.create_task(self._listen(socket)), asyncio.create_task(self._report(socket))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            match _frame.decode(message.data):
                case Routes() as routes:
                    self._table.update(routes)
                case Recorded() as recorded:
                    self._recorded.put_nowait(recorded)

    async def _report(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        asked: set[str] = set()
        while True:
            for file in [*self._journal.old, self._journal.current]:
                if file.name not in asked:
                    self._journal.resumed(file, await self._ask(socket, Resume(file.name)))
                    asked.add(file.name)
                while piece := await self._piece(file):
                    file.recorded = await self._ask(socket, piece)
                    if file.recorded <= piece.start:
                        log.warning("control did not record usage of %s from byte %d", file.name, piece.start)
                        break
            self._journal.drop_recorded()
            self._journal.mend()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._tick.wait()
            self._tick.clear()

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse, say: GatewaySays) -> int:
        """Send and wait for how far the journal is in the log. Raises TimeoutError."""
        await socket.send_str(msgspec.json.encode(say).decode())
        async with asyncio.timeout(ANSWER_S):
            while (answer := await self._recorded.get()).journal != say.journal:
                pass
        return answer.upto

    async def _piece(self, file: JournalFile) -> Usage | None:
        """What of `file` is not in the log yet, folded a little at a time: answers do not wait for it."""
        start = at = file.recorded or 0
        if start >= file.size:
            return None
        sums: Sums = {}
        digest = hashlib.sha256()
        while at < file.size and at - start < _MAX_PIECE:
            data = file.read(at)
            fold_into(sums, data)
            digest.update(data)
            at += len(data)
            await asyncio.sleep(0)
        return Usage(file.name, start, at, digest.hexdigest(), rows(sums))
