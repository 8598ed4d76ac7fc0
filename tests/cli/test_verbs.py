"""Each verb against a fake control: what it asks, prints and exits with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dure.cli.look import phase_of
from dure.cli.main import main
from dure.model.view import ErrorView, Failed, Submitted
from dure.model.workload import Ask, ChipAsk, Command, Exit, Refusal, Serve
from tests.client import samples
from tests.client.fake_control import KEY, Answer, FakeControl


class Ran(msgspec.Struct, frozen=True):
    code: int | str | None
    out: str
    err: str
    raw: bytes


Dure = Callable[..., Ran]


@pytest.fixture
def dure(control: FakeControl, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Dure:
    monkeypatch.setenv("DURE_URL", control.url)
    monkeypatch.setenv("DURE_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("DURE_HOME", raising=False)

    def run(*args: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(args)
        out, err = capsysbinary.readouterr()
        return Ran(ended.value.code, out.decode("utf-8", "replace"), err.decode(), out)

    return run


LISTINGS = [
    (("chips",), "GET /api/chips", samples.CHIPS[:2]),
    (("chips", "--all"), "GET /api/chips", samples.CHIPS),
    (("models",), "GET /api/models", samples.MODELS),
    (("ps",), "GET /api/workloads", [samples.a_job()]),
    (("ps", "--all"), "GET /api/workloads?all=true", [samples.a_job("waiting", samples.BUSY)]),
    (("why", "w1"), "GET /api/workloads/w1/why", samples.STORY),
    (("report", "usage"), "GET /api/report/usage?by=project", samples.USAGE),
    (("report", "cost", "--by", "chip"), "GET /api/report/cost?by=chip", samples.USAGE),
    (("project", "list"), "GET /api/projects", samples.PROJECTS),
    (("key", "list"), "GET /api/keys", samples.KEYS),
]


@pytest.mark.parametrize(("args", "request_line", "answer"), LISTINGS)
def test_every_listing_gives_one_json_document(
    control: FakeControl, dure: Dure, args: tuple[str, ...], request_line: str, answer: object
) -> None:
    control.on(request_line, samples.CHIPS if args[0] == "chips" else answer)
    ran = dure(*args, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) is not None
    assert ran.raw == msgspec.json.encode(answer) + b"\n"


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("columns", [80, 40, 200])
def test_tables_fit_the_terminal_and_steer_nothing(
    control: FakeControl,
    dure: Dure,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    listing: tuple[tuple[str, ...], str, object],
) -> None:
    args, request_line, answer = listing
    monkeypatch.setenv("COLUMNS", str(columns))
    control.on(request_line, answer)
    ran = dure(*args)
    assert ran.code == 0 and "\x1b" not in ran.out
    tables = [] if args[0] == "why" else ran.out.splitlines()
    assert all(len(line) <= columns for line in tables if "example" not in line)


def test_chips_say_what_is_simulated_and_leave_out_nodes_that_are_away(
    control: FakeControl, dure: Dure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    control.on("GET /api/chips", samples.CHIPS)
    ran = dure("chips")
    head, real, simulated = ran.out.splitlines()
    assert head.split()[:3] == ["ID", "NODE", "KIND"]
    assert all(part in real for part in ("n1:cpu0", "real", "12,034 MiB", "90 %", "10 W configured", "metal"))
    assert all(part in simulated for part in ("n2:npu0", "KR", "simulated", "unknown", "100 %", "none"))
    assert "1 more on nodes that are away" in ran.err
    assert "away" in dure("chips", "--all").out.splitlines()[3]


def test_ps_shows_why_a_workload_waits(control: FakeControl, dure: Dure, monkeypatch: pytest.MonkeyPatch) -> None:
    control.on("GET /api/workloads", [samples.a_job("waiting", samples.BUSY), samples.a_job()])
    head, waiting, running = dure("ps").out.splitlines()
    assert head.split()[-2:] == ["WORK", "REASON"]
    assert waiting.startswith("w1  waiting") and waiting.endswith("…") and "2 nodes" in waiting
    assert "running" in running and "echo '두레' 'a b'" in running
    monkeypatch.delenv("COLUMNS")
    assert samples.BUSY.why in dure("ps").out, "a pipe has no width"


def test_ps_counts_the_replicas_that_run() -> None:
    both = samples.an_endpoint("active", samples.a_run(), samples.a_run("starting"))
    control_says = msgspec.structs.replace(both, ask=Ask(Serve("small"), replicas=3))
    assert phase_of(control_says) == "1/3 running"
    assert phase_of(samples.an_endpoint("active", samples.a_run())) == "running"
    assert phase_of(samples.an_endpoint("failed", samples.a_run("ended", exit=Exit("failed")))) == "failed"


def test_a_job_cannot_write_escapes_into_the_listing(control: FakeControl, dure: Dure) -> None:
    evil = "\x1b[2J\u202e\nroot"
    job = msgspec.structs.replace(samples.a_job(), ask=Ask(Command((evil,))), reason=Refusal("busy", evil, "x"))
    control.on("GET /api/workloads", [job])
    out = dure("ps").out
    assert len(out.splitlines()) == 2 and "\x1b" not in out and "\u202e" not in out


def test_why_is_one_local_line_an_event(control: FakeControl, dure: Dure) -> None:
    control.on("GET /api/workloads/w1/why", samples.STORY)
    first, second = dure("why", "w1").out.splitlines()
    assert first.endswith("00.000  submitted by k1 to project 두레") or ".000  submitted" in first
    assert second.endswith(".001  placed on n1")


def test_logs_are_raw_bytes(control: FakeControl, dure: Dure) -> None:
    first = "GET /api/workloads/w1/log?offset=0&wait_s=0"
    control.on(first, samples.a_log(b"\x00\xff\x1b[0m\r\n", 7, False))
    control.on("GET /api/workloads/w1/log?run=w1.0.1&offset=7&wait_s=0", samples.a_log(b"", 7, False))
    assert dure("logs", "w1").raw == b"\x00\xff\x1b[0m\r\n"


def test_logs_follow_one_run_to_its_end(control: FakeControl, dure: Dure) -> None:
    control.on("GET /api/workloads/w1/log?offset=0&wait_s=20", samples.a_log(b"one\n", 4, False))
    rest = [samples.a_log(b"", 4, False), samples.a_log("둘\n".encode(), 8, True)]
    control.on("GET /api/workloads/w1/log?run=w1.0.1&offset=4&wait_s=20", *rest)
    control.on("GET /api/workloads/w1/log?run=w1.0.1&offset=8&wait_s=20", samples.a_log(b"", 8, True))
    assert dure("logs", "w1", "-f").out == "one\n둘\n"


def test_a_report_shows_units_sources_and_notes(
    control: FakeControl, dure: Dure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    control.on("GET /api/report/usage?by=project", samples.USAGE)
    lines = dure("report", "usage").out.splitlines()
    assert lines[0] == "Usage"
    assert lines[2].split("  ")[0] == "PROJECT" and "ENERGY MODELLED (Wh)" in lines[2]
    assert lines[3].split() == ["default", "1", "h", "0", "min", "1.00", "₩1,234.57", "12,345"]
    assert lines[4].split() == ["idle", "1", "min", "1", "s", "-", "-", "-"], "no figure is a dash, never 0"
    assert lines[5].startswith("total")
    assert lines[-2:] == ["Sources: modelled 100.0 %", "example prices, not an offer"]


def test_submit_prints_the_id_alone(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w7"), 201))
    ran = dure("submit", "--chips", "npu-a:2", "--project", "lab", "--", "echo", "--all", "-n", "두레 x")
    assert (ran.code, ran.out, ran.err) == (0, "w7\n", "")
    asked = msgspec.json.decode(control.seen[0].body, type=Ask)
    assert asked == Ask(Command(("echo", "--all", "-n", "두레 x")), ChipAsk("npu-a", 2, 1000), "lab")
    assert dure("submit", "ls", "-l").out == "w7\n"
    assert msgspec.json.decode(control.seen[1].body, type=Ask) == Ask(Command(("ls", "-l")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no command to run. Write it behind --"),
        (("--",), "no command to run"),
        (("--chips", "cpu:-1", "--", "true"), "not an ask for chips"),
        (("--chips", "cpu:9999999", "--", "true"), "N must be 1 to 1,000,000"),
        (("--chips", "cpu:" + "9" * 5000, "--", "true"), "not an ask for chips"),
        (("--chips", "cpu:1:0", "--", "true"), "MILLI 1 to 1000"),
        (("--chips", "칩:1", "--", "true"), "not an ask for chips"),
        (("--project", "../x", "--", "true"), "Expected `str` matching regex"),
        (("--nonsense", "--", "true"), "No such option"),
    ],
)
def test_submit_misused_is_exit_2_and_asks_nothing(
    control: FakeControl, dure: Dure, args: tuple[str, ...], message: str
) -> None:
    ran = dure("submit", *args)
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.split())
    assert not control.seen


def test_submit_refused_says_why_with_counts(control: FakeControl, dure: Dure) -> None:
    refused = Failed(ErrorView("Refused", "x", refusal=samples.BUSY, workload="w9"))
    control.on("POST /api/workloads", Answer(refused, 409))
    ran = dure("submit", "--chips", "cpu:999", "--", "true")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        f"dure: refused by place (busy): {samples.BUSY.why}",
        "  1 no free npu-a",
        "  1 over power",
        "See: dure why w9",
    ]


def test_stop(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/workloads/w1/stop", samples.a_job("stopping"))
    assert dure("stop", "w1").out == "w1 stopping\n"


def test_deploy_waits_until_it_answers(control: FakeControl, dure: Dure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dure.client.waiting._POLL_S", 0)
    control.on("POST /api/workloads", Answer(Submitted("w2"), 201))
    control.on(
        "GET /api/workloads/w2",
        samples.an_endpoint("waiting", reason=samples.BUSY),
        samples.an_endpoint("waiting", reason=samples.BUSY),
        samples.an_endpoint("active", samples.a_run("fetching", (10, 100))),
        samples.an_endpoint("active", samples.a_run("fetching", (90, 100))),
        samples.an_endpoint("active", samples.a_run("starting")),
        samples.an_endpoint("active", samples.a_run()),
    )
    ran = dure("deploy", "small", "--replicas", "1", "--chip", "npu-a")
    assert (ran.code, ran.out) == (0, "w2\n")
    phases = [f"small: waiting: {samples.BUSY.why}", "small: fetching", "small: starting", "small: running"]
    assert ran.err.splitlines() == phases
    assert msgspec.json.decode(control.seen[0].body, type=Ask) == Ask(Serve("small"), ChipAsk("npu-a", 1, 1000))


def test_deploy_that_fails(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w2"), 201))
    why = Refusal("backoff", "sha256 differs", "agent")
    control.on("GET /api/workloads/w2", samples.an_endpoint("failed", reason=why))
    ran = dure("deploy", "small")
    assert (ran.code, ran.out) == (1, "w2\n")
    assert "small does not answer: w2 is failed\nsha256 differs\nSee: dure why w2" in ran.err


def test_deploy_gives_up_on_what_cannot_start(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w2"), 201))
    why = Refusal("backoff", "attempt 1 could not start (the file is truncated)", "reconcile")
    control.on(
        "GET /api/workloads/w2", samples.an_endpoint("waiting", samples.a_run("ended", exit=Exit("failed")), reason=why)
    )
    ran = dure("deploy", "small")
    assert (ran.code, ran.out) == (1, "w2\n")
    assert "w2 does not start\nattempt 1 could not start (the file is truncated)" in ran.err


def test_deploy_without_waiting_and_refused(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w2"), 201))
    assert dure("deploy", "small", "--no-wait").out == "w2\n"
    assert len(control.seen) == 1
    unknown = Refusal("unknown_model", "no model small; known: big", "admit")
    control.on("POST /api/workloads", Answer(Failed(ErrorView("Refused", refusal=unknown, workload="w3")), 409))
    ran = dure("deploy", "small")
    assert (ran.code, ran.out) == (1, "") and "unknown_model" in ran.err
    assert dure("deploy", "../etc").code == 2
    assert dure("deploy", "small", "--replicas", "0").code == 2


def test_undeploy_stops_each_endpoint_of_the_model(control: FakeControl, dure: Dure) -> None:
    control.on("GET /api/workloads", [samples.a_job(), samples.an_endpoint("waiting")])
    control.on("POST /api/workloads/w2/stop", samples.an_endpoint("stopping"))
    assert dure("undeploy", "small").out == "w2\n"
    ran = dure("undeploy", "other")
    assert (ran.code, ran.out) == (1, "") and "No endpoint serves other" in ran.err


def test_chat_streams_text_and_tells_the_rate(control: FakeControl, dure: Dure) -> None:
    event = '{"choices":[{"delta":{"content":"%s"}}]}'
    usage = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":8}}'
    lines = [event % "안녕", event % " you", usage, "[DONE]"]
    control.on("POST /v1/chat/completions", "".join(f"data: {line}\n\n" for line in lines).encode())
    ran = dure("chat", "small", "hi")
    assert (ran.code, ran.out) == (0, "안녕 you\n")
    assert re.fullmatch(r"5 tokens in · 8 out in \d+\.\d\d s · \d+\.\d tok/s\n", ran.err)


def test_projects_and_keys(control: FakeControl, dure: Dure) -> None:
    control.on("POST /api/projects", samples.PROJECTS[1])
    assert dure("project", "create", "연구").out == "연구\n"
    control.on("POST /api/keys", samples.MADE)
    ran = dure("key", "create", "--project", "default")
    assert ran.out == "dk-secret\n" and "dk-secret" not in ran.err
    control.on("GET /api/keys", samples.KEYS)
    assert [line.split() for line in dure("key", "list").out.splitlines()[1:]] == [
        ["k1", "default", "yes"],
        ["k2", "default", "no"],
    ]


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (Answer(Failed(ErrorView("Not allowed", "the key is not known", "See HOME/admin.key")), 401), None),
        (Answer(b"<html>\x1b[2J", 500), ["dure: The cloud answered 500 to GET /api/workloads", "<html>�[2J"]),
        (Answer(b"{", 200), ["dure: The answer to GET /api/workloads is not understood"]),
        (Answer([], cut=1), ["dure: The connection to"]),
    ],
)
def test_errors_are_three_lines_and_exit_1(
    control: FakeControl, dure: Dure, answer: Answer, lines: list[str] | None
) -> None:
    control.on("GET /api/workloads", answer)
    ran = dure("ps")
    assert (ran.code, ran.out) == (1, "")
    wanted = lines or ["dure: Not allowed", "the key is not known", "See HOME/admin.key"]
    got = ran.err.splitlines()
    assert len(got) <= 3 and all(line.startswith(part) for line, part in zip(got, wanted, strict=False))


def test_no_cloud(dure: Dure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURE_URL")
    ran = dure("--home", str(tmp_path / "없음"), "ps")
    assert ran.code == 1
    assert ran.err.splitlines()[0] == f"dure: No cloud has been started in {tmp_path / '없음'}"
    assert ran.err.splitlines()[2] == "Start a cloud with: dure up, or give --url and --key"


def test_options_win_over_the_environment(control: FakeControl, dure: Dure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_URL", "http://127.0.0.1:1")
    control.on("GET /api/keys", [])
    assert dure("--url", control.url, "--key", "dk-mine", "key", "list", "--json").out == "[]\n"
    assert control.seen[0].key == "dk-mine"


@pytest.mark.parametrize(("args", "code"), [((), 2), (("frobnicate",), 2), (("report", "joy"), 2), (("--help",), 0)])
def test_usage(dure: Dure, args: tuple[str, ...], code: int) -> None:
    assert dure(*args).code == code


def test_up_becomes_the_app(dure: Dure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, argv: started.append([path, *argv]))
    home = tmp_path / "한 집"
    dure("up", "--home", str(home), "--once", "--port", "0", "--fleet", "f.toml", "--no-model")
    assert started[0][0] == started[0][1]
    assert started[0][2:5] == ["-m", "dure.app", "up"]
    assert started[0][5:] == ["--home", str(home), "--once", "--port", "0", "--fleet", "f.toml", "--no-model"]
    monkeypatch.setenv("DURE_HOME", str(home))
    dure("up")
    assert started[1][5:] == ["--home", str(home)]
    assert dure("up", "--port", "65536").code == 2
