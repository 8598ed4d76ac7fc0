"""Lets tests import what they share, and gives them a fake control."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.client.fake_control import FakeControl, serve_fake


@pytest.fixture
def control() -> Iterator[FakeControl]:
    with serve_fake() as fake:
        yield fake
