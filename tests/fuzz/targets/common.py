"""What targets share.  A target is a module with SEEDS and `start(nursery, clock)`, which returns a function of the
fuzzer's octets; it runs inside a trio run whose clock stands still.  That function raises when something is wrong."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import trio

from tests.fuzz.victim import Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from trio.testing import MockClock

CHECK_EVERY = 200  # inputs: then the guest must be served as if nothing had been
RENEW_EVERY = 2000  # inputs: a new guest, so that a finding depends on few of them
SLOWEST = 0.1  # seconds of CPU for one input
REPEATS = 3  # of one that took longer
FORGET_DEADLINES = 10_000


class Octets:
    """The fuzzer's octets, taken from the front; zeros when there are none left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """Two octets, signed."""
        found: int = struct.unpack("!h", self.take(2))[0]
        return found

    def block(self) -> bytes:
        """A length of one octet, and at most so many."""
        length = self.byte()
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def rest(self) -> bytes:
        taken, self._at = self._data[self._at :], len(self._data)
        return taken


class SlowInput(Exception):
    """One input took longer than SLOWEST."""


def timed(one: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """An input that is slow is slow each time; the CPU time of one run also counts what a hypervisor took away."""

    def took(data: bytes) -> float:
        start = time.thread_time()
        one(data)
        return time.thread_time() - start

    def with_time(data: bytes) -> None:
        if took(data) > SLOWEST:
            again = [took(data) for _ in range(REPEATS)]
            if min(again) > SLOWEST:
                raise SlowInput(f"{min(again):.3f} s for {len(data)} octets")

    return with_time


def on_a_victim(
    nursery: trio.Nursery, clock: MockClock, one: Callable[[Victim, Octets], None], *, ipv6: str = "off"
) -> Callable[[bytes], None]:
    """A target that talks to a whole guest, who is offered so much of IPv6."""
    count = 0
    victim: Victim | None = None
    attack = timed(lambda data: one(victim, Octets(data)))  # type: ignore[arg-type]

    def run_one(data: bytes) -> None:
        nonlocal count, victim
        if victim is None or count % RENEW_EVERY == 0:
            if victim is not None:
                victim.close()
            victim = Victim(nursery, clock, ipv6=ipv6)
        count += 1
        attack(data)
        victim.still.output()
        victim.check_tables()
        if count % CHECK_EVERY == 0:
            victim.check()

    def close() -> None:
        if victim is not None:
            victim.check()
            victim.close()

    run_one.close = close  # type: ignore[attr-defined]
    return run_one


class Words:
    """A stream that says `data` in pieces of `piece` octets and then ends; it never waits."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = data
        self._piece = piece
        self.said = b""

    async def receive_some(self, limit: int | None = None) -> bytes:
        count = min(self._piece, limit or self._piece)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    async def send_all(self, data: bytes) -> None:
        self.said += data

    async def aclose(self) -> None:
        pass


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits.

    The fuzzer never gives trio's loop its turn, in which it forgets the deadlines of scopes that were left, so it is
    made to here.
    """
    deadlines = trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines
    if len(deadlines._heap) > FORGET_DEADLINES:
        deadlines._prune()
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it waits, though the stream never does")
