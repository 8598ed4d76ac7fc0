"""A figure of a benchmark beside its target."""

from __future__ import annotations

from msgspec import Struct


class Figure(Struct, frozen=True):
    """`at_most` / `at_least`: the target of DESIGN §11, None where there is none. `beside`: peer or bound, same run."""

    name: str
    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    beside: str = ""

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        above = self.at_most is not None and self.value > self.at_most
        return not above and not (self.at_least is not None and self.value < self.at_least)

    def line(self) -> str:
        target = f"at most {self.at_most:g}" if self.at_most is not None else ""
        target = f"at least {self.at_least:,g}" if self.at_least is not None else target
        verdict = ("ok    " if self.met else "MISSED") if target else "      "
        value = "unknown" if self.value is None else f"{self.value:,.4g} {self.unit}"
        return f"{verdict} {self.name}: {value}" + "".join(f" ({note})" for note in (target, self.beside) if note)
