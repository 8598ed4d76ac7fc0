"""The placement index against a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from dure.computing.place.columns import Columns
from dure.model.chip import Chip, Health
from tests.computing.small import chip, chips

places = st.tuples(st.sampled_from("abc"), st.integers(0, 2))
healths: st.SearchStrategy[Health] = st.sampled_from(("healthy", "degraded", "out"))
kinds = st.sampled_from(("npu", "gpu"))


class Index(RuleBasedStateMachine):
    """Any order of calls; `known` is what a reader would expect: chip id -> (chip, free, usable)."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = Columns()
        self.known: dict[str, tuple[Chip, int, bool]] = {}

    def _chip(self, place: tuple[str, int], kind: str, health: Health) -> Chip:
        """Ids do not tell the kind, so that a chip may come back as another."""
        return replace(chip(place[0], place[1], kind, health), id=f"{place[0]}:{place[1]}")

    @rule(where=st.lists(places, min_size=1, max_size=5, unique=True), kind=kinds, health=healths, linked=st.booleans())
    def put(self, where: list[tuple[str, int]], kind: str, health: Health, linked: bool) -> None:
        rows = []
        for place in where:
            made = self._chip(place, kind, health)
            held = 1000 - self.known[made.id][1] if made.id in self.known else 0
            rows.append((made, held, linked))
            self.known[made.id] = (made, 1000 - held, linked and health == "healthy")
        self.columns.put(rows)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), milli=st.integers(-1000, 1000))
    def take(self, data: st.DataObject, milli: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        made, free, usable = self.known[name]
        self.columns.take(name, milli)
        self.known[name] = (made, free - milli, usable)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.known)), unique=True))
        self.columns.close(names)
        for name in names:
            made, free, _ = self.known[name]
            self.known[name] = (made, free, False)

    @rule(names=st.lists(places, unique=True))
    def drop(self, names: list[tuple[str, int]]) -> None:
        self.columns.drop(f"{node}:{index}" for node, index in names)
        for node, index in names:
            self.known.pop(f"{node}:{index}", None)

    @invariant()
    def says_what_is_known(self) -> None:
        told = {name: (made.kind, made.node, free, usable) for name, (made, free, usable) in self.known.items()}
        assert self.columns.snapshot() == told
        rows = {kind: columns.ids for kind, columns in self.columns.kinds.items() if columns.ids}
        assert sorted(name for ids in rows.values() for name in ids) == sorted(self.known)
        for columns in self.columns.kinds.values():
            assert len(columns.ids) == len(columns.free) == len(columns.node) == len(columns.open)


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=20)


def test_rows_stay_in_the_order_they_joined() -> None:
    columns = Columns()
    columns.put((each, 0, True) for each in chips("b", 2) + chips("a", 2))
    columns.drop(["b:npu1"])
    columns.put((each, 0, True) for each in chips("b", 2))
    assert columns.kinds["npu"].ids == ["b:npu0", "a:npu0", "a:npu1", "b:npu1"]
    columns.take("a:npu1", 400)
    assert columns.kinds["npu"].free.tolist() == [1000, 1000, 600, 1000]


def test_dropping_what_is_not_there_changes_nothing() -> None:
    columns = Columns()
    columns.put((each, 0, True) for each in chips("a", 2))
    columns.drop(["x:npu0"])
    columns.drop([])
    assert set(columns.snapshot()) == {"a:npu0", "a:npu1"}


def test_an_unknown_chip_is_an_error_not_a_silence() -> None:
    with pytest.raises(KeyError):
        Columns().take("x:npu0", 1)
