"""Bad input, a full disk, damaged files: each a clear error, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from harness import DURE, FIRST_HOME, TEMPORARY, Check, Cloud, check, free_port, run, said_clearly, until

FLEET = '[[chips]]\nkind = "sim-npu"\ncount = {count}\nidle_w = 40\nfull_w = 180\n'


def up(home: Path, *options: str, timeout_s: float = 30) -> str:
    """`dure up` that must fail clearly; what it said."""
    done = run([DURE, "up", "--home", str(home), "--port", str(free_port()), "--no-model", *options], timeout_s)
    return said_clearly(done)


def still_serves(cloud: Cloud) -> str:
    """The cloud runs a job to its end."""
    job = cloud.submit("true")
    until(lambda: cloud.phase(job) == "done", 20, f"{job} to end well")
    return job


@check("5 submit --chips cpu:999: a reason with counts per cause within 1 s")
def unplaceable(cloud: Cloud) -> str:
    began = time.monotonic()
    done = cloud.dure("submit", "--chips", "cpu:999", "--", "true")
    seconds = time.monotonic() - began
    text = done.stderr.strip()
    assert done.returncode == 1 and re.search(r"\d+ \w+", text) and "999" in text, f"exit {done.returncode}: {text}"
    assert seconds < 1, f"{seconds:.2f} s: {text}"
    return f"{seconds:.2f} s: {text}"


@check("7a broken TOML and wrong fleets")
def broken_toml(_cloud: Cloud) -> str:
    said = []
    for name, text in {
        "broken": "[[chips]\nkind=",
        "negative": FLEET.format(count=-3),
        "huge": FLEET.format(count=10**12),
    }.items():
        path = TEMPORARY / f"{name}.toml"
        path.write_text(text)
        answer = up(TEMPORARY / name / "home", "--fleet", str(path))
        assert path.name in answer, f"the file is not named: {answer}"
        said.append(f"{name}: {answer}")
    return "; ".join(said)


@check("7b unknown kind")
def unknown_kind(cloud: Cloud) -> str:
    return said_clearly(cloud.dure("submit", "--chips", "warp-core:1", "--", "true"), "warp-core", code=1)


@check("7c huge, negative and zero counts")
def counts(cloud: Cloud) -> str:
    asks = ("cpu:99999999999", "cpu:-1", "cpu:0", "cpu:1:0", "cpu:1:1001", "cpu:1000000")
    said = [f"{ask}: " + said_clearly(cloud.dure("submit", "--chips", ask, "--", "true")) for ask in asks]
    ask = {"work": {"type": "command", "argv": ["true"]}, "chips": {"kind": "cpu", "count": -1, "milli": 100}}
    status, body = cloud.request("POST", "/api/workloads", json.dumps(ask).encode())
    assert status == 400, f"{status} {body[:200]!r}"
    return "; ".join(said)


@check("7d a 10 MB prompt is 413 and harms nothing")
def long_prompt(cloud: Cloud) -> str:
    body = json.dumps({"model": "any", "messages": [{"role": "user", "content": "a" * 10_000_000}]}).encode()
    try:
        status, answer = cloud.request("POST", "/v1/chat/completions", body)
        assert status == 413, f"{status} {answer[:200]!r}"
        told = f"413 {json.loads(answer)['error']['message']}"
    except ConnectionError as error:  # refused by its length before all of it was sent
        told = f"closed while sending ({error})"
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000\r\n"
        raise AssertionError(f"{told}; no 413 could be read for {head!r}") from error
    return f"{told}; afterwards {still_serves(cloud)} ran"


@check("7e invalid JSON is 400")
def invalid_json(cloud: Cloud) -> str:
    said = []
    for path in ("/v1/chat/completions", "/api/workloads"):
        for body in (b'{"model": ', b"[1, 2", b"\xff\xfe", b"null", b""):
            status, answer = cloud.request("POST", path, body)
            assert status == 400 and b"Traceback" not in answer, f"{path} {body!r}: {status} {answer[:200]!r}"
        said.append(f"{path}: {answer[:100]!r}")
    return "; ".join(said)


@check("7f missing command, and a command that is not there")
def missing_command(cloud: Cloud) -> str:
    said = said_clearly(cloud.dure("submit"), code=2)
    job = cloud.submit("/no/such/command")
    until(lambda: cloud.phase(job) == "failed", 15, f"{job} to fail")
    story = cloud.story(job)
    assert any("/no/such/command" in line for line in story), story
    return f"{said}; {story[-1]}"


@check("7g port in use")
def port_in_use(cloud: Cloud) -> str:
    home = TEMPORARY / "port" / "home"
    done = run([DURE, "up", "--home", str(home), "--port", str(cloud.port), "--no-model"])
    return said_clearly(done, str(cloud.port), code=1)


@check("7h second up on one home")
def second_up(cloud: Cloud) -> str:
    return f"{up(cloud.home)}; the first goes on: {still_serves(cloud)} ran"


@contextmanager
def small_disk(name: str, size: str) -> Iterator[Path]:
    """A file system of this size in memory. AssertionError when mounting is not permitted."""
    place = TEMPORARY / name
    place.mkdir(parents=True, exist_ok=True)
    done = run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)])
    assert done.returncode == 0, f"mount not permitted: {done.stderr}"
    try:
        yield place
    finally:
        run(["umount", "--lazy", str(place)])


@check("7i full disk: said so, nothing acknowledged is lost, goes on with space", limit_s=120)
def full_disk() -> str:
    with small_disk("small", "24m") as place:
        cloud = Cloud("full", "--no-model", home=place / "home")
        try:
            cloud.start()
            first = still_serves(cloud)
            filler = place / "filler"
            try:
                with filler.open("wb", buffering=0) as out:
                    while out.write(b"\0" * 4096):
                        pass
            except OSError:
                pass
            told = ""
            for _ in range(200):  # what the log has preallocated may take a few more
                done = cloud.dure("submit", "--", "true")
                if done.returncode:
                    told = said_clearly(done, code=1)
                    break
                first += f" {done.stdout.strip()}"
            assert re.search(r"disk|space|full", told, re.I), f"submissions on a full disk: {told or 'all taken'}"
            filler.unlink()
            again = until(lambda: still_serves(cloud), 30, "a job after space was made")
            gone = [i for i in first.split() if cloud.request("GET", f"/api/workloads/{i}")[0] != 200]
            assert not gone, f"lost: {gone}"
        finally:
            cloud.close()
    return f"{told}; with space again {again} ran, {len(first.split())} earlier kept"


@check("7j truncated model file", limit_s=90)
def truncated_model() -> str:
    cloud = Cloud("truncated", "--no-model")
    whole = os.urandom(1_000_000)
    path = TEMPORARY / "truncated.gguf"
    path.write_bytes(whole[:600_000])
    cloud.home.mkdir(parents=True)
    (cloud.home / "models.toml").write_text(
        f'[[model]]\nname = "cut"\nsource = "file:{path}"\nsha256 = "{hashlib.sha256(whole).hexdigest()}"\n'
        f'size_bytes = {len(whole)}\nlicence = "none"\nengine = "llama_cpp"\n'
    )
    try:
        cloud.start()
        told = said_clearly(cloud.dure("deploy", "cut", timeout_s=60), code=1)
        assert re.search(r"bytes|sha256|size|truncated", told), told
        return f"{told}; afterwards {still_serves(cloud)} ran"
    finally:
        cloud.close()


@check("7n truncated file in the model store: fetched anew or refused, never served", limit_s=120)
def truncated_store() -> str:
    cloud = Cloud("store", "--once", models=FIRST_HOME / "models")
    stored = next((p for p in cloud.home.glob("models/**/*") if p.is_file() and p.stat().st_size > 2**20), None)
    assert stored, "no model was fetched by 1a"
    size = stored.stat().st_size
    stored.chmod(0o644)
    os.truncate(stored, size // 2)
    argv = [DURE, "up", "--once", "--home", str(cloud.home), "--port", str(cloud.port)]
    try:
        done = run(argv, 110)
    finally:
        cloud.close()
    if done.returncode:
        return said_clearly(done, code=1)
    assert "tok/s" in done.stdout and stored.stat().st_size == size, (
        f"served from a file of {stored.stat().st_size} bytes"
    )
    bill = next(line for line in done.stdout.splitlines() if "tok/s" in line)
    return f"fetched anew, {size} bytes; {bill}"


@check("7k read-only home")
def read_only_home() -> str:
    with small_disk("readonly", "8m") as place:
        (place / "home").mkdir()
        done = run(["mount", "-o", "remount,ro", str(place)])
        assert done.returncode == 0, f"mount not permitted: {done.stderr}"
        return up(place / "home")


def stopped_home(name: str) -> tuple[Cloud, Path]:
    """A home with some history, its cloud stopped; the log's file."""
    cloud = Cloud(name, "--no-model")
    try:
        cloud.start()
        for _ in range(3):
            still_serves(cloud)
        cloud.interrupt()
    finally:
        cloud.close()
    log = cloud.home / "log.sqlite"
    with closing(sqlite3.connect(log)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return cloud, log


@check("7l tampered log row: its offset is named", limit_s=90)
def tampered_row() -> str:
    cloud, log = stopped_home("tampered")
    with closing(sqlite3.connect(log)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {t: [row[1] for row in db.execute(f"PRAGMA table_info({t})")] for t in tables}
        table = next(t for t, names in columns.items() if {"offset", "body"} <= set(names))
        find = f"SELECT offset, body FROM {table} WHERE instr(body, 'workload_submitted') ORDER BY offset LIMIT 1"
        offset, body = db.execute(find).fetchone()
        changed = bytes(body).replace(b'"true"', b'"evil"')
        assert changed != bytes(body), f"nothing to change in row {offset}: {body!r}"
        db.execute(f"UPDATE {table} SET body = ? WHERE offset = ?", (changed, offset))
        db.commit()
    told = up(cloud.home)
    assert re.search(rf"\b{offset}\b", told), f"row {offset} was changed; said: {told}"
    return told


@check("7m corrupted database page", limit_s=90)
def corrupted_page() -> str:
    cloud, log = stopped_home("corrupted")
    size = log.stat().st_size
    with log.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(max(4096, min(size - 4096, 8192))))
    return up(cloud.home)


BAD_INPUT: list[Check] = [
    unplaceable, broken_toml, unknown_kind, counts, long_prompt, invalid_json, missing_command, port_in_use, second_up
]  # fmt: skip
ON_ITS_OWN_HOME: list[Check] = [
    full_disk,
    truncated_model,
    truncated_store,
    read_only_home,
    tampered_row,
    corrupted_page,
]
