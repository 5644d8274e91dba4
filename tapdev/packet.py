"""Connected packet sockets as links: one packet is one Ethernet frame.

SOCK_SEQPACKET is what BESS, user-mode Linux and slirp4netns speak; one end of a SOCK_DGRAM socket pair is what QEMU
(`-netdev dgram,local.type=fd`) and vfkit (`fd=`) speak.  There is no header and no offload, yet libkrun's guests send
super-frames of 64 KiB with partial checksums: whatever fits a slot is delivered.
"""

from __future__ import annotations

import errno
import mmap
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tapdev.link import ETHERNET_HEADER, MAX_FRAME, LinkCapabilities, LinkClosed, LinkStatistics
from tapdev.waiting import wait_or_closed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapdev.link import Buffer

Address: TypeAlias = str | bytes | tuple[str, int]  # a path, an abstract name, a UDP endpoint

RECEIVE_SIZE: Final = MAX_FRAME + 1  # one octet more than is allowed: a truncated packet fills it
SLOT_SIZE: Final = -(-RECEIVE_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE  # on pages of its own
SLOTS: Final = 64  # frames that a burst may hold at once, as on a TAP
ATTEMPTS: Final = range(64)  # packets that one `receive` may throw away before others have their turn

SEND_BUFFER: Final = 1 << 20  # octets, as gvproxy and vfkit: 15 frames of 64 KiB
RECEIVE_BUFFER: Final = 4 << 20

SHORTEST_DELAY: Final = 0.0001  # seconds before the first new attempt at a peer without room; doubles
LONGEST_DELAY: Final = 0.01
STUCK: Final = 5.0  # seconds: a peer that took nothing for so long loses frames instead of holding them

# The frame is lost as on a wire.
LOST: Final = frozenset({errno.EMSGSIZE, errno.ENOMEM, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN})


class Backoff:
    """The waits of a sender whose peer has no room, where readiness of the sender's socket says nothing about it."""

    __slots__ = ("delay", "since", "waits")

    def __init__(self) -> None:
        self.delay = 0.0  # seconds of the next wait; 0 when the peer took the last frame
        self.since = 0.0  # of the first refusal, on trio's clock
        self.waits = 0  # since then

    def refused(self) -> bool:
        """Note a refusal.  True when the peer is stuck."""
        now = trio.current_time()
        if not self.delay:
            self.delay, self.since, self.waits = SHORTEST_DELAY, now, 0
        return now - self.since >= STUCK

    async def wait(self, ended: trio.Event) -> None:
        """Sleep, longer each time; `ended` cuts it short."""
        with trio.move_on_after(self.delay):
            await ended.wait()
        self.delay = min(2 * self.delay, LONGEST_DELAY)


class PacketLink:
    """One connected SOCK_SEQPACKET or SOCK_DGRAM socket as a Link.  Takes over `sock`.

    A packet of 0 octets is the end of a SOCK_SEQPACKET link.  Every other packet that is no Ethernet frame of 14 to
    65549 octets counts as an error and is skipped.  Raises ValueError for a stream socket.
    """

    def __init__(self, sock: socket.socket, *, mtu: int) -> None:
        if sock.type == socket.SOCK_STREAM:
            raise ValueError("a packet link needs a SOCK_SEQPACKET or SOCK_DGRAM socket, this one is SOCK_STREAM")
        sock.setblocking(False)
        enlarge_buffers(sock)
        self.capabilities = LinkCapabilities(mtu=mtu)
        self.statistics = LinkStatistics()
        self.gso_type = 0
        self.gso_size = 0
        self.checksum_partial = False
        self._sock = sock
        self._fd = sock.fileno()
        self._peer: Address | None = None  # where to send when the socket is not connected
        self._has_end = sock.type != socket.SOCK_DGRAM
        self._reason: str | None = None  # why the link is closed
        self._ended = trio.Event()
        self._backoff = Backoff()
        self._memory = mmap.mmap(-1, SLOTS * SLOT_SIZE)  # touched only as far as a burst holds frames
        memory = memoryview(self._memory)
        self._slots = [memory[i * SLOT_SIZE : i * SLOT_SIZE + RECEIVE_SIZE] for i in range(SLOTS)]
        self._slot = 0

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> memoryview | None:
        if self._reason is not None:
            raise LinkClosed(self._reason)
        if self._slot == SLOTS:
            return None
        slot = self._slots[self._slot]
        for _ in ATTEMPTS:
            try:
                length = self._sock.recv_into(slot)
            except BlockingIOError:
                return None
            except OSError as error:
                raise self._end(error.strerror or str(error)) from error
            if ETHERNET_HEADER <= length <= MAX_FRAME:
                statistics = self.statistics
                statistics.received_frames += 1
                statistics.received_bytes += length
                return slot[:length]
            if not length and self._has_end:
                raise self._end("the other end closed it")
            self.statistics.errors += 1
        return None

    def hold(self) -> None:
        self._slot += 1

    def release(self) -> None:
        self._slot = 0

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        if self._reason is not None:
            raise LinkClosed(self._reason)
        try:
            length = self._sock.sendmsg(parts, (), 0, self._peer)
        except OSError as error:
            return self._not_sent(error)
        if self._backoff.delay:
            self._backoff.delay = 0.0
        statistics = self.statistics
        statistics.sent_frames += 1
        statistics.sent_bytes += length
        return True

    def _not_sent(self, error: OSError) -> bool:
        if isinstance(error, BlockingIOError) and self._peer is None:
            return False  # a connected socket tells when it has room
        if isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS:
            if not self._backoff.refused():
                return False
        elif error.errno not in LOST:
            raise self._end(error.strerror or str(error)) from error
        self.statistics.dropped_frames += 1
        return True

    async def wait_readable(self) -> None:
        await wait_or_closed(trio.lowlevel.wait_readable, self._fd if self._reason is None else -1)

    async def wait_writable(self) -> None:
        if self._backoff.delay and self._reason is None:
            await self._backoff.wait(self._ended)
        else:
            await wait_or_closed(trio.lowlevel.wait_writable, self._fd if self._reason is None else -1)

    def close(self) -> None:
        self._end("this end was closed")

    def _end(self, reason: str) -> LinkClosed:
        """Close for `reason`, unless it is closed; returns what to raise.

        Not only the task that noticed must know: no packet tells the others that a datagram peer is gone.
        """
        if self._reason is None:
            self._reason = f"packet link: {reason}"
            self._ended.set()
            self._give_up()
        return LinkClosed(self._reason)

    def _give_up(self) -> None:
        trio.lowlevel.notify_closing(self._fd)
        self._sock.close()
        self._fd = -1


def enlarge_buffers(sock: socket.socket) -> None:
    """Room for frames of 64 KiB; a kernel that refuses keeps what it has."""
    for option, size in ((socket.SO_SNDBUF, SEND_BUFFER), (socket.SO_RCVBUF, RECEIVE_BUFFER)):
        try:
            if sock.getsockopt(socket.SOL_SOCKET, option) < size:
                sock.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            pass
