"""Usage through crashes: once an answer has ended, it is reported, exactly once."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from dure.cloud.gateway.journal import fold
from tests.cloud.gateway.parts import KEY, Cloud, until

pytestmark = pytest.mark.slow  # real processes

HEADERS = {"Authorization": f"Bearer {KEY}"}


def ask(cloud: Cloud, stream: bool = False, **more: object) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}
    return httpx.post(f"{cloud.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=20)


def ask_all(cloud: Cloud, count: int) -> None:
    with httpx.Client(headers=HEADERS, timeout=20) as http:
        for number in range(count):
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": bool(number % 2)}
            assert http.post(f"{cloud.url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.slow
def test_kill_9_right_after_the_answers_loses_nothing(cloud: Cloud) -> None:
    for count in (7, 12, 19):
        ask_all(cloud, count - cloud.control.answers)
        cloud.gateway.kill9()
        cloud.gateway.start()
        until(lambda want=count: cloud.control.answers == want)  # type: ignore[misc]
    assert sum(row.tokens_out for row in cloud.control.rows) == sum(
        2 if n % 2 == 0 else 3 for n in [*range(7), *range(5), *range(7)]
    )
    ask_all(cloud, 1)
    until(lambda: cloud.control.answers == 20)


def test_a_torn_line_of_a_crash_is_cut_off(cloud: Cloud) -> None:
    ask_all(cloud, 2)
    cloud.gateway.kill9()
    journal = cloud.gateway.home / "usage" / "gateway-0.journal"
    with journal.open("ab") as file:
        file.write(b'{"at_ns":17900000000000000')
    cloud.gateway.start()
    ask_all(cloud, 3)
    until(lambda: cloud.control.answers == 5)
    assert fold(journal.read_bytes())[0].tokens_out + 0 == sum(row.tokens_out for row in cloud.control.rows)


def test_a_lost_link_neither_loses_nor_repeats(cloud: Cloud) -> None:
    for _ in range(3):
        ask_all(cloud, 4)
        linked = cloud.control.linked
        cloud.control.drop_links()
        until(lambda seen=linked: cloud.control.linked > seen)  # type: ignore[misc]
    until(lambda: cloud.control.answers == 12)
    starts = [(usage.start, usage.upto) for usage in cloud.control.usages]
    assert all(before[1] == after[0] for before, after in pairwise(starts))


def test_it_serves_from_its_last_routes_while_control_is_away(cloud: Cloud) -> None:
    ask_all(cloud, 1)
    cloud.control.close()
    ask_all(cloud, 3)
    assert fold((cloud.gateway.home / "usage" / "gateway-0.journal").read_bytes())
    cloud.control = type(cloud.control)(cloud.control.routes)  # for the fixture to close


def test_sigterm_lets_answers_end_and_reports_them(cloud: Cloud) -> None:
    with httpx.stream(
        "POST",
        f"{cloud.url}/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user"}], "stream": True, "user": "drip"},
        headers=HEADERS,
        timeout=20,
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        cloud.gateway.process.terminate()
        cloud.engine.release.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert cloud.gateway.process.wait(15) == 0
    assert cloud.control.answers == 1 and cloud.control.rows[0].tokens_in == 7


@pytest.mark.slow
def test_sigterm_cuts_off_what_does_not_end_and_counts_it(cloud: Cloud) -> None:
    with httpx.stream(
        "POST",
        f"{cloud.url}/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user"}], "stream": True, "user": "drip"},
        headers=HEADERS,
        timeout=20,
    ) as answer:
        lines = answer.iter_lines()  # kept: the stream is closed with it
        next(lines)
        assert cloud.gateway.stop() == 0
    assert (cloud.control.answers, cloud.control.rows[0].failed) == (1, 1)


@pytest.mark.slow
def test_a_full_disk_refuses_new_work_and_ends_what_runs(cloud: Cloud, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    cloud.gateway.kill9()
    usage = cloud.gateway.home / "usage"
    try:
        shutil.rmtree(usage, ignore_errors=True)
        usage.symlink_to(small)
        cloud.gateway.start()
        ask_all(cloud, 1)
        with (small / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(b"x" * 1024)
        # What still fits into the journal's last page is answered; then one answer ends unwritten, then no more begin.
        until(lambda: ask(cloud).status_code == 503)
        assert ask(cloud).json()["error"]["code"] == "disk"
        done = len(cloud.engine.bodies)
        os.unlink(small / "filler")
        assert ask(cloud).status_code == 200
        until(lambda: cloud.control.answers == done + 1)
    finally:
        cloud.gateway.close()
        subprocess.run(["umount", str(small)], check=True)
