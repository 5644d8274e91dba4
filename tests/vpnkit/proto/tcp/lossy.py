"""Two connections and a wire with a delay that loses, swaps and doubles segments, in simulated time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from tests.vpnkit.proto.tcp.pair import OFFER, End, Segment, passive_for, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

AHEAD = 300_000  # octets that the writer keeps queued


def pattern(start: int, length: int) -> bytes:
    return bytes((start + i) * 2654435761 >> 13 & 255 for i in range(length))


@dataclass
class Weather:
    """What the wire does to one segment in a hundred, in percent; a swapped one comes `depth` segments' time later."""

    loss: float = 0.0
    swap: float = 0.0
    double: float = 0.0
    depth: int = 3
    back: bool = True  # the same for segments without data


@dataclass
class Lossy:
    """`a` sends `octets` to `b` and finishes; then `b` finishes."""

    seed: int
    octets: int
    weather: Weather = field(default_factory=Weather)
    delay: float = 0.0005  # seconds, one way
    rate: float = 125e6  # octets a second
    offer: Offer = OFFER
    drop: Callable[[str, Segment, int], bool] | None = None  # (who sends, segment, how often it was sent): lose it
    sack: bool = True
    iss: int = 2**32 - 100_000

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = 0.0
        self._order = count()
        self._wire: list[tuple[float, int, int, Segment]] = []
        self._free = [0.0, 0.0]
        self._times: dict[tuple[int, int], int] = {}
        self.sent = 0
        active = TcpConnection.active(self.iss, self.offer, 0.0)
        (syn,) = pull(active)
        if not self.sack:
            syn.options = b"\x02\x04\x05\xb4\x01\x03\x03\x07"
        passive = passive_for(syn, 77, self.offer)
        passive.accept(0.0)
        self.ends = (End(active), End(passive))
        self.written = 0
        self._leave(1)

    def _leave(self, index: int) -> None:
        connection = self.ends[index].connection
        for segment in pull(connection, self.now):
            self._carry(index, segment)

    def _carry(self, index: int, segment: Segment) -> None:
        weather = self.weather
        key = (index, segment.sequence) if segment.payload else (index, -1)
        times = self._times[key] = self._times.get(key, 0) + 1
        self.sent += len(segment.payload)
        start = max(self.now, self._free[index])
        self._free[index] = start + (len(segment.payload) + 60) / self.rate
        arrives = self._free[index] + self.delay
        rough = weather.back or bool(segment.payload)
        if self.drop is not None and self.drop("ab"[index], segment, times):
            return
        if rough and self.rng.random() * 100 < weather.loss:
            return
        if rough and self.rng.random() * 100 < weather.swap:
            arrives += weather.depth * 1520 / self.rate
        heapq.heappush(self._wire, (arrives, next(self._order), index, segment))
        if rough and self.rng.random() * 100 < weather.double:
            heapq.heappush(self._wire, (arrives, next(self._order), index, segment))

    def _write(self) -> None:
        end = self.ends[0]
        connection = end.connection
        if connection.state is not State.ESTABLISHED or connection.sender.finishing:
            return
        while self.written < self.octets and (room := connection.sender.room(self.now)):
            length = min(room, self.octets - self.written)
            end.write(pattern(self.written, length))
            self.written += length
        if self.written == self.octets:
            connection.finish()

    def run(self, limit: float = 1000.0) -> float:
        """Seconds until everything was read and both ends closed.  Raises AssertionError for a wrong octet."""
        a, b = self.ends
        done = NEVER
        while not (a.connection.is_closed and b.connection.is_closed):
            assert not a.connection.aborted, a.connection.aborted
            assert not b.connection.aborted, b.connection.aborted
            self._write()
            self._leave(0)
            if b.connection.state is State.CLOSE_WAIT:
                b.connection.finish()
            self._leave(1)
            deadline = min(end.connection.next_deadline() for end in self.ends)
            arrival = self._wire[0][0] if self._wire else NEVER
            assert min(deadline, arrival) != NEVER, "both ends wait for ever"
            self.now = max(self.now, min(deadline, arrival))
            assert self.now < limit, "too slow"
            if deadline <= arrival:
                for end in self.ends:
                    if end.connection.next_deadline() <= self.now:
                        end.connection.on_deadline(self.now)
                        assert end.connection.next_deadline() > self.now
            else:
                _, _, index, segment = heapq.heappop(self._wire)
                other = self.ends[1 - index]
                push(other.connection, segment, self.now)
                other.take()
                if done == NEVER and len(b.got) == self.octets:
                    done = self.now
        assert bytes(b.got) == bytes(a.written)
        return done
