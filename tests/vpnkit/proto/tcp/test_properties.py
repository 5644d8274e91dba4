"""Whatever arrives and whenever: a core never raises, never stops at a deadline, and never talks without end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vpnkit.proto.tcp.pair import OFFER, SUPER, Segment, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.sender import Sender
from vpnkit.proto.tcp.seq import HALF, MASK
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import SynOptions

ISS = st.sampled_from([0, 2**32 - 5, 1000])
NEAR = st.integers(-70_000, 70_000) | st.integers(-3, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("segment"),
            NEAR,  # from RCV.NXT
            NEAR,  # from SND.NXT
            st.integers(0, 255),
            st.sampled_from([0, 1, 100, 65535]),
            st.sampled_from([0, 1, 5, 1460]),
        ),
        st.tuples(st.just("write"), st.sampled_from([1, 1000, 50_000])),
        st.tuples(st.just("finish")),
        st.tuples(st.just("abort")),
        st.tuples(st.just("linger")),
        st.tuples(st.just("accept")),
        st.tuples(st.just("time"), st.sampled_from([0.0, 0.2, 1.0, 70.0])),
    ),
    max_size=40,
)


def born(active: bool, iss: int, irs: int, mss: int, scale: int | None, window: int, offer: Offer) -> TcpConnection:
    if active:
        return TcpConnection.active(iss, offer, 0.0)
    return TcpConnection.passive(iss, offer, irs, SynOptions(mss, scale), window)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.booleans(),
    ISS,
    ISS,
    st.sampled_from([0, 1, 536, 1460, 65535]),
    st.sampled_from([None, 0, 7, 14]),
    st.sampled_from([0, 1, 65535]),
    st.sampled_from([OFFER, SUPER]),
    STEPS,
)
def test_anything_may_happen_at_any_time(active, iss, irs, mss, scale, window, offer, steps):
    connection = born(active, iss, irs, mss, scale, window, offer)
    now = 0.0
    for what, *how in steps:
        state = connection.state
        heard = state is not State.SYN_SENT
        if what == "segment":
            sequence, acknowledgement, flags, field, length = how
            rcv = connection.receiver.nxt if heard and hasattr(connection, "receiver") else irs
            snd = connection.sender.nxt if heard and hasattr(connection, "sender") else iss + 1
            segment = Segment(
                (rcv + sequence) & MASK,
                (snd + acknowledgement) & MASK,
                flags,
                field,
                bytes(length),
                SynOptions(mss, scale).encode(),
            )
            push(connection, segment, now)
        elif what == "write" and connection.is_open and not connection.sender.finishing:
            if connection.sender.queued < 300_000:
                connection.write(bytes(how[0]))
        elif what == "finish" and state in (State.ESTABLISHED, State.CLOSE_WAIT):
            connection.finish()
        elif what == "abort":
            connection.abort("the test says so")
        elif what == "linger":
            connection.linger(now)
        elif what == "accept" and connection.is_held:
            connection.accept(now)
        elif what == "time":
            now += how[0]
            if connection.next_deadline() <= now:
                connection.on_deadline(now)
                assert connection.next_deadline() > now
        if hasattr(connection, "receiver"):
            receiver = connection.receiver
            octets = sum(len(data) for data in receiver.inbox)
            receiver.buffered += octets
            receiver.inbox.clear()
            connection.consumed(octets)
        pull(connection, now)
        assert connection.next_segment() is None
        if connection.state is State.CLOSED:
            assert connection.next_deadline() == NEVER


# The fast path of the sender against the general one

CHUNKS = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.sampled_from([1, 100, 1460, 5000, 200_000]), st.sampled_from([0, 1, 2, 99])),
        st.tuples(st.just("ack"), st.integers(0, 100)),
        st.tuples(st.just("duplicate")),
        st.tuples(st.just("time"), st.sampled_from([0.001, 0.3, 2.0])),
        st.tuples(st.just("window"), st.sampled_from([0, 1000, 65535])),
    ),
    max_size=50,
)


def seen(sender: Sender) -> dict[str, object]:
    values = {
        name: getattr(sender, name)
        for name in Sender.__slots__
        if name not in ("budget", "congestion", "recovery", "rtt", "_chunks")
    }
    values["_chunks"] = [(start, bytes(data)) for start, data in sender._chunks]
    values["budget"] = sender.budget.used
    values["congestion"] = (sender.congestion.window, sender.congestion.ssthresh)
    values["rtt"] = (sender.rtt.srtt, sender.rtt.rttvar, sender.rtt.rto)
    return values


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ISS, CHUNKS)
def test_streaming_is_writing_and_sending(iss, steps):
    """`streamed` is `write`, `next_data` and `sent` in one, wherever `may_stream` allows it."""
    fast, general = (Sender(iss, 1460, 65495, 5, 65535) for _ in range(2))
    now = 0.0
    for what, *how in steps:
        now += 0.001
        if what == "data":
            length = min(how[0], fast.room())
            assert fast.room() == general.room()
            if not length:
                continue
            data = bytes(length)
            taken = how[1]  # segments, until the link was full
            if fast.may_stream and length <= fast.window - fast.in_flight:
                fast.streamed(data, min(taken * fast.limit, length), now)
            else:
                fast.write(data)
                drain(fast, now, taken)
            general.write(data)
            drain(general, now, taken)
            assert seen(fast) == seen(general)
            for sender in (fast, general):
                drain(sender, now)  # the link takes frames again
        elif what == "time":
            now += how[0]
            for sender in (fast, general):
                if sender.deadline <= now:
                    assert sender.on_deadline(now)
                    drain(sender, now)
        else:
            flight = (fast.top - fast.una) & MASK
            acked = flight * how[0] // 100 if what == "ack" else 0
            window = how[0] if what == "window" else fast.window >> 5
            for sender in (fast, general):
                assert sender.acknowledge(0, (sender.una + acked) & MASK, window, False, now)
                drain(sender, now)
        for sender in (fast, general):
            sender.needs_timer(now)
            assert sender.budget.used == sender.queued
        assert seen(fast) == seen(general)


def drain(sender: Sender, now: float, segments: int = 9999) -> None:
    for _ in range(segments):
        data = sender.next_data()
        if data is None:
            return
        sequence, payload, fin = data
        assert not (sender.end - sequence) & HALF
        sender.sent(sequence, len(payload), fin, now)
