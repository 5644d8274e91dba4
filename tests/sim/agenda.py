"""What happens later in the world outside: one queue of callbacks in simulated time, served by one task."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

YIELD: Final = 0.3  # how often the network gets its turn between two events of one moment


class Agenda:
    def __init__(self, rng: random.Random) -> None:
        self.now = trio.lowlevel.current_clock().current_time
        self.steps = 0
        self.each: Callable[[], None] = lambda: None  # called after every event
        self._rng = rng
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._sleep = trio.CancelScope()

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._heap, (when, next(self._order), what, arguments))
        if self._heap[0][0] == when:
            self._sleep.deadline = when

    def after(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now() + delay, what, *arguments)

    async def run(self) -> None:
        heap = self._heap
        while True:
            while heap and heap[0][0] <= self.now():
                _, _, what, arguments = heapq.heappop(heap)
                what(*arguments)
                self.steps += 1
                self.each()
                if self._rng.random() < YIELD:
                    await trio.lowlevel.checkpoint()
            with trio.CancelScope(deadline=heap[0][0] if heap else float("inf")) as self._sleep:
                await trio.sleep_forever()
