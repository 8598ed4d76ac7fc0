"""The model store: sources parsed, files verified, kept once, refused when wrong."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dure.computing.artifacts import ensure, parse_source
from dure.computing.artifacts.source import LocalFile, WebFile, WheelFile, is_loopback
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError

BODY = random.Random(1).randbytes(200_000)


def entry(source: str, body: bytes = BODY, sha256: str = "") -> ModelEntry:
    digest = sha256 or hashlib.sha256(body).hexdigest()
    return ModelEntry("m", source, digest, len(body), "Apache-2.0", "llama_cpp")


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def leftovers(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "sha256").glob("*") if path.suffix != ".lock")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small file system of its own; skips where this user may not mount."""
    place = tmp_path / "mounted"
    place.mkdir()

    def make(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        return place

    yield make
    subprocess.run(["umount", place], capture_output=True)


# sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pypi:a-b==1.0#a_b/c.gguf", WheelFile("a-b==1.0", "a_b/c.gguf")),
        ("file:/models/a b.gguf", LocalFile(Path("/models/a b.gguf"))),
        ("https://h.example/x?sig=1", WebFile("https://h.example/x?sig=1")),
        ("http://127.0.0.1:80/x", WebFile("http://127.0.0.1:80/x")),
        ("http://[::1]/x", WebFile("http://[::1]/x")),
        (
            "hf:o/r@refs/pr/1#d/f.gguf",
            WebFile("https://huggingface.co/o/r/resolve/refs%2Fpr%2F1/d/f.gguf", "https://huggingface.co/o/r"),
        ),
        ("simulated:", None),
    ],
)
def test_a_source_is_parsed(text: str, expected: object) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pypi:a#x",
        "pypi:a>=1#x",
        "pypi:--index-url=http://evil==1#x",
        "pypi:a==1; import os#x",
        "pypi:a==1",
        "pypi:a==1#../x",
        "pypi:a==1#/etc/passwd",
        "pypi:a==1#a\\..\\b",
        "pypi:a==1#a//b",
        "file:models/x",
        "file://host/x",
        "file:/a\0b",
        "file:/",
        "http://h.example/x",
        "http://127.0.0.1.h.example/x",
        "http://127.0.0.1@h.example/x",
        "https://user:hunter2@h.example/x",
        "https:///x",
        "https://[::1/x",
        "https://h.example:99999/x",
        "https://h.example/a b",
        "https://h.example/a\r\nHost: evil",
        "ftp://h.example/x",
        "hf:o/r#x",
        "hf:o@main#x",
        "hf:../r@main#x",
        "hf:o/..@main#x",
        "hf:o/r@../../x#x",
        "hf:o/r@main#../x",
        "hf:o/r/z@main#x",
        "simulated:x",
        "x" * 100_000,
    ],
)
def test_a_wrong_source_is_refused_with_the_right_forms(text: str) -> None:
    with pytest.raises(DureError) as caught:
        parse_source(text)
    assert caught.value.do
    assert len(str(caught.value)) < 1500
    assert "hunter2" not in str(caught.value)


SCHEMES = st.sampled_from(["pypi:a==1#", "file:", "file:/", "https://", "http://", "hf:o/r@main#", "hf:", ""])


@given(SCHEMES, st.text(max_size=40))
@example("http://", "127.0.0.1#@h.example/")
@settings(deadline=None)
def test_any_text_is_a_safe_source_or_refused(scheme: str, rest: str) -> None:
    try:
        source = parse_source(scheme + rest)
    except DureError:
        return
    if isinstance(source, WheelFile):
        assert ".." not in source.member.split("/")
        assert not source.requirement.startswith("-")
    elif isinstance(source, LocalFile):
        assert source.path.is_absolute()
    elif isinstance(source, WebFile):
        request = Request(source.url)
        assert request.type == "https" or is_loopback(urlsplit(f"//{request.host}").hostname or "")


# the store


