"""The log is for ever: what each release wrote opens, verifies, replays and is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

from dure.computing.story import tell
from dure.computing.turn import Core
from dure.metering.ledger import check_chip_time, settle
from dure.model.event import Event
from dure.store.sqlite import SqliteLog

GOLDEN = Path(__file__).parent / "golden"


def test_the_log_of_release_0_1_0_opens_for_ever(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "0.1.0" / "log.sqlite", tmp_path)
    log = SqliteLog(tmp_path / "log.sqlite")
    assert log.verify() == log.head == 54
    rows = log.read(0, 100)
    log.close()
    assert {type(entry.event) for _, entry in rows} >= set(get_args(Event)[:16]), "it told every event there was"
    core = Core(("smollm2-135m",))
    for _, entry in rows:
        core.replay(entry.at_ns, entry.event)
        assert tell(entry.event)
    phases = {workload_id: held.phase for workload_id, held in core.state.workloads.items()}
    assert phases == {
        **{"w1": "waiting", "w2": "failed", "w3": "done", "w4": "failed"},
        **{"w5": "stopped", "w6": "done", "w7": "waiting"},
    }
    assert list(core.state.projects) == ["default", "lab"] and len(core.state.keys) == 2
    assert check_chip_time(settle(core.ledger, rows[-1][1].at_ns)) == []
