"""Files from the web, against a hub on loopback that cuts, lies, refuses and redirects."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.computing.artifacts import ensure
from dure.computing.artifacts.source import WebFile
from dure.computing.artifacts.web import ATTEMPTS, Cut, fetch_web
from dure.model.artifact import ModelEntry
from dure.model.errors import DureError

BODY = Random(1).randbytes(200_000)
TOKEN = "hf_abcdefSECRET"


@dataclass(frozen=True)
class Answer:
    """How the hub answers one request; as a good one does where nothing is said."""

    status: int = 0
    body: bytes = BODY
    cut: int = 1 << 30
    """Bytes of the body after which the connection ends."""
    ranges: bool = True
    length: bool = True
    content_range: str = ""
    """Said of a whole body, whatever was asked for."""
    location: str = ""


@dataclass
class Hub:
    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    """Used up one a request; then good ones."""
    paths: list[str] = field(default_factory=list)
    sent: list[dict[str, str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Bodies wait for it after their first half."""


class _Door(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub = self.hub
        hub.paths.append(self.path)
        hub.sent.append(dict(self.headers))
        answer = hub.answers.pop(0) if hub.answers else Answer()
        if answer.location or answer.status:
            self.send_response(302 if answer.location else answer.status)
            if answer.location:
                self.send_header("Location", answer.location)
            self.end_headers()
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if answer.ranges else 0
        if start >= len(answer.body):
            self.send_error(416)
            return
        part = answer.body[0 if answer.content_range else start :]
        self.send_response(206 if start else 200)
        if start:
            whole = f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}"
            self.send_header("Content-Range", answer.content_range or whole)
        if answer.length:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        part = part[: answer.cut]
        self.wfile.write(part[: len(part) // 2])
        hub.gate.wait(30)
        self.wfile.write(part[len(part) // 2 :])

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.hub = Hub(f"http://127.0.0.1:{self.server_address[1]}")
        self.hub.gate.set()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that refuses an answer hangs up


def _serve(server: _Server | None = None) -> Iterator[Hub]:
    with server or _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    yield from _serve()


@pytest.fixture
def other() -> Iterator[Hub]:
    yield from _serve()


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[Hub]:
    yield from _serve()


def entry(source: str = "hf:owner/repo@main#sub/a b.gguf", body: bytes = BODY) -> ModelEntry:
    return ModelEntry("m", source, sha256(body).hexdigest(), len(body), "Apache-2.0", "llama_cpp")


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def get(hub: Hub, store: Path, token: str | None = None) -> Path:
    return ensure(entry(), store, silent, hub.url, token)


def part_of(store: Path) -> Path:
    return store / "sha256" / f"{entry().sha256}.part"


def leave(store: Path, data: bytes) -> None:
    part_of(store).parent.mkdir(parents=True)
    part_of(store).write_bytes(data)


def test_a_hub_file_comes_whole_and_needs_no_token(hub: Hub, tmp_path: Path) -> None:
    assert get(hub, tmp_path).read_bytes() == BODY
    assert hub.paths == ["/owner/repo/resolve/main/sub/a%20b.gguf"]
    assert "Authorization" not in hub.sent[0]
    get(hub, tmp_path)
    assert len(hub.paths) == 1, "the second time it is there"


def test_a_cut_is_resumed_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [Answer(cut=30_000), Answer(cut=70_000, length=False)]
    assert get(hub, tmp_path).read_bytes() == BODY
    assert [sent.get("Range") for sent in hub.sent] == [None, "bytes=30000-", "bytes=100000-"]


def test_the_next_process_goes_on_from_the_part(hub: Hub, tmp_path: Path) -> None:
    leave(tmp_path, BODY[:150_000])
    seen: list[int] = []
    path = ensure(entry(), tmp_path, lambda done, total: seen.append(done), hub.url)
    assert path.read_bytes() == BODY
    assert hub.sent[0]["Range"] == "bytes=150000-" and seen[0] > 150_000
    assert not part_of(tmp_path).exists()


def test_a_whole_part_needs_no_request(hub: Hub, tmp_path: Path) -> None:
    leave(tmp_path, BODY)
    assert get(hub, tmp_path).read_bytes() == BODY
    assert hub.paths == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(ranges=False),
        Answer(ranges=False, length=False),
        Answer(content_range="bytes 0-199999/200000"),
        Answer(content_range="pages 1-2"),
        Answer(status=416),
    ],
)
def test_a_server_that_does_not_resume_starts_again(hub: Hub, tmp_path: Path, answer: Answer) -> None:
    hub.answers = [answer]
    path = tmp_path / "out"
    path.write_bytes(BODY[:150_000])
    fetch_web(WebFile(f"{hub.url}/x"), path, len(BODY), silent, pause=lambda s: None)
    assert path.read_bytes() == BODY


def test_a_server_whose_file_ends_before_the_part_is_asked_from_the_start(hub: Hub, tmp_path: Path) -> None:
    leave(tmp_path, BODY[:150_000])
    hub.answers = [Answer(body=BODY[:100])] * 2
    with pytest.raises(DureError, match=r"gives 100 bytes, the catalogue says 200,000"):
        get(hub, tmp_path)
    assert [sent.get("Range") for sent in hub.sent] == ["bytes=150000-", None]


def test_a_part_longer_than_the_file_starts_again(hub: Hub, tmp_path: Path) -> None:
    leave(tmp_path, BODY + b"more")
    assert get(hub, tmp_path).read_bytes() == BODY


def test_a_part_of_another_file_is_refused_and_the_next_fetch_works(hub: Hub, tmp_path: Path) -> None:
    leave(tmp_path, b"x" * 1000)
    with pytest.raises(DureError, match="not what the catalogue says"):
        get(hub, tmp_path)
    assert not part_of(tmp_path).exists()
    assert get(hub, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("length", [True, False])
def test_another_size_is_refused_and_removed(hub: Hub, tmp_path: Path, length: bool) -> None:
    hub.answers = [Answer(body=BODY * 3, length=length)]
    with pytest.raises(DureError, match=r"the catalogue says 200,000"):
        get(hub, tmp_path)
    assert not part_of(tmp_path).exists()
    hub.answers = [Answer(body=BODY[:100])]
    with pytest.raises(DureError, match=r"gives 100 bytes, the catalogue says 200,000"):
        get(hub, tmp_path)


def test_a_server_that_always_cuts_is_given_up_and_the_part_kept(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [Answer(cut=1000)] + [Answer(cut=0)] * ATTEMPTS
    part, pauses = tmp_path / "part", list[float]()
    with pytest.raises(Cut, match=r"1,000 of 200,000 bytes are here") as caught:
        fetch_web(WebFile(f"{hub.url}/x?sig=1"), part, len(BODY), silent, None, pauses.append)
    assert part.read_bytes() == BODY[:1000]
    assert pauses == [0.5, 1.0, 2.0]
    assert "sig=1" not in str(caught.value), "the query may be a signature"


def test_a_dead_server_is_given_up_and_ensure_keeps_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Cut, match="Connection refused"):
            fetch_web(WebFile(dead), tmp_path / "p", len(BODY), silent, pause=lambda s: None)
        monkeypatch.setattr("dure.computing.artifacts.web.ATTEMPTS", 1)
        leave(tmp_path, BODY[:5])
        with pytest.raises(DureError, match=r"model m: cannot fetch .*5 of 200,000 bytes are here"):
            ensure(entry(), tmp_path, silent, dead)
    assert part_of(tmp_path).read_bytes() == BODY[:5]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [Answer(status=503), Answer(status=429)]
    path = tmp_path / "part"
    fetch_web(WebFile(f"{hub.url}/x"), path, len(BODY), silent, pause=lambda s: None)
    assert path.read_bytes() == BODY
    hub.answers = [Answer(status=404)]
    with pytest.raises(DureError, match="HTTP 404"):
        get(hub, tmp_path)
    assert len(hub.paths) == 4


@pytest.mark.parametrize(("status", "token"), [(401, None), (403, TOKEN), (401, TOKEN)])
def test_a_gated_model_is_explained_and_the_token_never_shown(
    hub: Hub, tmp_path: Path, status: int, token: str | None
) -> None:
    hub.answers = [Answer(status=status)]
    with pytest.raises(DureError, match="gated") as caught:
        get(hub, tmp_path, token)
    assert f"Accept the licence on {hub.url}/owner/repo" in caught.value.do
    assert "hf.token" in caught.value.do
    assert TOKEN not in str(caught.value) + repr(caught.value)
    assert len(hub.paths) == 1


def test_a_token_opens_a_gated_model_and_goes_to_no_one_else(hub: Hub, other: Hub, tmp_path: Path) -> None:
    hub.answers = [Answer(location="/moved"), Answer(location=f"{other.url}/cdn?sig=1")]
    assert get(hub, tmp_path, TOKEN).read_bytes() == BODY
    assert [sent.get("Authorization") for sent in hub.sent] == [f"Bearer {TOKEN}"] * 2
    assert other.paths == ["/cdn?sig=1"] and "Authorization" not in other.sent[0]


def test_a_token_does_not_go_to_a_plain_url(hub: Hub, tmp_path: Path) -> None:
    ensure(entry(f"{hub.url}/x"), tmp_path, silent, hub.url, TOKEN)
    assert "Authorization" not in hub.sent[0]
    hub.answers = [Answer(status=403)]
    with pytest.raises(DureError, match="not public"):
        ensure(entry(f"{hub.url}/y"), tmp_path / "again", silent)


@pytest.mark.parametrize("location", ["http://h.example/x", "file:///etc/passwd", "https://u:p@h.example/x"])
def test_a_redirect_to_what_may_not_be_fetched_is_refused(hub: Hub, tmp_path: Path, location: str) -> None:
    hub.answers = [Answer(location=location)]
    with pytest.raises(DureError):
        get(hub, tmp_path, TOKEN)
    assert len(hub.paths) == 1


def test_a_redirect_to_no_url_at_all_is_a_cut(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [Answer(location="http://[::1")]
    fetch_web(WebFile(f"{hub.url}/x"), tmp_path / "p", len(BODY), silent, pause=lambda s: None)
    assert (tmp_path / "p").read_bytes() == BODY


def test_https_wants_a_certificate_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*new, *made], check=True, capture_output=True)
    server = _Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    wanted = entry(f"https://localhost:{server.server_address[1]}/x")
    for hub in _serve(server):
        with pytest.raises(DureError, match=r"self.signed certificate.*SSL_CERT_FILE"):
            ensure(wanted, tmp_path, silent)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert ensure(wanted, tmp_path, silent).read_bytes() == BODY
        assert hub.paths == ["/x"]


def test_two_fetches_of_one_model_are_one(hub: Hub, tmp_path: Path) -> None:
    hub.gate.clear()
    halves = [threading.Event(), threading.Event()]

    def fetch(half: threading.Event) -> Path:
        return ensure(entry(), tmp_path, lambda done, total: half.set(), hub.url)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, halves[0])
        assert halves[0].wait(30), "the first has come half way"
        second = pool.submit(fetch, halves[1])
        assert halves[1].wait(30), "the second waits, and says how far the first is"
        hub.gate.set()
        assert first.result(30) == second.result(30)
    assert len(hub.paths) == 1


ANSWERS = st.builds(
    Answer,
    status=st.sampled_from([0, 0, 0, 0, 503, 416]),
    cut=st.integers(0, len(BODY)),
    ranges=st.booleans(),
    length=st.booleans(),
)


@given(st.lists(ANSWERS, max_size=ATTEMPTS - 1), st.integers(0, len(BODY) + 5))
@settings(max_examples=40, deadline=None)
def test_whatever_the_server_does_the_file_is_right(shared_hub: Hub, answers: list[Answer], there: int) -> None:
    shared_hub.answers = list(answers)
    with TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        part.write_bytes((BODY + b"extra")[:there])
        fetch_web(WebFile(f"{shared_hub.url}/x"), part, len(BODY), silent, pause=lambda s: None)
        assert part.read_bytes() == BODY