def test_a_file_is_kept_once_under_its_digest_and_read_only(tmp_path: Path) -> None:
    source, store = tmp_path / "m.gguf", tmp_path / "models"
    source.write_bytes(BODY)
    wanted = entry(f"file:{source}")
    seen: list[tuple[int, int]] = []
    path = ensure(wanted, store, lambda done, total: seen.append((done, total)))
    assert path == store / "sha256" / wanted.sha256
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o444
    assert leftovers(store) == [wanted.sha256]
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    source.unlink()
    assert ensure(wanted, store, silent) == path, "a second time needs no source"


@pytest.mark.parametrize("damage", ["truncate", "grow", "flip", "directory link"])
def test_a_damaged_file_in_the_store_is_fetched_again_or_refused(tmp_path: Path, damage: str) -> None:
    source, store = tmp_path / "m.gguf", tmp_path / "models"
    source.write_bytes(BODY)
    wanted = entry(f"file:{source}")
    path = ensure(wanted, store, silent)

    def harm() -> None:
        path.chmod(0o644)
        if damage == "truncate":
            os.truncate(path, 100)
        elif damage == "grow":
            os.truncate(path, len(BODY) + 1)
        elif damage == "flip":
            path.write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1]))
        else:
            path.unlink()
            path.symlink_to(tmp_path)

    harm()
    assert ensure(wanted, store, silent).read_bytes() == BODY
    harm()
    source.unlink()
    with pytest.raises(DureError, match="cannot read"):
        ensure(wanted, store, silent)


def test_a_file_copied_from_another_home_is_hashed_then_trusted(tmp_path: Path) -> None:
    wanted = entry("file:/nowhere/m.gguf")
    path = tmp_path / "sha256" / wanted.sha256
    path.parent.mkdir()
    path.write_bytes(BODY)
    before = path.stat().st_mtime_ns
    assert ensure(wanted, tmp_path, silent) == path
    assert path.stat().st_mtime_ns != before, "sealed: the next start need not hash it"


def test_a_wrong_digest_is_refused_and_removed(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(BODY)
    with pytest.raises(DureError, match=r"model m: .*not what the catalogue says.*sha256 is") as caught:
        ensure(entry(f"file:{source}", sha256="1" * 64), tmp_path / "models", silent)
    assert hashlib.sha256(BODY).hexdigest() in caught.value.why
    assert leftovers(tmp_path / "models") == []


def test_a_wrong_size_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    for body in (b"", BODY[:-1], BODY + b"x"):
        source.write_bytes(body)
        with pytest.raises(DureError, match=f"gives {len(body):,} bytes, the catalogue says 200,000"):
            ensure(entry(f"file:{source}"), tmp_path / "models", silent)
    assert leftovers(tmp_path / "models") == []


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", ".", "missing", "loop", "m.gguf/x", "x" * 300):
        with pytest.raises(DureError, match=r"model m: .*(not a regular file|cannot read)"):
            ensure(entry(f"file:{tmp_path}/{name}"), tmp_path / "models", silent)
    assert leftovers(tmp_path / "models") == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, mount: Callable[[str], Path]) -> None:
    store, source = mount("size=1m"), tmp_path / "m.gguf"
    body = random.Random(2).randbytes(2 << 20)
    source.write_bytes(body)
    with pytest.raises(DureError, match=r"model m: cannot store.*disk is full.*Free 2 MiB"):
        ensure(entry(f"file:{source}", body), store, silent)
    assert leftovers(store) == []


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path, mount: Callable[[str], Path]) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(BODY)
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(DureError, match=r"cannot store .*Make that folder writable"):
        ensure(entry(f"file:{source}"), tmp_path / "models", silent)
    with pytest.raises(DureError, match=r"cannot store .*Read-only file system"):
        ensure(entry(f"file:{source}"), mount("ro,size=1m"), silent)


def test_a_simulated_model_has_no_file(tmp_path: Path) -> None:
    wanted = ModelEntry("simulated-echo", "simulated:", "0" * 64, 1, "Apache-2.0", "simulated")
    assert ensure(wanted, tmp_path / "models", silent) == Path(os.devnull)
    assert not (tmp_path / "models").exists()
