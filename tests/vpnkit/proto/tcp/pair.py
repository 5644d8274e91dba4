"""TCP connections in tests: what leaves one as values, two of them with a list for a wire, and a script for one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.seq import MASK, distance
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, PSH, RST, SYN, SynOptions, decode_sack, decode_syn_options

OFFER = Offer(mss=1460, limit=1460)
SUPER = Offer(mss=1460, limit=65495)
GUEST_WINDOW = 65535
NAMES = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."))


@dataclass(repr=False)
class Segment:
    """One segment on the wire; sequence numbers are absolute."""

    sequence: int
    acknowledgement: int
    flags: int
    window: int
    payload: bytes = b""
    options: bytes = b""

    def __repr__(self) -> str:
        return f"<{self.kind} {self.sequence}+{len(self.payload)} ack {self.acknowledgement} win {self.window}>"

    @property
    def kind(self) -> str:
        """Flags as tcpdump writes them, PSH left out."""
        return "".join(name for bit, name in NAMES if self.flags & bit and bit != PSH)

    @property
    def end(self) -> int:
        return (self.sequence + len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)) & MASK


def pull(connection: TcpConnection, now: float = 0.0, limit: int = 10_000) -> list[Segment]:
    """Everything that leaves `connection` now."""
    left = []
    while (segment := connection.next_segment()) is not None:
        assert len(left) < limit, "the connection never stops talking"
        acknowledgement, window = connection.acknowledgement_fields(segment.flags)
        left.append(
            Segment(segment.sequence, acknowledgement, segment.flags, window, bytes(segment.payload), segment.options)
        )
        connection.sent(segment, now)
    if connection.is_open and connection.state is not State.TIME_WAIT:
        connection.sender.needs_timer(now)
    return left


def push(connection: TcpConnection, segment: Segment, now: float = 0.0) -> bool:
    """Hand `segment` to `connection` as the table does.  False when it deserves a RST."""
    if connection.state is State.SYN_SENT:
        return connection.receive_syn_sent(
            segment.sequence,
            segment.acknowledgement,
            segment.flags,
            segment.window,
            decode_syn_options(segment.options),
        )
    payload = memoryview(bytearray(segment.payload))
    connection.receive(
        segment.sequence,
        segment.acknowledgement,
        segment.flags,
        segment.window,
        payload,
        now,
        () if segment.flags & SYN else decode_sack(segment.options),
    )
    return True


@dataclass
class End:
    """One end of a pair and its user."""

    connection: TcpConnection
    reads: bool = True
    got: bytearray = field(default_factory=bytearray)
    unread: bytearray = field(default_factory=bytearray)
    written: bytearray = field(default_factory=bytearray)

    def take(self) -> None:
        """The inbox goes to the user, who reads it or leaves it where it closes the window."""
        if not self.connection._heard:
            return
        receiver = self.connection.receiver
        for data in receiver.inbox:
            self.unread += data
            receiver.buffered += len(data)
        receiver.inbox.clear()
        if self.reads:
            self.read(len(self.unread))

    def read(self, octets: int) -> None:
        octets = min(octets, len(self.unread))
        self.got += self.unread[:octets]
        del self.unread[:octets]
        if octets:
            self.connection.consumed(octets)

    def write(self, data: bytes) -> None:
        self.written += data
        self.connection.write(data)


class Pair:
    """Two connections; a segment takes one `exchange` to the other end and nothing is lost."""

    def __init__(self, active: TcpConnection, passive: TcpConnection) -> None:
        self.a = End(active)
        self.b = End(passive)
        self.now = 0.0
        self.log: list[tuple[str, Segment]] = []

    def exchange(self, rounds: int = 200) -> None:
        """Carry segments until both ends are silent."""
        for _ in range(rounds):
            moved = False
            for name, end, other in (("a", self.a, self.b), ("b", self.b, self.a)):
                for segment in pull(end.connection, self.now):
                    moved = True
                    self.log.append((name, segment))
                    push(other.connection, segment, self.now)
                other.take()
            if not moved:
                return
        raise AssertionError("the two ends never stop talking")

    def pass_time(self, seconds: float) -> None:
        """Let deadlines pass, one at a time, and carry what they cause."""
        end = self.now + seconds
        while (deadline := min(x.connection.next_deadline() for x in (self.a, self.b))) <= end:
            self.now = max(self.now, deadline)
            for x in (self.a, self.b):
                if x.connection.next_deadline() <= self.now:
                    x.connection.on_deadline(self.now)
                    assert x.connection.next_deadline() > self.now
            self.exchange()
        self.now = end


def passive_for(syn: Segment, iss: int, offer: Offer = OFFER) -> TcpConnection:
    return TcpConnection.passive(iss, offer, syn.sequence, decode_syn_options(syn.options), syn.window)


def established(iss: int = 0, their_iss: int = 0x1000, offer: Offer = OFFER, their_offer: Offer | None = None) -> Pair:
    """`a` called `b`."""
    active = TcpConnection.active(iss, offer, 0.0)
    (syn,) = pull(active)
    passive = passive_for(syn, their_iss, their_offer or offer)
    passive.accept(0.0)
    pair = Pair(active, passive)
    pair.exchange()
    assert active.state is passive.state is State.ESTABLISHED
    pair.log.clear()
    return pair


class Script:
    """One connection of ours and a guest who does what the test says.  Numbers are relative: data begins at 1."""

    def __init__(
        self,
        *,
        iss: int = 0,
        irs: int = 0x5000,
        offer: Offer = OFFER,
        mss: int = 1460,
        scale: int | None = 7,
        window: int = GUEST_WINDOW,
        sack: bool = False,
        established: bool = True,
    ) -> None:
        self.iss = iss
        self.irs = irs
        self.now = 0.0
        self.shift = scale or 0
        self.connection = TcpConnection.passive(iss, offer, irs, SynOptions(mss, scale, sack), window)
        if established:
            self.connection.accept(self.now)
            self.says("S.")
            self.gets("", window=window)

    @property
    def state(self) -> State:
        return self.connection.state

    def gets(
        self,
        payload: bytes | str = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        flags: int = ACK,
        window: int = GUEST_WINDOW,
        options: bytes = b"",
    ) -> Script:
        """A segment of the guest; by default in order, acknowledging all that left.  `window` is in octets when the
        connection is open and the segment is not a SYN."""
        data = payload.encode() if isinstance(payload, str) else payload
        connection = self.connection
        sequence = connection.receiver.nxt if seq is None else (self.irs + seq) & MASK
        acknowledgement = connection.sender.top if ack is None else (self.iss + ack) & MASK
        field_ = window if flags & SYN else min(-(-window >> self.shift), 65535)
        push(connection, Segment(sequence, acknowledgement, flags, field_, data, options), self.now)
        return self

    def pull(self) -> list[Segment]:
        """What leaves, its numbers relative."""
        return [
            replace(
                s,
                sequence=distance(self.iss, s.sequence) & MASK,
                acknowledgement=(s.acknowledgement - self.irs) & MASK if s.flags & ACK else 0,
            )
            for s in pull(self.connection, self.now)
        ]

    def says(self, *kinds: str) -> list[Segment]:
        """What leaves must be segments of these kinds ("." is a pure ACK, "4." is an ACK with four octets)."""
        left = self.pull()
        assert [(str(len(s.payload)) if s.payload else "") + s.kind for s in left] == list(kinds), left
        return left

    def write(self, data: bytes) -> Script:
        self.connection.write(data)
        return self

    def inbox(self) -> bytes:
        receiver = self.connection.receiver
        data = b"".join(bytes(view) for view in receiver.inbox)
        receiver.inbox.clear()
        return data

    def wait_deadline(self) -> Script:
        """Time passes until the next deadline."""
        deadline = self.connection.next_deadline()
        assert deadline != float("inf"), "nothing will happen"
        self.now = deadline
        self.connection.on_deadline(self.now)
        assert self.connection.next_deadline() > self.now
        return self
