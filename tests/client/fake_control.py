"""A control that answers what a test lays down, on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

KEY = "dk-test"


class Answer(msgspec.Struct, frozen=True):
    """`body` is sent as it is when bytes, else as JSON. `cut`: so many bytes of it, then the connection breaks."""

    body: object = b""
    status: int = 200
    cut: int | None = None
    close: bool = False
    """The connection ends after the answer without a word about it, as a restarted server's does."""

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)


class Seen(msgspec.Struct, frozen=True):
    method: str
    path: str
    key: str | None
    body: bytes


class FakeControl:
    """`answers` maps "METHOD /path?query" to what comes next; the last answer of a list stays."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[Seen] = []
        self.connections = 0
        self.lock = threading.Lock()

    def on(self, what: str, *answers: object) -> None:
        self.answers[what] = [a if isinstance(a, Answer) else Answer(a) for a in answers]

    def next(self, seen: Seen) -> Answer:
        with self.lock:
            self.seen.append(seen)
            queue = self.answers.get(f"{seen.method} {seen.path}")
            if not queue:
                return Answer({"error": {"what": f"nothing laid down for {seen.method} {seen.path}"}}, 404)
            return queue.pop(0) if len(queue) > 1 else queue[0]


@contextmanager
def serve_fake() -> Iterator[FakeControl]:
    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            control.connections += 1

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            answer = control.next(Seen(self.command, self.path, key, body))
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.data)))
            self.end_headers()
            self.wfile.write(answer.data if answer.cut is None else answer.data[: answer.cut])
            if answer.cut is not None or answer.close:
                self.close_connection = True

        do_GET = do_POST = do

        def log_message(self, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Callers who leave are part of the tests."""

    server = Server(("127.0.0.1", 0), Door)
    control = FakeControl(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
