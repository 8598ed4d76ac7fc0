"""Integer units of the ledger, and their rendering at the edges.

Energy is µJ, money milli-won, time UTC nanoseconds, a chip share milli (1000 = one whole chip).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

NS_PER_S = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_S
UJ_PER_J = 1_000_000
UJ_PER_WH = 3_600 * UJ_PER_J
WHOLE_CHIP_MILLI = 1000

Source = Literal["measured", "modelled", "published", "configured", "simulated"]
"""Where a figure comes from. Figures of different sources are never added into one."""


def energy_wh(energy_uj: int) -> float:
    """µJ as Wh.

    >>> energy_wh(3_600_000_000)
    1.0
    """
    return energy_uj / UJ_PER_WH


def won(amount_mwon: int) -> str:
    """Milli-won as a price; small amounts keep three digits.

    >>> won(1_234_567), won(42)
    ('₩1,234.57', '₩0.042')
    """
    value = amount_mwon / 1000
    return f"₩{value:,.2f}" if abs(value) >= 1 else f"₩{value:.3f}"


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Split an integer by weights so that the parts sum to it exactly (largest remainder).

    Ties go to the earlier part. Weights are >= 0; all zero splits evenly. Raises ValueError on
    a negative weight, or on no weights for a total that is not 0.

    >>> split(10, [1, 1, 1])
    [4, 3, 3]
    """
    if any(weight < 0 for weight in weights):
        raise ValueError(f"negative weight in {list(weights)}")
    if not weights:
        if total:
            raise ValueError(f"nothing to split {total} over")
        return []
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
