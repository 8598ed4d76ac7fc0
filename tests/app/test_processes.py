"""A child of `dure up`: kept alive, given up with its last words, ended for good."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dure.app import processes
from dure.app.child import LAST_WORDS, UNUSABLE
from dure.app.processes import Child
from dure.model.errors import DureError

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"
SLEEP = "print('up', flush=True); import time; time.sleep(1000)"


class Lab:
    """Children that run Python snippets; `changes` counts their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.children = folder, list[Child]()
        self.changes = 0

    def child(self, code: str, log: Path | None = None) -> Child:
        argv = [sys.executable, "-I", "-c", code]
        made = Child("thing", argv, {"ONLY": "this"}, (), log or self.folder / "thing.log")
        self.children.append(made)
        return made

    def start(self, code: str, log: Path | None = None) -> Child:
        made = self.child(code, log)
        made.start(self.changed)
        return made

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(processes, "RESTART_S", (0.0, 0.01))
    made = Lab(tmp_path)
    yield made
    for child in made.children:
        child.end(signal.SIGKILL, 5)


def until(probe: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not probe():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def said(child: Child) -> str:
    return child.log.read_text() if child.log.is_file() else ""


def failure(child: Child) -> DureError:
    until(lambda: child.unusable or child.deaths >= processes.DEATHS)
    with pytest.raises(DureError) as error:
        child.check()
    return error.value


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_started_again_and_told_so(lab: Lab) -> None:
    child = lab.start("import os, sys; print(*sys.argv[1:], *os.environ)\n" + SLEEP)
    until(lambda: "up" in said(child))
    assert said(child).split() == ["ONLY", "LC_CTYPE", "up"] and lab.changes == 1
    first = child.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: child.pid != first and said(child).count("up") == 2)
    assert lab.changes == 2 and "--again ONLY" in said(child) and not lives(first)
    child.check()


def test_one_that_keeps_dying_is_named_with_its_last_lines(lab: Lab) -> None:
    child = lab.start("for i in range(9): print('line', i, flush=True)\nraise SystemExit('no luck')")
    error = failure(child)
    assert error.what == "The thing process does not come up"
    assert "line 8\n    no luck" in error.why and "line 6" not in error.why and str(child.log) in error.why


def test_one_that_dies_without_a_word_is_named_too(lab: Lab) -> None:
    assert "nothing" in failure(lab.start("raise SystemExit(3)")).why


def test_one_that_gives_up_says_why(lab: Lab) -> None:
    words = f"print('noise\\n{LAST_WORDS}\\nThe home is broken\\nno such file\\nMend it'); raise SystemExit({UNUSABLE})"
    error = failure(lab.start(words))
    assert (error.what, error.why, error.do) == ("The home is broken", "no such file", "Mend it")


def test_what_it_said_before_is_no_part_of_its_reason(lab: Lab) -> None:
    (lab.folder / "thing.log").write_text(f"{LAST_WORDS}\nAn old reason\n")
    error = failure(lab.start(f"print('warning'); print({LAST_WORDS!r}); print('New'); raise SystemExit({UNUSABLE})"))
    assert (error.what, error.why, error.do) == ("New", "", "")


def test_one_that_gives_up_without_a_word(lab: Lab) -> None:
    assert failure(lab.start(f"raise SystemExit({UNUSABLE})")).what == "thing gave up without a word"


def test_one_that_gave_up_is_tried_again_and_may_recover(lab: Lab) -> None:
    flag = lab.folder / "mended"
    child = lab.start(f"import os\nif not os.path.exists({str(flag)!r}): raise SystemExit({UNUSABLE})\n{SLEEP}")
    failure(child)
    flag.touch()
    until(lambda: "up" in said(child))
    assert lives(child.pid)


def test_words_that_are_not_text_and_a_huge_log(lab: Lab) -> None:
    code = "import os; os.write(1, b'\\xff\\xfe' * 500_000 + b'\\nlast \\xff line\\n'); raise SystemExit(1)"
    assert "\n    last \ufffd line" in failure(lab.start(code)).why


def test_no_room_for_its_log_is_told(lab: Lab) -> None:
    error = failure(lab.start(SLEEP, lab.folder))
    assert error.what == "The thing process cannot be started" and "directory" in error.why


def test_the_end_is_a_signal_and_nothing_after_it(lab: Lab) -> None:
    child = lab.start(SLEEP)
    until(lambda: "up" in said(child))
    pid = child.pid
    child.end(signal.SIGTERM, 20)
    assert not lives(pid) and child.pid == pid and lab.changes == 1
    child.end(signal.SIGTERM, 20)


def test_one_that_does_not_listen_is_killed(lab: Lab) -> None:
    child = lab.start(DEAF)
    until(lambda: "deaf" in said(child))
    child.end(signal.SIGTERM, 0.05)
    assert not lives(child.pid)


def test_an_end_before_the_start_and_during_it(lab: Lab) -> None:
    lab.child(SLEEP).end(signal.SIGTERM, 1)
    for _ in range(20):
        child = lab.start(SLEEP)
        child.end(signal.SIGTERM, 20)
        assert child.pid == 0 or not lives(child.pid)
    assert threading.active_count() < 10


def test_an_end_while_it_waits_to_be_started_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESTART_S", (30.0,))
    child = lab.start("print('once')")
    until(lambda: child.deaths == 1)
    child.end(signal.SIGTERM, 1)
    assert said(child) == "once\n" and child.deaths == 1
