"""Lets tests import what they share, and gives them a log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.store.written import COUNT, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of COUNT rows, closed."""
    path = tmp_path / "log.sqlite"
    written(path, COUNT)
    return path
