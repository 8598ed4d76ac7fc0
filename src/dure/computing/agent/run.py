"""One run on its node, from the order to start it to its end. asyncio; whatever blocks goes to a thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dure.computing.agent import processes, replica
from dure.computing.agent.fetching import fetch
from dure.computing.agent.runs import HoldStatus, Process, RunFolder, Written, cpus_of
from dure.computing.agent.waiting import answers_200, gone
from dure.model.chip import Chip
from dure.model.errors import DureError
from dure.model.wire import RunSpec, RunStatus, engine_key
from dure.model.workload import Command, Exit, RunPhase

_LOOK_S = 0.02
_PROBE_S = 0.1
_SIMULATED_RUN_S = 1.0
_NOT_BEGUN = "stopped before it began"


class Site(Struct, frozen=True):
    """Where runs live: the home, its id, the key engines derive theirs from, the node's chips by id, a job's PATH."""

    home: Path
    home_id: str
    link_key: str
    chips: Mapping[str, Chip]
    path: str


class Run:
    """What all runs have: a status, and `changed`, set when it becomes another. By itself: one without a process."""

    def __init__(self, folder: RunFolder, spec: RunSpec | None, changed: asyncio.Event) -> None:
        self.folder, self.spec, self.changed = folder, spec, changed
        self.status = RunStatus(folder.run, "starting")
        self.hold: tuple[int, int] | None = None
        """Its hold's pid and start time, once known."""
        self.task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.status.phase == "ended"

    def say(self, phase: RunPhase, pid: int | None = None, url: str | None = None) -> None:
        self._become(RunStatus(self.folder.run, phase, self.status.cpu_ns, pid, url))

    def end(self, exit: Exit, status: HoldStatus | None = None) -> None:
        cpu_ns = max(self.status.cpu_ns, status.cpu_ns if status is not None else 0)
        pid = self.status.pid if status is None else status.pid
        self._become(RunStatus(self.folder.run, "ended", cpu_ns, pid, exit=exit))

    def _become(self, status: RunStatus) -> None:
        if status != self.status and not self.ended:
            self.status = status
            self.changed.set()

    async def stop(self, exit: Exit, grace_s: float) -> None:
        """End it as `exit.reason` says, with TERM, after `grace_s` KILL. Idempotent."""
        self.end(exit)

    async def forget(self) -> None:
        """Its end is in the log: drop what only served to get it there."""


class SimulatedRun(Run):
    """A job on chips that do not exist: no process; it ends by itself after `run_s` of its first chip."""

    def begin(self, spec: RunSpec, work: Command, chip: Chip) -> None:
        lasts_s = chip.run_s or _SIMULATED_RUN_S
        said = f"simulated: {' '.join(work.argv)[:4096]} not executed, ended after {lasts_s:g} s\n"
        try:
            os.makedirs(self.folder.path, exist_ok=True)
            with open(self.folder.path / "out.log", "w", encoding="utf-8", errors="replace") as file:
                file.write(said)
        except OSError as error:
            self.end(Exit("failed", detail=f"{self.folder.path}: {error.strerror}"))
            return
        asyncio.get_running_loop().call_later(lasts_s, self.end, Exit("exited", code=0, detail="simulated"))
        self.say("running")

    async def stop(self, exit: Exit, grace_s: float) -> None:
        self.end(replace(exit, signal=15, detail="simulated"))


