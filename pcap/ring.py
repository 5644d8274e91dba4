"""Rings: the last packets that a rule wanted, in a bounded number of octets.

A `Capture` is fed every frame of a link, both ways, and never waits.  A frame arrives as the parts that the link
carried; one copy of its head is made, and every ring keeps a prefix of that copy.

Super-frames and partial checksums are recorded as the link carried them: one packet of up to 64 KiB, whose transport
checksum covers the pseudo-header only.  A reader that verifies checksums will complain about those; the packet says
`checksum_partial` and `gso_size`, for a writer that completes and splits them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Buffer: TypeAlias = bytes | bytearray | memoryview

KIB: Final = 1024
LEAST_CHARGE: Final = 64  # a tiny packet costs objects, too: it is charged like the smallest frame on a cable
LEAST_HEAD: Final = 160  # octets that predicates see at least: Ethernet, two tags, IPv6 with options, TCP


class Direction(IntEnum):
    """Seen from our end of the link; the numbers are those of a pcapng packet's flags."""

    UNKNOWN = 0
    IN = 1
    OUT = 2


class Packet(NamedTuple):
    """One captured frame, or the beginning of it.  A tuple because one is made per frame: 0.3 us."""

    timestamp_ns: int  # since 1970, UTC
    length: int  # of the whole frame
    data: bytes  # the captured prefix
    direction: int = Direction.UNKNOWN
    gso_size: int = 0  # not 0: a super-frame; octets of payload per segment
    checksum_partial: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What to keep: frames that `when` wants, `snaplen` octets of each, the newest `limit_bytes` of all."""

    name: str
    when: Callable[[Buffer], bool]
    snaplen: int = 1500
    limit_bytes: int = 256 * KIB

    def __post_init__(self) -> None:
        if not 1 <= self.snaplen <= self.limit_bytes:
            raise ValueError(f"rule {self.name}: snaplen {self.snaplen} is not in 1 to {self.limit_bytes}, its ring")


class Ring:
    """A queue of packets that forgets the oldest.  `bytes` never exceeds `rule.limit_bytes`."""

    __slots__ = ("_charged", "_limit", "_packets", "_snaplen", "bytes", "dropped", "rule", "seen")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.bytes = 0  # captured octets that are here now
        self.seen = 0  # packets since the beginning
        self.dropped = 0  # packets forgotten for newer ones
        self._snaplen = rule.snaplen
        self._limit = rule.limit_bytes
        self._charged = 0
        self._packets: deque[Packet] = deque()

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[Packet]:
        """The packets, oldest first, as they are now: a copy, so that appending while somebody reads is fine."""
        return iter(list(self._packets))

    @property
    def packets(self) -> int:
        """Packets that are here now."""
        return len(self._packets)

    def append(self, packet: Packet) -> None:
        """Add `packet`, cut to the rule's snaplen; the rule's predicate is not asked."""
        size = len(packet.data)
        if size > self._snaplen:
            size = self._snaplen
            timestamp_ns, length, data, direction, gso_size, checksum_partial = packet
            packet = Packet(timestamp_ns, length, data[:size], direction, gso_size, checksum_partial)
        self._packets.append(packet)
        self.seen += 1
        self.bytes += size
        self._charged += size if size > LEAST_CHARGE else LEAST_CHARGE
        while self._charged > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        size = len(self._packets.popleft().data)
        self.dropped += 1
        self.bytes -= size
        self._charged -= size if size > LEAST_CHARGE else LEAST_CHARGE

    def clear(self) -> None:
        """Forget every packet; they count as dropped."""
        self.dropped += len(self._packets)
        self._packets.clear()
        self.bytes = self._charged = 0


class Capture:
    """Several rules, fed the same frames.  Has the signature of a tap, so that `Tee(link, capture)` feeds it."""

    def __init__(self, rules: Iterable[Rule] = (), *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._rings: dict[str, Ring] = {}
        self._watch: tuple[tuple[Callable[[Buffer], bool], Ring], ...] = ()
        self._head = LEAST_HEAD
        for rule in rules:
            self.add(rule)

    @property
    def rings(self) -> dict[str, Ring]:
        """The rings by name: a copy, in the order of their rules."""
        return dict(self._rings)

    def __getitem__(self, name: str) -> Ring:
        return self._rings[name]

    def add(self, rule: Rule) -> Ring:
        """Begin to keep what `rule` wants.  Raises ValueError when there is a ring of that name."""
        if rule.name in self._rings:
            raise ValueError(f"there is a capture named {rule.name} already")
        ring = self._rings[rule.name] = Ring(rule)
        self._rules_changed()
        return ring

    def remove(self, name: str) -> None:
        """Forget a rule and its ring.  Raises KeyError."""
        del self._rings[name]
        self._rules_changed()

    def _rules_changed(self) -> None:
        self._watch = tuple((ring.rule.when, ring) for ring in self._rings.values())
        self._head = max([LEAST_HEAD, *(ring.rule.snaplen for ring in self._rings.values())])

    def __call__(
        self,
        parts: Sequence[Buffer],
        direction: int = Direction.UNKNOWN,
        gso_type: int = 0,
        gso_size: int = 0,
        checksum_partial: bool = False,
        /,
    ) -> None:
        """Show one frame, the concatenation of `parts`, to every rule."""
        if not self._watch:
            return
        if len(parts) == 1:
            length = len(parts[0])
            head = bytes(parts[0][: self._head])
        else:
            length = sum(map(len, parts))
            head = bytes(parts[0][: self._head])
            for part in parts[1:]:
                if (room := self._head - len(head)) <= 0:
                    break
                head += part[:room]
        packet = None
        for when, ring in self._watch:
            if when(head):
                if packet is None:
                    packet = Packet(
                        self._clock_ns(), length, head, direction, gso_size if gso_type else 0, checksum_partial
                    )
                ring.append(packet)
