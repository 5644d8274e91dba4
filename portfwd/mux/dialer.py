"""The host's side: one connection to a guest's forwarder, made when somebody wants it and made again when it broke."""

from __future__ import annotations

import errno
import logging
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from portfwd.complaints import Complaints
from portfwd.mux.connection import Connection
from portfwd.mux.core import TooManyChannels
from portfwd.mux.udp import MAX_DATAGRAM, Datagram, Datagrams, encode
from portfwd.mux.wire import Destination, MuxError, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from portfwd.datagrams import Reply
    from portfwd.mux.connection import MuxStream
    from portfwd.spec import Spec

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10.0  # for the forwarder to be reached and to greet
RETRY_SECONDS: Final = 1.0
QUEUE_DATAGRAMS: Final = 256  # of one client that wait for his channel; more are lost


class Forwarder:
    """What leads through a guest's forwarder.  `run` is its life; the others may be called as long as it runs."""

    def __init__(self, name: str, reach: Callable[[], Awaitable[trio.abc.Stream]], *, handshake: bool = True) -> None:
        """`name` is for people, `reach` makes a connection and raises OSError; without `handshake` the forwarder is
        one of before 2019."""
        self.name = name
        self.connected = 0  # times
        self._reach = reach
        self._handshake = handshake
        self._connection: Connection | None = None
        self._wanted = trio.Event()
        self._tried = trio.Event()
        self._failure = "it was not tried yet"
        self._nursery: trio.Nursery | None = None
        self._complaints = Complaints(log)

    @property
    def channels(self) -> int:
        """Connections that are open, and clients of UDP forwards."""
        return len(self._connection.mux.channels) if self._connection is not None else 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect whenever a connection is wanted and there is none, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._wanted.wait()
                await self._once()
                await trio.sleep(RETRY_SECONDS)

    async def _once(self) -> None:
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await self._reach()
        except (OSError, trio.TooSlowError) as error:
            self._failed(error)
            return
        connection = Connection(stream, backwards=True, handshake=self._handshake)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._when_greeted, connection)
                await connection.run()
                nursery.cancel_scope.cancel()
            log.info("forwarder %s: the connection ended", self.name)
            self._failure = "it ended the connection"
        except* (MuxError, trio.BrokenResourceError):
            self._failed(connection.why)
        finally:
            self._connection = None
            self._wanted = trio.Event()
            self._announce()

    async def _when_greeted(self, connection: Connection) -> None:
        await connection.greeted.wait()
        log.info("forwarder %s: connected", self.name)
        self.connected += 1
        self._connection = connection
        self._announce()

    def _failed(self, reason: object) -> None:
        text = str(reason) or type(reason).__name__
        self._failure = "it did not answer in time" if isinstance(reason, trio.TooSlowError) else text
        self._complaints.warning("forwarder %s: %s", self.name, self._failure)
        self._wanted = trio.Event()
        self._announce()

    def _announce(self) -> None:
        self._tried.set()
        self._tried = trio.Event()

    async def connection(self) -> Connection:
        """The connection, made if there is none.  Raises OSError."""
        with trio.move_on_after(CONNECT_SECONDS):
            while self._connection is None or self._connection.is_broken:
                is_first = self._connection is None  # else one is going, and then there may be another
                self._wanted.set()
                await self._tried.wait()
                if is_first and self._connection is None:
                    break
        if self._connection is None:
            raise OSError(errno.EHOSTUNREACH, f"forwarder {self.name}: {self._failure}")
        return self._connection

    # Streams

    async def connect(self, spec: Spec) -> MuxStream:
        """A connector (portfwd.connect): a stream to `spec`'s end in the guest.  Raises OSError."""
        return self._opened(await self.connection(), destination_of(spec))

    def _opened(self, connection: Connection, destination: Destination) -> MuxStream:
        try:
            return connection.open(destination)
        except (TooManyChannels, trio.BrokenResourceError) as error:
            raise OSError(errno.EAGAIN, f"forwarder {self.name}: {error}") from error

    # Datagrams (portfwd.datagrams.Datagrams)

    def open(self, spec: Spec, client: tuple[str, int], reply: Reply) -> ForwarderPeer:
        """A channel for one client of a UDP forward.  Raises OSError when there is no connection now."""
        if self._connection is None or self._nursery is None:
            raise OSError(errno.EHOSTUNREACH, f"forwarder {self.name}: {self._failure}")
        peer = ForwarderPeer(self._opened(self._connection, destination_of(spec)), reply)
        self._nursery.start_soon(peer.run)
        return peer

    async def wait(self, spec: Spec, client: tuple[str, int]) -> bool:
        """Whether there is a connection after all."""
        try:
            await self.connection()
        except OSError:
            return False
        return True


class ForwarderPeer:
    """A client of a UDP forward: his channel, which says no addresses."""

    def __init__(self, stream: MuxStream, reply: Reply) -> None:
        self.lost = 0  # datagrams
        self._stream = stream
        self._reply = reply
        self._queue: deque[bytes] = deque()
        self._arrived = trio.Event()
        self._scope = trio.CancelScope()
        self._open = True

    @property
    def is_open(self) -> bool:
        return self._open

    def send_to_guest(self, data: bytes, segment: int) -> None:
        """See portfwd.datagrams.Peer."""
        for start in range(0, len(data) or 1, segment or len(data) or 1):
            piece = data[start : start + segment] if segment else data
            if len(self._queue) >= QUEUE_DATAGRAMS or len(piece) > MAX_DATAGRAM:
                self.lost += 1
                continue
            self._queue.append(encode(Datagram(piece)))
        self._arrived.set()

    def close(self) -> None:
        self._open = False
        self._scope.cancel()
        self._stream.abort()

    async def run(self) -> None:
        """Carry both ways until closed, or until the forwarder gives up."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    cutter = Datagrams()
                    while data := await self._stream.receive_some():
                        for datagram in cutter.feed(data):
                            self._reply((datagram.payload,), 0)
                    nursery.cancel_scope.cancel()
        except* (MuxError, trio.BrokenResourceError, trio.ClosedResourceError) as errors:
            log.debug("a forwarder's datagrams: %s", errors.exceptions[0])
        finally:
            self.close()

    async def _send(self) -> None:
        while True:
            while self._queue:
                await self._stream.send_all(self._queue.popleft())
            self._arrived = trio.Event()
            await self._arrived.wait()


def destination_of(spec: Spec) -> Destination:
    """Where in the guest `spec` leads; his own 127.0.0.1 where it says no address."""
    if spec.guest_path is not None:
        return Destination(Protocol.UNIX, path=spec.guest_path)
    protocol = Protocol.UDP if spec.protocol == "udp" else Protocol.TCP
    return Destination(protocol, ip_address(spec.guest_address or "127.0.0.1"), spec.guest_port)
