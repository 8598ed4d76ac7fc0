"""Rows of the ledger."""

from __future__ import annotations

from msgspec import Struct

from dure.model.units import Source


class TokenRow(Struct, frozen=True):
    """Answers folded per (key, model, run, minute). `minute` is UTC minutes since 1970.

    `tokens_in` counts only answers whose prompt size the engine told; `unknown_in` is the number
    of the others (a client left before the engine said).
    """

    key: str
    project: str
    model: str
    run: str
    minute: int
    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unknown_in: int = 0
    cancelled: int = 0
    failed: int = 0


class RunMeter(Struct, frozen=True):
    """What one run used since its last row. `energy_uj` None: no meter and no model."""

    run: str
    cpu_ns: int
    energy_uj: int | None
    energy_source: Source | None
    basis: str
    """The meter's name, or the formula with its inputs."""
