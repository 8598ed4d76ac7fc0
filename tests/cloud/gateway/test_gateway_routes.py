"""Which replica answers: the least busy, in turn among equals, never one that is full."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.cloud.gateway.errors import ApiError
from dure.cloud.gateway.routes import QUEUE, Table
from dure.model.wire import KeyGrant, Replica, Routes


def replica(number: int, slots: int = 1, port: int = 1) -> Replica:
    return Replica(f"w1.{number}.1", f"http://127.0.0.1:{port}", "ek", slots)


def table(*replicas: Replica) -> Table:
    made = Table()
    made.update(Routes({hashlib.sha256(b"sk").hexdigest(): KeyGrant("k1", "p")}, {"m": replicas, "none": ()}))
    return made


def test_ties_go_round() -> None:
    made = table(replica(0), replica(1), replica(2))
    assert [made.pick("m").run[3] for _ in range(6)] == list("012012")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_the_least_outstanding_is_picked(loads: list[int]) -> None:
    made = table(*(replica(number) for number in range(len(loads))))
    for target, load in zip(made.models["m"], loads, strict=True):
        target.outstanding = load
    assert made.pick("m").outstanding == min(loads)


def test_full_replicas_are_passed_over_until_all_are_full() -> None:
    made = table(replica(0, slots=1), replica(1, slots=8))
    small, large = made.models["m"]
    small.outstanding, large.outstanding = 1 + QUEUE, 3 + QUEUE
    assert made.pick("m") is large
    large.outstanding = 8 + QUEUE
    with pytest.raises(ApiError) as caught:
        made.pick("m")
    assert (caught.value.status, caught.value.retry_s) == (429, 1)


def test_unknown_and_unready_models_differ() -> None:
    made = table(replica(0))
    for model, status in (("x" * 5000, 404), ("none", 503)):
        with pytest.raises(ApiError) as caught:
            made.pick(model)
        assert caught.value.status == status
        assert len(caught.value.what) < 300
    with pytest.raises(ApiError, match="ready"):
        made.pick("m", but=made.models["m"][0])


def test_new_routes_keep_the_counts_of_replicas_that_stay() -> None:
    made = table(replica(0), replica(1))
    held = made.pick("m")
    held.outstanding = 3
    made.update(Routes({}, {"m": (replica(0, slots=2, port=2),), "other": ()}))
    assert made.models["m"] == [held]
    assert (held.outstanding, held.room) == (3, 2 + QUEUE)
    assert held.port == 2
    assert held.heads["/v1/completions"].startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:2\r\n")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic sk", "sk", "Bearer SK", "Bearer skx", "Bearer \xff", "Bearer " + "x" * 9999],
)
def test_wrong_keys_are_refused(header: str) -> None:
    with pytest.raises(ApiError) as caught:
        table().grant(header)
    assert caught.value.status == 401


def test_a_key_is_known_by_its_digest() -> None:
    assert table().grant("Bearer sk") == KeyGrant("k1", "p")
    assert table().grant("bearer  sk ") == KeyGrant("k1", "p")


def test_ready_is_for_good() -> None:
    async def check() -> None:
        made = Table()
        assert not made.ready.is_set()
        made.update(Routes({}, {}))
        assert made.ready.is_set()

    asyncio.run(check())
