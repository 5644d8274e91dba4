"""A forward of datagrams: every client is a conversation with the guest, and answers leave by the port that it called.

A conversation is forgotten when it was silent for a time, and when another needs its place.  Nobody waits for a guest
longer than it takes to find out that there is none: what came meanwhile is lost, as on a network.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import trio

from portfwd.complaints import Complaints
from portfwd.forward import Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from portfwd.spec import Spec

    Buffer: TypeAlias = bytes | memoryview
    # Takes an answer to the client, in parts: one datagram, or several of so many octets of which the last may be
    # shorter.
    Reply: TypeAlias = Callable[[Sequence[Buffer], int], None]

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 300.0  # RFC 4787 REQ-5c
MAX_CLIENTS: Final = 1024  # of one forward; the longest silent one makes place
REFRESH_SECONDS: Final = 1.0  # how exactly "longest silent" is known
BUDGET: Final = 64  # reads of one socket between two checkpoints
BACK_OFF: Final = 0.1  # seconds, after an error that is not the network's
MAX_DATAGRAM: Final = 65535
RECEIVE_BUFFER: Final = 1 << 20
SEND_BUFFER: Final = 1 << 18  # on the BSDs it limits a datagram, to 9216 octets unless it is set

LINUX: Final = sys.platform == "linux"
UDP_SEGMENT: Final = 103  # linux/udp.h, level IPPROTO_UDP: one buffer is many datagrams
UDP_GRO: Final = 104
IPV6_PKTINFO: Final = getattr(socket, "IPV6_PKTINFO", None)
IP_PKTINFO: Final = 8  # linux/in.h: ifindex, the local address, the header's destination
CUT_ERRNOS: Final = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT})


class Peer(Protocol):
    """A client, as the guest sees it."""

    @property
    def is_open(self) -> bool:
        """False when the guest is gone."""
        ...

    def send_to_guest(self, data: bytes, segment: int) -> None:
        """Take `data` to the guest: datagrams of `segment` octets, the last may be shorter; 0: one.  Does not wait."""
        ...

    def close(self) -> None: ...


class Datagrams(Protocol):
    """Where UDP forwards lead."""

    def open(self, spec: Spec, client: tuple[str, int], reply: Reply) -> Peer:
        """A way to `spec`'s guest for `client`.  Raises OSError when there is none now."""
        ...

    async def wait(self, spec: Spec, client: tuple[str, int]) -> bool:
        """After `open` failed: whether another try is worth it, found out within seconds."""
        ...


class _Session:
    __slots__ = ("active_at", "ancillary", "client", "key", "peer")

    def __init__(self, key: object, client: Any, ancillary: list[tuple[int, int, bytes]]) -> None:
        self.key = key
        self.client = client
        self.ancillary = ancillary
        self.peer: Peer | None = None
        self.active_at = trio.current_time()


