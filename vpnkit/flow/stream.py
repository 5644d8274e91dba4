"""The guest's TCP connection as a trio stream, for services and for every connector that is not a plain socket."""

from __future__ import annotations

import operator
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.flow.conflict import ConflictDetector
from vpnkit.flow.tcp_flow import FlowHost, TcpFlow
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    from vpnkit.proto.tcp.connection import TcpConnection
    from vpnkit.wire.tcp import FrameTemplate

HIGH_WATER: Final = 1 << 18  # octets that may wait for the guest before `send_all` waits


class StreamFlow(TcpFlow):
    """The flow behind a GuestStream."""

    __slots__ = ("_changed", "incoming", "reading_done")

    def __init__(
        self,
        guest: FlowHost,
        number: int,
        key: bytes,
        connection: TcpConnection,
        template: FrameTemplate,
        *,
        inbound: bool = False,
    ) -> None:
        super().__init__(guest, number, key, connection, template, inbound=inbound)
        self.incoming: deque[bytes] = deque()
        self.reading_done = False
        self._changed = trio.lowlevel.ParkingLot()

    def deliver(self, now: float) -> None:
        connection = self.connection
        if not connection.is_open:
            self._changed.unpark_all()
            return
        receiver = connection.receiver
        if receiver.inbox and self.reading_done:
            receiver.inbox.clear()
            connection.abort("the guest sent more than was read")  # SHLD-3
        elif receiver.inbox:
            self.active_at = now
            for data in receiver.inbox:
                copy = bytes(data)
                receiver.keep(len(copy))
                self.bytes_to_host += len(copy)
                self.incoming.append(copy)
            receiver.inbox.clear()
        self._changed.unpark_all()

    def fetch(self, now: float) -> None:
        pass  # `send_all` writes when it wants

    @property
    def is_over(self) -> bool:
        return True

    def release(self) -> None:
        self._changed.unpark_all()

    def on_failure(self, error: BaseException) -> None:
        self.guest.count("internal_error")
        self.abort(f"internal error: {error!r}")

    async def wait_changed(self) -> None:
        await self._changed.park()


class GuestStream(trio.abc.HalfCloseableStream):
    """One connection of the guest.  One task may read while another writes; not more."""

    def __init__(self, flow: StreamFlow) -> None:
        self._flow = flow
        self._closed = False
        self._eof_sent = False
        self._reading = ConflictDetector("another task is reading from this stream")
        self._writing = ConflictDetector("another task is writing to this stream")

    @property
    def key(self) -> bytes:
        """The guest's and the called address, 4 or 16 octets each, and the two ports."""
        return self._flow.key

    @property
    def guest(self) -> FlowHost:
        """Whose connection it is."""
        return self._flow.guest

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._flow.connection.aborted:
            raise trio.BrokenResourceError(self._flow.connection.aborted)

    async def wait_open(self) -> None:
        """Return when the handshake is done.  Raises BrokenResourceError when the guest refused or was silent."""
        while not self._flow.connection.is_open:
            self._check()
            await self._flow.wait_changed()
        self._check()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Octets in order, or b"" when the guest has finished."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._reading:
            await trio.lowlevel.checkpoint()
            flow = self._flow
            connection = flow.connection
            while not flow.incoming:
                self._check()
                if connection.state is State.CLOSED or (connection.is_open and connection.receiver.finished):
                    return b""
                await flow.wait_changed()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            data = flow.incoming.popleft()
            if max_bytes is not None and len(data) > max_bytes:
                flow.incoming.appendleft(data[max_bytes:])
                data = data[:max_bytes]
            connection.consumed(len(data))
            if connection.receiver.ack_due:
                flow.guest.settle_now(flow)
            return data

    async def _wait_writable(self) -> None:
        connection = self._flow.connection
        while True:
            self._check()
            if self._eof_sent:
                raise trio.ClosedResourceError("send_eof was called")
            if connection.is_closed:
                raise trio.BrokenResourceError("the guest closed the connection")
            if connection.is_open and connection.sender.queued < HIGH_WATER:
                return
            await self._flow.wait_changed()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue all of `data`; waits while too much is unacknowledged."""
        with self._writing:
            await trio.lowlevel.checkpoint()
            await self._wait_writable()
            flow = self._flow
            view = memoryview(bytes(data))  # the caller may reuse its buffer
            while len(view):
                await self._wait_writable()
                share = view[: HIGH_WATER - flow.connection.sender.queued]
                view = view[len(share) :]
                flow.connection.write(share)
                flow.guest.settle_now(flow)

    async def wait_send_all_might_not_block(self) -> None:
        with self._writing:
            await trio.lowlevel.checkpoint()
            await self._wait_writable()

    async def send_eof(self) -> None:
        """A FIN follows what was sent."""
        with self._writing:
            await trio.lowlevel.checkpoint()
            await self.wait_open()
            self._finish()

    def _finish(self) -> None:
        flow = self._flow
        if not self._eof_sent and flow.connection.is_open and not flow.connection.is_closed:
            self._eof_sent = True
            flow.connection.finish()
            flow.guest.settle_now(flow)

    def abort(self) -> None:
        """Reset the connection.  Never blocks; idempotent."""
        if not self._closed:
            self._closed = True
            self._flow.connection.abort("aborted")
            self._flow.guest.settle_now(self._flow)

    async def aclose(self) -> None:
        """Say FIN if that was not said, and reset when octets of the guest were not read."""
        if not self._closed:
            flow = self._flow
            if flow.incoming or not flow.connection.is_open:
                self.abort()
            else:
                self._finish()
                self._closed = True
                flow.connection.linger(flow.guest.now())
                flow.reading_done = True
                flow.guest.settle_now(flow)
            flow.release()
        await trio.lowlevel.checkpoint()
