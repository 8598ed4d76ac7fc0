"""The journal: what an ended answer leaves on disk, however the process ends."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cloud.gateway import journal as module
from dure.cloud.gateway.journal import Journal, JournalFile, Line, Outcome, Sums, fold, fold_into, rows
from dure.model.errors import DureError
from dure.model.units import NS_PER_MINUTE
from dure.model.usage import TokenRow


def line(tokens_out: int = 2, tokens_in: int | None = 5, outcome: Outcome = "ok", minute: int = 7) -> Line:
    return Line(minute * NS_PER_MINUTE + 1, "k1", "default", "m", "w1.0.1", tokens_in, tokens_out, outcome)


LINES = st.lists(
    st.builds(
        Line,
        at_ns=st.integers(0, 5 * NS_PER_MINUTE),
        key=st.sampled_from(["k1", "k2"]),
        project=st.just("default"),
        model=st.sampled_from(["m", 'n"\n', "모델"]),
        run=st.sampled_from(["w1.0.1", "w1.1.1"]),
        tokens_in=st.none() | st.integers(0, 10**9),
        tokens_out=st.integers(0, 10**9),
        outcome=st.sampled_from(["ok", "cancelled", "failed"]),
    ),
    max_size=30,
)


def text(lines: list[Line]) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in lines)


def test_fold_counts_each_kind_of_answer() -> None:
    data = text([line(), line(3, None, "cancelled"), line(0, None, "failed"), line(minute=8)])
    assert fold(data) == (
        TokenRow("k1", "default", "m", "w1.0.1", 7, 3, 5, 5, unknown_in=2, cancelled=1, failed=1),
        TokenRow("k1", "default", "m", "w1.0.1", 8, 1, 5, 2),
    )


@given(LINES, st.data())
def test_folding_in_pieces_at_any_line_gives_the_same_sums(lines: list[Line], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(lines)))
    sums: Sums = {}
    fold_into(sums, text(lines[:cut]))
    fold_into(sums, text(lines[cut:]))
    assert rows(sums) == fold(text(lines))
    folded = fold(text(lines))
    assert sum(row.answers for row in folded) == len(lines)
    assert sum(row.tokens_in for row in folded) == sum(one.tokens_in or 0 for one in lines)
    assert sum(row.tokens_out for row in folded) == sum(one.tokens_out for one in lines)


@given(LINES, st.integers(0, 400), st.integers(1, 300))
def test_a_file_reads_back_whole_lines_whatever_the_slice(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Line], torn: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "gateway-0.journal"
    whole = text(lines)
    path.write_bytes(whole + text([line(torn)])[: torn % 50])
    file = JournalFile(path)
    try:
        assert path.read_bytes() == whole  # the torn line is cut off
        at, back = 0, b""
        while piece := file.read(at, size):
            assert piece.endswith(b"\n")
            back, at = back + piece, at + len(piece)
        assert back == whole
    finally:
        file.close()


def test_damaged_lines_are_left_out_and_the_others_kept(caplog: pytest.LogCaptureFixture) -> None:
    data = text([line()]) + b'{"key": 5}\n\xff\xfe\n[[[[\n\n' + text([line()])
    assert [row.answers for row in fold(data)] == [2]
    assert caplog.text.count("damaged line") == 3


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Journal(tmp_path / "usage", "gateway-0")
    first.append(line())
    first.current.close()
    again = Journal(tmp_path / "usage", "gateway-0")
    again.append(line())
    assert again.current.path == tmp_path / "usage" / "gateway-0.journal"
    assert fold(again.current.read(0))[0].answers == 2
    again.current.close()


def test_two_gateways_never_share_a_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gateway-0")
    with pytest.raises(DureError, match="another gateway"):
        Journal(tmp_path, "gateway-0")
    journal.current.close()


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "gateway-0.journal").mkdir()
    with pytest.raises(DureError, match="Cannot keep usage in"):
        Journal(tmp_path, "gateway-0")


def test_it_rotates_and_drops_only_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROTATE_BYTES", 300)
    journal = Journal(tmp_path, "gateway-0")
    for _ in range(7):
        journal.append(line())
    assert journal.current.name == "gateway-0.00002.journal"
    assert [file.name for file in journal.old] == ["gateway-0.journal", "gateway-0.00001.journal"]
    journal.drop_recorded()
    assert len(journal.old) == 2
    journal.resumed(journal.old[0], 0)
    journal.old[0].recorded = journal.old[0].size
    journal.drop_recorded()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway-0.00001.journal", "gateway-0.00002.journal"]
    for file in [*journal.old, journal.current]:
        file.close()
    again = Journal(tmp_path, "gateway-0")  # a restart finds the old one that control does not have yet
    assert [file.name for file in again.old] == ["gateway-0.00001.journal"]
    again.rotate()
    assert again.current.name == "gateway-0.00003.journal"
    for file in [*again.old, again.current]:
        file.close()


def test_offsets_that_control_knows_already_are_not_used_again(tmp_path: Path) -> None:
    """After a power cut the file may be shorter than what control recorded of it."""
    path = tmp_path / "gateway-0.journal"
    path.write_bytes(text([line()]))
    journal = Journal(tmp_path, "gateway-0")
    journal.append(line(9))  # before control could say how far it is
    journal.resumed(journal.current, 10_000)
    assert journal.current.name == "gateway-0.00001.journal"
    assert [row.tokens_out for row in fold(journal.current.read(0))] == [9]
    journal.drop_recorded()
    assert not path.exists()
    journal.current.close()


def test_a_full_disk_keeps_lines_in_memory_and_whole_lines_on_disk(tmp_path: Path) -> None:
    """A size limit of the process stands in for a full disk: the write is cut short just the same."""
    journal = Journal(tmp_path, "gateway-0")
    journal.append(line())
    size = journal.current.size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        journal.append(line())
        journal.append(line())
        assert journal.broken and not journal.mend() and not journal.settled
        assert os.path.getsize(journal.current.path) == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.mend() and not journal.broken
    assert fold(journal.current.read(0))[0].answers == 3
    journal.current.close()