class HeldRun(Run):
    """A run with a process, under its hold."""

    def __init__(self, folder: RunFolder, spec: RunSpec | None, changed: asyncio.Event) -> None:
        super().__init__(folder, spec, changed)
        self._stop: tuple[Exit, float] | None = None
        self._fetch: asyncio.Task[Path] | None = None

    async def begin(self, spec: RunSpec, site: Site, deadline_ns: int) -> None:
        """The whole life of a new run; `deadline_ns` is its first lease."""
        try:
            cpus = cpus_of(spec, site.chips)
            process = await self._process(spec, site, cpus)
            if self._stop is None:
                await asyncio.to_thread(self.folder.write, spec, process, cpus, deadline_ns)
        except (DureError, OSError) as error:
            self.end(Exit("failed", detail=str(error)))
            return
        except asyncio.CancelledError:
            if self._stop is None:
                raise
        if self._stop is not None:
            await asyncio.to_thread(self.folder.forget)
            self.end(replace(self._stop[0], detail=_NOT_BEGUN))
            return
        await self.watch(site, await asyncio.to_thread(self.folder.spawn))

    async def _process(self, spec: RunSpec, site: Site, cpus: tuple[int, ...]) -> Process:
        env = self.folder.environment(spec, cpus, site.home_id, site.path)
        if isinstance(spec.work, Command):
            return replica.job(spec.work, env)
        entry, engine = await asyncio.to_thread(replica.model_of, site.home, spec.work)
        path = None
        if replica.needs_file(entry):
            self.say("fetching")
            self._fetch = asyncio.create_task(fetch(site.home, entry.name, self._fetched))
            path = await self._fetch
            self.say("starting")
        return replica.replica(engine, spec.work, path, env, engine_key(site.link_key, spec.run))

    def _fetched(self, done: int, total: int) -> None:
        self._become(replace(self.status, progress=(done, total)))

    def found(self, written: Written, status: HoldStatus) -> None:
        """Take over a run that has a hold, as it is now."""
        self.hold = (status.hold_pid, status.hold_start)
        ready = status.phase == "running" and (written.url is None or self.folder.is_ready())
        self.say("running" if ready else "starting", status.pid, written.url if ready else None)

    async def watch(self, site: Site, pid: int = 0) -> None:
        """From a hold that was spawned (`pid`) or found (0) to the end of the run."""
        status = await asyncio.to_thread(self.folder.status)
        while status is None and (_is_our_child(pid) or self.folder.is_held()):
            await asyncio.sleep(_LOOK_S)
            status = await asyncio.to_thread(self.folder.status)
        status = status or await asyncio.to_thread(self.folder.status)
        if status is not None:
            self.hold = (status.hold_pid, status.hold_start)
            if self._stop is not None:
                await self._ask_stop(*self._stop)
            ended = asyncio.create_task(gone(*self.hold))
            try:
                await self._until(ended)
            finally:
                ended.cancel()
            _is_our_child(pid)
            status = await asyncio.to_thread(self.folder.status)
        if status is not None and status.exit is not None:
            self.end(status.exit, status)
            return
        await asyncio.to_thread(processes.kill_strays, site.home_id, lambda run: run == self.folder.run)
        if status is not None:
            self.end(Exit("lost", detail="the process that watched it was killed, and the run with it"))
        elif self._stop is not None:
            self.end(replace(self._stop[0], detail=_NOT_BEGUN))
        else:
            self.end(Exit("failed", detail="its hold could not begin; the run's output may say why"))

    async def _until(self, ended: asyncio.Task[None]) -> None:
        """Say `running` when it does, then wait. A job runs once its process does, a replica once it answers."""
        status = await asyncio.to_thread(self.folder.status)
        while status is not None and status.phase == "starting" and not ended.done():
            await asyncio.wait({ended}, timeout=_LOOK_S)
            status = await asyncio.to_thread(self.folder.status)
        written = await asyncio.to_thread(self.folder.written)
        if status is not None and status.phase == "running" and written is not None:
            if written.url is not None and not self.folder.is_ready():
                self.say("starting", status.pid)
                while not ended.done() and not await answers_200(written.url, written.probe):
                    await asyncio.wait({ended}, timeout=_PROBE_S)
                if not ended.done():
                    with suppress(OSError):  # a full disk: an agent that takes over asks the engine once more
                        self.folder.mark_ready()
            if not ended.done():
                self.say("running", status.pid, written.url)
        await ended

    async def stop(self, exit: Exit, grace_s: float) -> None:
        if self._stop is not None or self.ended:
            return
        self._stop = (exit, grace_s)
        if self._fetch is not None and not self._fetch.done():
            self._fetch.cancel()
        elif self.hold is not None:
            await self._ask_stop(exit, grace_s)

    async def forget(self) -> None:
        await asyncio.to_thread(self.folder.forget)

    async def _ask_stop(self, exit: Exit, grace_s: float) -> None:
        if self.hold is not None:
            await asyncio.to_thread(self.folder.ask_stop, exit.reason, grace_s, self.hold)


def _is_our_child(pid: int) -> bool:
    """`pid` is a child of this process that has not ended; one that has is collected."""
    try:
        return pid != 0 and os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False
