"""What all ways of fetching share: the progress they report, and copying no more than was promised."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO

from dure.model.errors import DureError

Progress = Callable[[int, int], None]
"""Called often with (bytes done, bytes in all) of the model's file."""

CHUNK = 1 << 16


def pour(read: Callable[[int], bytes], out: FileIO, size: int, progress: Progress) -> None:
    """Append what `read(n)` gives until it gives nothing; `out` never grows past `size` bytes. Raises DureError."""
    done = out.tell()
    while chunk := read(CHUNK):
        done += len(chunk)
        if done > size:
            raise wrong_size(f"more than {size:,}", size)
        view = memoryview(chunk)
        while view:  # a raw file may take less than it is given
            view = view[out.write(view) :]
        progress(done, size)


def wrong_size(found: str, size: int) -> DureError:
    return DureError(
        f"its source gives {found} bytes, the catalogue says {size:,}",
        "it is not the file the catalogue means",
        "Correct source, size_bytes and sha256 of the entry",
    )
