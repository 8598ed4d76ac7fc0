"""`kill -9` of each process of a running cloud, and of all of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from harness import MODEL, Check, Cloud, check, processes, until
from openai_calls import HELLO, client

COUNTING = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done")


class Flow(threading.Thread):
    """One long stream, read in the background; `chunks` grows, `error` says how it broke."""

    def __init__(self, cloud: Cloud, tokens: int = 900) -> None:
        super().__init__(daemon=True)
        self.cloud, self.tokens = cloud, tokens
        self.chunks, self.ended, self.error = 0, "", ""

    def run(self) -> None:
        try:
            stream = client(self.cloud).chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=self.tokens, stream=True, extra_body={"ignore_eos": True}
            )
            for chunk in stream:
                if chunk.choices:
                    self.chunks += bool(chunk.choices[0].delta.content)
                    self.ended = chunk.choices[0].finish_reason or self.ended
        except Exception as error:  # the thread's edge: the check that joins it tells
            self.error = f"{type(error).__name__}: {error}"

    def finished(self) -> str:
        self.join(60)
        assert not self.is_alive(), f"still flowing, {self.chunks} chunks"
        assert not self.error, f"broke after {self.chunks} chunks: {self.error}"
        assert self.ended == "length", f"ended {self.ended!r} after {self.chunks} chunks"
        return f"{self.chunks} chunks to the end"


def started(pid: int) -> int:
    """Start time of a process; 0: it is gone."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 0 if stat[0] == "Z" else int(stat[19])
    return 0


def kill_under_load(cloud: Cloud, which: str) -> str:
    """Kill one process while a job runs and a stream flows; both go on, and the log tells of it."""
    job = cloud.submit(*COUNTING)
    until(lambda: cloud.last_run(job)["phase"] == "running", 15, "the job to run")
    before, engine = cloud.last_run(job), cloud.endpoint()
    birth = started(before["pid"])
    flow = Flow(cloud)
    flow.start()
    until(lambda: flow.chunks > 5, 20, "the stream to flow")
    at_kill, lines, victim = flow.chunks, len(cloud.story(job)), cloud.pids()[which]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: cloud.pids()[which] not in (victim, None), 15, f"a new {which}")
    until(lambda: all(cloud.api("/api/info")["nodes"].values()), 15, "the node to be linked")
    back = time.monotonic() - began
    told = until(lambda: cloud.story(job)[lines:], 15, f"dure why {job} to tell of it")
    after = cloud.last_run(job)
    assert before["pid"] == after["pid"] and birth and started(after["pid"]) == birth, f"{before} then {after}"
    assert cloud.endpoint()["pid"] == engine["pid"], "the engine was started again"
    streamed = flow.finished()
    assert any(which in line for line in told), f"dure why: {told}"
    assert cloud.dure("stop", job).returncode == 0
    until(lambda: cloud.phase(job) == "stopped", 15, "the job to stop")
    return f"back in {back:.1f} s, pid {after['pid']} kept, stream {at_kill} -> {streamed}; why: {told[0]}"


@check("4a kill -9 of control: job and stream go on, both adopted", limit_s=120)
def control_killed(cloud: Cloud) -> str:
    return kill_under_load(cloud, "control")


@check("4b kill -9 of the agent: the same", limit_s=120)
def agent_killed(cloud: Cloud) -> str:
    return kill_under_load(cloud, "agent")


def tokens_out(cloud: Cloud) -> int:
    report = cloud.api("/api/report/usage?by=model")
    column = next(i for i, name in enumerate(report["columns"]) if "tokens_out" in name or name == "tokens out")
    return sum(int(row[column] or 0) for row in report["rows"] if MODEL in row)


@check("4c kill -9 of the gateway: usage of ended answers is complete", limit_s=120)
def gateway_killed(cloud: Cloud) -> str:
    one, given = client(cloud), 0
    time.sleep(2)  # what earlier checks used is folded twice a second; the count below starts after it
    base = tokens_out(cloud)
    for _ in range(10):
        answer = one.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
        given += answer.usage.completion_tokens if answer.usage else 0
    victim = cloud.pids()["gateway"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: cloud.pids()["gateway"] != victim, 15, "a new gateway")
    with suppress(AssertionError):
        until(lambda: tokens_out(cloud) - base >= given, 20, "usage")
    time.sleep(2)  # and not counted twice, a little later
    counted = tokens_out(cloud) - base
    assert counted == given, f"{given} tokens answered, {counted} in the ledger"
    return f"10 answers, {given} tokens answered, {counted} in the ledger"


class Submitter(threading.Thread):
    """An outside client that keeps the ids it got an answer for."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(daemon=True)
        self.cloud, self.key, self.acknowledged, self.over = cloud, cloud.key, list[str](), False

    def run(self) -> None:
        ask = {"work": {"type": "command", "argv": ["sleep", "600"]}, "chips": {"kind": "cpu", "count": 1, "milli": 1}}
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        while not self.over:
            connection = http.client.HTTPConnection("127.0.0.1", self.cloud.port, timeout=5)
            with suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                connection.request("POST", "/api/workloads", json.dumps(ask).encode(), headers)
                answer = connection.getresponse()
                submitted = json.loads(answer.read())
                if answer.status in (200, 201):
                    self.acknowledged.append(submitted["id"])
            connection.close()


@check("4d kill -9 of everything: no orphan, no lost submission", limit_s=150)
def everything_killed(cloud: Cloud) -> str:
    parent = cloud.submit("sh", "-c", "setsid sleep 601 & sleep 602")
    until(lambda: cloud.last_run(parent)["phase"] == "running", 15, "the job to run")
    clients = [Submitter(cloud) for _ in range(4)]
    for each in clients:
        each.start()
    until(lambda: sum(len(each.acknowledged) for each in clients) >= 100, 30, "100 acknowledged submissions")
    # The supervisor first, so that nothing is started again; the jobs' own processes are left to be found.
    mine = cloud.pids()["up"]
    os.kill(mine, signal.SIGKILL)
    old = processes(cloud.home)
    ours = [pid for pid, (_, line) in old.items() if not line.startswith(("sleep ", "sh "))]
    for pid in ours:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for each in clients:
        each.over = True
        each.join(10)
    if cloud.process:
        cloud.process.wait(10)
    kept = [i for each in clients for i in each.acknowledged]
    left = [line for pid, (birth, line) in old.items() if started(pid) == birth]
    seconds = cloud.start(60)
    until(lambda: not [p for p, (birth, _) in old.items() if started(p) == birth], 20, f"the end of {left}")
    lost = [i for i in kept if cloud.request("GET", f"/api/workloads/{i}")[0] != 200]
    assert not lost, f"{len(lost)} of {len(kept)} acknowledged submissions are gone: {lost[:5]}"
    until(lambda: cloud.last_run(parent)["phase"] == "ended", 20, "the old job's end in the log")
    return (
        f"{len(ours)} killed, {len(left)} left behind and ended, {len(kept)} of {len(kept)} kept, up in {seconds:.1f} s"
    )


@check("4e Ctrl-C leaves nothing behind")
def interrupted(cloud: Cloud) -> str:
    seconds = cloud.interrupt()
    until(lambda: not processes(cloud.home), 5, "every process to be gone")
    return f"up ended in {seconds:.1f} s, no process of this home is left"


CRASHES: list[Check] = [control_killed, agent_killed, gateway_killed, everything_killed, interrupted]
