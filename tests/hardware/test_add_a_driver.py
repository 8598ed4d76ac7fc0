"""Follows docs/add-a-driver.md: its made-up vendor is one file and one test, and both work as printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

import dure.hardware.drivers
from dure.hardware.driver import Host
from dure.hardware.drivers.simulated import SimulatedDriver, load_fleet

PAGE = Path(__file__).parents[2] / "docs/add-a-driver.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_made_up_vendor_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, test = blocks("python")
    (tmp_path / "hansu.py").write_text(driver, encoding="utf-8")
    monkeypatch.setattr(dure.hardware.drivers, "__path__", [*dure.hardware.drivers.__path__, str(tmp_path)])
    names: dict[str, object] = {"__name__": "test_driver_hansu"}
    try:
        exec(compile(test, "test_driver_hansu.py", "exec"), names)
        tests = [name for name in names if name.startswith("test_")]
        assert len(tests) >= 2
        for name in tests:
            cast(Callable[[], None], names[name])()
    finally:
        sys.modules.pop("dure.hardware.drivers.hansu", None)


def test_the_fleet_of_the_page_loads(tmp_path: Path) -> None:
    (fleet,) = blocks("toml")
    (tmp_path / "fleet.toml").write_text(fleet, encoding="utf-8")
    chips = SimulatedDriver(load_fleet(tmp_path / "fleet.toml")).discover(Host(), "n1")
    assert len(chips) == 32 and chips[-1].rack == "hall-1-rack2"


def test_every_driver_is_named_on_the_page() -> None:
    for path in Path(dure.hardware.drivers.__path__[0]).glob("[!_]*.py"):
        assert f"`{path.stem}`" in PAGE.read_text(encoding="utf-8")
