"""Laws of the layout: whatever is shown fits, and steers no terminal."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cli import figures, render, work
from dure.cli.render import duration, printable, shorten, size, squeeze, table, width_of


@pytest.mark.parametrize("module", [render, figures, work])
def test_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


cells = st.text(max_size=30)
grids = st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=8))


@given(grids, st.integers(30, 120))
def test_a_table_fits_and_has_a_line_a_row(rows: list[list[str]], width: int) -> None:
    columns = [f"C{i}" for i in range(len(rows[0]))]
    text = table(columns, rows, right=columns[:1], spare=columns[1:3], width=width)
    lines = text.split("\n")
    assert len(lines) == len(rows) + 2
    assert all(width_of(line) <= width and printable(line) == line for line in lines)


@given(grids)
def test_a_table_with_room_shows_every_cell_whole(rows: list[list[str]]) -> None:
    columns = [f"C{i}" for i in range(len(rows[0]))]
    lines = table(columns, rows, width=10_000).split("\n")[1:]
    assert all(printable(cell).strip() in line for row, line in zip(rows, lines, strict=False) for cell in row)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(12, 300))
def test_squeeze_fits_and_widens_nothing(widths: list[int], room: int) -> None:
    got = squeeze(widths, room)
    assert sum(got) <= room
    assert all(1 <= new <= old for new, old in zip(got, widths, strict=True))
    assert got == widths or sum(widths) > room


@given(st.text(), st.integers(1, 40))
def test_shorten_fits(text: str, width: int) -> None:
    short = shorten(printable(text), width)
    assert width_of(short) <= width
    assert short == printable(text) or short.endswith("…")


def test_spare_columns_go_first() -> None:
    text = table(["ID", "SPARE", "REASON"], [["w1", "x" * 20, "because of it"]], spare=["SPARE"], width=20)
    assert text == "ID  REASON\nw1  because of it\n"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (-5, "0.00 s"),
        (0, "0.00 s"),
        (59_900_000_000, "59 s"),
        (3_599 * 10**9, "59 min 59 s"),
        (86_400 * 10**9, "1 d 0 h"),
    ],
)
def test_durations(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_sizes() -> None:
    assert [size(n) for n in (0, 1000, 999_949, 999_960)] == ["0 B", "1.0 kB", "999.9 kB", "1.0 MB"]
