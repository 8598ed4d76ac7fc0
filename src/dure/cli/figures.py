"""Ledger integers as figures with units. The unit stands last in a column's name."""

from __future__ import annotations

from collections.abc import Callable

from dure.cli.render import duration
from dure.model.units import energy_wh, won


def _wh(energy_uj: int) -> str:
    value = energy_wh(energy_uj)
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.6f}"


_UNITS: dict[str, tuple[str, Callable[[int], str]]] = {
    "_uj": (" (Wh)", _wh),
    "_mwon": ("", won),
    "_ns": ("", duration),
}
"""Suffix -> how its heading ends, how its integers read."""


def heading(column: str) -> str:
    """A column's name, with the unit its figures are shown in.

    >>> heading("measured_uj"), heading("cpu_ns"), heading("tokens_out")
    ('MEASURED (Wh)', 'CPU', 'TOKENS OUT')
    """
    for suffix, (unit, _) in _UNITS.items():
        if column.endswith(suffix):
            return column.removesuffix(suffix).replace("_", " ").upper() + unit
    return column.replace("_", " ").upper()


def figure(column: str, value: str | int | float | None) -> str:
    """A cell; None, no such figure, is a dash and never 0.

    >>> figure("measured_uj", 3_600_000_000), figure("measured_uj", None), figure("tokens_out", 12345)
    ('1.00', '-', '12,345')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        for suffix, (_, text) in _UNITS.items():
            if column.endswith(suffix):
                return text(value)
    return f"{value:,}"
