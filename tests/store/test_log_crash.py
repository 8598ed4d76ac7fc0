"""kill -9 of a process that appends: what it acknowledged is there, whole batches only, and the chain holds."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import dure
from dure.model.event import Entry, NodeLost
from dure.store.sqlite import SqliteLog

BATCH = 5
APPENDER = f"""
import sys
from pathlib import Path
from dure.model.event import Entry, NodeLost
from dure.store.sqlite import SqliteLog

log = SqliteLog(Path(sys.argv[1]))
while True:
    log.append([Entry(log.head + at, NodeLost("n1", "x" * 200)) for at in range({BATCH})])
    print(log.head, flush=True)
    if log.head % 20 == 0:
        log.save_snapshot(log.head, b"%d" % log.head)
"""


@pytest.mark.parametrize("acks", [1, 7, 60])
def test_every_acknowledged_batch_outlives_kill_9(tmp_path: Path, acks: int) -> None:
    path = tmp_path / "log.sqlite"
    found = 0
    for _ in range(2):  # the second child goes on where the first was killed
        source = str(Path(dure.__file__).parents[1])
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path)], stdout=subprocess.PIPE, env={"PYTHONPATH": source}
        )
        with child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(acks)]
            child.kill()
            lines += child.stdout.readlines()
        whole = [int(line) for line in lines if line.endswith(b"\n")]
        assert len(whole) >= acks and whole[0] == found + BATCH
        with closing(SqliteLog(path)) as log:
            assert log.head >= whole[-1] and log.head % BATCH == 0
            assert log.verify() == log.head
            assert log.read(0, log.head) == [(at, Entry(at, NodeLost("n1", "x" * 200))) for at in range(log.head)]
            snapshot = log.load_snapshot()
            assert snapshot is None or (snapshot[0] % 20 == 0 and snapshot[1] == b"%d" % snapshot[0])
            found = log.head
