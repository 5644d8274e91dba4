from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.predicates import everything, tcp, udp
from pcap.ring import LEAST_CHARGE, Capture, Direction, Packet, Ring, Rule
from tests.pcap.frames import FRAMES


def never(frame) -> bool:
    return False


@given(
    limit=st.integers(1, 600),
    snaplen=st.integers(1, 200),
    lengths=st.lists(st.integers(0, 400), max_size=60),
)
def test_a_ring_never_exceeds_its_limit_and_keeps_the_newest(limit, snaplen, lengths):
    ring = Ring(Rule("r", everything(), min(snaplen, limit), limit))
    packets = [Packet(number, length, bytes(length)) for number, length in enumerate(lengths)]
    for packet in packets:
        ring.append(packet)
        kept = list(ring)
        assert ring.bytes == sum(len(kept_packet.data) for kept_packet in kept) <= limit
        assert ring.packets == len(ring) == len(kept) <= max(limit // LEAST_CHARGE, 0)
    assert ring.seen == len(packets) == ring.packets + ring.dropped
    assert [packet.timestamp_ns for packet in ring] == list(range(len(packets)))[len(packets) - ring.packets :]
    assert all(packet.length == lengths[packet.timestamp_ns] for packet in ring)


def test_a_full_ring_holds_what_it_can():
    ring = Ring(Rule("r", everything(), 100, 1000))
    for number in range(25):
        ring.append(Packet(number, 300, bytes(300)))
    assert (ring.packets, ring.bytes, ring.dropped) == (10, 1000, 15)
    ring.clear()
    assert (ring.packets, ring.bytes, ring.dropped, ring.seen) == (0, 0, 25, 25)


def test_a_ring_may_be_appended_to_while_it_is_read():
    ring = Ring(Rule("r", everything(), 100, 1000))
    ring.append(Packet(0, 100, bytes(100)))
    for packet in ring:
        ring.append(packet)
    assert ring.packets == 2


def test_each_rule_keeps_its_own():
    clock = itertools.count(1000)
    capture = Capture(
        [Rule("all", everything(), snaplen=20), Rule("dns", udp(port=53) | tcp(port=53)), Rule("none", never)],
        clock_ns=lambda: next(clock),
    )
    for frame in FRAMES.values():
        capture((frame,), Direction.IN)
    assert [capture[name].packets for name in ("all", "dns", "none")] == [len(FRAMES), 5, 0]
    assert {len(packet.data) for packet in capture["all"]} == {15, 20}  # the shortest frame has 15
    whole = next(iter(capture["dns"]))
    assert whole == Packet(1000, len(FRAMES["dns query"]), FRAMES["dns query"], Direction.IN)


@given(
    frame=st.binary(min_size=14, max_size=400),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    snaplen=st.integers(1, 400),
)
def test_a_frame_in_parts_is_captured_like_the_whole(frame, cuts, snaplen):
    capture = Capture([Rule("all", everything(), snaplen)], clock_ns=lambda: 5)
    edges = [0, *sorted(min(cut, len(frame)) for cut in cuts), len(frame)]
    parts = [memoryview(frame)[a:b] for a, b in itertools.pairwise(edges)]
    capture(parts, Direction.OUT)
    capture((bytearray(frame),), Direction.OUT)
    expected = Packet(5, len(frame), frame[:snaplen], Direction.OUT)
    assert list(capture["all"]) == [expected, expected]


def test_a_packet_remembers_that_it_was_a_super_frame():
    capture = Capture([Rule("all", everything())])
    capture((bytes(9000),), Direction.OUT, 1, 1448, True)
    capture((bytes(90),), Direction.OUT, 0, 1448, True)
    assert [(packet.gso_size, packet.checksum_partial) for packet in capture["all"]] == [(1448, True), (0, True)]


def test_what_is_captured_survives_its_buffer():
    capture = Capture([Rule("all", everything())])
    buffer = bytearray(b"x" * 60)
    capture((memoryview(buffer),), Direction.IN)
    buffer[:] = bytes(60)
    assert next(iter(capture["all"])).data == b"x" * 60


def test_rules_come_and_go():
    capture = Capture()
    capture((bytes(60),))
    ring = capture.add(Rule("new", everything(), 2000))
    capture((bytes(60),))
    with pytest.raises(ValueError, match="new already"):
        capture.add(Rule("new", everything()))
    capture.remove("new")
    capture((bytes(60),))
    assert ring.packets == 1
    assert capture.rings == {}
    with pytest.raises(KeyError):
        capture.remove("new")


@pytest.mark.parametrize("snaplen", [0, 101])
def test_a_rule_that_cannot_keep_a_packet_is_refused(snaplen):
    with pytest.raises(ValueError, match="snaplen"):
        Rule("r", everything(), snaplen, 100)
