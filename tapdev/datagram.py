"""Unconnected datagram sockets on which peers come and go: vfkit, krunkit and QEMU's `-netdev dgram`.

One datagram is one Ethernet frame, and one peer is served at a time.  A datagram socket has no end of file and no
accept: a peer is there once it sends, and gone when the kernel refuses what is sent to it, or when another one sends
and the old one's socket proves dead.

The socket is never connected, because a connected one refuses (EPERM) the next incarnation of a VM, which has another
name; and replies leave from it, because clients such as Virtualization.framework connect to it.  The price: its
readiness says nothing about room at the peer, so a sender without room tries again after a bounded, growing delay.
Only Linux can tell (see `PeerLink._room`).

Over UDP nothing ever says that the peer is gone.  There another port of the same host takes over when the old one has
said nothing for `SILENCE` seconds while the new one sent; a datagram of another host never does.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import sys
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import trio

from tapdev.link import ETHERNET_HEADER, MAX_FRAME, LinkClosed
from tapdev.packet import ATTEMPTS, LONGEST_DELAY, RECEIVE_SIZE, SLOTS, Address, PacketLink, enlarge_buffers

if TYPE_CHECKING:
    from tapdev.link import Link

__all__ = ["DatagramPort", "PacketLink", "PeerLink"]

log = logging.getLogger(__name__)

PROBE_INTERVAL: Final = 0.1  # seconds between two looks at whether the peer lives: what strangers can make us spend
SILENCE: Final = 10.0  # seconds after which a UDP peer may be displaced
UDP_PAYLOAD: Final = 65507  # octets: 65535 - 20 - 8
TELLS_ROOM: Final = sys.platform == "linux"  # a unix datagram socket is writable when its peer's queue has room
TOLD_WAITS: Final = 2  # waits for room that are believed in a row, before sleeping
# Where no socket is any more, or one of another kind.
DEAD: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR, errno.EPROTOTYPE, errno.ENOTSOCK})


class DatagramPort:
    """A bound AF_UNIX datagram or UDP (IPv4) socket.  Takes over `sock`; whoever bound its path unlinks it.

    A peer's first datagram may be exactly `hello`, which is eaten.  With `remote` nobody else is served; it is the
    name that the peer binds: a path, an abstract name (octets that begin with NUL) or (host, port).  Else the peer is
    learned from what arrives; one whose socket has no name cannot be answered and is ignored.  Raises ValueError for
    another kind of socket.
    """

    def __init__(self, sock: socket.socket, *, mtu: int, hello: bytes = b"", remote: Address | None = None) -> None:
        if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_UNIX, socket.AF_INET):
            raise ValueError(
                f"a datagram port needs a unix or UDP/IPv4 datagram socket, not {sock.family!r} {sock.type!r}"
            )
        if isinstance(remote, tuple):
            ipaddress.IPv4Address(remote[0])  # else every frame would ask the resolver
        if remote is not None and isinstance(remote, tuple) != (sock.family == socket.AF_INET):
            raise ValueError(f"a remote of {sock.family.name} cannot be {remote!r}: a path or (address, port)")
        sock.setblocking(False)
        enlarge_buffers(sock)
        self.sock = sock
        self.hello = hello
        self.remote = _as_received(remote)
        self.mtu = mtu if sock.family == socket.AF_UNIX else min(mtu, UDP_PAYLOAD - ETHERNET_HEADER)
        self.errors = 0  # datagrams that arrived while nobody was served and made nobody a peer
        self._link: PeerLink | None = None
        self._offered = self.remote is None  # the link to a known peer was given out without waiting for it
        self._next: tuple[bytes, Address] | None = None  # the datagram that displaced the last peer, and its sender
        self._probe_after = -float("inf")
        self._complaints: set[str] = set()  # the kinds that were logged: each once
        self._closed = False

    async def accept(self) -> Link:
        """Wait until the last link is closed and a peer is there; returns its link.

        A peer is there when it sends; the one named `remote` also at the very first call.  One task at a time.
        Raises LinkClosed when the port is closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._link is not None:
                await self._link.wait_ended()
                continue
            if not self._offered and self.remote is not None:
                self._offered = True
                self._link = PeerLink(self, self.remote, greeting=self.hello)
                return self._link
            datagram = await self._datagram()
            if datagram is None:
                continue
            self._link = self._meet(*datagram)
            if self._link is not None:
                return self._link
            self.errors += 1
        raise LinkClosed("datagram port: it was closed")

    async def _datagram(self) -> tuple[bytes, Address | None] | None:
        """The next datagram and its sender, or None when something else may have happened."""
        if self._next is not None:
            datagram, self._next = self._next, None
            return datagram
        try:
            await trio.lowlevel.wait_readable(self.sock)
            return self.sock.recvfrom(RECEIVE_SIZE)
        except (BlockingIOError, trio.ClosedResourceError):
            return None
        except OSError as error:  # the queue's error of an earlier datagram
            log.debug("datagram port: %s", error.strerror)
            return None

    def _meet(self, data: bytes, sender: Address | None) -> PeerLink | None:
        """The link to `sender`, whose first datagram is `data`, if it can be a peer."""
        if not self._welcome(sender) or not sender:
            return None
        if self.hello and data == self.hello:
            data = b""
        elif not ETHERNET_HEADER <= len(data) <= MAX_FRAME:
            return None
        if is_dead(sender):
            return None  # the last words of the peer that is gone
        return PeerLink(self, sender, first=data)

    def _welcome(self, sender: Address | None) -> bool:
        """Whether `sender` may be a peer at all."""
        if not sender:
            self._complain("nameless", "a sender without a name cannot be answered: it must bind its socket to a path")
            return False
        if self.remote is None or sender == self.remote or _same_file(sender, self.remote):
            return True
        self._complain("other", f"datagrams of {sender!r} are ignored: only {self.remote!r} is served")
        return False

    def _complain(self, kind: str, message: str) -> None:
        if kind not in self._complaints:
            self._complaints.add(kind)
            log.warning("datagram port %r: %s", self.sock.getsockname(), message)

    def stranger(self, link: PeerLink, data: memoryview, sender: Address | None) -> Stranger:
        """What becomes of a datagram that is not of `link`'s peer, looked at no more often than PROBE_INTERVAL."""
        now = trio.current_time()
        if now < self._probe_after:
            return Stranger.IGNORED
        self._probe_after = now + PROBE_INTERVAL
        if not self._welcome(sender) or not sender:
            return Stranger.IGNORED
        if self.remote is not None:
            return Stranger.ALIAS
        if not link.peer_is_dead(sender, now):
            return Stranger.IGNORED
        self._next = bytes(data), sender
        return Stranger.SUCCESSOR

    def forget(self, link: PeerLink) -> None:
        """`link` was closed: the next peer may come."""
        if self._link is link:
            self._link = None

    def close(self) -> None:
        """Close the link that is served, and the socket.  Idempotent."""
        if not self._closed:
            self._closed = True
            if self._link is not None:
                self._link.close()
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class Stranger(Enum):
    """What the sender of a datagram is to a link whose peer has another name."""

    IGNORED = auto()
    ALIAS = auto()  # the peer, which spells its path otherwise than we do
    SUCCESSOR = auto()  # the peer is dead; this is the next one


