"""One TCP connection and a peer who says anything at any time, host and clock included (conformance.md B2).

The peer's stream is a function of the sequence number, so that whatever he sends and resends, in whatever order and
overlap, there is one right answer: what is delivered is its beginning, without a gap."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vpnkit.proto.tcp.pair import Segment, pull, push
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.receiver import ROUNDING
from vpnkit.proto.tcp.seq import MASK, distance
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, SYN, SynOptions

LIMITS = (1460, 65495)
NEAR = st.integers(-3000, 3000) | st.sampled_from([0, 0, 0, 1, -1, 65535, -65535, 1 << 20, 1 << 30, 1 << 31])
OURS = bytes(range(256)) * 300
THEIRS = bytes(i * 7 % 251 for i in range(251)) * 300


def stream(offset: int, length: int) -> bytes:
    """The peer's octets from `offset` on."""
    return THEIRS[offset % 251 :][:length]


def ours(offset: int, length: int) -> bytes:
    return OURS[offset % 256 :][:length]


def options(kind: int, data: bytes) -> bytes:
    whole = bytes((kind, len(data) + 2)) + data
    return whole + b"\1" * (-len(whole) % 4)


class HostilePeer(RuleBasedStateMachine):
    @initialize(
        iss=st.sampled_from([0, 1, MASK, MASK - 1000, 1 << 31]) | st.integers(0, MASK),
        irs=st.sampled_from([0, MASK, MASK - 1000, (1 << 31) - 1]) | st.integers(0, MASK),
        mss=st.sampled_from([0, 1, 63, 64, 536, 1460, 65535]),
        scale=st.sampled_from([None, 0, 7, 14]),
        window=st.sampled_from([0, 1, 1000, 65535]),
        limit=st.sampled_from(LIMITS),
        active=st.booleans(),
    )
    def open(self, iss, irs, mss, scale, window, limit, active):
        self.now = 0.0
        self.irs, self.iss = irs, iss
        self.got = bytearray()
        self.accepted = 0  # octets that the host wrote
        self.sent_end = 0  # the furthest octet of ours that left, relative
        self.edge = None
        self.scale = scale
        offer = Offer(1460, limit)
        if active:
            self.connection = TcpConnection.active(iss, offer, self.now)
            pull(self.connection, self.now)
            wire = options(2, mss.to_bytes(2, "big")) + (options(3, bytes((scale,))) if scale is not None else b"")
            push(self.connection, Segment(irs, (iss + 1) & MASK, SYN | ACK, window, options=wire), self.now)
        else:
            self.connection = TcpConnection.passive(iss, offer, irs, SynOptions(mss, scale), window)
            self.connection.accept(self.now)
        self.look()

    def look(self) -> None:
        """Take what leaves and what came, as the flow does at the end of a burst."""
        connection = self.connection
        for segment in pull(connection, self.now, 5000):
            assert len(segment.payload) <= 65535 - 40
            if segment.payload:
                offset = distance((self.iss + 1) & MASK, segment.sequence)
                assert 0 <= offset <= self.accepted
                assert segment.payload == ours(offset, len(segment.payload))
                assert offset + len(segment.payload) <= self.accepted
                self.sent_end = max(self.sent_end, offset + len(segment.payload))
            if segment.flags & ACK and not segment.flags & SYN and connection.is_open:
                shift = connection.receiver.scale
                edge = distance(self.irs, (segment.acknowledgement + (segment.window << shift)) & MASK)
                assert self.edge is None or edge >= self.edge - (1 << shift), "the window shrank"
                self.edge = max(edge, self.edge or 0)
        if connection._heard:
            receiver = connection.receiver
            for data in receiver.inbox:
                offset = len(self.got)
                assert bytes(data) == stream(offset, len(data)), "not what the peer said"
                self.got += data
                receiver.buffered += len(data)
            receiver.inbox.clear()

    @rule(
        sequence=NEAR,
        acknowledgement=NEAR,
        flags=st.sampled_from([ACK, ACK, ACK, ACK | 8, ACK | FIN, SYN, SYN | ACK, 4, 4 | ACK, 0]) | st.integers(0, 255),
        window=st.sampled_from([0, 1, 100, 65535]),
        length=st.sampled_from([0, 0, 1, 2, 100, 536, 1460, 2000]),
    )
    def segment(self, sequence, acknowledgement, flags, window, length):
        """His data are always those of his stream; everything else is his choice.  A FIN ends it, so it comes last."""
        connection = self.connection
        if not connection._heard:
            return
        offset = distance(self.irs, connection.receiver.nxt) - 1 + sequence
        if offset < 0:
            length = 0
        if flags & SYN or (flags & FIN and sequence > 0):
            length, flags = 0, flags & ~FIN
        position = (self.irs + 1 + offset) & MASK
        answer = (connection.sender.top + acknowledgement) & MASK
        push(connection, Segment(position, answer, flags, window, stream(offset, length)), self.now)
        self.look()

    @rule(count=st.integers(1, 5))
    def good_data(self, count):
        connection = self.connection
        if not connection.is_open or connection.receiver.finished:
            return
        for _ in range(count):
            offset = len(self.got)
            push(
                connection,
                Segment(connection.receiver.nxt, connection.sender.top, ACK, 65535, stream(offset, 100)),
                self.now,
            )
            self.look()

    @rule(length=st.sampled_from([1, 10, 1460, 20000]))
    def host_writes(self, length):
        connection = self.connection
        if connection.is_open and not connection.sender.finishing:
            length = min(length, connection.sender.room())
            if length > 0:
                connection.write(ours(self.accepted, length))
                self.accepted += length
        self.look()

    @rule(share=st.floats(0, 1))
    def host_reads(self, share):
        connection = self.connection
        if connection._heard:
            octets = int(connection.receiver.buffered * share)
            if octets:
                connection.consumed(octets)
        self.look()

    @precondition(lambda self: self.connection.is_open)
    @rule()
    def host_finishes(self):
        self.connection.finish()
        self.look()

    @rule()
    def host_aborts(self):
        self.connection.abort("the host reset it")
        self.look()

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.04, 0.2, 1.0, 60.0, 130.0]))
    def time(self, seconds):
        self.now += seconds
        connection = self.connection
        for _ in range(50):
            if connection.next_deadline() > self.now:
                break
            connection.on_deadline(self.now)
            assert connection.next_deadline() > self.now, "a deadline that does not pass"
            self.look()
        else:
            raise AssertionError("deadlines without an end")

    @invariant()
    def bounded(self):
        connection = getattr(self, "connection", None)
        if connection is None or not connection._heard:
            return
        receiver = connection.receiver
        assert receiver.buffered >= 0
        assert receiver.buffered + receiver.assembler.octets <= receiver.capacity + 2 * ROUNDING + 65536
        assert distance(receiver.nxt, receiver.edge) <= receiver.capacity + 2 * ROUNDING
        assert connection.state in State


class TestHostilePeer(HostilePeer.TestCase):
    settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestHostilePeerForLonger(HostilePeer.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=80, deadline=None)