class DatagramForward(Forward):
    """A UDP port whose clients go to `datagrams`."""

    def __init__(self, spec: Spec, sockets: list[socket.socket], datagrams: Datagrams) -> None:
        super().__init__(spec, [made.getsockname()[:2] for made in sockets])
        self.lost = 0  # answers that the host did not take
        self._datagrams = datagrams
        self._idle = float(spec.options.idle or IDLE_SECONDS)
        self._refresh_after = min(REFRESH_SECONDS, self._idle / 10)
        self._sockets = [trio.socket.from_stdlib_socket(made) for made in sockets]
        self._raw = sockets
        self._gro = False
        self._sessions: OrderedDict[object, _Session] = OrderedDict()  # the longest silent first
        self._arrived = trio.Event()
        self._failed = Complaints(log)
        self._full = Complaints(log)
        for made in sockets:
            self._prepare(made)

    @property
    def connections(self) -> int:
        return len(self._sessions)

    def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._run)

    def close(self, *, connections: bool = False) -> None:
        """Forget every client: without the socket nothing can be answered, so `connections` says nothing new.
        Idempotent."""
        for made in self._sockets:
            made.close()
        while self._sessions:
            self._forget(next(iter(self._sessions.values())))

    def _prepare(self, made: socket.socket) -> None:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        address = made.getsockname()[0]
        if address == "::" and IPV6_PKTINFO is not None:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif address == "0.0.0.0" and LINUX:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if LINUX:
            made.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire)
                async with trio.open_nursery() as reading:
                    for made, raw in zip(self._sockets, self._raw, strict=True):
                        reading.start_soon(self._read, made, raw)
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    # From clients

    async def _read(self, made: trio.socket.SocketType, raw: socket.socket) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(made)
                for _ in range(BUDGET):
                    data, ancillary, _, client = raw.recvmsg(MAX_DATAGRAM, 128)
                    if not await self._deliver(raw, data, ancillary, client):
                        self._drop_waiting(raw)
                        break
            except (BlockingIOError, InterruptedError):
                continue
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if raw.fileno() < 0:
                    return
                self._failed.warning("forward %s: %s", self.spec, error.strerror)
                await trio.sleep(BACK_OFF)

    async def _deliver(
        self, raw: socket.socket, data: bytes, ancillary: list[tuple[int, int, bytes]], client: Any
    ) -> bool:
        """Take what `client` sent to the guest.  False when there is no guest."""
        segment, local = _understood(ancillary)
        key = (raw.fileno(), client, local[0][2] if local else b"")
        session = self._sessions.get(key)
        if session is None or session.peer is None or not session.peer.is_open:
            session = await self._open(raw, key, client, local)
            if session is None:
                return False
        self._refresh(session)
        assert session.peer is not None
        session.peer.send_to_guest(data, segment if len(data) > segment else 0)
        return True

    async def _open(
        self, raw: socket.socket, key: object, client: Any, local: list[tuple[int, int, bytes]]
    ) -> _Session | None:
        if (old := self._sessions.get(key)) is not None:
            self._forget(old)
        session = _Session(key, client, local)

        def reply(parts: Sequence[Buffer], segment: int) -> None:
            self._refresh(session)
            self._send(raw, parts, segment, session)

        for attempt in range(2):
            try:
                session.peer = self._datagrams.open(self.spec, client[:2], reply)
                break
            except OSError as error:
                if attempt or not await self._datagrams.wait(self.spec, client[:2]):
                    self.failures += 1
                    self._failed.warning("forward %s: a datagram was lost: %s", self.spec, error)
                    return None
        if raw.fileno() < 0:  # closed meanwhile
            assert session.peer is not None
            session.peer.close()
            return None
        if len(self._sessions) >= MAX_CLIENTS:
            self.refused += 1
            self._full.warning("forward %s: more than %d clients: the longest silent goes", self.spec, MAX_CLIENTS)
            self._forget(next(iter(self._sessions.values())))
        self._sessions[key] = session
        self.accepted += 1
        self._arrived.set()
        return session

    def _drop_waiting(self, raw: socket.socket) -> None:
        """There is no guest: what waits is as lost as what came, and not delivered when he comes back."""
        for _ in range(BUDGET):
            raw.recvmsg(MAX_DATAGRAM)  # BlockingIOError ends it
            self.failures += 1

    # To clients

    def _send(self, raw: socket.socket, parts: Sequence[Buffer], segment: int, session: _Session) -> None:
        if raw.fileno() < 0:
            return
        ancillary = session.ancillary
        if segment and LINUX:
            ancillary = [*ancillary, (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
        try:
            if not segment or LINUX:
                raw.sendmsg(parts, ancillary, 0, session.client)
                return
        except OSError as error:
            if not segment or error.errno not in CUT_ERRNOS:
                self.lost += 1  # a full queue, or a client whose network says no: the datagram is lost
                return
        data = b"".join(parts)
        for start in range(0, len(data), segment):  # the way out cannot cut trains
            self._send(raw, (data[start : start + segment],), 0, session)

    # Time

    def _refresh(self, session: _Session) -> None:
        now = trio.current_time()
        if now - session.active_at > self._refresh_after and self._sessions.get(session.key) is session:
            session.active_at = now
            self._sessions.move_to_end(session.key)

    async def _expire(self) -> None:
        while True:
            if not self._sessions:
                self._arrived = trio.Event()
                await self._arrived.wait()
                continue
            oldest = next(iter(self._sessions.values()))
            if oldest.active_at + self._idle <= trio.current_time():
                self._forget(oldest)
            else:
                await trio.sleep_until(oldest.active_at + self._idle)

    def _forget(self, session: _Session) -> None:
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        if session.peer is not None:
            session.peer.close()


def _understood(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, list[tuple[int, int, bytes]]]:
    """The size of the datagrams in a train, 0 for one alone; and what says, sent back, where the client's one went."""
    segment = 0
    local: list[tuple[int, int, bytes]] = []
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            segment = struct.unpack_from("=i", data)[0]
        elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            local = [(level, kind, bytes(4) + data[4:8] + bytes(4))]
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            is_link_local = data[0] == 0xFE and data[1] & 0xC0 == 0x80
            local = [(level, kind, data if is_link_local else data[:16] + bytes(4))]
    return segment, local
