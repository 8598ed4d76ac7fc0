"""Lets tests import what they share, and gives them a `dure up` that leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.app.ups import Up


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with closing(Up(tmp_path / "ho me 두레")) as made:
        yield made
