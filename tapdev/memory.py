"""A link between two objects of one process: what tests and the simulated network use for a wire.

It is stricter than a wire where that finds bugs.  A frame whose time is over (the next `receive` came and nobody held
it, or the burst was released) is overwritten, so that a view kept too long shows garbage instead of luck.  An offload
that the link does not have raises ValueError instead of leaving somewhere a frame that no kernel would have taken.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from tapdev.link import ETHERNET_HEADER, MAX_FRAME, Gso, LinkCapabilities, LinkClosed, LinkStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapdev.link import Buffer

SLOTS: Final = 64  # frames that a burst may hold at once, as on a TAP
DEAD: Final = b"\xdd"  # what fills a frame whose time is over


class _Frame:
    """One frame in the queue, and later in a slot of the receiver."""

    __slots__ = ("checksum_partial", "data", "gso_size", "gso_type")

    def __init__(self, data: bytearray, gso_type: int, gso_size: int, checksum_partial: bool) -> None:
        self.data = data
        self.gso_type = gso_type
        self.gso_size = gso_size
        self.checksum_partial = checksum_partial

    def die(self) -> None:
        self.data[:] = DEAD * len(self.data)


class _Wire:
    """One direction: a bounded queue, and who waits at its ends."""

    def __init__(self, limit: int) -> None:
        self.frames: deque[_Frame] = deque()
        self.limit = limit
        self.closed = False
        self.readers = trio.lowlevel.ParkingLot()
        self.writers = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        self.closed = True
        self.readers.unpark_all()
        self.writers.unpark_all()


class MemoryLink:
    """One end.  Made by `memory_link_pair`."""

    def __init__(self, incoming: _Wire, outgoing: _Wire, capabilities: LinkCapabilities) -> None:
        self.capabilities = capabilities
        self.statistics = LinkStatistics()
        self.gso_type = 0
        self.gso_size = 0
        self.checksum_partial = False
        self._incoming = incoming
        self._outgoing = outgoing
        self._current: _Frame | None = None  # returned by the last `receive`, held by nobody
        self._held: list[_Frame] = []
        self._closed = False

    def receive(self) -> memoryview | None:
        if self._closed:
            raise LinkClosed("this end of the link was closed")
        if len(self._held) == SLOTS:
            return None
        wire = self._incoming
        if not wire.frames:
            if wire.closed:
                raise LinkClosed("the other end of the link was closed")
            return None
        if self._current is not None:
            self._current.die()
        self._current = frame = wire.frames.popleft()
        wire.writers.unpark_all()
        self.gso_type = frame.gso_type
        self.gso_size = frame.gso_size
        self.checksum_partial = frame.checksum_partial
        self.statistics.received_frames += 1
        self.statistics.received_bytes += len(frame.data)
        return memoryview(frame.data)

    def hold(self) -> None:
        if self._current is not None:
            self._held.append(self._current)
            self._current = None

    def release(self) -> None:
        self.hold()
        for frame in self._held:
            frame.die()
        self._held.clear()

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        wire = self._outgoing
        if self._closed or wire.closed:
            raise LinkClosed("the link was closed")
        if checksum_start or gso_type:
            self._check_offload(checksum_start, gso_type, gso_size, header_length)
        if len(wire.frames) >= wire.limit:
            return False
        data = bytearray().join(parts)
        if not ETHERNET_HEADER <= len(data) <= MAX_FRAME:  # a kernel answers EINVAL: lost, as on a wire
            self.statistics.dropped_frames += 1
            return True
        wire.frames.append(_Frame(data, gso_type, gso_size, checksum_start != 0))
        wire.readers.unpark_all()
        self.statistics.sent_frames += 1
        self.statistics.sent_bytes += len(data)
        return True

    def _check_offload(self, checksum_start: int, gso_type: int, gso_size: int, header_length: int) -> None:
        able = self.capabilities
        if checksum_start and not able.checksum:
            raise ValueError("a partial checksum on a link without checksum offload")
        if not gso_type:
            return
        granted = {Gso.TCPV4: able.tso4, Gso.TCPV6: able.tso6, Gso.UDP_L4: able.uso}
        if not granted.get(Gso(gso_type), False):
            raise ValueError(f"a super-frame of type {Gso(gso_type).name} on a link without that offload")
        if not (checksum_start and gso_size and header_length):
            raise ValueError("a super-frame needs checksum_start, gso_size and header_length")

    async def wait_readable(self) -> None:
        wire = self._incoming
        if wire.frames or wire.closed or self._closed:
            await trio.lowlevel.checkpoint()
        else:
            await wire.readers.park()

    async def wait_writable(self) -> None:
        wire = self._outgoing
        if len(wire.frames) < wire.limit or wire.closed or self._closed:
            await trio.lowlevel.checkpoint()
        else:
            await wire.writers.park()

    def close(self) -> None:
        """Frames already sent still reach the other end; then its `receive` raises LinkClosed."""
        if not self._closed:
            self._closed = True
            self.release()
            self._outgoing.close()
            self._incoming.close()
            self._incoming.frames.clear()


def memory_link_pair(
    mtu: int = 1500, *, capabilities: LinkCapabilities | None = None, queue_frames: int = 256
) -> tuple[MemoryLink, MemoryLink]:
    """Two ends of one link; what one sends the other receives.

    `capabilities`, which brings its own mtu, is what both ends have; the default has no offload.  Each direction
    queues at most `queue_frames` frames.
    """
    if queue_frames < 1:
        raise ValueError(f"a link that queues {queue_frames} frames can never send one")
    able = capabilities if capabilities is not None else LinkCapabilities(mtu=mtu)
    there, back = _Wire(queue_frames), _Wire(queue_frames)
    return MemoryLink(back, there, able), MemoryLink(there, back, able)
