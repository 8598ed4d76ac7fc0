"""Won: what use costs by a price list. Integers; each line of a bill is rounded once, half up.

An endpoint is charged by tokens, a job by chip time; nobody pays for both, and energy is priced
beside the bill, never in it.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dure.metering.ledger import UNKNOWN
from dure.model.errors import DureError
from dure.model.units import NS_PER_S, UJ_PER_WH, WHOLE_CHIP_MILLI

EXAMPLE = Path(__file__).with_name("prices_example.toml")
EXAMPLE_NOTE = "example prices, not an offer"
_MAX_BYTES = 1_048_576
_MILLI_NS_PER_CHIP_HOUR = 3600 * NS_PER_S * WHOLE_CHIP_MILLI

Mwon = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
"""Milli-won, at most a billion won."""


class TokenPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """Milli-won per million tokens."""

    input: Mwon
    output: Mwon


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """A price list; "*" in a table is the price of everything not named there."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    valid_from: dt.date
    energy_mwon_per_kwh: Mwon
    tokens_mwon_per_million: dict[str, TokenPrice]
    chip_mwon_per_hour: dict[str, Mwon]
    example: bool = False

    @property
    def told(self) -> str:
        """How a report names the list."""
        return EXAMPLE_NOTE if self.example else f"price list {self.name}, valid from {self.valid_from}"


class Used(Struct, frozen=True):
    """One line of a bill. `model` is "-" for a job; only its chip time counts then, else only its tokens."""

    model: str = UNKNOWN
    kind: str = UNKNOWN
    tokens_in: int = 0
    tokens_out: int = 0
    chip_milli_ns: int = 0


def load_prices(path: Path | None = None) -> Prices:
    """The price list in a TOML file; without one, the shipped example. Raises DureError."""
    path = path or EXAMPLE
    what = f"The price list {path} cannot be used"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DureError(what, getattr(error, "strerror", None) or str(error), "Name a readable TOML file.") from error
    if len(data) > _MAX_BYTES:
        raise DureError(what, "it is larger than 1 MiB", "Name a price list.")
    try:
        prices = msgspec.convert(tomllib.loads(data.decode()), Prices)
    except (ValueError, RecursionError) as error:
        do = f"Correct it; {EXAMPLE.name} beside the program shows the form."
        raise DureError(what, str(error)[:500], do) from error
    for table in ("tokens_mwon_per_million", "chip_mwon_per_hour"):
        if "*" not in getattr(prices, table):
            raise DureError(what, f'[{table}] has no "*"', 'Add "*", the price of everything not named.')
    return prices


def charge(used: Used, prices: Prices) -> int:
    """Milli-won for one line: a model's tokens, or a job's chip time.

    >>> charge(Used(model="smollm2-135m", tokens_out=12), load_prices())
    24
    >>> charge(Used(kind="cpu", chip_milli_ns=100 * 3600 * NS_PER_S), load_prices())
    5000
    """
    if used.model != UNKNOWN:
        table = prices.tokens_mwon_per_million
        price = table.get(used.model) or table["*"]
        return _half_up(used.tokens_in * price.input + used.tokens_out * price.output, 1_000_000)
    hourly = prices.chip_mwon_per_hour.get(used.kind, prices.chip_mwon_per_hour["*"])
    return _half_up(used.chip_milli_ns * hourly, _MILLI_NS_PER_CHIP_HOUR)


def charge_energy(energy_uj: int, prices: Prices) -> int:
    """Milli-won of energy at the list's price.

    >>> charge_energy(3_600_000_000_000, load_prices())
    150000
    """
    return _half_up(energy_uj * prices.energy_mwon_per_kwh, 1000 * UJ_PER_WH)


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
