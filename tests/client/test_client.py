"""The client against a fake control: every method, and every way an answer can be bad."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
import pytest

from dure.client import ApiError, Client
from dure.model.errors import DureError
from dure.model.view import ErrorView, Failed, Submitted
from dure.model.workload import Ask, Command
from tests.client import samples
from tests.client.fake_control import KEY, Answer, FakeControl

ASK = Ask(Command(("echo", "두레")))


@pytest.fixture
def client(control: FakeControl) -> Iterator[Client]:
    with closing(Client(control.url, KEY, 5)) as made:
        yield made


@pytest.mark.parametrize(
    ("call", "request_line", "body", "answer"),
    [
        (lambda c: c.info(), "GET /api/info", b"", samples.INFO),
        (lambda c: c.chips(), "GET /api/chips", b"", samples.CHIPS),
        (lambda c: c.models(), "GET /api/models", b"", samples.MODELS),
        (lambda c: c.workloads(), "GET /api/workloads", b"", [samples.a_job()]),
        (lambda c: c.workloads(all=True), "GET /api/workloads?all=true", b"", []),
        (lambda c: c.workload("w1"), "GET /api/workloads/w1", b"", samples.a_job("waiting", samples.BUSY)),
        (lambda c: c.stop("w1"), "POST /api/workloads/w1/stop", b"", samples.a_job("stopping")),
        (lambda c: c.why("w1"), "GET /api/workloads/w1/why", b"", samples.STORY),
        (
            lambda c: c.log("w1", 7, 1.5, "w1.0.1"),
            "GET /api/workloads/w1/log?run=w1.0.1&offset=7&wait_s=1.5",
            b"",
            samples.a_log(b"\x00\xff\xed\x95\x9c", 12, True),
        ),
        (lambda c: c.report("cost"), "GET /api/report/cost", b"", samples.USAGE),
        (lambda c: c.report("usage", "chip"), "GET /api/report/usage?by=chip", b"", samples.USAGE),
        (lambda c: c.events(5, 10), "GET /api/events?after=5&limit=10", b"", samples.EVENTS),
        (lambda c: c.projects(), "GET /api/projects", b"", samples.PROJECTS),
        (lambda c: c.create_project("연구"), "POST /api/projects", '{"name":"연구"}'.encode(), samples.PROJECTS[1]),
        (lambda c: c.keys(), "GET /api/keys", b"", samples.KEYS),
        (lambda c: c.create_key("default"), "POST /api/keys", b'{"project":"default"}', samples.MADE),
    ],
)
def test_each_method_asks_its_path_and_gives_the_typed_answer(
    control: FakeControl,
    client: Client,
    call: Callable[[Client], object],
    request_line: str,
    body: bytes,
    answer: object,
) -> None:
    control.on(request_line, answer)
    assert call(client) == answer
    [seen] = control.seen
    assert (f"{seen.method} {seen.path}", seen.key, seen.body) == (request_line, KEY, body)


def test_ids_cannot_leave_their_place_in_the_path(control: FakeControl, client: Client) -> None:
    control.on("GET /api/workloads/..%2Fkeys%3Fa%23%ED%95%9C%20", samples.a_job())
    assert client.workload("../keys?a#한 ").id == "w1"
    for bad in ("", ".", ".."):
        with pytest.raises(DureError, match="is not a workload's id"):
            client.workload(bad)


def test_one_ask_goes_as_an_object_and_many_as_an_array(control: FakeControl, client: Client) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w1"), 201))
    assert client.submit([ASK]) == [Submitted("w1")]
    both = [Submitted("w2"), Submitted("w3", samples.BUSY)]
    control.on("POST /api/workloads", both)
    assert client.submit([ASK, ASK]) == both
    assert client.submit([]) == []
    assert [msgspec.json.decode(seen.body, type=Ask | list[Ask]) for seen in control.seen] == [ASK, [ASK, ASK]]


def test_a_refusal_is_an_answer(control: FakeControl, client: Client) -> None:
    refused = Failed(ErrorView("Refused", "busy", refusal=samples.BUSY, workload="w9"))
    control.on("POST /api/workloads", Answer(refused, 409))
    assert client.submit([ASK]) == [Submitted("w9", samples.BUSY)]
    control.on("POST /api/workloads", Answer(Failed(ErrorView("Refused", refusal=samples.BUSY)), 409))
    with pytest.raises(ApiError) as caught:
        client.submit([ASK])
    assert (caught.value.status, caught.value.refusal) == (409, samples.BUSY)


def test_an_ask_that_is_no_text_is_refused_here(client: Client) -> None:
    with pytest.raises(DureError, match="not UTF-8"):
        client.submit([Ask(Command(("\udcff",)))])


@pytest.mark.parametrize(
    ("answer", "what", "why", "do"),
    [
        (Answer(Failed(ErrorView("No", "키가 없다", "Get one")), 401), "No", "키가 없다", "Get one"),
        (Answer({"error": {"message": "Host refused"}}, 403), "answered 403 to GET /api/info", "Host refused", ""),
        (Answer(b"<html>\x1b[2J oops", 500), "answered 500 to GET /api/info", "oops", "control.log"),
        (Answer(b"", 401), "answered 401", "", "DURE_KEY"),
        (Answer(b"", 302), "answered 302", "", ""),
        (Answer(b'{"error":7}', 400), "answered 400", '{"error":7}', ""),
        (Answer(b"\xff\xfe" * 4000, 502), "answered 502", "\ufffd", "control.log"),
        (Answer(b'{"version":'), "is not understood", "truncated", "versions"),
        (Answer(b"<html>"), "is not understood", "malformed", "versions"),
        (Answer([]), "is not understood", "Expected `object`", "versions"),
        (Answer(b""), "is not understood", "truncated", "versions"),
        (Answer(b'{"version":"\xff"}'), "is not understood", "", "versions"),
        (Answer(samples.INFO, cut=9), "broke in the middle", "IncompleteRead", "Try again"),
    ],
)
def test_a_bad_answer_is_an_error_with_what_why_do(
    control: FakeControl, client: Client, answer: Answer, what: str, why: str, do: str
) -> None:
    control.on("GET /api/info", answer)
    with pytest.raises(ApiError) as caught:
        client.info()
    error = caught.value
    assert what in error.what and why in error.why and do in error.do
    assert error.status == (0 if answer.cut is not None else answer.status)
    assert len(error.why) < 300
    control.on("GET /api/info", samples.INFO)
    assert client.info() == samples.INFO, "the client works on after an error"


def test_no_cloud_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with closing(Client(f"http://127.0.0.1:{port}/", KEY)) as client, pytest.raises(ApiError) as caught:
        client.info()
    assert caught.value.what == f"No cloud answers at http://127.0.0.1:{port}"
    assert caught.value.do == "Start one with: dure up"
    assert caught.value.status == 0


def test_a_cloud_that_says_nothing_is_given_up(control: FakeControl) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closing(Client(f"http://127.0.0.1:{silent.getsockname()[1]}", KEY, 0.05)) as client,
        pytest.raises(ApiError, match=r"did not answer: waited 0\.05 s"),
    ):
        client.info()


NO_ADDRESSES = """127.0.0.1:8080 ftp://h http:// http://h:99999 http://h:x http://h/api http://[::1 http://u:p@h
http://h?x http://한글 /etc/passwd http://h:80#x"""


