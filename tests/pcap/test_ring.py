from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.predicates import everything
from pcap.ring import OVERHEAD, Packet, Ring, Rule, pack, unpack


def ring_of(limit: int, snaplen: int = 100) -> Ring:
    return Ring(Rule("r", everything(), snaplen, limit))


@given(
    limit=st.integers(OVERHEAD + 1, 6000),
    snaplen=st.integers(1, 1000),
    lengths=st.lists(st.integers(0, 1500), max_size=100),
    events=st.lists(st.sampled_from(["wait", "clear", ""]), max_size=100),
)
def test_a_ring_never_exceeds_its_limit_and_keeps_the_newest(limit, snaplen, lengths, events):
    ring = ring_of(limit, min(snaplen, limit - OVERHEAD))
    for number, length in enumerate(lengths):
        ring.append(Packet(number, length, bytes(length)))
        kept = list(ring)
        assert ring.captured == sum(len(packet.data) for packet in kept)
        assert ring.charged == ring.captured + len(kept) * OVERHEAD <= limit
        assert ring.packets == len(ring) == len(kept) >= 1
        assert ring.seen == number + 1 == ring.packets + ring.dropped
        assert [packet.timestamp_ns for packet in kept] == list(range(ring.dropped, ring.seen))
        assert all(packet.length == lengths[packet.timestamp_ns] for packet in kept)
        event = events[number] if number < len(events) else ""
        if event == "wait":
            ring.when_next(lambda: None)
        elif event == "clear":
            ring.clear()
            assert (ring.packets, ring.captured, ring.charged, ring.dropped) == (0, 0, 0, ring.seen)


def test_a_full_ring_holds_nearly_what_it_can():
    ring = ring_of(100 * (100 + OVERHEAD))
    for number in range(1000):
        ring.append(Packet(number, 300, bytes(300)))
        assert number < 100 or 92 <= ring.packets <= 100


def test_a_ring_may_be_appended_to_while_it_is_read():
    ring = ring_of(1000)
    ring.append(Packet(0, 100, bytes(100)))
    for packet in ring:
        ring.append(packet)
    assert ring.packets == 2


@given(
    st.builds(
        Packet,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=70),
        st.integers(0, 3),
        st.integers(0, 2**16 - 1),
        st.booleans(),
        st.integers(0, 2**16 - 1),
    )
)
def test_a_record_is_its_packet(packet):
    assert unpack(pack(packet)) == packet


@given(
    limit=st.integers(OVERHEAD + 100, 6000),
    steps=st.lists(st.one_of(st.integers(0, 100), st.sampled_from(["read"])), max_size=100),
    most=st.integers(1, 10),
)
def test_a_reader_gets_every_packet_once_or_knows_that_it_is_lost(limit, steps, most):
    ring = ring_of(limit)
    next_number = arrived = 0
    got: list[int] = []
    lost = 0

    def read() -> None:
        nonlocal next_number, lost
        number, packets = ring.read(next_number, most)
        assert len(packets) == min(most, ring.seen - number)
        assert [packet.timestamp_ns for packet in packets] == list(range(number, number + len(packets)))
        lost += number - next_number
        next_number = number + len(packets)
        got.extend(packet.timestamp_ns for packet in packets)

    for step in steps:
        if step == "read":
            read()
        else:
            ring.append(Packet(arrived, step, bytes(step)))
            arrived += 1
    while next_number < ring.seen:
        read()
    assert sorted(set(got)) == got
    assert len(got) + lost == arrived


def test_who_waits_is_called_once_behind_the_next_packet():
    ring = ring_of(10000)
    seen: list[tuple[str, int]] = []
    ring.append(Packet(0, 1, b"1"))
    ring.when_next(lambda: seen.append(("a", ring.seen)))
    ring.when_next(lambda: seen.append(("b", ring.seen)))
    forgotten = lambda: seen.append(("c", 0))  # noqa: E731 (it is compared)
    ring.when_next(forgotten)
    ring.forget_waker(forgotten)
    assert seen == []
    ring.append(Packet(1, 1, b"1"))
    ring.append(Packet(2, 1, b"1"))
    assert seen == [("a", 2), ("b", 2)]


@pytest.mark.parametrize(("snaplen", "limit"), [(0, 1000), (101, 100 + OVERHEAD), (1, OVERHEAD)])
def test_a_rule_that_cannot_keep_a_packet_is_refused(snaplen, limit):
    with pytest.raises(ValueError, match="snaplen"):
        Rule("r", everything(), snaplen, limit)


def test_the_charge_is_the_memory():
    ring = ring_of(1 << 20, 1500)
    tracemalloc.start()
    try:
        for number in range(20000):
            ring.append(Packet(number, 150, bytes(number % 300)))
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * ring.charged < used < 1.1 * ring.charged + 20000
