"""What a link to a guest is, and what it can do.

A link moves Ethernet frames and never looks inside one.  Nothing here waits except `wait_readable` and
`wait_writable`: a burst loop drains `receive` until it says None and only then waits, so that no task switch is paid
per frame.

A received frame is a view into a slot that the link owns.  The next `receive` may overwrite it, unless the owner of
the loop called `hold` first; `release` ends a burst and gives every held slot back.  So a view dies at the end of its
burst, and what must live longer is copied by whoever needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer: TypeAlias = bytes | bytearray | memoryview

ETHERNET_HEADER: Final = 14
MAX_FRAME: Final = 65535 + ETHERNET_HEADER  # the largest IPv4 datagram, framed


class Gso(IntEnum):
    """Generic segmentation offload: what one super-frame holds (virtio 1.2 section 5.1.6, `gso_type`)."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5


@dataclass(frozen=True, slots=True)
class LinkCapabilities:
    """What the two ends of a link agreed on.  It holds both ways."""

    mtu: int  # octets of the largest IP datagram in an ordinary frame
    checksum: bool = False  # a TCP or UDP checksum may be left partial (pseudo-header only)
    tso4: bool = False  # TCP over IPv4 super-frames
    tso6: bool = False  # TCP over IPv6 super-frames
    uso: bool = False  # UDP super-frames: equal datagrams, the last may be shorter
    reliable: bool = True  # a local pipe that cannot corrupt; checksums of received frames need no check


@dataclass(slots=True)
class LinkStatistics:
    """Counters since the link was made; frames and octets as the link saw them, super-frames counted once."""

    received_frames: int = 0
    received_bytes: int = 0
    sent_frames: int = 0
    sent_bytes: int = 0
    dropped_frames: int = 0  # the link would not take them; the sender kept or lost them
    errors: int = 0


class LinkClosed(Exception):
    """The other end of the link is gone."""


class Link(Protocol):
    """One guest's wire."""

    capabilities: LinkCapabilities
    statistics: LinkStatistics

    # Of the frame that `receive` returned last:

    @property
    def gso_type(self) -> int:
        """A Gso."""
        ...

    @property
    def gso_size(self) -> int:
        """Octets of payload per segment when gso_type is not NONE."""
        ...

    @property
    def checksum_partial(self) -> bool:
        """Its transport checksum covers the pseudo-header only."""
        ...

    def receive(self) -> memoryview | None:
        """The next frame, or None when there is none now or every slot is held.  Raises LinkClosed."""
        ...

    def hold(self) -> None:
        """Keep the frame that `receive` returned last until `release`."""
        ...

    def release(self) -> None:
        """End of the burst: every view that `receive` returned is dead."""
        ...

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        """Send one frame, the concatenation of `parts`.

        With `checksum_start` the transport checksum at checksum_start + checksum_offset is partial and the link
        completes it; with `gso_type` the frame is a super-frame whose first `header_length` octets are headers.  Both
        need the capability.  False when the link is full: the frame was not taken, wait for `wait_writable`.
        Raises LinkClosed.
        """
        ...

    async def wait_readable(self) -> None:
        """Return when `receive` may have a frame, or would raise."""
        ...

    async def wait_writable(self) -> None:
        """Return when `send` may take a frame, or would raise."""
        ...

    def close(self) -> None:
        """Give up every descriptor.  Idempotent."""
        ...
