"""Keys and replicas as control last told them, and which replica answers next."""

from __future__ import annotations

import asyncio
import hashlib

from yarl import URL

from dure.cloud.gateway.errors import ApiError
from dure.model.wire import KeyGrant, Replica, Routes

PATHS = ("/v1/chat/completions", "/v1/completions")
QUEUE = 64
"""Answers that may wait at a replica beside those in its slots."""


class Target:
    """A replica in use. `outstanding` counts its answers not yet ended, waiting ones included.

    `heads` are requests by path, up to the number of Content-Length; `idle` are open connections.
    """

    def __init__(self, replica: Replica) -> None:
        self.run = replica.run
        self.outstanding = 0
        self.idle: list[asyncio.Protocol] = []
        self.update(replica)

    def update(self, replica: Replica) -> None:
        self.room = replica.slots + QUEUE
        url = URL(replica.url)
        self.host, self.port = url.host or "127.0.0.1", url.port or 80
        common = (
            f"Host: {url.authority}\r\nAuthorization: Bearer {replica.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self.heads = {path: f"POST {path} HTTP/1.1\r\n{common}".encode("latin-1") for path in PATHS}


class Table:
    """The last Routes. `ready` is set for good once there are any."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.models: dict[str, list[Target]] = {}
        self._keys: dict[str, KeyGrant] = {}
        self._turn: dict[str, int] = {}

    def update(self, routes: Routes) -> None:
        """Take new routes whole; replicas that stay keep their counts."""
        known = {target.run: target for targets in self.models.values() for target in targets}
        self.models = {}
        for model, replicas in routes.models.items():
            self.models[model] = targets = []
            for replica in replicas:
                if (target := known.get(replica.run)) is None:
                    target = known[replica.run] = Target(replica)
                target.update(replica)
                targets.append(target)
        self._keys = routes.keys
        self._turn = dict.fromkeys(self.models, 0)
        self.ready.set()

    def grant(self, authorization: str) -> KeyGrant:
        """Whose key this `Authorization` header carries. Raises ApiError 401."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "A key is required: send the header 'Authorization: Bearer KEY'", code="invalid_api_key"
            )
        grant = self._keys.get(hashlib.sha256(key.strip().encode("latin-1")).hexdigest())
        if grant is None:
            raise ApiError(401, "This key is not known here", code="invalid_api_key")
        return grant

    def pick(self, model: str, but: Target | None = None) -> Target:
        """The replica with the fewest answers outstanding, in turn among equals, never `but`.

        Raises ApiError: 404 no such model, 503 none ready, 429 all full.
        """
        targets = self.models.get(model)
        if targets is None:
            known = ", ".join(sorted(self.models)[:20]) or "none yet"
            raise ApiError(
                404, f"No model {model[:100]!r} here; deployed: {known}", code="model_not_found", param="model"
            )
        best, ready, start = -1, 0, self._turn[model]
        for step in range(len(targets)):
            at = (start + step) % len(targets)
            target = targets[at]
            if target is but:
                continue
            ready += 1
            if target.outstanding < target.room and (best < 0 or target.outstanding < targets[best].outstanding):
                best = at
        if not ready:
            raise ApiError(503, f"No replica of {model!r} is ready", code="model_not_ready", retry_s=2)
        if best < 0:
            raise ApiError(429, f"All {ready} replicas of {model!r} are full; try later", code="busy", retry_s=1)
        self._turn[model] = best + 1
        return targets[best]
