"""Finding a cloud: what the caller says wins, else the files that `dure up` wrote in its home."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dure.client.cloud import Client
from dure.model.errors import DureError

_MOST_BYTES = 4096
_START = "Start a cloud with: dure up, or give --url and --key"


def find(home: Path, url: str | None = None, key: str | None = None) -> Client:
    """The client of the cloud at `url`, or of the one whose home is `home`. Raises DureError.

    The home's admin key is only ever sent to the home's own address: another `url` wants its own `key`.
    """
    if url is None:
        url = _read(home / "url")
    elif key is None and not _is_of(home, url):
        raise DureError(f"No key for {url}", f"the key in {home} is for another cloud", "Give --key or set DURE_KEY")
    return Client(url, key or _read(home / "admin.key", secret=True))


def _is_of(home: Path, url: str) -> bool:
    try:
        return _read(home / "url").rstrip("/") == url.rstrip("/")
    except DureError:
        return False


def _read(path: Path, secret: bool = False) -> str:
    """One line of a file in the home. A secret that others may read is refused."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if secret and mode & 0o077:
                raise DureError(f"{path} can be read by others", f"its mode is {mode:04o}", f"chmod 600 {path}")
            text = file.read(_MOST_BYTES).decode("utf-8").strip()
    except FileNotFoundError as error:
        raise DureError(f"No cloud has been started in {path.parent}", f"{path.name} is not there", _START) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it is not text"
        raise DureError(f"{path} cannot be read", why, _START) from error
    if not text:
        raise DureError(f"{path} is empty", do=_START)
    return text
