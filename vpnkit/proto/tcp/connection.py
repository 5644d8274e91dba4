"""One TCP connection with the guest, driven by three things only: a segment arrives (`receive`), the relay reads or
writes octets, a deadline passes (`on_deadline`).

Output is pulled: `next_segment` says what should leave, `sent` that it left.  Asked again at once, a connection that
has nothing new to say says nothing.  Lifecycle shows in `state`, `finished` and `aborted`; octets travel through
`receiver.inbox` and `write`, so the hot path makes no events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.budget import Budget
from vpnkit.proto.tcp.keepalive import IdleWatch, Keepalive
from vpnkit.proto.tcp.receiver import WINDOW_SCALE, Receiver
from vpnkit.proto.tcp.rtt import INITIAL, MAXIMUM
from vpnkit.proto.tcp.sender import Sender
from vpnkit.proto.tcp.seq import MASK, after
from vpnkit.proto.tcp.state import Event, State, moved
from vpnkit.wire.tcp import ACK, FIN, PSH, RST, SYN, SynOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.wire.checksum import Buffer
    from vpnkit.wire.tcp import Block

SYN_RETRANSMISSIONS: Final = 7  # 1 + 2 + 4 ... + 60 + 60 s: the guest gets three minutes to answer (MUST-23)
SYN_ACK_RETRANSMISSIONS: Final = 6  # two minutes
FIN_WAIT_2_SECONDS: Final = 60.0  # how long a fully closed relay waits for the guest's FIN
CHALLENGE_ACKS: Final = 10  # per CHALLENGE_SECONDS and connection, RFC 5961 section 7
CHALLENGE_SECONDS: Final = 5.0
MIN_MSS: Final = 64  # a guest may offer 0; below this a stream is all headers


class Offer(NamedTuple):
    """What the link allows, from which MSS and segment sizes follow.  Octets."""

    mss: int  # what we announce, and the most that we send
    limit: int  # the largest payload of one segment, above `mss` when the link segments


class OutSegment(NamedTuple):
    sequence: int
    flags: int
    payload: Buffer
    options: bytes


class TcpConnection:
    __slots__ = (
        "_budget",
        "_challenge_start",
        "_challenges",
        "_close_deadline",
        "_deadline",
        "_heard",
        "_idle",
        "_iss",
        "_offer",
        "_reset_due",
        "_reset_sequence",
        "_slow_deadline",
        "_syn_due",
        "_syn_retries",
        "_syn_rto",
        "_wants_sack",
        "_wants_scale",
        "aborted",
        "receiver",
        "sender",
        "state",
    )

    receiver: Receiver
    sender: Sender

    def __init__(
        self, iss: int, offer: Offer, *, keepalive: Keepalive | None = None, budget: Budget | None = None
    ) -> None:
        """`iss` is our initial sequence, chosen by the caller as RFC 9293 section 3.4.1 says; without `keepalive` an
        idle guest is never asked; `budget` is shared with other connections."""
        self._iss = iss
        self._offer = offer
        self._idle = IdleWatch(keepalive)
        self._budget = budget or Budget()
        self.state = State.CLOSED
        self.aborted = ""  # why, when the connection did not end by FINs
        self._wants_scale = True
        self._wants_sack = True
        self._syn_due = False
        self._syn_rto = INITIAL
        self._syn_retries = 0
        self._heard = False  # the guest's SYN, so that receiver and sender are there
        self._reset_due = False
        self._reset_sequence = 0
        self._deadline = NEVER  # of the handshake
        self._close_deadline = NEVER  # of FIN-WAIT-2
        self._slow_deadline = NEVER  # that or the one of keep-alive
        self._challenges = 0
        self._challenge_start = 0.0

    # Birth

    @classmethod
    def passive(
        cls,
        iss: int,
        offer: Offer,
        sequence: int,
        options: SynOptions,
        window: int,
        *,
        keepalive: Keepalive | None = None,
        budget: Budget | None = None,
    ) -> TcpConnection:
        """The guest's SYN, held: nothing is answered until `accept` or `abort`."""
        connection = cls(iss, offer, keepalive=keepalive, budget=budget)
        connection.state = State.SYN_HELD
        connection._heard_syn(sequence, options, window)
        return connection

    @classmethod
    def active(
        cls,
        iss: int,
        offer: Offer,
        now: float,
        *,
        keepalive: Keepalive | None = None,
        budget: Budget | None = None,
    ) -> TcpConnection:
        """We call the guest."""
        connection = cls(iss, offer, keepalive=keepalive, budget=budget)
        connection.state = State.SYN_SENT
        connection._syn_due = True
        connection._deadline = now + connection._syn_rto
        connection._watch(now)
        return connection

    def _heard_syn(self, sequence: int, options: SynOptions, window: int) -> None:
        scaled = options.window_scale is not None
        self._wants_scale = scaled
        self._wants_sack = sack = options.sack_permitted
        self.receiver = Receiver(sequence, WINDOW_SCALE if scaled else 0, sack=sack, budget=self._budget)
        mss = max(min(options.mss, self._offer.mss), MIN_MSS)
        self.sender = Sender(
            self._iss,
            mss,
            self._offer.limit if self._offer.limit > self._offer.mss else mss,
            options.window_scale or 0,
            window,
            sack=sack,
            budget=self._budget,
        )
        self.sender.wl1 = sequence
        self._heard = True

    def accept(self, now: float) -> None:
        """The host answered: say SYN-ACK."""
        self.state = moved(self.state, Event.ACCEPT)
        self._syn_due = True
        self._deadline = now + self._syn_rto
        self._watch(now)

    def _watch(self, now: float) -> None:
        """From now on an idle guest is asked whether he is there."""
        self._idle.begin(now)
        self._slow_deadline = self._idle.deadline

    # The relay's side

    @property
    def iss(self) -> int:
        """Our initial sequence number."""
        return self._iss

    @property
    def is_held(self) -> bool:
        return self.state is State.SYN_HELD

    @property
    def is_open(self) -> bool:
        """Octets may flow, at least one way."""
        return self.state.synchronized

    @property
    def is_closed(self) -> bool:
        """Nothing more will come or go; a reset may still be due."""
        return self.state is State.CLOSED or self.state is State.TIME_WAIT

    def write(self, data: Buffer) -> None:
        self.sender.write(data)

    def finish(self) -> None:
        """A FIN follows what was written."""
        if not self.sender.finishing:
            self.sender.finish()
            self.state = moved(self.state, Event.FINISH)

    def consumed(self, octets: int) -> None:
        """`octets` of what was taken from the inbox and counted as buffered have left us."""
        receiver = self.receiver
        receiver.leave(octets)
        if not receiver.ack_due and not receiver.finished and receiver.window_update_due(self.sender.mss):
            receiver.ack_due = True

    def abort(self, reason: str, *, reset: bool = True) -> None:
        """Give up; a RST tells the guest unless it is the guest's own doing.  Idempotent."""
        if self.state is State.CLOSED or self.state is State.TIME_WAIT:
            return
        self._reset_due = reset and self._heard
        self._syn_due = False
        self._reset_sequence = 0 if self.state is State.SYN_HELD or not self._heard else self.sender.ack_sequence()
        self.aborted = reason
        self.state = moved(self.state, Event.ABORT)

    def linger(self, now: float) -> None:
        """The relay has closed both ways: do not wait for the guest's FIN for ever."""
        if self._close_deadline == NEVER:
            self._close_deadline = now + FIN_WAIT_2_SECONDS
            self._slow_deadline = min(self._close_deadline, self._idle.deadline)

    def release(self) -> None:
        """The flow is over: what it kept counts no more.  Idempotent."""
        if self._heard:
            self.sender.release()
            self.receiver.release()
            self._heard = False

    # Input

    def receive(
        self,
        sequence: int,
        acknowledgement: int,
        flags: int,
        window: int,
        payload: memoryview,
        now: float,
        blocks: Sequence[Block] = (),
    ) -> None:
        """One segment of the guest for this connection, after the SYN that began it; `blocks` are those of SACK."""
        if self.state is State.ESTABLISHED:
            # Header prediction (RFC 1323 appendix A, in spirit): in order, nothing early, only ACK and PSH set.
            receiver = self.receiver
            if sequence == receiver.nxt and flags & (FIN | SYN | RST | ACK) == ACK and not receiver.early:
                length = len(payload)
                if length <= (receiver.edge - sequence) & MASK:
                    if not self.sender.acknowledge(sequence, acknowledgement, window, length > 0, now, blocks):
                        self._challenge(now)
                        return
                    if length:
                        receiver.inbox.append(payload)
                        receiver.nxt = (sequence + length) & MASK
                        receiver.hear(length, self._offer.mss, now)
                    return
        self._receive_any(sequence, acknowledgement, flags, window, payload, now, blocks)

    def _receive_any(
        self,
        sequence: int,
        acknowledgement: int,
        flags: int,
        window: int,
        payload: memoryview,
        now: float,
        blocks: Sequence[Block],
    ) -> None:
        """RFC 9293 section 3.10.7, for what header prediction does not cover."""
        if self.state is State.SYN_HELD:
            if flags & RST and sequence == self.receiver.nxt:
                self.abort("reset by the guest", reset=False)
            return  # a repeated SYN is absorbed: the question is already asked
        if self.state is State.SYN_SENT:
            return  # the table calls `receive_syn_sent` with the options
        if self.state is State.CLOSED:
            return
        receiver = self.receiver
        if self.state is State.TIME_WAIT:
            receiver.ack_due = receiver.ack_due or bool(flags & FIN)  # our last ACK was lost
            return
        length = len(payload) + (flags & FIN) + (flags & SYN != 0)
        if not receiver.is_acceptable(sequence, length):
            # A SYN-ACK of ours was lost, a keep-alive, an old duplicate, or data beyond a closed window.
            if flags & RST:
                return
            if flags & SYN and self.state.synchronized:  # RFC 5961 section 4.2
                self._challenge(now)
                return
            if flags & SYN and self.state is State.SYN_RECEIVED and (sequence + 1) & MASK == receiver.nxt:
                if not flags & ACK:
                    self._syn_due = True
                elif acknowledgement == (self._iss + 1) & MASK:  # both called at once (section 3.5, figure 8)
                    self._established(sequence, acknowledgement)
                    receiver.ack_due = True
                return
            if flags & (SYN | ACK) == ACK and self.state.synchronized and not after(sequence, receiver.nxt):
                # Its data is old, or refused by a closed window, but its ACK is good.  Were it dropped as section
                # 3.10.7.4 says, two ends that both missed an ACK would tell each other so for ever.
                self._acknowledge(sequence, acknowledgement, window, True, now, blocks)
            if not after((sequence + len(payload)) & MASK, receiver.nxt):
                receiver.repeated(sequence, len(payload))
            receiver.ack_due = True
            return
        if flags & RST:  # RFC 5961 section 3.2
            if sequence == receiver.nxt:
                self.abort("reset by the guest", reset=False)
            else:
                self._challenge(now)
            return
        if flags & SYN:  # RFC 5961 section 4.2
            self._challenge(now)
            return
        if not flags & ACK:
            return
        if self.state is State.SYN_RECEIVED:
            if acknowledgement != (self._iss + 1) & MASK:  # of an earlier connection
                self._reset_due = True
                self._reset_sequence = acknowledgement
                return
            self._established(sequence, acknowledgement)
        if not self._acknowledge(sequence, acknowledgement, window, length > 0, now, blocks):
            self._challenge(now)
            return
        if length and not receiver.finished:
            if receiver.accept(sequence, payload, bool(flags & FIN), self._offer.mss, now):
                self.state = moved(self.state, Event.PEER_FIN)
        elif length:
            receiver.ack_due = True

    def receive_syn_sent(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: SynOptions
    ) -> bool:
        """A segment while we wait for the answer to our SYN (section 3.10.7.3).  False when it deserves a RST."""
        if flags & ACK and acknowledgement != (self._iss + 1) & MASK:
            return bool(flags & RST)
        if flags & RST:
            if flags & ACK:
                self.abort("refused by the guest", reset=False)
            return True
        if not flags & SYN:
            return True
        self._heard_syn(sequence, options, window)
        if flags & ACK:
            self.state = moved(self.state, Event.SYN_ACK)
            self._established(sequence, acknowledgement)
            self.receiver.ack_due = True
        else:
            self.state = moved(self.state, Event.SYN)
            self._syn_due = True
        return True

    def _established(self, sequence: int, acknowledgement: int) -> None:
        if self.state is State.SYN_RECEIVED:
            self.state = moved(self.state, Event.ACK_OF_SYN)
        self._deadline = NEVER
        self._syn_due = False
        sender = self.sender
        sender.wl1 = sequence
        sender.wl2 = acknowledgement
        if self._syn_retries:
            sender.rtt.lost_syn()
            if self._syn_retries > 1:
                sender.congestion.window = sender.mss  # RFC 5681 section 3.1; one may have been a mistake (RFC 6928)

    def _acknowledge(
        self,
        sequence: int,
        acknowledgement: int,
        window: int,
        has_data: bool,
        now: float,
        blocks: Sequence[Block],
    ) -> bool:
        sender = self.sender
        if not sender.acknowledge(sequence, acknowledgement, window, has_data, now, blocks):
            return False
        self._idle.heard_at = now
        if self._idle.probes:
            self._idle.answered(self.receiver)
        if sender.fin_sent and sender.is_done and self.state in (State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK):
            self.state = moved(self.state, Event.ACK_OF_FIN)
        return True

    def _challenge(self, now: float) -> None:
        if now - self._challenge_start > CHALLENGE_SECONDS:
            self._challenge_start = now
            self._challenges = 0
        if self._challenges < CHALLENGE_ACKS:
            self._challenges += 1
            self.receiver.ack_due = True

    # Output

    def next_segment(self) -> OutSegment | None:
        """What should leave now, or None.  The window and acknowledgement fields are the receiver's."""
        state = self.state
        if state.synchronized:
            sender = self.sender
            if sender.end != sender.nxt or sender.finishing or sender.repairing:
                data = sender.next_data()
                if data is not None:
                    sequence, payload, fin = data
                    if fin:
                        return OutSegment(sequence, ACK | FIN | PSH, payload, b"")
                    last = (sequence + len(payload)) & MASK == sender.end  # MUST-61
                    return OutSegment(sequence, ACK | PSH if last else ACK, payload, b"")
            receiver = self.receiver
            if receiver.ack_due or receiver.early_acks:
                options = receiver.report() if receiver.early or receiver.twice is not None else b""
                if self._idle.probe_due:
                    return OutSegment((sender.top - 1) & MASK, ACK, b"", b"")
                return OutSegment(sender.ack_sequence(), ACK, b"", options)
            return None
        if self._syn_due:
            offered = SynOptions(self._offer.mss, WINDOW_SCALE if self._wants_scale else None, self._wants_sack)
            options = offered.encode()
            return OutSegment(self._iss, SYN if state is State.SYN_SENT else SYN | ACK, b"", options)
        if self._reset_due:
            # One that answers an ACK has none (section 3.10.7.4), and the connection goes on.
            return OutSegment(self._reset_sequence, RST if state is State.SYN_RECEIVED else RST | ACK, b"", b"")
        if state is State.SYN_RECEIVED and self.receiver.ack_due:
            return OutSegment((self._iss + 1) & MASK, ACK, b"", b"")
        return None

    def acknowledgement_fields(self, flags: int) -> tuple[int, int]:
        """SEG.ACK and SEG.WND of the segment that leaves next."""
        if not flags & ACK:
            return 0, 65535 if flags & SYN else 0
        receiver = self.receiver
        if flags & SYN:  # never scaled (RFC 7323 section 2.2)
            window = min(receiver.capacity, 65535)
            receiver.edge = (receiver.nxt + window) & MASK
            return receiver.nxt, window
        return receiver.nxt, receiver.window_field()

    def sent(self, segment: OutSegment, now: float) -> None:
        """`segment`, which `next_segment` gave, has left."""
        flags = segment.flags
        if flags & (SYN | RST):
            self._syn_due = False
            self._reset_due = False
            return
        with_data = bool(flags & FIN or len(segment.payload))
        self.receiver.told(with_data, now)
        if not with_data:
            self._idle.probe_due = False
            if self.receiver.early_acks:
                self.receiver.early_acks -= 1
        else:
            self.sender.sent(segment.sequence, len(segment.payload), bool(flags & FIN), now)

    # Time

    def next_deadline(self) -> float:
        if self.state.synchronized and self.state is not State.TIME_WAIT:
            deadline = self.sender.deadline
            if self.receiver.ack_deadline < deadline:
                deadline = self.receiver.ack_deadline
            return deadline if deadline < self._slow_deadline else self._slow_deadline
        return self._deadline if self.state is not State.CLOSED else NEVER

    def on_deadline(self, now: float) -> None:
        if self.state.synchronized:
            self.receiver.on_deadline(now)
            if now >= self._slow_deadline:
                self._on_slow_deadline(now)
                if self.state is State.CLOSED:
                    return
            if now >= self.sender.deadline and not self.sender.on_deadline(now):
                self.abort("the guest stopped answering")
            return
        if now >= self._deadline:
            self._syn_retries += 1
            if self._syn_retries > (SYN_RETRANSMISSIONS if self.state is State.SYN_SENT else SYN_ACK_RETRANSMISSIONS):
                self._deadline = NEVER
                self.abort("the guest did not answer", reset=self.state is State.SYN_RECEIVED)
                return
            self._syn_rto = min(self._syn_rto * 2, MAXIMUM)
            self._deadline = now + self._syn_rto
            self._syn_due = True

    def _on_slow_deadline(self, now: float) -> None:
        if now >= self._close_deadline:
            if self.state is State.FIN_WAIT_2:
                self.abort("the guest did not finish")
                return
            self._close_deadline = now + FIN_WAIT_2_SECONDS  # our own octets still travel
        if now >= self._idle.deadline and not self._idle.on_deadline(self.sender, self.receiver, now):
            self.abort("the guest is gone")
        self._slow_deadline = min(self._close_deadline, self._idle.deadline)
