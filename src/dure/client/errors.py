"""The one error of the client."""

from __future__ import annotations

from dure.model.errors import DureError
from dure.model.view import ErrorView
from dure.model.workload import Refusal


class ApiError(DureError):
    """The cloud answered with an error, or did not answer. `status` is HTTP's; 0: no answer came."""

    def __init__(self, status: int, error: ErrorView) -> None:
        self.status, self.error = status, error
        super().__init__(error.what, error.why, error.do)

    @property
    def refusal(self) -> Refusal | None:
        return self.error.refusal
