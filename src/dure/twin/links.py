"""Links between control and simulated nodes: they delay, keep the order of one direction, and break."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

from dure.computing import inbox as ib
from dure.model.units import NS_PER_S
from dure.model.wire import Order, Start
from dure.model.workload import Exit, Serve
from dure.twin.node import SimNode


class World(Protocol):
    """What a link needs of the simulation around it."""

    random: Random
    nodes: dict[str, SimNode]
    now_ns: int

    def at(self, delay_ns: int, do: Callable[[], object]) -> None: ...

    def turn(self, *items: ib.Item) -> object: ...


class Links:
    """One link a node. What is under way when a link breaks is lost on both sides."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._epoch = {name: 0 for name in world.nodes}
        self._linked = {name: False for name in world.nodes}
        self._last = {(name, way): 0 for name in world.nodes for way in ("up", "down")}

    def drop(self, name: str) -> None:
        """The link is gone and nobody is there to notice."""
        self._epoch[name] += 1
        self._linked[name] = False

    def cut(self, name: str) -> None:
        """The link is gone and control notices."""
        if self._linked[name]:
            self.drop(name)
            self._world.turn(ib.AgentGone(name, "the link was cut"))

    def join(self, name: str) -> None:
        if self._linked[name]:
            return
        self._linked[name] = True
        node = self._world.nodes[name]
        node.advance(self._world.now_ns)
        self._send_up(name, ib.AgentHello(node.hello(self._world.now_ns)))
        self._beat(name, self._epoch[name])

    def send_down(self, name: str, order: Order) -> None:
        epoch, random = self._epoch[name], self._world.random
        if not self._linked[name]:
            return
        lasts_ns = random.randrange(NS_PER_S // 10, 60 * NS_PER_S)
        if isinstance(order, Start) and isinstance(order.spec.work, Serve) and random.random() < 0.7:
            lasts_ns *= 1000
        exit = Exit("exited", code=random.choice((0, 0, 0, 1)))

        def obey() -> None:
            if epoch == self._epoch[name]:
                self._world.nodes[name].obey(order, self._world.now_ns, lasts_ns, exit)

        self._deliver(name, "down", obey)

    def _beat(self, name: str, epoch: int) -> None:
        if epoch != self._epoch[name]:
            return
        node = self._world.nodes[name]
        node.advance(self._world.now_ns)
        self._send_up(name, ib.AgentBeat(name, node.beat(self._world.now_ns)))
        self._world.at(NS_PER_S, partial(self._beat, name, epoch))

    def _send_up(self, name: str, item: ib.Item) -> None:
        epoch = self._epoch[name]
        self._deliver(name, "up", lambda: self._world.turn(item) if epoch == self._epoch[name] else None)

    def _deliver(self, name: str, way: str, do: Callable[[], object]) -> None:
        """After a random delay, never before what was sent earlier the same way."""
        now_ns = self._world.now_ns
        at = max(self._last[name, way] + 1, now_ns + self._world.random.randrange(1_000_000, 400_000_000))
        self._last[name, way] = at
        self._world.at(at - now_ns, do)
