"""A file from the web: https, and the model hub. A cut is resumed with Range, in this process or the next."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException, HTTPResponse
from io import FileIO
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from dure.computing.artifacts.source import WebFile, bare, check_url, is_loopback
from dure.computing.artifacts.transfer import Progress, pour, wrong_size
from dure.model.errors import DureError

ATTEMPTS = 4
"""Attempts in a row that bring nothing new before the fetch is given up."""

TIMEOUT_S = 30.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Cut(DureError):
    """The connection ended early; what has come is kept for the next fetch."""


def fetch_web(
    source: WebFile,
    part: Path,
    size: int,
    progress: Progress,
    token: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fill `part` up to `size` bytes from where it ends now. Raises Cut after ATTEMPTS without progress, DureError."""
    idle = 0
    with FileIO(part, "a") as out:
        if out.tell() > size:
            _restart(out)
        while (before := out.tell()) < size:
            try:
                _continue(source, out, size, progress, token)
                cut = Cut("it ended early")
            except Cut as error:
                cut = error
            done = out.tell()
            idle = 0 if done > before else idle + 1
            if idle == ATTEMPTS:
                why = f"{cut.what}; {done:,} of {size:,} bytes are here, {ATTEMPTS} attempts brought no more"
                raise Cut(
                    f"cannot fetch {bare(source.url)}",
                    why,
                    "Check the network and the proxy, then deploy again: it goes on from there",
                )
            if idle and done < size:
                pause(0.5 * 2 ** (idle - 1))


def _continue(source: WebFile, out: FileIO, size: int, progress: Progress, token: str | None) -> None:
    """One request for all that is missing."""
    start = out.tell()
    request = Request(source.url, headers={"User-Agent": "dure", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        response: HTTPResponse = _opener(source.url).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            if error.code == 416:  # what is here is not a beginning of what is there
                _restart(out)
            raise _refused(error, source, token) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a Location that is not a URL
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            do = "If your network has its own certificates, name them in SSL_CERT_FILE"
            raise DureError(f"cannot fetch {bare(source.url)}", _because(error), do) from None
        raise Cut(_because(error)) from None

    def read(count: int) -> bytes:
        try:
            return response.read(count)
        except (OSError, HTTPException) as error:  # a disk's OSError must not look like the network's
            raise Cut(_because(error)) from None

    with response:
        _check_answer(response, out, start, size)
        pour(read, out, size, progress)


def _check_answer(response: HTTPResponse, out: FileIO, start: int, size: int) -> None:
    """Refuse another size before reading; start again when the server does not go on from `start`."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""), re.ASCII)
        if not match or int(match[1]) != start:
            _restart(out)
            raise Cut("the server sent another range than the one asked for")
        total = match[2]
    else:
        total = response.headers.get("Content-Length", "*")
        _restart(out)
    if total.isascii() and total.isdigit() and int(total) != size:
        raise wrong_size(f"{int(total):,}", size)


def _restart(out: FileIO) -> None:
    out.truncate(0)
    out.seek(0)


def _refused(error: HTTPError, source: WebFile, token: str | None) -> DureError:
    if error.code == 416 or error.code in _PASSING:
        return Cut(f"the server answered HTTP {error.code}")
    what = f"cannot fetch {bare(source.url)}"
    if error.code not in (401, 403):
        return DureError(what, f"the server answered HTTP {error.code} {error.reason}", "Check the entry's source")
    if not source.page:
        return DureError(what, f"HTTP {error.code}: it is not public", "Fetch it by hand and use a file: source")
    mine = "this token has no access" if token else "no token is set"
    return DureError(
        what,
        f"HTTP {error.code}: the model is gated or private, or is not there, and {mine}",
        f"Accept the licence on {source.page} and put a read token of that account into HOME/hf.token (mode 0600)",
    )


class _CarefulRedirects(HTTPRedirectHandler):
    """Each hop must be a URL Dure may fetch, and the token stays with the origin it was meant for."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(check_url(newurl))
        if is_loopback(new.hostname or "") and not is_loopback(old.hostname or ""):
            raise DureError(f"{bare(req.full_url)} leads to this machine itself", do="Do not use this source")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request and old[:2] != new[:2]:
            request.remove_header("Authorization")
        return request


def _opener(url: str) -> OpenerDirector:
    """Follows the machine's proxy settings, except to this machine itself."""
    direct = [ProxyHandler({})] if is_loopback(urlsplit(url).hostname or "") else []
    return build_opener(_CarefulRedirects, *direct)


def _because(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__
