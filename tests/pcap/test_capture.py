from __future__ import annotations

import gc
import itertools
import resource
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.capture import MAX_FLOWS, MAX_INTERFACES, MAX_RULES, Capture
from pcap.filter import compile_filter
from pcap.headers import fault
from pcap.predicates import everything, tcp, udp
from pcap.ring import Direction, Packet, Rule
from pcap.rules import default_rules
from tests.pcap.filter.filter_frames import frames
from tests.pcap.frames import ANY_BYTES, FRAMES


def never(frame) -> bool:
    return False


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
    frame=st.one_of(st.binary(min_size=14, max_size=400), st.sampled_from(sorted(FRAMES.values()))),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    snaplen=st.integers(1, 400),
)
def test_a_frame_in_parts_is_captured_like_the_whole(frame, cuts, snaplen):
    capture = Capture([Rule("all", everything(), snaplen), Rule("dns", udp(port=53))], clock_ns=lambda: 5)
    edges = [0, *sorted(min(cut, len(frame)) for cut in cuts), len(frame)]
    parts = [memoryview(frame)[a:b] for a, b in itertools.pairwise(edges)]
    for _ in range(2):
        capture(parts, Direction.OUT)
        capture((bytearray(frame),), Direction.OUT)
    expected = Packet(5, len(frame), frame[:snaplen], Direction.OUT)
    assert list(capture["all"]) == [expected] * 4
    assert capture["dns"].packets in (0, 4)


@given(st.lists(st.one_of(ANY_BYTES, st.integers(0, 300).map(lambda seed: next(frames(seed, 1))[0])), max_size=30))
def test_a_flow_is_decided_once_and_as_the_predicates_say(several):
    """Every frame comes twice, so that the second meets a decision."""
    rules = [
        *default_rules(),
        Rule("web", compile_filter("tcp port 80 or 443"), direction=Direction.IN),
        Rule("flags", compile_filter("tcp[tcpflags] & tcp-syn != 0 or less 100")),
        Rule("good", compile_filter("udp"), malformed=False),
    ]
    capture = Capture(rules)
    expected = dict.fromkeys(capture.rings, 0)
    for frame, direction in itertools.product(several * 2, (Direction.IN, Direction.OUT)):
        capture((frame,), direction)
        bad = fault(frame, len(frame)) != ""
        for rule in rules:
            expected[rule.name] += (
                rule.malformed in (None, bad)
                and rule.direction in (Direction.UNKNOWN, direction)
                and rule.when(frame, len(frame), direction)
            )
    assert {name: ring.seen for name, ring in capture.rings.items()} == expected


def test_the_six_rules():
    capture = Capture(default_rules())
    for frame in FRAMES.values():
        capture((frame,), Direction.IN)
    capture((FRAMES["udp"][:30],), Direction.IN)
    capture((struct.pack("!6s6sH", bytes(6), bytes(6), 0x800) + bytes(40),), Direction.OUT)
    counts = {name: ring.packets for name, ring in capture.rings.items()}
    assert counts == {
        "all.pcap": len(FRAMES), "dns.pcap": 5, "ntp.pcap": 0, "icmp.pcap": 4, "http_proxy.pcap": 0, "bad.pcap": 2,
    }  # fmt: skip


def test_what_is_malformed():
    assert {name: fault(frame, len(frame)) for name, frame in FRAMES.items()} == dict.fromkeys(FRAMES, "")
    wrong = {
        "no Ethernet header": b"short",
        "IPv4 length": FRAMES["udp"][:40],
        "no IPv6 header": FRAMES["udp6"][:50],
        "IPv6 length": FRAMES["udp6"][:-1],
        "no ARP of Ethernet and IPv4": FRAMES["arp"][:41],
        "TCP header length": FRAMES["syn"][:46] + b"\xf0" + FRAMES["syn"][47:],
        "UDP length": FRAMES["udp"][:38] + b"\x00\x50" + FRAMES["udp"][40:],
    }
    assert {fault(frame, len(frame)) for frame in wrong.values()} == set(wrong)


@given(ANY_BYTES, st.integers(0, 70000))
def test_any_bytes_are_malformed_or_not(frame, more):
    assert isinstance(fault(frame, len(frame) + more), str)


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


def test_a_rule_is_asked_about_flows_that_were_decided_before_it_came():
    capture = Capture(default_rules())
    capture((FRAMES["udp"],), Direction.IN)
    ring = capture.add(Rule("new", compile_filter("udp port 2000")))
    capture((FRAMES["udp"],), Direction.IN)
    assert ring.packets == 1


def test_rules_are_bounded():
    capture = Capture([Rule(str(number), everything()) for number in range(MAX_RULES)])
    with pytest.raises(ValueError, match=f"{MAX_RULES} captures already"):
        capture.add(Rule("one more", everything()))


def test_links_have_names():
    capture = Capture([Rule("all", everything())])
    for name in ("one", "two"):
        capture.tap(name)((bytes(60),), Direction.IN, 0, 0, False)
    assert [capture.interface(packet.interface) for packet in capture["all"]] == ["one", "two"]
    for _ in range(MAX_INTERFACES):
        capture.tap("more")
    assert [capture.interface(packet.interface) for packet in capture["all"]] == ["", ""]


def test_decisions_are_bounded():
    capture = Capture(default_rules())
    frame = bytearray(FRAMES["udp"])
    for number in range(2 * MAX_FLOWS + 1):
        frame[34:38] = number.to_bytes(4)
        capture((frame,), Direction.IN)
    assert capture.counters["flows_forgotten"] == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_million_frames_leave_memory_flat():
    capture = Capture(default_rules())
    tap = capture.tap("guest")
    several = [frame for frame, _ in frames(1, 2000)]

    def churn(count: int) -> int:
        for number in range(count):
            tap((several[number % 2000],), 1 + number % 2, 0, 0, False)
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    before = churn(100_000)
    after = churn(900_000)
    assert after - before < 2 << 20
    assert all(ring.charged <= ring.rule.limit_bytes for ring in capture.rings.values())
