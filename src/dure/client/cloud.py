"""The control API as typed methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote, urlencode

import msgspec

from dure.client.chat import Message, Tokens, ask_stream, ask_whole
from dure.client.connection import Connection
from dure.client.errors import ApiError
from dure.client.tenants import Tenants
from dure.model.errors import DureError
from dure.model.view import (
    ChipView,
    EventView,
    LogView,
    ModelView,
    Report,
    ServerInfo,
    StoryLine,
    Submitted,
    WorkloadView,
)
from dure.model.workload import Ask


class Client(Tenants):
    """One cloud, for one thread at a time. Every method raises ApiError; `close` when done (`contextlib.closing`).

    `url` is http(s)://HOST[:PORT]; `timeout_s` bounds the wait for each answer.
    """

    def __init__(self, url: str, key: str, timeout_s: float = 30) -> None:
        self.connection = Connection(url, key, timeout_s)

    def close(self) -> None:
        self.connection.close()

    def info(self) -> ServerInfo:
        return self.connection.call("GET", "/api/info", ServerInfo)

    def chips(self) -> list[ChipView]:
        return self.connection.call("GET", "/api/chips", list[ChipView])

    def models(self) -> list[ModelView]:
        return self.connection.call("GET", "/api/models", list[ModelView])

    def workloads(self, all: bool = False) -> list[WorkloadView]:
        """Those that have not ended; with `all`, every one."""
        return self.connection.call("GET", "/api/workloads" + ("?all=true" if all else ""), list[WorkloadView])

    def workload(self, id: str) -> WorkloadView:
        return self.connection.call("GET", _path(id), WorkloadView)

    def submit(self, asks: Sequence[Ask]) -> list[Submitted]:
        """One answer an ask, in order, on disk when it returns; a refused ask is an answer, not an error."""
        if not asks:
            return []
        if len(asks) > 1:
            return self.connection.call("POST", "/api/workloads", list[Submitted], _json(list(asks)))
        try:
            return [self.connection.call("POST", "/api/workloads", Submitted, _json(asks[0]))]
        except ApiError as error:
            if error.refusal is None or error.error.workload is None:
                raise
            return [Submitted(error.error.workload, error.refusal)]

    def stop(self, id: str) -> WorkloadView:
        return self.connection.call("POST", _path(id, "stop"), WorkloadView)

    def why(self, id: str) -> list[StoryLine]:
        return self.connection.call("GET", _path(id, "why"), list[StoryLine])

    def log(self, id: str, offset: int = 0, wait_s: float = 0, run: str | None = None) -> LogView:
        """A piece of the output of `run`, or of the run the cloud picks; waits up to `wait_s` for there to be more."""
        asked = ({} if run is None else {"run": run}) | {"offset": str(offset), "wait_s": f"{wait_s:g}"}
        return self.connection.call("GET", f"{_path(id, 'log')}?{urlencode(asked)}", LogView, wait_s=wait_s)

    def report(self, what: str, by: str | None = None) -> Report:
        """`what` is `usage`, `energy` or `cost`; `by` is `project`, `workload`, `model` or `chip`."""
        asked = "" if by is None else "?" + urlencode({"by": by})
        return self.connection.call("GET", f"/api/report/{quote(what, safe='')}{asked}", Report)

    def events(self, after: int = 0, limit: int = 100) -> list[EventView]:
        """Rows of the log behind offset `after`, oldest first."""
        asked = urlencode({"after": after, "limit": limit})
        return self.connection.call("GET", f"/api/events?{asked}", list[EventView])

    def chat(
        self, model: str, messages: Sequence[Message], max_tokens: int | None = None, stream: bool = True
    ) -> Iterator[str | Tokens]:
        """Pieces of the answer's text, last what it used."""
        ask = ask_stream if stream else ask_whole
        return ask(self.connection, model, messages, max_tokens)


def _path(id: str, *rest: str) -> str:
    """The path of a workload. An id that would name another place in the API is refused here."""
    if id in ("", ".", ".."):
        raise DureError(f"{id!r} is not a workload's id", do="See the ids with: dure ps --all")
    return "/".join(("/api/workloads", quote(id, safe="", errors="replace"), *rest))


def _json(value: Ask | list[Ask]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise DureError(
            "The command is not text", "it holds bytes that are not UTF-8", "Name such files by a pattern"
        ) from error
