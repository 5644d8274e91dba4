"""A flow whose other end is a host socket, without a task and without a stream between: the fast path of `relay`.

Octets of the guest go from the burst's buffer straight into the host's socket; only what the kernel did not take is
copied and kept, and the window does not reopen until it left.  Octets of the host are read when the guest's window has
room for them, kept until the guest acknowledged them, and sent in the segments that the link can take.

The socket is registered edge-triggered, so `_readable` and `_writable` remember what the kernel said until it says
EAGAIN.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.flow.host import reset
from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE
from vpnkit.flow.tcp_flow import FlowHost, TcpFlow
from vpnkit.proto.tcp.seq import MASK
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, CHECKSUM_OFFSET, PSH

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.flow.poller import Poller
    from vpnkit.proto.tcp.connection import TcpConnection
    from vpnkit.wire.tcp import FrameTemplate

log = logging.getLogger(__name__)


READ_SIZE: Final = 65536  # octets of a first read; it doubles while reads are filled
MAX_READ: Final = 1 << 20  # octets
FETCH_BUDGET: Final = 4  # reads of one socket per turn of the loop, 256 KiB: then the others
GATHER: Final = 64  # buffers of the backlog in one `sendmsg`


class SpliceFlow(TcpFlow):
    """The guest's connection and a host socket, joined."""

    __slots__ = (
        "_answered",
        "_backlog",
        "_hangup",
        "_host_failure",
        "_host_finished",
        "_poller",
        "_read_size",
        "_readable",
        "_released",
        "_shut",
        "_socket",
        "_writable",
        "first",
    )

    def __init__(
        self,
        guest: FlowHost,
        number: int,
        key: bytes,
        connection: TcpConnection,
        template: FrameTemplate,
        host: socket.socket,
        poller: Poller,
        *,
        inbound: bool = False,
    ) -> None:
        super().__init__(guest, number, key, connection, template, inbound=inbound)
        self._socket: socket.socket | None = host
        self._poller = poller
        self._answered: Callable[[SpliceFlow, int], None] | None = None
        self._backlog: deque[bytes | memoryview] = deque()
        self._read_size = READ_SIZE
        self._readable = False
        self._writable = True
        self._hangup = False
        self._host_finished = False  # the host said EOF
        self._host_failure = False  # it took no more
        self._released: trio.Event | None = None
        self._shut = False  # we told the host EOF
        self.first = b""  # what the guest is told before the host's first octet

    def wait_for_host(self, answered: Callable[[SpliceFlow, int], None]) -> None:
        """The host socket is connecting; `answered` is called once with the errno, 0 for success."""
        self._answered = answered
        self._register()

    def opened(self) -> None:
        """The host socket is connected."""
        if self._answered is None:
            self._register()
        self._answered = None
        self._readable = True  # the edge may be behind us

    def _register(self) -> None:
        if self._socket is not None:
            self._poller.register(self._socket.fileno(), self)

    # The poller's side

    def on_ready(self, events: int) -> None:
        if self._answered is not None:
            self._connect_event(events)
            return
        if events & READABLE:
            self._readable = True
        if events & WRITABLE:
            self._writable = True
        if events & HANGUP:
            self._hangup = True
        self.guest.touch(self)

    def _connect_event(self, events: int) -> None:
        if not events & (WRITABLE | HANGUP) or self._socket is None or self._answered is None:
            return
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number == 0:
            try:
                self._socket.getpeername()
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    return  # an event of the time before `connect`
                raise
        self._answered(self, number)

    def on_failure(self, error: BaseException) -> None:
        """The containment boundary of one connection: reset it, the others go on."""
        log.error("flow %d tcp: internal error", self.number, exc_info=error)
        self.guest.count("internal_error")
        self.connection.abort(f"internal error: {error!r}")
        self.guest.touch(self)

    # The burst loop's side

    def deliver(self, now: float) -> None:
        connection = self.connection
        if connection.state is State.SYN_HELD or (connection.state is State.SYN_SENT):
            return
        if connection.aborted:
            return
        receiver = connection.receiver
        inbox = receiver.inbox
        if inbox:
            self.active_at = now
            if not self._writable or self._backlog:
                self._keep(inbox)
            else:
                self._send_inbox(inbox)
            inbox.clear()
        if self._backlog and self._writable:
            self._send_backlog()
        if receiver.finished and not self._shut and not self._backlog:
            self._shut = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_WR)
                except OSError as error:
                    self._host_failed(error)

    def _send_inbox(self, inbox: list[memoryview | bytes]) -> None:
        host = self._socket
        if host is None:
            return
        try:
            taken = host.send(inbox[0]) if len(inbox) == 1 else host.sendmsg(inbox)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._host_failed(error)
            return
        self.bytes_to_host += taken
        for i, data in enumerate(inbox):
            if taken < len(data):
                self._writable = False
                self._keep([data[taken:], *inbox[i + 1 :]])
                return
            taken -= len(data)

    def _keep(self, inbox: list[memoryview | bytes]) -> None:
        octets = 0
        for data in inbox:
            octets += len(data)
            self._backlog.append(bytes(data))
        self.connection.receiver.keep(octets)

    def _send_backlog(self) -> None:
        host = self._socket
        backlog = self._backlog
        while backlog and host is not None:
            batch = [backlog[i] for i in range(min(len(backlog), GATHER))]
            try:
                taken = host.sendmsg(batch)
            except BlockingIOError:
                self._writable = False
                return
            except OSError as error:
                self._host_failed(error)
                return
            self.bytes_to_host += taken
            self.connection.consumed(taken)
            while backlog and taken >= len(backlog[0]):
                taken -= len(backlog.popleft())
            if taken:
                backlog[0] = memoryview(backlog[0])[taken:]
                self._writable = False
                return

    def fetch(self, now: float) -> None:
        connection = self.connection
        host = self._socket
        if self.first and connection.state.synchronized and not connection.aborted:
            connection.sender.write(self.first)
            self.first = b""
        if not self._readable or self._host_finished or host is None or connection.aborted:
            return
        if not connection.state.synchronized:
            return
        sender = connection.sender
        for _ in range(FETCH_BUDGET):
            limit = sender.room(now)
            if not limit:
                return
            if limit > self._read_size:
                limit = max(self._read_size - self._read_size % sender.limit, sender.limit)  # whole segments
            try:
                data = host.recv(limit)
            except BlockingIOError:
                self._readable = False
                return
            except OSError as error:
                self.transmit(now)  # what came before the reset goes before it
                self._host_failed(error)
                return
            if not data:
                self._readable = False
                self._host_finished = True
                connection.finish()
                return
            if self._hangup and len(data) < limit:
                sender.write(data)  # the end is likely next, and its FIN travels with the data
                continue
            if sender.may_stream and len(data) <= sender.window - sender.in_flight and not self.guest.link_is_full:
                self._stream(data, now)
            else:
                sender.write(data)
                if not self.transmit(now):
                    return
            if len(data) == limit:
                if self._read_size < MAX_READ:
                    self._read_size *= 2
            else:
                if self._read_size > READ_SIZE:
                    self._read_size //= 2
                self._readable = False  # the kernel had no more; an edge tells when it has
                break
        else:
            self.guest.touch(self)
        self.active_at = now

    def _stream(self, data: bytes, now: float) -> None:
        """The fast path of `write` and `transmit`: nothing waits and the window has room, so `data` leaves as it is,
        as one segment or as many, each with the ACK that is due."""
        connection = self.connection
        sender = connection.sender
        receiver = connection.receiver
        send = self.guest.link.send
        template = self.template
        length = len(data)
        sequence = sender.nxt
        acknowledgement = receiver.nxt
        window = receiver.window_field()
        mss = sender.mss
        octets = 0
        limit = sender.limit
        offload = self.guest.checksum_offload
        start = template.TRANSPORT
        part: bytes | memoryview = data
        view = memoryview(data) if length > limit else None
        while octets < length:
            if view is not None:
                part = view[octets : octets + limit]
            size = len(part)
            flags = ACK if octets + size < length else ACK | PSH
            if not offload:
                header = template.complete_header(sequence, acknowledgement, flags, window, part)
                sent = send((header, part))
            else:
                header = template.header(sequence, acknowledgement, flags, window, size)
                if size > mss:
                    sent = send((header, part), start, CHECKSUM_OFFSET, template.GSO, mss, template.SIZE)
                else:
                    sent = send((header, part), start, CHECKSUM_OFFSET)
            if not sent:
                break
            octets += size
            sequence = (sequence + size) & MASK
        if octets:
            receiver.told(True, now)
            self.bytes_to_guest += octets
        sender.streamed(data, octets, now)
        if octets < length:
            self.guest.link_full(self)

    def _host_failed(self, error: OSError) -> None:
        # The flags are for a connection that is closed already, and only waits for us.
        self._host_finished = self._shut = self._host_failure = True
        self._backlog.clear()
        self.connection.abort(f"host: {error.strerror or error}")

    @property
    def is_over(self) -> bool:
        return self._host_finished and not self._backlog and (self._shut or bool(self.connection.aborted))

    def release(self) -> None:
        host, self._socket = self._socket, None
        if host is None:
            return
        self._poller.unregister(host.fileno())
        if self.connection.aborted or self._host_failure or self._backlog:
            reset(host)  # an end would say that this was everything
        else:
            host.close()
        self._backlog.clear()
        if self._released is not None:
            self._released.set()

    async def wait_released(self) -> None:
        """Return when the flow has given up its host socket."""
        if self._socket is not None:
            if self._released is None:
                self._released = trio.Event()
            await self._released.wait()
