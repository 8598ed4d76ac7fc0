"""The runs of a node, with real holds: orders, adoption, strays, simulated runs, replicas."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dure.computing.agent.node import NodeRuns
from dure.computing.agent.run import HeldRun
from dure.computing.agent.runs import HoldStatus, RunFolder
from dure.model.errors import DureError
from dure.model.wire import Forget, Lease, LogChunk, ReadLog, RunStatus, Start, Stop, engine_key
from dure.model.workload import Command, Exit, Serve
from tests.computing.agent.lab import (
    IGNORES_TERM,
    PATIENCE_S,
    SLEEPS,
    Lab,
    chip,
    lives,
    output,
    past_starting,
    spec,
    until,
)

ECHO = Serve("simulated-echo")


def play(lab: Lab, story: Callable[[NodeRuns], Coroutine[Any, Any, None]]) -> None:
    """Run `story` with a node of the lab; let its runs go afterwards."""

    async def whole() -> None:
        runs = NodeRuns(lab.site())
        try:
            await runs.adopt()
            await story(runs)
        finally:
            await runs.let_go()

    asyncio.run(whole())


async def status_when(runs: NodeRuns, run: str, wanted: Callable[[RunStatus], bool]) -> RunStatus:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for status in runs.statuses():
            if status.run == run and wanted(status):
                return status
        await asyncio.sleep(0.01)
    raise AssertionError(f"{run} never came there: {runs.statuses()}")


async def running(runs: NodeRuns, run: str) -> RunStatus:
    return await status_when(runs, run, lambda status: status.phase == "running")


async def ended(runs: NodeRuns, run: str) -> Exit:
    status = await status_when(runs, run, lambda status: status.phase == "ended")
    assert status.exit is not None
    return status.exit


def job(run: str, *argv: str, **env: str) -> Start:
    return Start(spec(run, Command(argv, env)))


def test_a_job_from_start_to_forget(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        asked = job("w1.0.1", "sh", "-c", "echo $A $DURE_RUN $DURE_PROJECT $DURE_CHIPS", A="1", DURE_RUN="x")
        await runs.obey(asked)
        await runs.obey(asked)
        assert runs.held() == {"n:cpu0": 100}
        assert await ended(runs, "w1.0.1") == Exit("exited", code=0)
        assert runs.held() == {} and len(runs.statuses()) == 1
        assert await runs.obey(ReadLog(7, "w1.0.1", 2)) == LogChunk(7, 2, b"w1.0.1 default n:cpu0\n")
        await runs.obey(Forget("w1.0.1"))
        assert runs.statuses() == ()
        await runs.obey(asked)
        assert await ended(runs, "w1.0.1") == Exit("lost", detail="it ran here before; a run never starts twice")

    play(lab, story)


def test_a_live_run_is_not_forgotten(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(job("w1.0.1", *SLEEPS))
        status = await running(runs, "w1.0.1")
        assert status.pid and lives(status.pid) and runs.changed.is_set()
        await runs.obey(Forget("w1.0.1"))
        await runs.obey(Forget("w9.0.1"))
        assert runs.statuses() == (status,)
        await runs.obey(Stop("w1.0.1"))
        await runs.obey(Stop("w1.0.1"))
        assert await ended(runs, "w1.0.1") == Exit("stopped", signal=15)

    play(lab, story)


def test_orders_that_cannot_be_obeyed(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(Start(spec("w1.0.1", Command(("true",)), ("n:cpu99", 100))))
        assert await ended(runs, "w1.0.1") == Exit("failed", detail="this node has no chip n:cpu99")
        await runs.obey(Start(spec("w2.0.1", Serve("no-such-model"))))
        assert (await ended(runs, "w2.0.1")).detail == "this node's catalogue has no model no-such-model"
        await runs.obey(Stop("w3.0.1"))
        assert (await ended(runs, "w3.0.1")).reason == "stopped"
        for order in (job("../../etc", "true"), Stop(".."), job("", "true")):
            with pytest.raises(DureError, match="not the id of a run"):
                await runs.obey(order)
        assert await runs.obey(ReadLog(1, "../x", 0)) == LogChunk(1, 0, b"", missing=True)
        assert await runs.obey(ReadLog(2, "w9.0.1", 5)) == LogChunk(2, 5, b"", missing=True)
        assert await runs.obey(ReadLog(3, "w3.0.1", 0)) == LogChunk(3, 0, b"")

    play(lab, story)


def test_a_stop_right_behind_a_start_wins(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        for turn in range(8):
            run = f"w{turn}.0.1"
            await runs.obey(job(run, *SLEEPS))
            for _ in range(turn * 2):
                await asyncio.sleep(0.002)
            await runs.obey(Stop(run))
            assert (await ended(runs, run)).reason == "stopped"
        assert not lab.live_pids()

    play(lab, story)


def test_a_dead_hold_loses_its_run_and_leaves_nothing(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(job("w1.0.1", "sh", "-c", "setsid sleep 1000 & echo up; wait"))
        await running(runs, "w1.0.1")
        folder = RunFolder(lab.home, "w1.0.1")
        until(lambda: "up" in output(folder))
        hold = past_starting(folder)
        assert hold is not None and len(lab.live_pids()) >= 2
        os.kill(hold.hold_pid, signal.SIGKILL)
        assert (await ended(runs, "w1.0.1")).reason == "lost"
        assert not lab.live_pids()

    play(lab, story)


def test_a_new_agent_adopts_what_the_last_one_left(lab: Lab) -> None:
    pids: list[int | None] = []

    async def first(runs: NodeRuns) -> None:
        await runs.obey(job("w1.0.1", *SLEEPS))
        await runs.obey(job("w2.0.1", "sh", "-c", "exit 4"))
        await runs.obey(Start(spec("w3.0.1", ECHO)))
        pids.extend([(await running(runs, run)).pid for run in ("w1.0.1", "w3.0.1")])
        await ended(runs, "w2.0.1")

    async def second(runs: NodeRuns) -> None:
        by_run = {status.run: status for status in runs.statuses()}
        assert [by_run[run].pid for run in ("w1.0.1", "w3.0.1")] == pids
        assert [by_run[run].phase for run in ("w1.0.1", "w3.0.1")] == ["running", "running"]
        assert by_run["w3.0.1"].url is not None
        assert by_run["w2.0.1"].exit == Exit("exited", code=4)
        await runs.measure()
        assert next(status for status in runs.statuses() if status.run == "w3.0.1").cpu_ns > 0
        await runs.shutdown(0.5)
        assert {status.exit.reason for status in runs.statuses() if status.exit} == {"shutdown", "exited"}

    play(lab, first)
    play(lab, second)


def test_a_replica_that_was_not_ready_is_not_taken_for_ready(lab: Lab) -> None:
    folder = lab.write("w1.0.1", SLEEPS)
    written = folder.written()
    assert written is not None
    status = HoldStatus(1, 1, 2, "running", None, 0)
    for url, ready, phase in ((None, False, "running"), ("http://x", False, "starting"), ("http://x", True, "running")):
        run = HeldRun(folder, None, asyncio.Event())
        if ready:
            folder.mark_ready()
        run.found(msgspec.structs.replace(written, url=url), status)
        assert (run.status.phase, run.status.url) == (phase, url if ready else None)


def test_adoption_of_every_kind_of_wreck(lab: Lab) -> None:
    never_began = lab.write("w1.0.1", ["echo", "hello"])
    damaged = lab.write("w2.0.1", SLEEPS)
    (damaged.path / "spec.json").write_text("{")
    earlier = lab.write("w4.0.1", ["echo", "hello"])
    written = earlier.written()
    assert written is not None
    (earlier.path / "spec.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(written, boot="another")))
    _, dead = lab.start("w3.0.1", ["sh", "-c", "setsid sleep 1000 & wait"])
    until(lambda: len(lab.live_pids()) >= 2)
    os.kill(dead.hold_pid, signal.SIGKILL)
    until(lambda: not lives(dead.hold_pid))

    async def story(runs: NodeRuns) -> None:
        assert not lab.live_pids()
        assert await ended(runs, "w1.0.1") == Exit("exited", code=0)
        assert (await ended(runs, "w2.0.1")).reason == "lost"
        assert (await ended(runs, "w3.0.1")).reason == "lost"
        assert await ended(runs, "w4.0.1") == Exit("lost", detail="the machine was started anew")

    play(lab, story)
    assert output(earlier) == ""
    assert output(never_began) == "hello\n"


def test_strays_of_another_home_are_left_alone(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other")
    try:
        _, status = other.start("w1.0.1", SLEEPS)

        async def story(runs: NodeRuns) -> None:
            assert status.pid and lives(status.pid)

        play(lab, story)
    finally:
        other.clear()


def test_a_lease_reaches_every_run(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(job("w1.0.1", *IGNORES_TERM))
        await running(runs, "w1.0.1")
        await runs.obey(Lease(1000.0))
        assert int((lab.home / "runs" / "w1.0.1" / "lease").read_text()) > 900e9
        await runs.obey(Start(spec("w2.0.1", Command(("x",)), ("n:sim-npu-1", 1000))))
        await runs.obey(Lease(-1.0))
        await runs.measure()
        assert await ended(runs, "w2.0.1") == Exit("lease", signal=15, detail="simulated")

    async def whole() -> None:
        runs = NodeRuns(lab.site(chip("sim-npu-1", kind="sim-npu", run_s=1000.0)))
        await story(runs)
        await runs.let_go()

    asyncio.run(whole())


def test_runs_on_simulated_chips_start_no_process(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        for number in range(200):
            await runs.obey(Start(spec(f"w{number}.0.1", Command(("train", "--fast")), ("n:sim-npu-0", 5))))
        assert not lab.live_pids()
        for number in range(200):
            assert await ended(runs, f"w{number}.0.1") == Exit("exited", code=0, detail="simulated")
        chunk = await runs.obey(ReadLog(1, "w7.0.1", 0))
        assert chunk is not None and chunk.data == b"simulated: train --fast not executed, ended after 0.05 s\n"
        await runs.obey(Forget("w7.0.1"))
        assert len(runs.statuses()) == 199

    async def after(runs: NodeRuns) -> None:
        assert runs.statuses() == ()

    play(lab, story)
    play(lab, after)


def test_a_simulated_run_can_be_stopped(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(Start(spec("w1.0.1", Command(("x",)), ("n:sim-npu-0", 1000))))
        await runs.obey(Stop("w1.0.1"))
        assert await ended(runs, "w1.0.1") == Exit("stopped", signal=15, detail="simulated")

    play(lab, story)


def ask(url: str, path: str, key: str, body: dict[str, object] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_replica_answers_with_its_own_key(lab: Lab) -> None:
    async def story(runs: NodeRuns) -> None:
        await runs.obey(Start(spec("w1.0.1", ECHO)))
        await runs.obey(Start(spec("w1.1.1", ECHO)))
        first, second = await running(runs, "w1.0.1"), await running(runs, "w1.1.1")
        assert first.url and second.url and first.url != second.url
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        call: Callable[..., Awaitable[tuple[int, Any]]] = asyncio.to_thread
        code, said = await call(ask, first.url, "/v1/chat/completions", engine_key("link-key", "w1.0.1"), body)
        assert code == 200 and said["usage"]["completion_tokens"] == 3
        assert (await call(ask, first.url, "/v1/chat/completions", engine_key("link-key", "w1.1.1"), body))[0] == 401
        argv = Path(f"/proc/{first.pid}/cmdline").read_bytes() + Path(f"/proc/{first.pid}/environ").read_bytes()
        assert b"ek-" not in argv

    play(lab, story)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('source = "file:/no/such/file"\nengine = "llama_cpp"', "/no/such/file"),
        ('source = "simulated:"\nengine = "abacus"', "wants engine abacus"),
    ],
)
def test_a_model_that_cannot_be_had_says_why(lab: Lab, entry: str, said: str) -> None:
    rest = f'name = "mine"\nsha256 = "{"a" * 64}"\nsize_bytes = 3\nlicence = "MIT"\n'
    (lab.home / "models.toml").write_text(f"[[model]]\n{rest}{entry}\n")

    async def story(runs: NodeRuns) -> None:
        await runs.obey(Start(spec("w1.0.1", Serve("mine"))))
        exit = await ended(runs, "w1.0.1")
        assert exit.reason == "failed" and said in exit.detail

    play(lab, story)


def test_a_fetch_can_be_stopped(lab: Lab) -> None:
    """The server of the model's file accepts and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        entry = f'source = "http://127.0.0.1:{silent.getsockname()[1]}/m"\nengine = "llama_cpp"'
        rest = f'name = "mine"\nsha256 = "{"a" * 64}"\nsize_bytes = 3\nlicence = "MIT"\n'
        (lab.home / "models.toml").write_text(f"[[model]]\n{rest}{entry}\n")

        async def story(runs: NodeRuns) -> None:
            await runs.obey(Start(spec("w1.0.1", Serve("mine"))))
            caller, _ = await asyncio.to_thread(silent.accept)
            with caller:
                assert runs.statuses()[0].phase == "fetching"
                await runs.obey(Stop("w1.0.1"))
                assert await ended(runs, "w1.0.1") == Exit("stopped", detail="stopped before it began")

        play(lab, story)
