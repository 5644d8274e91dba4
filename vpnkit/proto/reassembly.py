"""Reassembly of the guest's datagrams: IPv4's, RFC 791 section 3.2, with the rules of RFC 5722, and the core of IPv6's.

What is hostile costs little: fragments are kept as they are until the datagram is whole, the stretches that they make
are few, and a datagram that broke a rule keeps its place and nothing else until its time is over, so that the rest of
it is dropped too.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar, Final

from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import ipv4
from vpnkit.wire.checksum import checksum, ones_sum
from vpnkit.wire.icmp import ERRORS, QUOTE_LIMIT
from vpnkit.wire.ipv4 import Ipv4Packet

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.wire.checksum import Buffer

TIMEOUT: Final = 30.0  # seconds; Linux's and gVisor's, where RFC 1122 section 3.3.2 recommends 60 to 120
HIGH_WATER: Final = 4 << 20  # octets of one guest and IP version; then the oldest datagrams go until it is
LOW_WATER: Final = 3 << 20
OVERHEAD: Final = 1024  # octets that a datagram costs besides its fragments, so that there are at most 4096
FRAGMENT_OVERHEAD: Final = 128  # octets that a fragment costs besides its own
MAX_RUNS: Final = 64  # of one datagram: stretches that arrived, with holes between them
MAX_TOTAL: Final = 65535
MULTICAST: Final = 224  # the first octet of an address from which on it is no host's


class Datagram:
    """One that is not whole yet."""

    __slots__ = ("cost", "ends", "fragments", "header", "started", "starts", "total")

    def __init__(self, started: float) -> None:
        self.started = started
        self.header = b""  # of the first fragment
        self.fragments: dict[int, bytes] | None = {}  # by their place; None: the datagram broke a rule
        self.total = -1  # octets of payload, when the last fragment told
        # the runs: sorted, and no two touch
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.cost = OVERHEAD


class Core(ABC):
    """The datagrams of one guest that are not whole yet, of whatever IP version.

    `count` gets the name of a counter for everything that is noteworthy.  `gave_up` gets the first fragment, as far as
    an ICMP error quotes it, of each datagram that did not become whole in time and may be told about.
    """

    timeout: ClassVar[float]  # seconds
    quoted: ClassVar[int]  # octets behind the header, for `gave_up`

    def __init__(self, count: Callable[[str], None], gave_up: Callable[[bytes], None]) -> None:
        self._count = count
        self._gave_up = gave_up
        self._datagrams: OrderedDict[bytes, Datagram] = OrderedDict()  # the oldest first
        self.octets = 0
        self.queued_at = NEVER

    def __len__(self) -> int:
        return len(self._datagrams)

    def _put(
        self, key: bytes, header: Buffer, payload: Buffer, start: int, now: float, *, more: bool, most: int
    ) -> tuple[bytes, list[bytes]] | None:
        """Take in a fragment; the buffers are not kept.  No datagram may have more than `most` octets of payload.

        Returns the header of the first fragment and the payload in its pieces when that made the datagram whole.
        """
        end = start + len(payload)
        if not payload or (more and end & 7):
            self._count("fragment_malformed")
            return None
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = Datagram(now)
            self.octets += OVERHEAD
            if self.octets > HIGH_WATER:
                self._evict()
        if datagram.fragments is None:
            self._count("fragment_of_dropped")
            return None
        if end > most:
            self._drop(datagram, "fragment_too_large")
        elif not self._fits(datagram, start, end, last=not more):
            self._drop(datagram, "fragment_inconsistent")
        else:
            self._take(datagram, header, bytes(payload), start, end)
            fragments = datagram.fragments
            if fragments is not None and datagram.ends[0] == datagram.total and not datagram.starts[0]:
                self._forget(key)
                return datagram.header, [fragments[start] for start in sorted(fragments)]
        return None

    @staticmethod
    def _fits(datagram: Datagram, start: int, end: int, *, last: bool) -> bool:
        """Whether the end of the datagram, if it is known, is where this fragment lets it be."""
        if not last:
            return datagram.total < 0 or end <= datagram.total
        if datagram.total < 0:
            datagram.total = end
            return not datagram.ends or datagram.ends[-1] <= end
        return datagram.total == end

    def _take(self, datagram: Datagram, header: Buffer, data: bytes, start: int, end: int) -> None:
        fragments = datagram.fragments
        assert fragments is not None
        starts, ends = datagram.starts, datagram.ends
        after = bisect_right(starts, start)  # the first run that begins behind `start`
        if (after and ends[after - 1] > start) or (after < len(starts) and starts[after] < end):
            if fragments.get(start) == data:
                self._count("fragment_duplicate")
            else:
                self._drop(datagram, "fragment_overlap")
            return
        joins_left = after > 0 and ends[after - 1] == start
        joins_right = after < len(starts) and starts[after] == end
        if joins_left and joins_right:
            ends[after - 1] = ends.pop(after)
            del starts[after]
        elif joins_left:
            ends[after - 1] = end
        elif joins_right:
            starts[after] = start
        elif len(starts) >= MAX_RUNS:
            self._drop(datagram, "fragment_holes")
            return
        else:
            starts.insert(after, start)
            ends.insert(after, end)
        if not start:
            datagram.header = bytes(header)
        fragments[start] = data
        cost = len(data) + FRAGMENT_OVERHEAD
        self.octets += cost
        datagram.cost += cost
        if self.octets > HIGH_WATER:
            self._evict()

    def _drop(self, datagram: Datagram, why: str) -> None:
        """The datagram and whatever of it is still to come (RFC 5722 section 4)."""
        self._count(why)
        self.octets -= datagram.cost - OVERHEAD
        datagram.cost = OVERHEAD
        datagram.fragments = None
        datagram.starts = datagram.ends = []

    def _evict(self) -> None:
        """Make place; the youngest, which alone is below the low water, stays."""
        while self.octets > LOW_WATER:
            _, datagram = self._datagrams.popitem(last=False)
            self.octets -= datagram.cost
            self._count("fragment_evicted")

    def _forget(self, key: bytes) -> None:
        self.octets -= self._datagrams.pop(key).cost

    # Time

    def next_deadline(self) -> float:
        if not self._datagrams:
            return NEVER
        return self._datagrams[next(iter(self._datagrams))].started + self.timeout

    def on_deadline(self, now: float) -> None:
        while self.next_deadline() <= now:
            _, datagram = self._datagrams.popitem(last=False)
            self.octets -= datagram.cost
            if datagram.fragments is not None:
                self._count("fragment_timeout")
                if datagram.header:
                    first = datagram.header + datagram.fragments[0][: self.quoted]
                    if self._may_be_told(first):
                        self._gave_up(first)

    @abstractmethod
    def _may_be_told(self, first: bytes) -> bool:
        """Whether an error may be sent about the datagram that `first` is the first fragment of."""


class Reassembler(Core):
    """The IPv4 datagrams of one guest that are not whole yet."""

    timeout = TIMEOUT
    quoted = QUOTE_LIMIT

    def add(self, fragment: Ipv4Packet, now: float) -> Ipv4Packet | None:
        """Take in a fragment, whose views are not kept.  Returns the datagram that it completed."""
        found = self._put(
            bytes(fragment.header[4:6]) + fragment.source + fragment.destination + bytes((fragment.protocol,)),
            fragment.header,
            fragment.payload,
            (fragment.flags_offset & ipv4.OFFSET_MASK) * 8,
            now,
            more=bool(fragment.flags_offset & ipv4.MF),
            most=MAX_TOTAL - len(fragment.header),
        )
        return None if found is None else self._completed(*found, fragment)

    def _may_be_told(self, first: bytes) -> bool:
        """RFC 1122 section 3.2.2, as far as the datagram itself shows it."""
        about_error = first[9] == ipv4.ICMP and first[(first[0] & 15) * 4] in ERRORS
        return first[16] < MULTICAST and not about_error

    def _completed(self, first: bytes, pieces: list[bytes], fragment: Ipv4Packet) -> Ipv4Packet | None:
        payload = b"".join(pieces)
        total = len(first) + len(payload)
        if total > MAX_TOTAL:  # the first fragment has more options than the last one
            self._count("fragment_too_large")
            return None
        header = bytearray(first)
        flags = (header[6] << 8 | header[7]) & ipv4.DF
        struct.pack_into("!H", header, 2, total)
        struct.pack_into("!H", header, 6, flags)
        struct.pack_into("!H", header, 10, 0)
        struct.pack_into("!H", header, 10, checksum(ones_sum(header)))
        self._count("fragment_reassembled")
        return Ipv4Packet(
            memoryview(header),
            memoryview(payload),
            header[1],
            fragment.identification,
            flags,
            header[8],
            fragment.protocol,
            fragment.source,
            fragment.destination,
        )
