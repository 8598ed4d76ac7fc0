"""Errors in OpenAI's shape."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from dure.model.errors import DureError

JSON = (b"content-type", b"application/json")
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorBody(Struct, frozen=True):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class ErrorDocument(Struct, frozen=True):
    error: ErrorBody


class ApiError(DureError):
    """An answer that is an error. `retry_s` becomes Retry-After, in seconds."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s

    @property
    def body(self) -> bytes:
        """The JSON document."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return msgspec.json.encode(ErrorDocument(ErrorBody(self.what, kind, self.param, self.code)))

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [JSON]
        if self.retry_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_s))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.status in (408, 413):  # the rest of the body is not wanted, however long
            headers.append((b"connection", b"close"))
        return headers


def reshape(status: int, body: bytes) -> bytes:
    """An engine's error body, as it is if OpenAI's clients can read it, else its text in their shape."""
    try:
        msgspec.json.decode(body, type=ErrorDocument)
        return body
    except (msgspec.DecodeError, RecursionError):
        text = body[:1000].decode("utf-8", "replace").strip()
        return ApiError(status, text or f"The engine answered {status}", code="engine_error").body
