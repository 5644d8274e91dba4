"""Rings: the last packets that a rule wanted, in a bounded number of octets.

A packet is one `bytes` object, its record: a small header with the time, then what was captured.  Records are in
chunks, and a full ring forgets its oldest chunk: to add a packet is an append, a subtraction and a comparison.  Each
is charged with what it really takes, so that a ring's limit is its memory.

A packet has a number, from 0 in the order of arrival.  So a reader knows what he missed, and never holds anybody up.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pcap.predicates import Predicate

Buffer: TypeAlias = bytes | bytearray | memoryview

KIB: Final = 1024
CHUNKS: Final = 16  # of a full ring, about: the least that is forgotten at once is a sixteenth

# ns since 1970, UTC 8 | octets of the whole frame 4 | gso_size 2 | interface 2 | direction, and PARTIAL 1
RECORD: Final = struct.Struct("<QLHHB")
PARTIAL: Final = 4
OBJECT: Final = 48  # octets of a `bytes` object and its place in a list, besides what is in it
OVERHEAD: Final = RECORD.size + OBJECT  # charged for each packet


class Direction(IntEnum):
    """Seen from our end of the link; the numbers are those of a pcapng packet's flags."""

    UNKNOWN = 0
    IN = 1
    OUT = 2


class Packet(NamedTuple):
    """One captured frame, or the beginning of it."""

    timestamp_ns: int  # since 1970, UTC
    length: int  # of the whole frame
    data: bytes  # the captured prefix
    direction: int = Direction.UNKNOWN
    gso_size: int = 0  # not 0: a super-frame; octets of payload per segment
    checksum_partial: bool = False
    interface: int = 0


def unpack(record: bytes) -> Packet:
    """The packet of a record."""
    timestamp, length, gso_size, interface, flags = RECORD.unpack_from(record)
    return Packet(timestamp, length, record[RECORD.size :], flags & 3, gso_size, bool(flags & PARTIAL), interface)


def pack(packet: Packet) -> bytes:
    """The record of a packet."""
    timestamp, length, data, direction, gso_size, checksum_partial, interface = packet
    flags = direction | PARTIAL if checksum_partial else direction
    return RECORD.pack(timestamp, length, gso_size, interface, flags) + data


@dataclass(frozen=True, slots=True)
class Rule:
    """What to keep: frames that `when` wants, `snaplen` octets of each, the newest `limit_bytes` of all."""

    name: str
    when: Predicate | Callable[[Buffer], bool]
    snaplen: int = 1500
    limit_bytes: int = 256 * KIB  # of memory, so with OVERHEAD for each packet
    direction: int = Direction.UNKNOWN  # UNKNOWN: both
    malformed: bool | None = None  # True: only what no parser takes; False: only the rest
    private: bool = False  # headers only, and hashes for the names in DNS

    def __post_init__(self) -> None:
        if not 1 <= self.snaplen <= self.limit_bytes - OVERHEAD:
            least = f"a ring of {self.limit_bytes} holds packets of 1 to {max(self.limit_bytes - OVERHEAD, 1)} octets"
            raise ValueError(f"rule {self.name}: snaplen {self.snaplen} is wrong, {least}")


class Ring:
    """A queue of packets that forgets the oldest.  `charged` never exceeds `rule.limit_bytes`."""

    __slots__ = (
        "_before", "_charges", "_chunk", "_chunk_limit", "_chunks", "_closed", "_first", "_granted", "_room",
        "_waiting", "rule",
    )  # fmt: skip

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._chunk_limit = max(rule.limit_bytes // CHUNKS, 1)
        self._chunk: list[bytes] = []  # the newest
        self._chunks: deque[list[bytes]] = deque((self._chunk,))
        self._charges: deque[int] = deque((0,))  # of each; the newest as of the last `_turn`
        self._closed = 0  # their sum
        self._before = 0  # number of the first packet of the newest chunk
        self._first = 0  # number of the oldest packet
        self._granted = self._room = self._chunk_limit  # octets until the next `_turn`, then and now
        self._waiting: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self.seen - self._first

    def __iter__(self) -> Iterator[Packet]:
        """The packets, oldest first, as they are now: a copy, so that appending while somebody reads is fine."""
        return map(unpack, [record for chunk in self._chunks for record in chunk])

    @property
    def seen(self) -> int:
        """Packets since the beginning, and the number of the next."""
        return self._before + len(self._chunk)

    @property
    def packets(self) -> int:
        """Packets that are here now."""
        return len(self)

    @property
    def dropped(self) -> int:
        """Packets forgotten for newer ones."""
        return self._first

    @property
    def captured(self) -> int:
        """Captured octets that are here now."""
        return self.charged - OVERHEAD * len(self)

    @property
    def charged(self) -> int:
        """Octets of memory, about."""
        return self._closed + self._granted - self._room

    def append(self, packet: Packet) -> None:
        """Add `packet`, cut to the rule's snaplen; the rule's predicate is not asked."""
        self.put(pack(packet)[: RECORD.size + self.rule.snaplen])

    def put(self, record: bytes) -> None:
        """Add a record that is not longer than the rule's snaplen allows."""
        self._chunk.append(record)
        self._room = room = self._room - len(record) - OBJECT
        if room < 0:
            self._turn()

    def _turn(self) -> None:
        """Account for what came, forget what must go, tell those who wait."""
        used = self._granted - self._room
        self._closed += used
        self._charges[-1] += used
        while self._closed > self.rule.limit_bytes:
            self._forget()
        if self._charges[-1] >= self._chunk_limit:
            self._before += len(self._chunk)
            self._chunk = []
            self._chunks.append(self._chunk)
            self._charges.append(0)
        room = min(self._chunk_limit - self._charges[-1], self.rule.limit_bytes - self._closed)
        self._granted = self._room = room
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def _forget(self) -> None:
        if len(self._chunks) > 1:
            self._first += len(self._chunks.popleft())
            self._closed -= self._charges.popleft()
            return
        charge = len(self._chunk.pop(0)) + OBJECT
        self._before += 1
        self._first += 1
        self._closed -= charge
        self._charges[-1] -= charge

    def clear(self) -> None:
        """Forget every packet; they count as dropped."""
        self._first = self._before = self.seen
        self._chunk = []
        self._chunks = deque((self._chunk,))
        self._charges = deque((0,))
        self._closed = 0
        self._granted = self._room = self._chunk_limit

    # Readers

    def read(self, number: int, limit: int) -> tuple[int, list[Packet]]:
        """Up to `limit` packets from `number` on, or from the oldest that is here; the number of the first."""
        number = max(number, self._first)
        skip = number - self._first
        found: list[bytes] = []
        for chunk in self._chunks:
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            found += islice(chunk, skip, skip + limit - len(found))
            skip = 0
            if len(found) >= limit:
                break
        return number, [unpack(record) for record in found]

    def when_next(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, right behind the next packet.  It must not raise."""
        self._waiting.append(wake)
        used = self._granted - self._room  # account for it, and grant nothing more
        self._closed += used
        self._charges[-1] += used
        self._granted = self._room = 0

    def forget_waker(self, wake: Callable[[], None]) -> None:
        """`wake` is not called any more."""
        if wake in self._waiting:
            self._waiting.remove(wake)
