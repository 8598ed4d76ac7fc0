"""Bugs planted in a copy of the source: the simulation's laws must catch each one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import Struct, json

import dure

SOURCE = Path(dure.__file__).parent


class Mutant(Struct):
    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("place overbooks a chip", "computing/place/place.py", "if left < 0:", "if left < -300:"),
    Mutant("a gang takes chips of other nodes", "computing/place/place.py", "rows[nodes == node]", "rows[nodes >= 0]"),
    Mutant(
        "fits_ever refuses what just fits", "computing/place/place.py", "largest >= ask.count", "largest > ask.count"
    ),
    Mutant(
        "the index forgets to take",
        "computing/state.py",
        "columns.take(piece.chip, piece.milli)",
        "columns.take(piece.chip, 0)",
    ),
    Mutant(
        "the index forgets to give back",
        "computing/state.py",
        "columns.take(piece.chip, -piece.milli)",
        "columns.take(piece.chip, 0)",
    ),
    Mutant("the chip is never given back", "computing/state.py", "chip.held -= piece.milli", "chip.held -= 0"),
    Mutant(
        "a stop leaves the need",
        "computing/state.py",
        'needs.pop(f"{event.workload}.{replica}", None)',
        "needs.get('')",
    ),
    Mutant("a joined node stays closed", "computing/state.py", ".held, True) for chip in", ".held, False) for chip in"),
    Mutant("a lost start is not given again", "computing/reconcile.py", "orders.append(Start(", "list((Start("),
    Mutant("a lost stop is not given again", "computing/reconcile.py", "orders.append(Stop(run.id))", "pass"),
    Mutant("ends are never forgotten", "computing/reconcile.py", "orders.append(Forget(status.run))", "pass"),
    Mutant("a start under way counts as lost", "computing/turn.py", 'if run.phase != "placed":', "if run.phase:"),
    Mutant("freed capacity is not noticed", "computing/queue.py", "self._blocked.clear()", "pass"),
    Mutant("a restart forgets the queue", "computing/turn.py", "in self.state.needs.items():", "in ():"),
    Mutant("a need with a time is dropped", "computing/queue.py", "self.add(need, shape, 0)", "pass"),
    Mutant("every attempt is the first", "computing/turn.py", "[2]) + 1", "[2]) * 0 + 1"),
    Mutant(
        "waits are not explained",
        "computing/turn.py",
        "if reason is None or reason.code != refusal.code:",
        "if workload == '':",
    ),
    Mutant(
        "the core changes state past the log",
        "computing/turn.py",
        "self.more = 0, False",
        "self.state.next_workload, self.more = 0, self.state.next_workload + 2, False",
    ),
    Mutant(
        "a dead replica is not replaced",
        "computing/state.py",
        'state.needs[f"{event.workload}.{run.replica}"] = ',
        "_ = ",
    ),
]


def run_mutant(mutant: Mutant | None, folder: Path, seed: int) -> tuple[int, dict[str, list[str]], str]:
    copy = folder / "dure"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        path = copy / mutant.file
        text = path.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places for it in {mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new))
    environment = {"PYTHONPATH": str(folder), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "dure.twin", "one-machine", "--seed", str(seed), "--jobs", "150"]
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=120, cwd=folder)
    broken: dict[str, list[str]] = {}
    if done.stdout:
        broken = json.decode(done.stdout, type=dict[str, object])["broken"]  # type: ignore[assignment]
    return done.returncode, broken, done.stderr.decode()


def test_the_unmutated_copy_holds(tmp_path: Path) -> None:
    code, broken, said = run_mutant(None, tmp_path, 3)
    assert code == 0, (broken, said)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    for seed in (3, 4, 5):
        code, _, _ = run_mutant(mutant, tmp_path / str(seed), seed)
        if code != 0:
            return
    pytest.fail(f"the laws let this bug live: {mutant.name}")