class PeerLink(PacketLink):
    """One peer of a DatagramPort.  Made by `DatagramPort.accept`.

    `first` is a frame that was read already; `greeting` is eaten if it comes before any frame.
    """

    def __init__(self, port: DatagramPort, peer: Address, *, first: bytes = b"", greeting: bytes = b"") -> None:
        super().__init__(port.sock, mtu=port.mtu)
        self._port = port
        self._peer = peer
        self._name = peer  # as the kernel spells it
        self._first = first
        self._greeting = greeting
        self._sensor: socket.socket | None = None
        self._told = False  # the last refusal was one whose end the kernel tells
        self._heard = -1  # received frames at the last look
        self._heard_at = 0.0

    def receive(self) -> memoryview | None:
        if self._reason is not None:
            raise LinkClosed(self._reason)
        if self._slot == SLOTS:
            return None
        slot = self._slots[self._slot]
        if self._first:
            length = len(self._first)
            slot[:length] = self._first
            self._first = b""
            return self._frame(slot, length)
        for _ in ATTEMPTS:
            try:
                length, sender = self._sock.recvfrom_into(slot)
            except BlockingIOError:
                return None
            except OSError as error:
                raise self._end(error.strerror or str(error)) from error
            if sender != self._name and not self._is_peer(slot[:length], sender):
                self.statistics.errors += 1
            elif ETHERNET_HEADER <= length <= MAX_FRAME:
                return self._frame(slot, length)
            elif not self._greeting or slot[:length] != self._greeting or self.statistics.received_frames:
                self.statistics.errors += 1
            else:
                self._greeting = b""
        return None

    def _frame(self, slot: memoryview, length: int) -> memoryview:
        statistics = self.statistics
        statistics.received_frames += 1
        statistics.received_bytes += length
        return slot[:length]

    def _is_peer(self, data: memoryview, sender: Address | None) -> bool:
        """Whether `sender` is our peer under another name.  Raises LinkClosed when it comes in its place."""
        found = self._port.stranger(self, data, sender)
        if found is Stranger.SUCCESSOR:
            raise self._end(f"{self._peer!r} is gone, {sender!r} came")
        if found is Stranger.ALIAS and sender:
            self._name = sender
            return True
        return False

    def peer_is_dead(self, successor: Address, now: float) -> bool:
        """Whether `successor` may take the peer's place."""
        if not isinstance(self._peer, tuple) or not isinstance(successor, tuple):
            return self._peer is not None and is_dead(self._peer)
        if self._heard != self.statistics.received_frames:
            self._heard, self._heard_at = self.statistics.received_frames, now
        return successor[0] == self._peer[0] and now - self._heard_at >= SILENCE

    def _not_sent(self, error: OSError) -> bool:
        self._told = TELLS_ROOM and isinstance(error, BlockingIOError)
        return super()._not_sent(error)

    async def wait_readable(self) -> None:
        if self._first:
            await trio.lowlevel.checkpoint()
        else:
            await super().wait_readable()

    async def wait_writable(self) -> None:
        backoff = self._backoff
        if self._reason is not None or not backoff.delay:
            await trio.lowlevel.checkpoint()
            return
        backoff.waits += 1
        room = self._room() if self._told and backoff.waits <= TOLD_WAITS else None
        if room is None:
            self._close_sensor()
            await backoff.wait(self._ended)
            return
        with trio.move_on_after(LONGEST_DELAY):
            try:
                await trio.lowlevel.wait_writable(room)
            except trio.ClosedResourceError:
                pass

    def _room(self) -> socket.socket | None:
        """A socket that is writable when the peer has room again; None when there is none.

        Another unix socket connected to the peer is writable when the peer's queue is not full.  Where that is
        refused, because the peer connected to us, the queue has no limit but our own send buffer; likewise over UDP.
        """
        if isinstance(self._peer, tuple) or self._peer is None:
            return self._sock
        if self._sensor is None:
            try:
                sensor = _connect(self._peer)
            except OSError as error:
                return self._sock if error.errno == errno.EPERM else None
            self._sensor = sensor
        return self._sensor

    def _close_sensor(self) -> None:
        if self._sensor is not None:
            sensor, self._sensor = self._sensor, None
            trio.lowlevel.notify_closing(sensor)
            sensor.close()

    async def wait_ended(self) -> None:
        """Return when the link is closed."""
        await self._ended.wait()

    def _give_up(self) -> None:
        """The socket stays the port's; waits on it end all the same."""
        self._close_sensor()
        trio.lowlevel.notify_closing(self._fd)
        self._port.forget(self)


def is_dead(peer: Address) -> bool:
    """Whether no socket is bound to `peer` any more.  Never true of a UDP endpoint: nobody can know."""
    if isinstance(peer, tuple):
        return False
    try:
        _connect(peer).close()
    except OSError as error:
        return error.errno in DEAD
    return False


def _connect(peer: str | bytes) -> socket.socket:
    """A socket of our own connected to the unix datagram socket `peer`.  Raises OSError: EPERM when that one is
    connected to another, ECONNREFUSED or ENOENT when it is dead."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(peer)
    except BaseException:
        sock.close()
        raise
    return sock


def _as_received(name: Address | None) -> Address | None:
    """`name` as the socket module returns it: paths are str, abstract names bytes."""
    if isinstance(name, bytes) and not name.startswith(b"\0"):
        return os.fsdecode(name)
    if isinstance(name, str) and name.startswith("\0"):
        return os.fsencode(name)
    return name


def _same_file(one: Address, other: Address) -> bool:
    """Whether two paths, one perhaps relative or through a symbolic link, are one socket."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
