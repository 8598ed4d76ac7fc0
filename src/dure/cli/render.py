"""Values as a person reads them. Everything printed goes through `emit` or `note`.

Tables are laid out here: rich takes 0.15 s to import and 0.8 ms a row, and a cloud has 10,000 chips.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec
import typer

from dure.model.errors import DureError
from dure.model.units import NS_PER_S
from dure.model.workload import Refusal

_GAP = "  "
_UNLIMITED = 1_000_000
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def emit(output: str | bytes) -> None:
    """To stdout, at once. A reader who is gone (`| head`) ends the command quietly. Raises DureError."""
    data = output.encode(sys.stdout.encoding or "utf-8", "replace") if isinstance(output, str) else output
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered must not fail again at exit
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(0) from None
        raise DureError("The output cannot be written", error.strerror or str(error)) from error


def emit_json(value: object) -> None:
    emit(msgspec.json.encode(value) + b"\n")


def note(text: str) -> None:
    """One line to stderr."""
    typer.echo(printable(text), err=True)


def complain(error: DureError) -> None:
    """What failed, why, what to do: a line each."""
    for line in (f"dure: {error.what}", error.why, error.do):
        if line:
            note(line)


def tell_refusal(refusal: Refusal, id: str) -> None:
    """Why not, then the candidates a cause, a line each, then where to read on."""
    note(f"dure: refused by {refusal.who} ({refusal.code}): {refusal.why}")
    for cause, count in sorted(refusal.counts.items(), key=lambda item: -item[1]):
        note(f"  {count:,} {cause}")
    note(f"See: dure why {id}")


def printable(text: str, keep: str = "") -> str:
    """Text of others, unable to steer the terminal.

    >>> printable("a\\x1b[2Jb"), printable("한글")
    ('a�[2Jb', '한글')
    """
    if text.isprintable():
        return text
    return "".join("�" if unicodedata.category(c) in _UNPRINTABLE and c not in keep else c for c in text)


def width_of(text: str) -> int:
    """Columns of a terminal that a text takes.

    >>> width_of("chip"), width_of("칩")
    (4, 2)
    """
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(text: str, width: int) -> str:
    """A text cut to so many columns.

    >>> shorten("waiting", 5), shorten("노드 없음", 6)
    ('wait…', '노드 …')
    """
    if width_of(text) <= width:
        return text
    kept, room = "", width - 1
    for c in text:
        room -= width_of(c)
        if room < 0:
            break
        kept += c
    return kept + "…"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[str] = (),
    spare: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Columns under their names, no wider than the terminal (a pipe has no width).

    Where it is too narrow, the `spare` columns are left out in that order, then the widest are shortened.
    Columns in `right` are aligned to the right.
    """
    width = width or shutil.get_terminal_size((_UNLIMITED, 24)).columns
    grid = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(width_of, column)) for column in zip(*grid, strict=True)]
    left_out = set()
    for name in spare:
        kept = [w for w, column in zip(widths, columns, strict=True) if column not in left_out]
        if sum(kept) + len(_GAP) * (len(kept) - 1) <= width:
            break
        left_out.add(name)
    shown = [i for i, name in enumerate(columns) if name not in left_out]
    widths = squeeze([widths[i] for i in shown], width - len(_GAP) * (len(shown) - 1))
    aligned_right = [columns[i] in right for i in shown]
    lines = (_line([line[i] for i in shown], widths, aligned_right) for line in grid)
    return "\n".join(lines) + "\n"


def squeeze(widths: list[int], room: int) -> list[int]:
    """Widths that fit in `room`, taken from the widest columns."""
    widths = list(widths)
    while sum(widths) > room and max(widths) > 1:
        widest = widths.index(max(widths))
        second = max([w for i, w in enumerate(widths) if i != widest], default=1)
        widths[widest] -= max(1, min(sum(widths) - room, widths[widest] - second))
    return widths


def _line(cells: list[str], widths: list[int], right: list[bool]) -> str:
    out = []
    for cell, width, flush in zip(cells, widths, right, strict=True):
        text = shorten(cell, width)
        pad = " " * (width - width_of(text))
        out.append(pad + text if flush else text + pad)
    return _GAP.join(out).rstrip()


def duration(ns: int) -> str:
    """A span as its two largest units.

    >>> duration(850_000_000), duration(61 * NS_PER_S), duration(26 * 3600 * NS_PER_S)
    ('0.85 s', '1 min 1 s', '1 d 2 h')
    """
    seconds = max(0, ns) / NS_PER_S
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{int(seconds)} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def size(count: int) -> str:
    """Bytes in decimal units.

    >>> size(98_362_432), size(999)
    ('98.4 MB', '999 B')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def local_time(at_ns: int) -> str:
    """A log's instant on this machine's clock."""
    at = datetime.fromtimestamp(at_ns // NS_PER_S)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ns % NS_PER_S // 1_000_000:03}"