@pytest.mark.parametrize("url", ["", "http://a b", "http://a\xa0b", *NO_ADDRESSES.split()])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(DureError, match="is not a cloud's address"):
        Client(url, KEY)


@pytest.mark.parametrize("key", ["", "a\r\nX-Evil: 1", "a\x00", "키"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(DureError, match="not one of Dure's") as caught:
        Client("http://h", key)
    assert not key or key not in str(caught.value)


def test_one_connection_serves_all_calls(control: FakeControl, client: Client) -> None:
    control.on("GET /api/info", samples.INFO)
    for _ in range(5):
        client.info()
    assert control.connections == 1


def test_a_connection_closed_meanwhile_is_opened_anew_and_nothing_is_sent_twice(
    control: FakeControl, client: Client
) -> None:
    control.on("POST /api/workloads", Answer(Submitted("w1"), 201, close=True))
    for _ in range(3):
        assert client.submit([ASK]) == [Submitted("w1")]
        _until_closed(client)
    assert len(control.seen) == 3


def _until_closed(client: Client) -> None:
    """The server's end of connection has arrived here."""
    sock = client.connection._http.sock
    assert sock is not None
    assert sock.recv(1, socket.MSG_PEEK) == b""


class Dropper:
    """Answers the first request of a connection, then drops the connection upon the second request."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.requests: list[bytes] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                data = msgspec.json.encode(samples.INFO)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                self.requests.append(connection.recv(65536))


def test_a_get_that_meets_a_dying_connection_is_sent_again_a_post_is_not() -> None:
    dropper = Dropper()
    with dropper.server, closing(Client(f"http://127.0.0.1:{dropper.server.getsockname()[1]}", KEY, 5)) as client:
        client.info()
        assert client.info() == samples.INFO
        assert len(dropper.requests) == 3
        with pytest.raises(ApiError, match="broke in the middle"):
            client.stop("w1")
        assert len(dropper.requests) == 4
        client.close()
        dropper.server.shutdown(socket.SHUT_RDWR)
    dropper.thread.join(5)
