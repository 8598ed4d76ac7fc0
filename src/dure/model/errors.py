"""One root error; its message says what failed, why, and what to do."""

from __future__ import annotations


class DureError(Exception):
    """A failure a person can act on. `what` happened, `why`, and what to `do` about it."""

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        self.what, self.why, self.do = what, why, do
        super().__init__(": ".join(part for part in (what, why) if part) + (f". {do}" if do else ""))


class LogDamaged(DureError):
    """The log on disk is not what was written. `offset` is the first bad row, if known."""

    def __init__(self, what: str, why: str, do: str, offset: int | None = None) -> None:
        super().__init__(what, why, do)
        self.offset = offset


class LogUnwritable(DureError):
    """The log cannot take an append now (disk full, read-only); nothing of the batch was kept."""
