"""Placement beside brute force: what it takes, what it refuses, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from dure.computing.place.columns import Columns
from dure.computing.place.place import fits_ever, place
from dure.model.chip import Chip, Health
from dure.model.workload import ChipAsk, Plan, Refusal
from tests.computing.small import chip

KINDS = ("npu", "gpu")
HEALTHS: tuple[Health, ...] = ("healthy", "healthy", "healthy", "degraded", "quarantined", "draining", "out")


class At(Struct, frozen=True):
    """A chip as the columns get it."""

    chip: Chip
    held: int
    linked: bool

    def fits(self, ask: ChipAsk) -> bool:
        usable = self.linked and self.chip.health == "healthy"
        return self.chip.kind == ask.kind and usable and self.held + ask.milli <= 1000


def columns(*rows: At) -> Columns:
    made = Columns()
    made.put((at.chip, at.held, at.linked) for at in rows)
    return made


def row(node: str, index: int, held: int = 0, linked: bool = True, health: Health = "healthy") -> At:
    return At(chip(node, index, health=health), held, linked)


@st.composite
def fleets(draw: st.DrawFn) -> list[At]:
    made = []
    for node in range(draw(st.integers(0, 4))):
        linked = draw(st.booleans())
        for index in range(draw(st.integers(0, 4))):
            kind, health = draw(st.sampled_from(KINDS)), draw(st.sampled_from(HEALTHS))
            held = draw(st.sampled_from((0, 0, 1, 250, 500, 999, 1000)))
            made.append(At(chip(f"n{node}", index, kind, health), held, linked))
    return draw(st.permutations(made))


asks = st.builds(
    ChipAsk,
    st.sampled_from((*KINDS, "tpu")),
    st.sampled_from((1, 1, 2, 3, 4, 5, 1_000_000)),
    st.sampled_from((1, 250, 500, 501, 1000)),
)


def fits_somewhere(fleet: list[At], ask: ChipAsk) -> bool:
    fitting = [at.chip.node for at in fleet if at.fits(ask)]
    return any(fitting.count(node) >= ask.count for node in fitting)


@given(fleets(), asks)
def test_places_where_brute_force_finds_room_and_never_overcommits(fleet: list[At], ask: ChipAsk) -> None:
    plan = place(columns(*fleet), ask)
    assert isinstance(plan, Plan) == fits_somewhere(fleet, ask)
    if isinstance(plan, Plan):
        taken = [next(at for at in fleet if at.chip.id == piece.chip) for piece in plan.slices]
        assert all(at.fits(ask) for at in taken)
        assert len({at.chip.id for at in taken}) == len(taken) == ask.count
        assert {at.chip.node for at in taken} == {plan.node}
        assert {piece.milli for piece in plan.slices} == {ask.milli}
        assert plan.because


@given(fleets(), asks)
def test_a_refusal_counts_every_chip_of_the_kind_once(fleet: list[At], ask: ChipAsk) -> None:
    refusal = place(columns(*fleet), ask)
    of_kind = [at for at in fleet if at.chip.kind == ask.kind]
    if isinstance(refusal, Refusal) and refusal.code == "busy":
        assert sum(refusal.counts.values()) == len(of_kind)
        assert all(f"{number} {cause}" in refusal.why for cause, number in refusal.counts.items())
        assert str(len(of_kind)) in refusal.why and str(ask) in refusal.why
    elif isinstance(refusal, Refusal):
        nodes = [at.chip.node for at in of_kind]
        assert not any(nodes.count(node) >= ask.count for node in nodes), "this could fit one day"
        assert sum(refusal.counts.values()) == len(set(nodes)) and refusal.why


@given(fleets(), asks)
def test_admission_and_placement_agree_on_what_never_fits(fleet: list[At], ask: ChipAsk) -> None:
    never = fits_ever(columns(*fleet), ask)
    empty = [At(replace(at.chip, health="healthy"), 0, True) for at in fleet]
    assert (never is None) == isinstance(place(columns(*empty), ask), Plan)
    if never is not None:
        assert place(columns(*fleet), ask) == never


@given(fleets(), st.lists(asks, max_size=6), st.integers(1, 5), st.booleans())
def test_law_5_a_healthy_node_more_never_makes_an_ask_unplaceable(
    fleet: list[At], then: list[ChipAsk], size: int, first: bool
) -> None:
    """As long as both clouds place the same asks; where the smaller one can, so can the larger."""
    new = [At(chip("new", index), 0, True) for index in range(size)]
    small, large = columns(*fleet), columns(*(new + fleet if first else fleet + new))
    for ask in then:
        before, after = place(small, ask), place(large, ask)
        assert not (isinstance(before, Plan) and isinstance(after, Refusal))
        if isinstance(before, Plan):
            for index in (small, large):
                for piece in before.slices:
                    index.take(piece.chip, piece.milli)


@given(fleets(), asks)
def test_deciding_changes_nothing(fleet: list[At], ask: ChipAsk) -> None:
    index = columns(*fleet)
    before = index.snapshot()
    assert place(index, ask) == place(index, ask)
    assert index.snapshot() == before


def test_a_share_goes_to_the_fullest_chip_that_still_holds_it() -> None:
    index = columns(row("a", 0, 100), row("a", 1, 600), row("b", 0, 700), row("b", 1, 900))
    plan = place(index, ChipAsk("npu", 1, 300))
    assert isinstance(plan, Plan)
    assert (plan.node, plan.slices[0].chip) == ("b", "b:npu0")
    assert plan.because == "fullest of 3 chips that fit; 0 of 1000 milli left on it"


def test_several_chips_go_where_the_fewest_would_be_left_over() -> None:
    big, small = [row("big", index) for index in range(4)], [row("small", index) for index in range(3)]
    plan = place(columns(*big, *small, row("tiny", 0)), ChipAsk("npu", 2, 1000))
    assert isinstance(plan, Plan)
    assert [piece.chip for piece in plan.slices] == ["small:npu0", "small:npu1"]
    assert plan.because == "node with the fewest spare chips of 2 that fit; 1 spare on it"


def test_of_a_node_the_fullest_chips_are_taken() -> None:
    index = columns(row("a", 0), row("a", 1, 500), row("a", 2, 600), row("a", 3, 300))
    plan = place(index, ChipAsk("npu", 2, 500))
    assert isinstance(plan, Plan)
    assert [piece.chip for piece in plan.slices] == ["a:npu1", "a:npu3"]


@pytest.mark.parametrize("count", [1, 2])
def test_ties_go_to_the_row_that_joined_first(count: int) -> None:
    index = columns(*(row(node, number) for node in ("z", "a") for number in range(2)))
    plan = place(index, ChipAsk("npu", count, 1000))
    assert isinstance(plan, Plan)
    assert [piece.chip for piece in plan.slices] == ["z:npu0", "z:npu1"][:count]


@pytest.mark.parametrize("count", [1, 2])
def test_an_index_made_anew_breaks_ties_as_the_one_it_replaces(count: int) -> None:
    """A node that lost its chips and got new ones joined last, whatever it was before."""
    kept = columns(row("z", 0), row("a", 0), row("a", 1))
    kept.drop(["z:npu0"])
    later = [row("z", 1), row("z", 2)]
    kept.put((at.chip, at.held, at.linked) for at in later)
    anew = columns(row("a", 0), row("a", 1), *later)
    assert kept.snapshot() == anew.snapshot()
    plan = place(kept, ChipAsk("npu", count, 1000))
    assert plan == place(anew, ChipAsk("npu", count, 1000))
    assert isinstance(plan, Plan) and plan.node == "a"


def test_why_not_now() -> None:
    index = columns(
        *(row("away", number, linked=False) for number in range(3)),
        row("a", 0, health="quarantined"),
        row("a", 1, 700),
        row("a", 2),
        row("b", 0),
    )
    assert place(index, ChipAsk("npu", 2, 500)) == Refusal(
        "busy",
        "npu:2:500: of 7 npu chips 4 node away or chip unhealthy, 1 less than 500 milli free, "
        "2 free, but too few on one node",
        "place",
        {"node away or chip unhealthy": 4, "less than 500 milli free": 1, "free, but too few on one node": 2},
    )


def test_why_never() -> None:
    index = columns(row("a", 0), row("a", 1), row("b", 0), At(chip("b", 0, "gpu"), 0, True))
    assert place(index, ChipAsk("npu", 3, 1000)) == Refusal(
        "shape",
        "asks 3 npu chips on one node; the largest of 2 node(s) has 2 of 3 in all",
        "place",
        {"nodes too small": 2},
    )
    unknown = place(index, ChipAsk("tpu", 1, 1))
    assert isinstance(unknown, Refusal)
    assert (unknown.code, unknown.why) == ("shape", "no chip of kind tpu; kinds here: gpu, npu")
    nothing = place(Columns(), ChipAsk("npu", 1, 1))
    assert isinstance(nothing, Refusal) and nothing.why == "no chip of kind npu; kinds here: none"


@pytest.mark.parametrize("count", [1, 2])
def test_a_kind_whose_chips_have_all_gone(count: int) -> None:
    index = columns(row("a", 0), row("a", 1))
    index.drop(["a:npu0", "a:npu1"])
    refusal = place(index, ChipAsk("npu", count, 1))
    assert isinstance(refusal, Refusal) and refusal.code == "shape"
