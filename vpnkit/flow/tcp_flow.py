"""One TCP connection of the guest in the burst loop: the core, the headers that it needs, and the other end.

A flow is settled at the end of each burst that touched it: what came is delivered, what may go is fetched, the
segments leave, the timer is set.  What "the other end" is, a subclass knows: a host socket (`splice`), or a trio
stream for whoever wants to read and write (`stream`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.seq import HALF, MASK
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, CHECKSUM_OFFSET

if TYPE_CHECKING:
    from tapdev.link import Link
    from vpnkit.proto.tcp.connection import OutSegment, TcpConnection
    from vpnkit.wire.tcp import FrameTemplate

NOTHING: Final = memoryview(b"")


class FlowHost(Protocol):
    """What a flow needs of the guest that it belongs to."""

    link: Link
    checksum_offload: bool
    link_is_full: bool  # it refused a frame, and did not say since that it takes more

    def now(self) -> float:
        """Seconds, of the guest's clock."""
        ...

    def touch(self, flow: TcpFlow) -> None:
        """Settle `flow` at the end of this burst."""
        ...

    def settle_now(self, flow: TcpFlow) -> None:
        """Settle `flow` from a task that is not the burst loop."""
        ...

    def update_deadline(self, flow: TcpFlow) -> None: ...

    def link_full(self, flow: TcpFlow) -> None:
        """The link took no more; settle `flow` again when it does."""
        ...

    def forget(self, flow: TcpFlow) -> None:
        """The flow is over, on both sides."""
        ...

    def count(self, what: str) -> None:
        """One more of `what`."""
        ...


class TcpFlow:
    """The half of a flow that faces the guest."""

    __slots__ = (
        "active_at",
        "bytes_to_guest",
        "bytes_to_host",
        "connection",
        "guest",
        "inbound",
        "key",
        "number",
        "opened_at",
        "pending_ack",
        "queued_at",
        "remote",
        "template",
        "touched",
    )

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
        """`key` is source and destination address and port as the guest sends them, 12 or 36 octets."""
        self.guest = guest
        self.number = number
        self.key = key
        self.connection = connection
        self.template = template
        self.inbound = inbound  # we called the guest
        self.touched = False
        self.pending_ack: tuple[int, int, int] | None = None  # sequence, acknowledgement, window
        self.queued_at = NEVER
        self.opened_at = self.active_at = guest.now()
        self.bytes_to_host = 0
        self.bytes_to_guest = 0
        self.remote = ""  # what the other end is, for people

    # What a subclass adds

    def deliver(self, now: float) -> None:
        """Take the inbox to the other end."""
        raise NotImplementedError

    def fetch(self, now: float) -> None:
        """Bring what the other end has, as far as there is room, and send it."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """The other end needs this flow no more, given that the guest's end is closed."""
        raise NotImplementedError

    def release(self) -> None:
        """Give up the other end's resources.  Idempotent."""
        raise NotImplementedError

    # The burst loop's side

    def settle(self, now: float) -> None:
        connection = self.connection
        if self.pending_ack is not None:
            self.take_pending_ack(now)
        self.deliver(now)
        self.fetch(now)
        if self.transmit(now):
            state = connection.state
            if state.synchronized and state is not State.TIME_WAIT:
                sender = connection.sender
                if sender.deadline == NEVER and sender.una != sender.end:
                    sender.needs_timer(now)
            elif connection.is_closed and (connection.aborted or self.is_over):
                self.guest.forget(self)
                return
        if connection.next_deadline() < self.queued_at:
            self.guest.update_deadline(self)

    def acknowledged(self, sequence: int, acknowledgement: int, window: int, now: float) -> None:
        """A segment that is an ACK and nothing else.  Of a row of them that each acknowledge more, only the last is
        looked at, at the end of the burst; equal ones are duplicates, which all count."""
        pending = self.pending_ack
        if pending is not None and (pending[0] != sequence or not 0 < (acknowledgement - pending[1]) & MASK < HALF):
            self.take_pending_ack(now)
        self.pending_ack = (sequence, acknowledgement, window)

    def take_pending_ack(self, now: float) -> None:
        """The ACK that waits for the end of the burst, before what came after it."""
        pending = self.pending_ack
        if pending is not None:
            self.pending_ack = None
            self.connection.receive(*pending[:2], ACK, pending[2], NOTHING, now)

    def transmit(self, now: float) -> bool:
        """Let what should leave leave.  False when the link is full."""
        connection = self.connection
        while (segment := connection.next_segment()) is not None:
            if self.guest.link_is_full or not self._send(segment):
                self.guest.link_full(self)
                return False
            connection.sent(segment, now)
        return True

    def _send(self, segment: OutSegment) -> bool:
        sequence, flags, payload, options = segment
        connection = self.connection
        acknowledgement, window = connection.acknowledgement_fields(flags)
        template = self.template
        guest = self.guest
        if options:
            return guest.link.send((template.with_options(sequence, acknowledgement, flags, window, options),))
        length = len(payload)
        if not guest.checksum_offload:
            header = template.complete_header(sequence, acknowledgement, flags, window, payload)
            sent = guest.link.send((header, payload) if length else (header,))
        else:
            header = template.header(sequence, acknowledgement, flags, window, length)
            start = template.TRANSPORT
            if not length:
                sent = guest.link.send((header,), start, CHECKSUM_OFFSET)
            elif length > (mss := connection.sender.mss):
                sent = guest.link.send((header, payload), start, CHECKSUM_OFFSET, template.GSO, mss, template.SIZE)
            else:
                sent = guest.link.send((header, payload), start, CHECKSUM_OFFSET)
        if not sent:
            return False
        self.bytes_to_guest += length
        return True

    # The deadline queue's side

    def next_deadline(self) -> float:
        return self.connection.next_deadline()

    def on_deadline(self, now: float) -> None:
        self.connection.on_deadline(now)
        self.guest.touch(self)

    def abort(self, reason: str) -> None:
        """End the flow at once: RST to the guest."""
        self.connection.abort(reason)
        self.guest.touch(self)
