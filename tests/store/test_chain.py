from __future__ import annotations

import hashlib

import pytest

from dure.model.errors import DureError, LogDamaged
from dure.model.event import ControlStarted, Entry, StopAsked
from dure.store.chain import GENESIS, KNOWN, Row, link, opened, seal, unseal

ENTRIES = [Entry(1_790_000_000_000_000_000, ControlStarted("0.1.0")), Entry(-1, StopAsked("w1", "k1"))]


def test_the_format_is_for_ever() -> None:
    """A log written by any release reads in every later one: these bytes never change."""
    rows = seal(ENTRIES, 0, GENESIS)
    assert [row[:5] for row in rows] == [
        (0, 1_790_000_000_000_000_000, 1, None, b'{"type":"control_started","version":"0.1.0"}'),
        (1, -1, 1, "w1", b'{"type":"stop_asked","workload":"w1","by":"k1"}'),
    ]
    numbers = bytes.fromhex("0000000000000001ffffffffffffffff00000001")
    assert rows[1][5] == hashlib.sha256(rows[0][5] + numbers + rows[1][4]).digest()
    assert rows[1][5].hex() == "0bcdce5ece0c39a7a931946d663e5577706b3a92cb9f4ea095f2dddddc6c21c2"


def test_a_row_hash_depends_on_everything_in_it() -> None:
    changed = [
        link(b"a" * 32, 1, 2, 3, b"body"),
        link(b"b" * 32, 1, 2, 3, b"body"),
        link(b"a" * 32, 0, 2, 3, b"body"),
        link(b"a" * 32, 1, 0, 3, b"body"),
        link(b"a" * 32, 1, 2, 0, b"body"),
        link(b"a" * 32, 1, 2, 3, b"bodY"),
    ]
    assert len(set(changed)) == len(changed)


def test_rows_are_sealed_one_after_another_or_at_once_alike() -> None:
    first = seal(ENTRIES[:1], 0, GENESIS)
    assert first + seal(ENTRIES[1:], 1, first[0][5]) == seal(ENTRIES, 0, GENESIS)


def sealed(body: bytes, at_ns: int = 0, v: int = 1) -> Row:
    return (0, at_ns, v, None, body, link(GENESIS, 0, at_ns, v, body))


def test_an_unknown_event_is_of_a_newer_dure() -> None:
    with pytest.raises(
        DureError, match=r"log: row 0 .*'brain_uploaded'.*version 1.*Start a Dure at least as new"
    ) as told:
        list(unseal([sealed(b'{"type":"brain_uploaded"}')], 0, GENESIS, "log"))
    assert not isinstance(told.value, LogDamaged)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"type":3}',
        b'{"type":"stop_asked"}',
        b'\xff\xfe{"type":"x"}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_event_is_damage_even_where_its_hash_holds(body: bytes) -> None:
    with pytest.raises(LogDamaged, match="log is damaged at offset 0") as told:
        list(unseal([sealed(body)], 0, GENESIS, "log"))
    assert told.value.offset == 0 and told.value.do


@pytest.mark.parametrize(
    "row",
    [
        (0, None, 1, None, b"{}", b"h"),
        (0, 0, None, None, b"{}", b"h"),
        (0, 0, 1, None, None, b"h"),
        (0, "0", 1, None, b"{}", b"h"),
        (0, 0, 2**40, None, b"{}", b"h"),
        (0, 0, 1, None, "text", b"h"),
        (0, 0, 1, None, b"{}", None),
        (None, 0, 1, None, b"{}", b"h"),
    ],
)
def test_a_row_of_the_wrong_types_is_damage(row: Row) -> None:
    with pytest.raises(LogDamaged) as told:
        list(unseal([row], 0, GENESIS, "log"))
    assert told.value.offset == 0


def test_rows_before_the_damage_are_given() -> None:
    rows = seal(ENTRIES, 0, GENESIS)
    given = unseal([rows[0], (*rows[1][:4], rows[0][4], rows[1][5])], 0, GENESIS, "log")
    assert next(given)[1] == ENTRIES[0]
    with pytest.raises(LogDamaged, match="offset 1"):
        next(given)


def test_every_tag_of_the_model_is_known() -> None:
    assert {"control_started", "tokens_used"} <= KNOWN
    with pytest.raises(LogDamaged):  # known, so its form is wrong: not newer
        opened("log", 4, 0, 1, b'{"type":"tokens_used"}')
    with pytest.raises(DureError, match=r"version 9.*version 1"):
        opened("log", 4, 0, 9, b'{"type":"tokens_used"}')
