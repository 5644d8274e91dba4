"""One bulk transfer over a wire that has a delay, loses and swaps, in simulated time.

The guest is a `TcpConnection` with a fixed buffer; the other end is one as `Guest` has them, or a whole `Guest`.
"""

from __future__ import annotations

import heapq
import random
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tests.vpnkit.proto.tcp.pair import OFFER, Segment, passive_for, pull, push
from vpnkit.proto.tcp.connection import TcpConnection
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

RATE: Final = 125e6  # octets a second: 1 Gbit/s
HEADERS: Final = 60  # octets of a frame besides the payload, about
DEPTH: Final = 3  # a swapped segment comes behind so many others
SWAP_DELAY: Final = DEPTH * 1520 / RATE
GUEST_ISS: Final = 2**32 - 100_000
PATTERN: Final = random.Random(7).randbytes(1 << 16)
REPEATED: Final = PATTERN * 17  # whatever is written at once is a slice of it
BEGIN: Final = 1000.0  # simulated seconds


class Cell(NamedTuple):
    way: str  # "down": to the guest, "up": from it
    rtt: float  # milliseconds
    buffer: int  # KiB: the guest's window, or what he keeps until it is acknowledged
    reorder: int  # percent of the segments, as is `loss`
    loss: int


class End(Protocol):
    def leave(self, now: float) -> Iterable[Segment]:
        """What this end sends now."""

    def arrive(self, segment: Segment, now: float) -> None: ...

    def deadline(self) -> float: ...

    def on_deadline(self, now: float) -> None: ...


class Program:
    """Writes `octets`, or reads and compares."""

    def __init__(self, octets: int) -> None:
        self.octets = octets
        self.done = 0

    @property
    def left(self) -> int:
        return self.octets - self.done

    def write(self, limit: int) -> bytes:
        """The next octets, `limit` of them or as many as are left."""
        start = self.done % len(PATTERN)
        data = REPEATED[start : start + min(limit, self.left)]
        self.done += len(data)
        return data

    def read(self, data: bytes | memoryview) -> None:
        position = 0
        while position < len(data):
            start = self.done % len(PATTERN)
            part = bytes(data[position : position + len(PATTERN) - start])
            assert part == PATTERN[start : start + len(part)], f"a wrong octet behind {self.done}"
            self.done += len(part)
            position += len(part)
        assert self.left >= 0, "too much"


class CoreEnd:
    """A connection and its program."""

    def __init__(self, connection: TcpConnection, program: Program, *, writes: bool, buffer: int) -> None:
        """`buffer`: octets that are written and not acknowledged, at most."""
        self.connection = connection
        self.program = program
        self.writes = writes
        self.buffer = buffer

    def leave(self, now: float) -> Iterable[Segment]:
        connection = self.connection
        assert not connection.aborted, connection.aborted
        if self.writes and connection.state is State.ESTABLISHED:
            sender = connection.sender
            while self.program.left:
                room = min(sender.room(now), self.buffer - sender.queued)
                if room <= 0:
                    break
                connection.write(self.program.write(room))
        return pull(connection, now)

    def arrive(self, segment: Segment, now: float) -> None:
        push(self.connection, segment, now)
        inbox = self.connection.receiver.inbox
        for data in inbox:
            self.program.read(data)
        inbox.clear()

    def deadline(self) -> float:
        return self.connection.next_deadline()

    def on_deadline(self, now: float) -> None:
        self.connection.on_deadline(now)


def guest_end(cell: Cell, program: Program) -> CoreEnd:
    """The guest, who calls."""
    return CoreEnd(
        TcpConnection.active(GUEST_ISS, OFFER, BEGIN), program, writes=cell.way == "up", buffer=cell.buffer << 10
    )


def shake_hands(guest: CoreEnd, ours: End, syn_ack: Segment) -> None:
    """The guest hears the SYN-ACK, his window is what his buffer allows, and both are open: the wire is good so far."""
    push(guest.connection, syn_ack, BEGIN)
    receiver = guest.connection.receiver
    receiver.capacity = receiver.most = guest.buffer
    for segment in pull(guest.connection, BEGIN):
        ours.arrive(segment, BEGIN)


class Wire:
    """What leaves an end of `ends` arrives at the other one."""

    def __init__(self, ends: tuple[End, End], cell: Cell, seed: int) -> None:
        self.ends = ends
        self.cell = cell
        self.now = BEGIN
        self._dice = [random.Random(f"{seed} {direction}") for direction in range(2)]
        self._order = count()
        self._air: list[tuple[float, int, int, Segment]] = []
        self._free = [BEGIN, BEGIN]

    def _leave(self, index: int) -> None:
        dice, cell = self._dice[index], self.cell
        for segment in self.ends[index].leave(self.now):
            self._free[index] = max(self.now, self._free[index]) + (len(segment.payload) + HEADERS) / RATE
            arrives = self._free[index] + cell.rtt / 2000
            lost, swapped = dice.random() * 100 < cell.loss, dice.random() * 100 < cell.reorder
            if not lost:
                heapq.heappush(self._air, (arrives + swapped * SWAP_DELAY, next(self._order), index, segment))

    def run(self, reader: Program) -> float:
        """Seconds until `reader` has everything."""
        ends = self.ends
        self._leave(0)
        self._leave(1)
        while reader.left:
            deadlines = [end.deadline() for end in ends]
            if self._air and self._air[0][0] < min(deadlines):
                self.now, _, index, segment = heapq.heappop(self._air)
                index = 1 - index
                ends[index].arrive(segment, self.now)
            else:
                index = deadlines.index(min(deadlines))
                assert deadlines[index] != float("inf"), "both ends wait for ever"
                self.now = max(self.now, deadlines[index])
                ends[index].on_deadline(self.now)
                assert ends[index].deadline() > self.now
            self._leave(index)
        return self.now - BEGIN


def transfer(cell: Cell, octets: int, seed: int) -> float:
    """Seconds that `octets` take between two cores."""
    writer, reader = Program(octets), Program(octets)
    up = cell.way == "up"
    guest = guest_end(cell, writer if up else reader)
    (syn,) = pull(guest.connection, BEGIN)
    passive = passive_for(syn, 77, OFFER)
    passive.accept(BEGIN)
    ours = CoreEnd(passive, reader if up else writer, writes=not up, buffer=1 << 30)
    (syn_ack,) = pull(passive, BEGIN)
    shake_hands(guest, ours, syn_ack)
    return Wire((guest, ours), cell, seed).run(reader)
