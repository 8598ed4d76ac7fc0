"""HTTP to one cloud: bytes out, typed values in, every failure an `ApiError`."""

from __future__ import annotations

import select
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from dure.client.errors import ApiError
from dure.model.errors import DureError
from dure.model.view import ErrorView, Failed

T = TypeVar("T")

_CHECK_KEY = "Check the key: --key, DURE_KEY, or admin.key in the cloud's home"
_CHECK_LOG = "See logs/control.log in the cloud's home"
_WRITE_URL = "Write it as http://HOST:PORT"


class _V1Error(msgspec.Struct, frozen=True):
    message: str


class _V1Failed(msgspec.Struct, frozen=True):
    """An error in OpenAI's shape, as the gateway words its own."""

    error: _V1Error


class Connection:
    """One keep-alive connection, opened when first needed; for one thread at a time."""

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._http = _dial(self.url, timeout_s)
        if not key or not key.isascii() or not key.isprintable():
            raise DureError("The key is not one of Dure's", "it is empty or has characters no key has", _CHECK_KEY)
        self._headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, answer: type[T], body: bytes | None = None, wait_s: float = 0) -> T:
        """One request; the 2xx answer decoded as `answer`. `wait_s`: how long the cloud may hold it on purpose.

        A GET on a connection that the other side had closed meanwhile is sent once more; nothing else is,
        since it might have been done.
        """
        where, reused = f"{method} {path}", self._drop_if_stale()
        self._patience(self.timeout_s + wait_s)
        whole = False
        try:
            try:
                status, data = self._exchange(method, path, body)
            except (ConnectionError, HTTPException):
                if not reused or method != "GET":
                    raise
                self._http.close()
                status, data = self._exchange(method, path, body)
            whole = True
        except (OSError, HTTPException) as error:
            raise self._no_answer(error, self.timeout_s + wait_s) from error
        finally:
            if not whole:  # Ctrl-C too: an answer half read must not be taken for the next one's
                self._http.close()
        if not 200 <= status < 300:
            raise _failure(status, where, data)
        return decode(data, answer, where)

    def lines(self, path: str, body: bytes, timeout_s: float) -> Iterator[bytes]:
        """POST on a connection of its own; the answer's lines as they come. Leaving early closes it."""
        http = _dial(self.url, timeout_s)
        try:
            http.request("POST", path, body, self._headers | {"Content-Type": "application/json"})
            response = http.getresponse()
            if not 200 <= response.status < 300:
                raise _failure(response.status, f"POST {path}", response.read())
            yield from iter(response.readline, b"")
        except (OSError, HTTPException) as error:
            raise self._no_answer(error, timeout_s) from error
        finally:
            http.close()

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        return response.status, response.read()

    def _drop_if_stale(self) -> bool:
        """True if there is an open connection to reuse. One with bytes or an end waiting is of no use."""
        if self._http.sock is None:
            return False
        poll = select.poll()
        poll.register(self._http.sock, select.POLLIN)
        if poll.poll(0):
            self._http.close()
            return False
        return True

    def _patience(self, seconds: float) -> None:
        self._http.timeout = seconds
        if self._http.sock is not None:
            self._http.sock.settimeout(seconds)

    def _no_answer(self, error: Exception, seconds: float) -> ApiError:
        if isinstance(error, TimeoutError):
            view = ErrorView(f"The cloud at {self.url} did not answer", f"waited {seconds:g} s", _CHECK_LOG)
        elif isinstance(error, HTTPException | ConnectionResetError | BrokenPipeError):
            why = str(error) or type(error).__name__
            view = ErrorView(f"The connection to {self.url} broke in the middle", why, f"Try again. {_CHECK_LOG}")
        else:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            view = ErrorView(f"No cloud answers at {self.url}", why.lower(), "Start one with: dure up")
        return ApiError(0, view)


def _dial(url: str, timeout_s: float) -> HTTPConnection:
    """A connection, not yet opened. Raises DureError on anything but http(s)://HOST[:PORT]."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DureError(f"{url!r} is not a cloud's address", str(error), _WRITE_URL) from error
    if parts.scheme not in ("http", "https") or not host or parts.path or parts.query or parts.fragment:
        raise DureError(f"{url!r} is not a cloud's address", do=_WRITE_URL)
    if parts.username is not None or not host.isascii() or not host.isprintable() or " " in host:
        raise DureError(f"{url!r} is not a cloud's address", do=_WRITE_URL)
    kind = HTTPConnection if parts.scheme == "http" else HTTPSConnection
    return kind(host, port, timeout=timeout_s)


def decode(data: bytes, answer: type[T], where: str) -> T:
    """JSON from the cloud as a value. Raises ApiError."""
    try:
        return msgspec.json.decode(data, type=answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        do = "Client and cloud may be of different versions"
        raise ApiError(200, ErrorView(f"The answer to {where} is not understood", str(error), do)) from error


def _failure(status: int, where: str, data: bytes) -> ApiError:
    """The error a body tells; of a body that tells none, its beginning."""
    try:
        return ApiError(status, msgspec.json.decode(data, type=Failed).error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:
        why = msgspec.json.decode(data, type=_V1Failed).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        why = " ".join(data[:200].decode("utf-8", "replace").split())
    do = _CHECK_KEY if status == 401 else _CHECK_LOG if status >= 500 else ""
    return ApiError(status, ErrorView(f"The cloud answered {status} to {where}", why, do))
