"""The real engine with the bundled model, under a real hold."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from dure.computing.agent.node import NodeRuns
from dure.model.wire import RunStatus, Start, Stop, engine_key
from dure.model.workload import Exit, Serve
from tests.computing.agent.lab import Lab, spec

pytestmark = pytest.mark.slow

KEY = engine_key("link-key", "w1.0.1")
QUESTION = b'{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}'


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home")
    yield made
    made.clear()


def call(url: str, key: str | None = KEY, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, msgspec.json.decode(error.read())


async def status_in(runs: NodeRuns, *phases: str) -> RunStatus:
    deadline = time.monotonic() + 300
    while runs.statuses()[0].phase not in phases:
        assert time.monotonic() < deadline, runs.statuses()
        await asyncio.sleep(0.02)
    return runs.statuses()[0]


def test_fetched_started_ready_asked_stopped(lab: Lab) -> None:
    """Needs the package index the user's pip is configured with."""

    async def whole() -> None:
        runs = NodeRuns(lab.site())
        await runs.obey(Start(spec("w1.0.1", Serve("smollm2-135m", slots=3, context_tokens=512), ("n:cpu0", 1000))))
        fetching = await status_in(runs, "fetching", "ended")
        assert fetching.phase == "fetching"
        ready = await status_in(runs, "running", "ended")
        assert ready.url is not None, ready
        chat = ready.url + "/v1/chat/completions"
        assert (await asyncio.to_thread(call, chat, None, QUESTION))[0] == 401
        assert (await asyncio.to_thread(call, chat, "ek-wrong", QUESTION))[0] == 401
        code, said = await asyncio.to_thread(call, chat, KEY, QUESTION)
        assert code == 200 and said["model"] == "smollm2-135m"
        assert said["usage"]["completion_tokens"] == 5 and said["choices"][0]["message"]["content"]
        _, slots = await asyncio.to_thread(call, ready.url + "/slots")
        assert [slot["n_ctx"] for slot in slots] == [512, 512, 512]
        threads = Path(f"/proc/{ready.pid}/status").read_text()
        assert f"Cpus_allowed_list:\t{lab.cpus[0]}\n" in threads
        assert KEY.encode() not in Path(f"/proc/{ready.pid}/cmdline").read_bytes()
        await runs.measure()
        assert runs.statuses()[0].cpu_ns > 0
        await runs.obey(Stop("w1.0.1"))
        ended = await status_in(runs, "ended")
        assert ended.exit is not None and ended.exit.reason == "stopped"
        await runs.let_go()

    asyncio.run(whole())


def test_a_model_that_is_none_fails_with_its_exit(lab: Lab) -> None:
    broken = lab.home / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    digest = hashlib.sha256(broken.read_bytes()).hexdigest()
    (lab.home / "models.toml").write_text(
        f'[[model]]\nname = "broken"\nsource = "file:{broken}"\nsha256 = "{digest}"\nsize_bytes = 64\n'
        'licence = "MIT"\nengine = "llama_cpp"\n'
    )

    async def whole() -> None:
        runs = NodeRuns(lab.site())
        await runs.obey(Start(spec("w1.0.1", Serve("broken"))))
        ended = await status_in(runs, "ended")
        assert isinstance(ended.exit, Exit) and ended.exit.reason in ("exited", "signalled") and not ended.exit.ok
        await runs.let_go()

    asyncio.run(whole())
