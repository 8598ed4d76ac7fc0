"""The queue: order, blocked shapes, times, and explanations that are given once."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from dure.computing.queue import Queue
from dure.model.workload import ChipAsk, Refusal

ONE, TWO, THREE = (ChipAsk("npu", count, 1000) for count in (1, 2, 3))
WHY = Refusal("busy", "all taken", "place", {"taken": 1})


def always(need: str) -> bool:
    return True


def drain(queue: Queue, still: Callable[[str], bool] = always, room: int = 1000) -> list[str]:
    """Every head placed until there is no more `room`, then each shape blocked."""
    placed: list[str] = []
    for need, shape in queue.heads(still):
        if len(placed) < room:
            queue.placed(need, shape)
            placed.append(need)
        else:
            queue.block(shape, WHY)
    return placed


def filled(*needs: tuple[str, ChipAsk]) -> Queue:
    queue = Queue()
    for need, shape in needs:
        queue.add(need, shape, 0)
    return queue


def test_the_oldest_first_over_all_shapes() -> None:
    queue = filled(("w1.0", ONE), ("w2.0", TWO), ("w3.0", ONE), ("w4.0", THREE), ("w5.0", TWO))
    assert drain(queue) == ["w1.0", "w2.0", "w3.0", "w4.0", "w5.0"]
    assert drain(queue) == []


def test_a_blocked_shape_does_not_hold_up_the_others() -> None:
    queue = filled(("w1.0", TWO), ("w2.0", ONE), ("w3.0", TWO), ("w4.0", ONE))
    seen = []
    for need, shape in queue.heads(always):
        seen.append(need)
        if shape == TWO:
            queue.block(shape, WHY)
        else:
            queue.placed(need, shape)
    assert seen == ["w1.0", "w2.0", "w4.0"], "one try is enough for a shape"
    assert drain(queue) == []
    queue.add("w5.0", TWO, 0)
    assert drain(queue) == []
    queue.capacity_came()
    assert drain(queue) == ["w1.0", "w3.0", "w5.0"]


def test_what_is_no_longer_needed_is_passed_over() -> None:
    queue = filled(("w1.0", ONE), ("w2.0", ONE), ("w3.0", ONE), ("w4.0", TWO))
    assert drain(queue, {"w2.0"}.__contains__) == ["w2.0"]
    assert drain(queue) == []


def test_a_need_with_a_time_comes_when_it_has_come() -> None:
    queue = Queue()
    queue.add("late.0", ONE, 30)
    queue.add("soon.0", ONE, 10)
    queue.add("gone.0", ONE, 10)
    assert drain(queue) == []
    queue.due(9, always)
    assert drain(queue) == []
    queue.due(10, {"soon.0", "late.0"}.__contains__)
    assert drain(queue) == ["soon.0"]
    queue.due(1000, always)
    assert drain(queue) == ["late.0"]
    queue.due(1000, always)
    assert drain(queue) == []


def test_every_wait_is_explained_once() -> None:
    queue = filled(("w1.0", ONE), ("w2.0", ONE), ("w3.0", ONE), ("w4.0", ONE))
    assert list(queue.untold(always)) == [], "nobody knows yet whether they wait"
    assert drain(queue, room=1) == ["w1.0"]
    still = {"w2.0", "w4.0"}.__contains__
    assert list(queue.untold(still)) == [("w2.0", WHY), ("w4.0", WHY)]
    assert list(queue.untold(still)) == []
    queue.capacity_came()
    drain(queue, room=0)
    assert list(queue.untold(always)) == []
    queue.add("w5.0", ONE, 0)
    assert list(queue.untold(always)) == [("w5.0", WHY)]


def test_a_need_that_comes_again_is_explained_again() -> None:
    queue = filled(("w1.0", ONE))
    drain(queue, room=0)
    assert list(queue.untold(always)) == [("w1.0", WHY)]
    queue.capacity_came()
    assert drain(queue) == ["w1.0"]
    queue.add("w1.0", ONE, 0)
    drain(queue, room=0)
    assert list(queue.untold(always)) == [("w1.0", WHY)]


def test_nothing_is_left_of_shapes_nobody_asks_for() -> None:
    """A service that is asked for a thousand shapes, each stopped while it waits, remembers none."""
    queue = Queue()
    for milli in range(1, 1001):
        queue.add(f"w{milli}.0", ChipAsk("npu", 1, milli), 0)
    assert drain(queue, lambda need: False) == []
    assert list(queue.untold(lambda need: False)) == []
    assert not queue._ready and not queue._untold


def test_an_explanation_is_never_of_an_earlier_need() -> None:
    """w1.0 was placed, ended and waits for its time when its shape blocks: what it waits for is the time."""
    queue = filled(("w1.0", ONE), ("w2.0", ONE))
    for need, shape in queue.heads(always):
        queue.placed(need, shape)
        break  # a turn places only so many
    queue.add("w1.0", ONE, 60)
    drain(queue, room=0)
    assert list(queue.untold(always)) == [("w2.0", WHY)]


shapes = st.sampled_from((ONE, TWO, THREE))


@given(st.lists(st.tuples(shapes, st.integers(0, 3)), max_size=20), st.integers(0, 20), st.sets(st.integers(0, 20)))
def test_each_need_that_stands_is_placed_or_explained(
    needs: list[tuple[ChipAsk, int]], room: int, dead: set[int]
) -> None:
    queue = Queue()
    for number, (shape, not_before) in enumerate(needs):
        queue.add(f"w{number}.0", shape, not_before)
    standing = {f"w{number}.0" for number in range(len(needs)) if number not in dead}
    queue.due(3, standing.__contains__)
    placed = drain(queue, standing.__contains__, room)
    told = [need for need, _ in queue.untold(standing.__contains__)]
    assert sorted(placed + told) == sorted(standing), "each once"
    assert len(placed) == min(room, len(standing))
    at_once = [need for need in placed if needs[int(need[1:-2])][1] == 0]
    assert at_once == sorted(at_once, key=lambda need: int(need[1:-2]))
    assert placed[: len(at_once)] == at_once, "whoever had to wait for a time comes after those there before"
