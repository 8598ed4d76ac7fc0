"""Finding a cloud by its home, and what is said when it cannot be found."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from dure.client import Client, find
from dure.model.errors import DureError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "url").write_text("http://127.0.0.1:8080\n")
    (tmp_path / "admin.key").write_text("dk-home\n")
    (tmp_path / "admin.key").chmod(0o600)
    return tmp_path


def told(client: Client) -> tuple[str, str]:
    with closing(client):
        return client.connection.url, client.connection._headers["Authorization"]


def test_the_home_says_it(home: Path) -> None:
    assert told(find(home)) == ("http://127.0.0.1:8080", "Bearer dk-home")


def test_parameters_win(home: Path) -> None:
    assert told(find(home, "http://h:1", "dk-mine")) == ("http://h:1", "Bearer dk-mine")
    assert told(find(home, None, "dk-mine")) == ("http://127.0.0.1:8080", "Bearer dk-mine")
    assert told(find(home / "absent", "http://h:1", "dk-mine")) == ("http://h:1", "Bearer dk-mine")


def test_the_homes_key_goes_to_the_homes_address_only(home: Path) -> None:
    assert told(find(home, "http://127.0.0.1:8080/")) == ("http://127.0.0.1:8080", "Bearer dk-home")
    for other in ("http://127.0.0.1:8081", "http://example.com:8080", "https://127.0.0.1:8080"):
        with pytest.raises(DureError, match="No key for"):
            find(home, other)
    (home / "url").unlink()
    with pytest.raises(DureError, match="No key for"):
        find(home, "http://127.0.0.1:8080")


def test_no_home(tmp_path: Path) -> None:
    with pytest.raises(DureError) as caught:
        find(tmp_path / "없음")
    assert caught.value.what == f"No cloud has been started in {tmp_path / '없음'}"
    assert "dure up" in caught.value.do


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_key_others_can_read_is_refused(home: Path, mode: int) -> None:
    (home / "admin.key").chmod(mode)
    with pytest.raises(DureError, match=f"its mode is {mode:04o}. chmod 600"):
        find(home)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("url", b"", "is empty"),
        ("url", b"\xff", "not text"),
        ("url", b"x" * 9000, "not a cloud's address"),
        ("admin.key", b" \n", "is empty"),
        ("admin.key", b"two\nlines", "not one of Dure's"),
    ],
)
def test_broken_files(home: Path, name: str, content: bytes, message: str) -> None:
    (home / name).write_bytes(content)
    with pytest.raises(DureError, match=message):
        find(home)


def test_files_that_are_no_files(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DureError, match="cannot be read: Not a directory"):
        find(home / "url")
    (home / "url").unlink()
    (home / "url").mkdir()
    with pytest.raises(DureError, match="cannot be read: Is a directory"):
        find(home)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_home_of_another_user(home: Path) -> None:
    home.chmod(0)
    try:
        with pytest.raises(DureError, match="Permission denied"):
            find(home)
    finally:
        home.chmod(0o700)
