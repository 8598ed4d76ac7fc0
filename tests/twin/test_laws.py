"""The laws over seeded simulations: 64 chips of 3 kinds, 500 jobs, cancels, crashes of runs, agents and control."""

from __future__ import annotations

import pytest

from dure.twin.simulation import simulate


@pytest.mark.parametrize("seed", [1, 2])
def test_laws_hold(seed: int) -> None:
    result = simulate(seed)
    assert result.broken == {law: [] for law in result.broken}
    assert result.workloads == 500
    assert set(result.ended_by) == {"done", "failed", "stopped"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_laws_hold_on_more_seeds(seed: int) -> None:
    result = simulate(seed)
    assert result.broken == {law: [] for law in result.broken}


def test_same_seed_same_bytes() -> None:
    first, again, other = simulate(5, 120), simulate(5, 120), simulate(6, 120)
    assert first.digest == again.digest
    assert first.digest != other.digest
