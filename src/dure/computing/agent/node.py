"""All runs of one node: orders in, statuses out."""

from __future__ import annotations

import asyncio
import time

from msgspec.structs import replace

from dure.computing.agent import processes
from dure.computing.agent.run import HeldRun, Run, SimulatedRun, Site
from dure.computing.agent.runs import GRACE_S, RunFolder, boot_id, deadline_ns, folders
from dure.model.errors import DureError
from dure.model.wire import Forget, Lease, LogChunk, Order, ReadLog, RunSpec, RunStatus, Start, Stop
from dure.model.workload import Command, Exit

FIRST_LEASE_S = 60.0
_END_S = 10.0


class NodeRuns:
    """`changed` is set whenever a status is another than before."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.changed = asyncio.Event()
        self._runs: dict[str, Run] = {}
        self._lease_ns = deadline_ns(FIRST_LEASE_S)

    def statuses(self) -> tuple[RunStatus, ...]:
        return tuple(run.status for run in self._runs.values())

    def held(self) -> dict[str, int]:
        """Chip -> milli held by runs that have not ended."""
        held: dict[str, int] = {}
        for run in self._runs.values():
            for piece in run.spec.slices if run.spec is not None and not run.ended else ():
                held[piece.chip] = held.get(piece.chip, 0) + piece.milli
        return held

    async def adopt(self) -> None:
        """Take over what an earlier agent of this home left, then kill processes of runs that have no hold."""
        boot = boot_id()
        for folder in await asyncio.to_thread(folders, self.site.home):
            written, status = folder.written(), folder.status()
            run = HeldRun(folder, written.spec if written else None, self.changed)
            self._runs[folder.run] = run
            if status is not None and status.exit is not None:
                run.end(status.exit, status)
            elif written is None:
                run.end(Exit("lost", detail=f"{folder.path}/spec.json is damaged"))
            elif written.boot != boot:
                run.end(Exit("lost", detail="the machine was started anew"))
            elif status is not None:
                run.found(written, status)
                run.task = asyncio.create_task(run.watch(self.site))
            else:  # its hold is about to begin, or never did: a second one does no harm
                run.task = asyncio.create_task(run.watch(self.site, folder.spawn()))
        await asyncio.to_thread(processes.kill_strays, self.site.home_id, self._has_no_hold)

    def _has_no_hold(self, run: str) -> bool:
        return run not in self._runs or not self._runs[run].folder.is_held()

    async def obey(self, order: Order) -> LogChunk | None:
        """Carry out one order; ReadLog has an answer. Raises DureError for a run id that is none."""
        match order:
            case Start():
                self.start(order.spec)
            case Stop():
                await self.stop(order.run, order.grace_s)
            case Forget():
                await self._forget(order.run)
            case Lease():
                await self._renew(order.seconds)
            case ReadLog():
                return await self._read_log(order)
        return None

    def start(self, spec: RunSpec) -> None:
        """Idempotent. A run that cannot start here ends here, with the reason."""
        if spec.run in self._runs:
            return
        folder, chips = RunFolder(self.site.home, spec.run), self.site.chips
        unknown = [piece.chip for piece in spec.slices if piece.chip not in chips]
        run: Run
        if unknown:
            run = Run(folder, spec, self.changed)
            run.end(Exit("failed", detail=f"this node has no chip {unknown[0]}"))
        elif isinstance(spec.work, Command) and any(chips[at.chip].source == "simulated" for at in spec.slices):
            run = SimulatedRun(folder, spec, self.changed)
            run.begin(spec, spec.work, chips[spec.slices[0].chip])
        elif folder.ran():
            run = Run(folder, spec, self.changed)
            run.end(Exit("lost", detail="it ran here before; a run never starts twice"))
        else:
            run = held = HeldRun(folder, spec, self.changed)
            held.task = asyncio.create_task(held.begin(spec, self.site, self._lease_ns))
        self._runs[spec.run] = run
        self.changed.set()

    async def stop(self, run: str, grace_s: float) -> None:
        """Idempotent. A run that is not here ends here and now: its start may still be on its way."""
        if run not in self._runs:
            self._runs[run] = Run(RunFolder(self.site.home, run), None, self.changed)
        await self._runs[run].stop(Exit("stopped"), grace_s)

    async def _forget(self, name: str) -> None:
        run = self._runs.get(name)
        if run is not None and run.ended:
            del self._runs[name]
            await run.forget()

    async def _renew(self, seconds: float) -> None:
        self._lease_ns = deadline_ns(seconds)
        alive = [run.folder for run in self._runs.values() if run.hold is not None and not run.ended]
        await asyncio.to_thread(self._write_leases, alive)

    def _write_leases(self, alive: list[RunFolder]) -> None:
        for folder in alive:
            try:
                folder.renew(self._lease_ns)
            except OSError:
                continue  # forgotten meanwhile, or a broken disk: its hold ends the run at the old deadline

    async def _read_log(self, order: ReadLog) -> LogChunk:
        try:
            folder = RunFolder(self.site.home, order.run)
        except DureError:
            return LogChunk(order.request, order.offset, b"", missing=True)
        data = await asyncio.to_thread(folder.read_log, order.offset, order.limit)
        missing = data is None and order.run not in self._runs
        return LogChunk(order.request, order.offset, data or b"", missing)

    async def measure(self) -> None:
        """Bring CPU times up to date, end simulated runs whose lease has run out. Meant for once a second."""
        holds = {run.hold[0]: run for run in self._runs.values() if run.hold is not None and not run.ended}
        used = await asyncio.to_thread(processes.cpu_ns, list(holds)) if holds else {}
        for pid, run in holds.items():
            if not run.ended and used.get(pid, 0) > run.status.cpu_ns:
                run.status = replace(run.status, cpu_ns=used[pid])
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) > self._lease_ns:
            for simulated in [run for run in self._runs.values() if isinstance(run, SimulatedRun)]:
                await simulated.stop(Exit("lease"), 0.0)

    async def shutdown(self, grace_s: float = GRACE_S) -> None:
        """Stop every run and wait for the ends."""
        tasks = [run.task for run in self._runs.values() if run.task is not None and not run.ended]
        await asyncio.gather(*(run.stop(Exit("shutdown"), grace_s) for run in self._runs.values()))
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s + _END_S)

    async def let_go(self) -> None:
        """Stop watching; the runs live on under their holds."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
