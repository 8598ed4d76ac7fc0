"""One machine is a cloud: install, model, OpenAI call, bill; crashes, bad input, figures. Seen from outside."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bad_input import BAD_INPUT, ON_ITS_OWN_HOME
from crashes import CRASHES
from harness import (
    DURE,
    FIRST_HOME,
    MODEL,
    PYTHON,
    ROOT,
    TEMPORARY,
    Check,
    Cloud,
    Report,
    check,
    finish,
    run,
    run_group,
    until,
)
from openai_calls import OPENAI_CALLS

COMMON_TIME_S = 900
CLONE = TEMPORARY / "fresh clone"
BILL = re.compile(
    r"[\d.,]+ tok/s · [\d.,e-]+ m?Wh \((measured|modelled): .+?\) · ₩[\d.,]+.* · http://127\.0\.0\.1:\d+/?"
)


@check("1a make up ARGS=--once on a fresh clone and home, < 180 s", limit_s=400)
def make_up_once() -> str:
    cloned = run(["git", "clone", "-q", str(ROOT), str(CLONE)], 60)
    assert cloned.returncode == 0, cloned.stderr
    began = time.monotonic()
    done = run(["make", "-C", str(CLONE), "up", f"ARGS=--once --home {FIRST_HOME} --port 0"], 390)
    seconds = time.monotonic() - began
    assert done.returncode == 0, f"exit {done.returncode} after {seconds:.0f} s: {(done.stdout + done.stderr)[-300:]}"
    bill = BILL.search(done.stdout)
    assert bill, f"no bill line in {done.stdout[-300:]}"
    assert seconds < 180, f"{seconds:.1f} s"
    return f"{seconds:.1f} s, set-up and download of the model included; {bill[0]}"


@check("1b a second start reaches the first token, < 10 s", limit_s=90)
def second_start() -> str:
    cloud = Cloud("second", models=FIRST_HOME / "models")
    message = {"role": "user", "content": "Hello"}
    body = json.dumps({"model": MODEL, "messages": [message], "max_tokens": 8, "stream": True}).encode()
    began = time.monotonic()

    def first_token() -> float:
        connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=20)
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {cloud.key}"})
        answer = connection.getresponse()
        tokens = (line for line in answer if re.search(rb'"content": ?"[^"]', line))
        seconds = time.monotonic() - began if answer.status == 200 and next(tokens, b"") else 0.0
        connection.close()
        return seconds

    try:
        cloud.start(wait=False)
        seconds = until(first_token, 60, "a first token")
    finally:
        cloud.close()
    assert seconds < 10, f"{seconds:.1f} s"
    return f"{seconds:.2f} s from the command to the first token at an HTTP client"


@check("1c make test passes with nothing installed by hand", limit_s=1800)
def make_test() -> str:
    done = run(["make", "test"], 1790)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    assert done.returncode == 0 and " passed" in last[0], f"exit {done.returncode}: {last[0]} {done.stderr[-200:]}"
    return last[0].strip("= ")


def figures() -> list[dict[str, Any]]:
    """The rows that `make bench ARGS='--json FILE'` wrote: name, value, unit, at_most | at_least."""
    path = TEMPORARY / "bench.json"
    return list(json.loads(path.read_text())) if path.exists() else []


@check("3a make bench runs", limit_s=1200)
def make_bench() -> str:
    done = run(["make", "bench", f"ARGS=--json {TEMPORARY / 'bench.json'}"], 1190)
    assert done.returncode == 0, f"exit {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
    assert figures(), "no figures were written"
    return f"{len(figures())} figures"


@check("3b every figure of the issue is there")
def bench_is_complete() -> str:
    names = " | ".join(str(row["name"]) for row in figures())
    wanted = ["cpu.*c=16", "added p50.*c=1", "added p99.*c=16", "stream", "load", "tok/s|tokens/s", "ttft"]
    wanted += ["64 clients", "batches of 100", "replay"]
    missing = [pattern for pattern in wanted if not re.search(pattern, names, re.I)]
    assert not missing, f"no figure for {missing} in: {names}"
    return names


def figure_checks(rows: Sequence[dict[str, Any]]) -> list[Check]:
    """A line for each figure, beside its target."""

    def judged(row: dict[str, Any]) -> Check:
        @check(f"3 {row['name']}")
        def figure() -> str:
            value, most, least = row["value"], row.get("at_most"), row.get("at_least")
            target = (
                f"at most {most}" if most is not None else f"at least {least}" if least is not None else "no target"
            )
            text = f"{value} {row.get('unit', '')} ({target}) {row.get('beside', '')}"
            assert value is not None and (most is None or value <= most) and (least is None or value >= least), text
            return text

        return figure

    return [judged(row) for row in rows]


def twin(seed: int) -> dict[str, Any]:
    done = run([PYTHON, "-m", "dure.twin", "one-machine", "--seed", str(seed)], 110)
    assert done.returncode == 0, f"exit {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
    return dict(json.loads(done.stdout))


@check("6a 64 simulated chips, 500 jobs, cancels and crashes: the laws hold", limit_s=120)
def laws_hold() -> str:
    result = twin(7)
    broken = {law: found for law, found in dict(result["broken"]).items() if found}
    assert len(result["broken"]) >= 3 and not broken, str(broken or result)
    sizes = {name: result.get(name) for name in ("chips", "kinds", "workloads", "rows")}
    assert (sizes["chips"], sizes["kinds"], sizes["workloads"]) == (64, 3, 500), f"not 64 chips of 3 kinds: {sizes}"
    return f"kept: {', '.join(result['broken'])}; {sizes}; ended {result['ended_by']}; restarts {result['restarts']}"


@check("6b the same seed gives the same bytes, another seed others", limit_s=240)
def same_bytes() -> str:
    first, again, other = (str(twin(seed)["digest"]) for seed in (7, 7, 8))
    assert first == again, f"{first} then {again}"
    assert first != other, f"seeds 7 and 8 both give {first}"
    return f"{first[:16]} twice; seed 8: {other[:16]}"


@check("6c at least 10 planted bugs are each caught", limit_s=300)
def mutants_die() -> str:
    done = run([PYTHON, "-m", "pytest", "-q", "-k", "mutant", "tests"], 290)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    killed = int((re.search(r"(\d+) passed", last) or [0, 0])[1])
    assert done.returncode == 0 and killed >= 10, f"exit {done.returncode}: {last}"
    return last


def median_s(cloud: Cloud, *arguments: str) -> float:
    times = []
    for _ in range(6):
        began = time.monotonic()
        done = cloud.dure(*arguments)
        times.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
    return statistics.median(times[1:])


@check("8a dure --help, median of 5, < 0.5 s")
def help_is_fast(cloud: Cloud) -> str:
    seconds = median_s(cloud, "--help")
    assert seconds < 0.5, f"{seconds:.3f} s"
    return f"{seconds:.3f} s"


@check("8b dure ps, median of 5, < 0.7 s")
def ps_is_fast(cloud: Cloud) -> str:
    seconds = median_s(cloud, "ps")
    assert seconds < 0.7, f"{seconds:.3f} s"
    return f"{seconds:.3f} s"


@check("8c installed MiB")
def installed(_cloud: Cloud) -> str:
    def mib(venv: Path) -> str:
        size = sum(p.lstat().st_size for p in venv.rglob("*") if p.is_file() and not p.is_symlink())
        return f"{size / 2**20:.0f} MiB"

    runtime = CLONE / ".venv"
    return (
        f"{mib(runtime) if runtime.is_dir() else 'unknown'} to run, {mib(ROOT / '.venv')} with the tools of the tests"
    )


@check("8d make check, warm, < 60 s", limit_s=600)
def make_check() -> str:
    for _ in range(2):
        began = time.monotonic()
        done = run(["make", "check"], 290)
        seconds = time.monotonic() - began
        assert done.returncode == 0, f"exit {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        if seconds < 60:
            break
    assert seconds < 60, f"{seconds:.1f} s"
    return f"{seconds:.1f} s"


def main(arguments: Sequence[str]) -> int:
    words = tuple(arguments[1:]) if arguments[:1] == ["-k"] else ("",)
    models = FIRST_HOME / "models"
    report = Report(time.monotonic() + COMMON_TIME_S)
    groups: list[tuple[str, list[Check]]] = [
        ("", [make_up_once, second_start]),
        ("calls", OPENAI_CALLS),
        ("crashes", CRASHES),
        ("plain", [*BAD_INPUT, help_is_fast, ps_is_fast, installed]),
        ("", [*ON_ITS_OWN_HOME, laws_hold, same_bytes, mutants_die, make_bench, bench_is_complete]),
    ]
    for name, checks in groups:
        if chosen := [each for each in checks if each.name.startswith(words)]:
            options = ["--no-model"] if name == "plain" else []
            run_group(report, Cloud(name, *options, models=models) if name else None, chosen)
    last = [*figure_checks(figures()), make_check, make_test]
    run_group(report, None, [each for each in last if each.name.startswith(words)])
    shutil.rmtree(CLONE, ignore_errors=True)
    return finish(report)


if __name__ == "__main__":
    assert Path(DURE).exists(), f"{DURE} is not there: run make setup"
    sys.exit(main(sys.argv[1:]))
