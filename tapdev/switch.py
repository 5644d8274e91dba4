"""Several links, one LAN: who has which MAC, and frames between guests.

A station is known as soon as it has spoken, so that a frame to a MAC that nobody has is for nobody: it is not flooded,
which would show one guest what is meant for another.  Frames to groups go to everybody else.

Nothing here waits.  What a full link does not take is kept in its port's bounded queue, until the owner of that link
calls `flush`; a link that is gone never troubles who sends to it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from tapdev.link import ETHERNET_HEADER, Buffer, LinkCapabilities, LinkClosed

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tapdev.link import Link

QUEUE_FRAMES: Final = 512  # of one port: a burst of 64 KiB super-frames, cut for a link that can take none
QUEUE_OCTETS: Final = 2 << 20
MACS_PER_PORT: Final = 16  # a bridge or a few containers in a guest; beyond, the one learned first is forgotten

NOBODY: Final = bytes(6)

Outgoing: TypeAlias = tuple[Sequence[Buffer], int, int, int, int, int]
"""parts, checksum_start, checksum_offset, gso_type, gso_size, header_length: the arguments of Link.send."""

Adapt: TypeAlias = Callable[[Buffer, int, int, bool, LinkCapabilities, LinkCapabilities], Sequence[Outgoing]]
"""What to send on a link with the capabilities of the second for a frame that one with those of the first received:
frame, gso_type, gso_size, checksum_partial.  Nothing when the frame does not fit."""


class Port:
    """One link on the LAN, and the frames that wait for it.  Made by `Switch.attach`."""

    __slots__ = ("_attached", "_on_pending", "_queue", "counters", "identity", "link", "macs", "name", "queued_octets")

    def __init__(self, link: Link, on_pending: Callable[[], None], name: str, identity: Hashable | None) -> None:
        self.link = link
        self.name = name
        self.identity = identity
        self.macs: dict[bytes, None] = {}  # in the order in which they spoke first
        self.counters: Counter[str] = Counter()  # frames: queue_full, link_closed, unfit; refused sources: see `learn`
        self.queued_octets = 0
        self._queue: deque[Outgoing] = deque()
        self._on_pending = on_pending
        self._attached = True

    @property
    def pending(self) -> bool:
        """Whether frames wait until the link can be written: then call `flush`."""
        return bool(self._queue)

    @property
    def queued_frames(self) -> int:
        return len(self._queue)

    def deliver(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        """Send a frame as Link.send does, behind those that wait, or keep a copy of it until `flush`.

        False when it was lost: the queue is full, or the link is gone.
        """
        if not self._attached:
            self.counters["link_closed"] += 1
            return False
        if not self._queue:
            try:
                if self.link.send(parts, checksum_start, checksum_offset, gso_type, gso_size, header_length):
                    return True
            except LinkClosed:
                self.counters["link_closed"] += 1
                return False
        length = sum(map(len, parts))
        if len(self._queue) >= QUEUE_FRAMES or self.queued_octets + length > QUEUE_OCTETS:
            self.counters["queue_full"] += 1
            return False
        copy = (b"".join(parts),)
        self._queue.append((copy, checksum_start, checksum_offset, gso_type, gso_size, header_length))
        self.queued_octets += length
        if len(self._queue) == 1:
            self._on_pending()
        return True

    def flush(self) -> bool:
        """Send what waits, in order, as far as the link takes it.  True when nothing waits any more."""
        queue = self._queue
        try:
            while queue:
                if not self.link.send(*queue[0]):
                    return False
                self.queued_octets -= len(queue.popleft()[0][0])
        except LinkClosed:
            self.counters["link_closed"] += len(queue)
            self._forget_queue()
        return True

    def _forget_queue(self) -> None:
        self._queue.clear()
        self.queued_octets = 0

    def _end(self) -> None:
        self._attached = False
        self._forget_queue()


class Switch:
    """The LAN.  With `isolate` its guests see only its owner.

    `unfit` is asked about a frame that `adapt` has nothing for: from which port, to which, and the frame; True when it
    found another way.
    """

    def __init__(
        self,
        adapt: Adapt,
        *,
        isolate: bool = False,
        unfit: Callable[[Port, Port, memoryview], bool] = lambda source, to, frame: False,
    ) -> None:
        self.isolate = isolate
        self._unfit = unfit
        self.counters: Counter[str] = Counter()  # frames that `forward` had no port for: runt, isolated, unknown_mac
        self._adapt = adapt
        self._ports: dict[Port, None] = {}  # in the order of attachment
        self._owners: dict[bytes, Port] = {}
        self._reserved: set[bytes] = set()

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(self._ports)

    def reserve(self, mac: bytes) -> None:
        """`mac` is the owner's of this switch: no port may have it, and whoever has it loses it."""
        self._reserved.add(mac)
        port = self._owners.pop(mac, None)
        if port is not None:
            port.macs.pop(mac, None)

    def attach(
        self, link: Link, on_pending: Callable[[], None], *, name: str = "", identity: Hashable | None = None
    ) -> Port:
        """A new port.

        `on_pending` is called when frames begin to wait for the link: await its `wait_writable`, then call
        `Port.flush`, until that says True.  Ports of one `identity` are connections of one guest: they share their
        MACs, and the one that spoke last gets the frames.
        """
        port = Port(link, on_pending, name, identity)
        self._ports[port] = None
        return port

    def detach(self, port: Port) -> None:
        """Forget `port`, its queue and its MACs, or leave them to the newest other port of its identity.  Idempotent.

        The link stays open.
        """
        if port not in self._ports:
            return
        del self._ports[port]
        port._end()
        heir = next((other for other in reversed(self._ports) if _is_same_guest(port, other)), None)
        for mac in port.macs:
            if heir is not None and len(heir.macs) < MACS_PER_PORT:
                heir.macs[mac] = None
                self._owners[mac] = heir
            else:
                del self._owners[mac]
        port.macs.clear()

    def owner(self, mac: bytes) -> Port | None:
        """The port that spoke last with `mac`."""
        return self._owners.get(mac)

    def learn(self, port: Port, mac: bytes) -> bool:
        """Whether `port` may send from `mac`; if so, frames to `mac` go to it from now on.

        First come, first served: nobody takes the MAC of a guest that is attached.  A refusal is counted at the
        port: spoofed_mac (another guest's or the switch owner's), bad_source_mac (a group's, or none).  A port has
        at most MACS_PER_PORT, and a further one takes the place of its first.
        """
        owner = self._owners.get(mac)
        if owner is port:
            return True
        if mac in self._reserved or (owner is not None and not _is_same_guest(port, owner)):
            port.counters["spoofed_mac"] += 1
        elif len(mac) != 6 or mac[0] & 1 or mac == NOBODY:
            port.counters["bad_source_mac"] += 1
        elif port in self._ports:
            if owner is not None:
                owner.macs.pop(mac, None)
            if len(port.macs) >= MACS_PER_PORT:
                oldest = next(iter(port.macs))
                del port.macs[oldest], self._owners[oldest]
                port.counters["forgotten_macs"] += 1
            port.macs[mac] = None
            self._owners[mac] = port
            return True
        return False

    def forward(self, port: Port, frame: memoryview, gso_type: int, gso_size: int, checksum_partial: bool) -> bool:
        """Hand a frame that `port` received, with its link's metadata, to the port or ports that it is for.

        False when there is none, which is counted here; what a port then loses is counted there.  The caller has
        asked `learn` about the source.  The frame may be overwritten afterwards.
        """
        if len(frame) < ETHERNET_HEADER:
            self.counters["runt"] += 1
            return False
        if self.isolate:
            self.counters["isolated"] += 1
            return False
        if frame[0] & 1:
            for other in tuple(self._ports):
                if other is not port and not _is_same_guest(port, other):
                    self._hand(port, other, frame, gso_type, gso_size, checksum_partial)
            return True
        owner = self._owners.get(bytes(frame[:6]))
        if owner is None or owner is port:
            self.counters["unknown_mac"] += 1
            return False
        self._hand(port, owner, frame, gso_type, gso_size, checksum_partial)
        return True

    def _hand(
        self, source: Port, to: Port, frame: memoryview, gso_type: int, gso_size: int, checksum_partial: bool
    ) -> None:
        outgoing = self._adapt(
            frame, gso_type, gso_size, checksum_partial, source.link.capabilities, to.link.capabilities
        )
        if not outgoing and not self._unfit(source, to, frame):
            to.counters["unfit"] += 1
        for one in outgoing:
            to.deliver(*one)


def _is_same_guest(one: Port, other: Port) -> bool:
    return one.identity is not None and one.identity == other.identity
