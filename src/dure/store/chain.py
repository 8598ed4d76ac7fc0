"""Rows: how an entry becomes bytes, and the chain of hashes that shows when a row was changed.

This is the format of every log ever written: to change it, write a new one beside it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from dure.model.errors import DureError, LogDamaged
from dure.model.event import EVENT_V, Entry, Event, subject

GENESIS = hashlib.sha256(b"dure log, format 1").digest()
"""What the first row's hash follows."""

Row = tuple[int, int, int, str | None, bytes, bytes]
"""offset, at_ns, v, subject, body (JSON of the event), hash (32 bytes)."""

RESTORE = "Keep the file as it is for inquiry and restore the log from a backup"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode
_pack = struct.Struct(">qqi").pack
_sha256 = hashlib.sha256


def link(previous: bytes, offset: int, at_ns: int, v: int, body: bytes) -> bytes:
    """A row's hash: SHA-256 over the hash before it, its numbers in 20 big-endian bytes, its body."""
    return _sha256(previous + _pack(offset, at_ns, v) + body).digest()


def seal(entries: Sequence[Entry], offset: int, previous: bytes) -> list[Row]:
    """Entries as the rows from `offset` on, after the row whose hash is `previous`.

    Each body is decoded again: an event that does not read back equal would make the log unreadable,
    or the replayed state another than the live one. Raises ValueError.
    """
    rows: list[Row] = []
    for entry in entries:
        event, at_ns, v = entry.event, entry.at_ns, entry.v
        if not 1 <= v <= EVENT_V:
            raise ValueError(f"entry of version {v}; this Dure writes versions 1 to {EVENT_V}")
        try:
            body = _encode(event)
            if _decode(body) != event:
                raise ValueError("it reads back as another value")
            previous = link(previous, offset, at_ns, v, body)
        except (ValueError, TypeError, struct.error, msgspec.MsgspecError) as error:
            raise ValueError(f"{type(event).__name__} cannot be written to the log: {error}") from error
        rows.append((offset, at_ns, v, subject(event), body, previous))
        offset += 1
    return rows


def unseal(rows: Iterable[Row], start: int, previous: bytes, name: str) -> Iterator[tuple[int, Entry]]:
    """Each row as (offset, entry), checked to follow the row before `start` without a gap.

    `name` is the log's, for the error. Raises LogDamaged naming the first bad offset.
    """
    expected = start
    for offset, at_ns, v, about, body, digest in rows:
        if offset != expected:
            raise damaged(name, expected, "the row is missing")
        try:
            previous = link(previous, offset, at_ns, v, body)
        except (TypeError, struct.error) as error:
            raise damaged(name, offset, f"the row has no proper form ({error})") from error
        if previous != digest:
            raise damaged(name, offset, "the row is not what was written: its hash does not follow from it")
        entry = opened(name, offset, at_ns, v, body)
        if subject(entry.event) != about:
            raise damaged(name, offset, f"the row is filed under {about!r}, which its event does not tell of")
        yield offset, entry
        expected += 1


def opened(name: str, offset: int, at_ns: int, v: int, body: bytes) -> Entry:
    """One row's entry. Raises DureError for a row of a newer Dure, LogDamaged for anything else."""
    if v > EVENT_V:
        raise DureError(
            f"{name}: row {offset} was written by a newer Dure",
            f"its events are of version {v}, this Dure reads up to version {EVENT_V}",
            "Start a Dure at least as new as the one that wrote this log",
        )
    try:
        return Entry(at_ns, _decode(body), v)
    except (msgspec.MsgspecError, TypeError) as error:
        tag = _tag(body)
        if tag is None or tag in KNOWN:
            raise damaged(name, offset, f"the event cannot be read ({error})") from error
        raise DureError(
            f"{name}: row {offset} holds an event this Dure does not know: {tag!r}",
            f"it is marked version {v}, and this Dure reads up to version {EVENT_V}",
            "Start a Dure at least as new as the one that wrote this log",
        ) from error


def damaged(name: str, offset: int | None, why: str) -> LogDamaged:
    where = "" if offset is None else f" at offset {offset}"
    return LogDamaged(f"{name} is damaged{where}", why, RESTORE, offset)


class _Tagged(msgspec.Struct):
    type: str


def _tags(union: object) -> frozenset[str]:
    info = msgspec.inspect.type_info(union)
    members = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return frozenset(str(each.tag) for each in members if isinstance(each, msgspec.inspect.StructType))


KNOWN = _tags(Event)
"""Tags of the events this Dure reads."""


def _tag(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Tagged).type
    except (msgspec.MsgspecError, TypeError):
        return None
