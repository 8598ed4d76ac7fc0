"""Prices: the file's errors are clear, and amounts are integers rounded once."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.metering.cost import Prices, TokenPrice, Used, charge, charge_energy, load_prices
from dure.model.errors import DureError

HOUR_MILLI_NS = 3600 * 10**9 * 1000
PRICES = Prices(
    "ours",
    dt.date(2026, 3, 1),
    150_000,
    {"*": TokenPrice(500_000, 2_000_000), "free": TokenPrice(0, 0)},
    {"*": 1_000_000, "cpu": 50_000, "gift": 0},
)
GOOD = """
name = "ours"
valid_from = 2026-03-01
energy_mwon_per_kwh = 150_000
[tokens_mwon_per_million]
"*" = { input = 500_000, output = 2_000_000 }
free = { input = 0, output = 0 }
[chip_mwon_per_hour]
"*" = 1_000_000
cpu = 50_000
gift = 0
"""


def test_the_shipped_list_says_that_it_is_an_example() -> None:
    prices = load_prices()
    assert prices.example
    assert prices.told == "example prices, not an offer"


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "가격.toml"
    file.write_text(GOOD, encoding="utf-8")
    assert load_prices(file) == PRICES
    assert PRICES.told == "price list ours, valid from 2026-03-01"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name =", "name"), "line 2"),
        (("= 150_000", "= -1"), "energy_mwon_per_kwh"),
        (("= 150_000", "= 1_000_000_000_001"), "energy_mwon_per_kwh"),
        (("= 150_000", "= 1" + "0" * 40), "energy_mwon_per_kwh"),
        (("= 150_000", "= 1" + "0" * 5000), "digits"),
        (("= 150_000", "= 1.5"), "energy_mwon_per_kwh"),
        (("= 150_000", "= nan"), "energy_mwon_per_kwh"),
        (("= 150_000", '= "150"'), "energy_mwon_per_kwh"),
        (("= 150_000", "= true"), "energy_mwon_per_kwh"),
        (("energy_mwon_per_kwh = 150_000", ""), "energy_mwon_per_kwh"),
        (("energy_mwon_per_kwh", "energy_won_per_kwh"), "energy_won_per_kwh"),
        (("input = 0, output = 0", "input = 0, outputs = 0"), "outputs"),
        (("input = 0, output = 0", "input = -1, output = 0"), "input"),
        (("2026-03-01", '"spring"'), "valid_from"),
        (("2026-03-01", "2026-02-30"), "line 3"),
        (('"ours"', '""'), "name"),
        (('"*" = 1_000_000', ""), '[chip_mwon_per_hour] has no "*"'),
        (('"*" = { input', "x = { input"), '[tokens_mwon_per_million] has no "*"'),
        (("gift = 0", "gift = " + "[" * 20_000), ""),
    ],
)
def test_a_wrong_list_names_its_fault(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    file = tmp_path / "prices.toml"
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    file.write_text(text)
    with pytest.raises(DureError) as caught:
        load_prices(file)
    assert str(file) in caught.value.what
    assert said in caught.value.why
    assert caught.value.do


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"\x00" * 10, b"#" * 2_000_000, b'name = "'])
def test_a_file_that_is_no_list(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "prices.toml"
    file.write_bytes(data)
    with pytest.raises(DureError, match=r"prices\.toml"):
        load_prices(file)


@pytest.mark.parametrize("name", ["missing.toml", ".", "x" * 5000, "nul\0.toml"])
def test_a_path_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DureError) as caught:
        load_prices(tmp_path / name)
    assert caught.value.why


def test_endpoints_pay_for_tokens_and_jobs_for_chip_time() -> None:
    assert charge(Used("m", "cpu", 1_000_000, 1_000_000, 99 * HOUR_MILLI_NS), PRICES) == 2_500_000
    assert charge(Used(kind="cpu", tokens_in=10**9, chip_milli_ns=2 * HOUR_MILLI_NS), PRICES) == 100_000
    assert charge(Used(kind="other", chip_milli_ns=HOUR_MILLI_NS), PRICES) == 1_000_000
    assert charge(Used("free", tokens_out=10**9), PRICES) == 0
    assert charge(Used(kind="gift", chip_milli_ns=HOUR_MILLI_NS), PRICES) == 0
    assert charge(Used(), PRICES) == 0


def test_a_half_is_rounded_up_once_for_both_kinds_of_token() -> None:
    assert charge(Used("m", tokens_in=1), PRICES) == 1
    assert charge(Used("m", tokens_in=3), PRICES) == 2
    prices = Prices("x", dt.date(2026, 1, 1), 0, {"*": TokenPrice(300_000, 300_000)}, {"*": 1})
    assert charge(Used("m", tokens_in=1, tokens_out=1), prices) == 1
    assert charge(Used("m", tokens_in=1), prices) == 0


@given(st.integers(0, 10**30))
def test_chip_time_and_energy_are_exact_at_any_size(amount: int) -> None:
    for got, exact in (
        (charge(Used(kind="cpu", chip_milli_ns=amount), PRICES), Fraction(amount * 50_000, HOUR_MILLI_NS)),
        (charge_energy(amount, PRICES), Fraction(amount * 150_000, 3_600_000_000_000)),
    ):
        assert -Fraction(1, 2) < got - exact <= Fraction(1, 2)
