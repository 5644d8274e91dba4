from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tapdev.link import Gso, LinkCapabilities
from vpnkit.errors import WireError
from vpnkit.wire import ipv6
from vpnkit.wire.checksum import fold, is_valid, ones_sum
from vpnkit.wire.offload import (
    MAX_SEGMENTS,
    adapt,
    complete_checksum,
    is_super_frame,
    locate,
    partial_checksum,
    segments,
)

PLAIN = LinkCapabilities(mtu=1500)
JUMBO = LinkCapabilities(mtu=65520)
ABLE = LinkCapabilities(mtu=1500, checksum=True, tso4=True, tso6=True, uso=True)
SUMS_ONLY = LinkCapabilities(mtu=1500, checksum=True)

ETHER = Ether(dst="02:50:00:00:00:02", src="02:50:00:00:00:01")
IP4 = IP(src="192.168.65.3", dst="192.168.65.4", id=65534, flags="DF", ttl=61, tos=3)
IP6 = IPv6(src="fd65::3", dst="fd65::4", fl=0x12345, tc=7)
TCP_OPTIONS = [("Timestamp", (7, 8)), ("NOP", None), ("NOP", None), ("SAck", (1, 2))]
SEGMENT = TCP(sport=1000, dport=2000, seq=0xFFFFF000, ack=99, flags="APFC", window=500, options=TCP_OPTIONS)

NETWORKS = {
    "ipv4": (ETHER / IP4, Gso.TCPV4),
    "ipv4-options": (
        ETHER / IP(bytes(IP(src="10.0.0.1", dst="10.0.0.2", options=[b"\x01\x01\x01\x00"], id=3))),
        Gso.TCPV4,
    ),
    "vlan": (ETHER / Dot1Q(vlan=7) / IP4, Gso.TCPV4),
    "qinq": (ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=9) / IP4, Gso.TCPV4),
    "ipv6": (ETHER / IP6, Gso.TCPV6),
    "ipv6-extensions": (ETHER / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(), Gso.TCPV6),
    "ipv6-routed": (ETHER / IP6 / IPv6ExtHdrRouting(segleft=0, addresses=["fd65::9"]), Gso.TCPV6),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


def payload(length: int) -> bytes:
    return (b"The quick brown fox jumps over the lazy dog. " * (length // 45 + 1))[:length]


def make(network, transport, data: bytes) -> bytes:
    """The frame with every length and checksum as scapy makes them."""
    ip = network.copy()
    if IP in ip and ip[IP].ihl is not None:
        ip[IP].len = ip[IP].ihl * 4 + len(transport) + len(data)
        ip[IP].proto = 6 if TCP in transport else 17
        del ip[IP].chksum
    return bytes(ip / transport / data)


def same(one: int, other: int) -> bool:
    return one % 0xFFFF == other % 0xFFFF


def is_sound(frame: bytes) -> bool:
    """Whether scapy would give this frame the lengths and checksums that it has."""
    read = Ether(bytes(frame))
    again = Ether(bytes(frame))
    layer = TCP if TCP in read else UDP
    del again[layer].chksum
    if layer is UDP:
        del again[UDP].len
    if IP in read:
        del again[IP].chksum, again[IP].len
    else:
        del again[IPv6].plen
    again = Ether(bytes(again))
    return (
        len(read) == len(again)
        and same(read[layer].chksum, again[layer].chksum)
        and (layer is TCP or read[UDP].len == again[UDP].len)
        and (IP not in read or (read[IP].len == again[IP].len and same(read[IP].chksum, again[IP].chksum)))
        and (IP in read or read[IPv6].plen == again[IPv6].plen)
    )


def data_of(frame: bytes) -> bytes:
    read = Ether(bytes(frame))
    return bytes(read[TCP if TCP in read else UDP].payload)


def made_partial(frame: bytes) -> bytes:
    made = partial_checksum(frame)
    assert made is not None
    return bytes(made[0])


class TestChecksums:
    @pytest.mark.parametrize("transport", [SEGMENT, UDP(sport=1, dport=2)], ids=["tcp", "udp"])
    @pytest.mark.parametrize("length", [0, 1, 1399])
    @pytest.mark.parametrize("padding", [b"", b"\0\0\0", b"\xaa\xbb\xcc"])
    def test_there_and_back(self, network, transport, length, padding):
        whole = make(network[0], transport, payload(length))
        made = partial_checksum(whole + padding)
        assert made is not None
        partial, start, offset = made
        at = locate(whole)
        assert at is not None
        assert start == at.start == len(whole) - len(transport) - length
        assert offset == (16 if TCP in transport else 6)
        assert partial[: start + offset] == whole[: start + offset]
        assert partial[start + offset + 2 :] == whole[start + offset + 2 :] + padding
        field = struct.unpack_from("!H", partial, start + offset)[0]
        assert field == fold(at.pseudo)
        # What the hardware does: the sum from `start` on, the field's content included.
        assert same(0xFFFF - ones_sum(partial[start : at.end]), struct.unpack_from("!H", whole, start + offset)[0])
        done = complete_checksum(partial)
        assert done is not None
        assert is_valid(done[start : at.end], at.pseudo)
        assert bytes(done[: at.end]) == whole
        assert complete_checksum(whole) == whole, "it was complete before"

    def test_a_sum_of_zero_is_sent_as_all_ones(self):
        """RFC 768: zero would mean that there is none."""
        frame = make(ETHER / IP4, UDP(sport=1, dport=2), b"\0\0")
        at = locate(frame)
        assert at is not None
        rest = 65535 - (ones_sum(frame[at.start : at.end]) - struct.unpack_from("!H", frame, 40)[0] + at.pseudo) % 65535
        frame = frame[:42] + struct.pack("!H", rest)
        done = complete_checksum(frame)
        assert done is not None
        assert done[40:42] == b"\xff\xff"

    def test_udp_without_a_checksum_stays_without(self):
        frame = make(ETHER / IP4, UDP(sport=1, dport=2, chksum=0), b"data")
        assert frame[40:42] == b"\0\0"
        assert complete_checksum(frame) is None
        assert partial_checksum(frame) is None

    def test_but_not_over_ipv6(self):
        """RFC 8200 section 8.1."""
        frame = bytearray(make(ETHER / IP6, UDP(sport=1, dport=2), b"data"))
        wanted = bytes(frame)
        frame[60:62] = b"\0\0"
        assert complete_checksum(frame) == wanted

    @pytest.mark.parametrize(
        "frame",
        [
            bytes(ETHER / ARP()) + bytes(18),
            bytes(ETHER / IP4 / ICMP() / b"ping"),
            bytes(ETHER / IP(flags="MF") / UDP() / b"first"),
            bytes(ETHER / IP(frag=1, proto=17) / payload(64)),
            bytes(ETHER / IPv6() / IPv6ExtHdrFragment(m=1) / UDP() / b"first"),
            bytes(ETHER / IPv6() / IPv6ExtHdrRouting(segleft=1, addresses=["::1"]) / UDP() / b"under way"),
            bytes(ETHER / IPv6(nh=51) / payload(64)),
            bytes(ETHER / IP4 / UDP(len=7) / b"short"),
            bytes(ETHER / IP4 / UDP(len=14) / b"short"),
            bytes(ETHER / IP(len=29, proto=17) / bytes(40)),
            bytes(ETHER / IP(len=2000, proto=17) / bytes(40)),
            bytes(ETHER / IP(ihl=4, proto=17) / bytes(40)),
            bytes(ETHER / IP(version=5, proto=17) / bytes(40)),
            bytes(ETHER / IP4 / TCP(dataofs=5))[:-1],
            bytes(ETHER / IPv6(plen=100, nh=17) / bytes(20)),
            bytes(ETHER / IPv6(plen=12, nh=0) / bytes(12)),
            bytes(ETHER / IPv6(version=4, nh=17) / bytes(20)),
            bytes(ETHER / Dot1Q() / Dot1Q() / Dot1Q() / IP4 / UDP() / b"data"),
            bytes(ETHER / Dot1Q() / bytes(26)),
            bytes(ETHER),
            b"",
        ],
    )
    def test_what_is_left_alone(self, frame):
        assert locate(frame) is None
        assert complete_checksum(frame) is None
        assert partial_checksum(frame) is None
        assert not is_super_frame(frame, 1)
        assert list(adapt(frame, 0, 0, False, PLAIN, ABLE)) == [((frame,), 0, 0, 0, 0, 0)]
        with pytest.raises(WireError):
            segments(frame, Gso.UDP_L4, 10)

    def test_too_many_extension_headers(self):
        frame = ETHER / IP6
        for _ in range(ipv6.MAX_EXTENSIONS):
            frame = frame / IPv6ExtHdrDestOpt()
        assert locate(bytes(frame / UDP() / b"data")) is None

    @given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x01\x08\x00"]))
    def test_any_octets(self, data, ethertype):
        frame = bytes(12) + ethertype + data
        at = locate(frame)
        done = complete_checksum(frame)
        assert at is not None or done is None
        if at is not None:
            assert 14 <= at.network < at.start < at.end <= len(frame)
        if done is not None and at is not None:
            assert is_valid(done[at.start : at.end], at.pseudo)


class TestTcpSegments:
    @pytest.mark.parametrize(
        ("length", "size"), [(10, 4), (4000, 1448), (4344, 1448), (1448, 1448), (0, 1448), (60000, 1401)]
    )
    def test_they_are_the_stream_and_sound(self, network, length, size):
        ip, gso = network
        data = payload(length)
        frame = make(ip, SEGMENT, data)
        made = list(segments(frame, gso, size))
        assert len(made) == max(1, -(-length // size))
        assert b"".join(data_of(segment) for segment in made) == data
        whole = Ether(frame)
        sequence = whole[TCP].seq
        for number, segment in enumerate(made):
            assert is_sound(segment)
            read = Ether(bytes(segment))
            first, last = number == 0, number == len(made) - 1
            assert len(data_of(segment)) == (size if not last else length - size * number)
            assert read[TCP].seq == sequence
            sequence = (sequence + len(data_of(segment))) % 2**32
            assert set(str(read[TCP].flags)) == {"A"} | ({"C"} if first else set()) | ({"P", "F"} if last else set())
            assert read[TCP].options == whole[TCP].options
            assert (read[TCP].ack, read[TCP].window) == (99, 500)
            if IP in read:
                assert read[IP].id == (whole[IP].id + number) % 65536
                assert (read[IP].flags, read[IP].ttl, read[IP].tos) == (whole[IP].flags, whole[IP].ttl, whole[IP].tos)
            else:
                assert (read[IPv6].fl, read[IPv6].tc) == (whole[IPv6].fl, whole[IPv6].tc)

    def test_a_partial_checksum_makes_no_difference(self, network):
        ip, gso = network
        frame = make(ip, SEGMENT, payload(5000))
        assert list(segments(made_partial(frame), gso, 1000)) == list(segments(frame, gso, 1000))

    def test_padding_is_not_sent(self):
        frame = make(ETHER / IP4, SEGMENT, payload(300)) + bytes(50)
        assert b"".join(data_of(segment) for segment in segments(frame, Gso.TCPV4, 200)) == payload(300)

    def test_the_urgent_pointer_stays_where_it_points(self):
        frame = make(ETHER / IP4, TCP(seq=1, flags="AU", urgptr=250), payload(500))
        read = [Ether(bytes(segment))[TCP] for segment in segments(frame, Gso.TCPV4, 100)]
        assert [(str(tcp.flags), tcp.urgptr) for tcp in read] == [
            ("AU", 250),
            ("AU", 150),
            ("AU", 50),
            ("A", 0),
            ("A", 0),
        ]
        assert all(is_sound(segment) for segment in segments(frame, Gso.TCPV4, 100))

    @pytest.mark.parametrize("flags", ["S", "SA", "R"])
    def test_what_must_not_be_cut(self, flags):
        frame = make(ETHER / IP4, TCP(flags=flags), payload(300))
        with pytest.raises(WireError, match="flags"):
            segments(frame, Gso.TCPV4, 100)
        assert len(list(segments(frame, Gso.TCPV4, 300))) == 1

    @pytest.mark.parametrize("offset", [0, 4, 15])
    def test_a_bad_data_offset(self, offset):
        with pytest.raises(WireError, match="header"):
            segments(make(ETHER / IP4, TCP(dataofs=offset), b""), Gso.TCPV4, 100)

    @pytest.mark.parametrize("gso", [Gso.NONE, Gso.TCPV6, Gso.UDP_L4, 3, 0x81])
    def test_another_type(self, gso):
        with pytest.raises(WireError, match="gso_type"):
            segments(make(ETHER / IP4, SEGMENT, payload(300)), gso, 100)

    def test_their_number_is_bounded(self):
        frame = make(ETHER / IP4, SEGMENT, payload(MAX_SEGMENTS + 1))
        assert len(list(segments(frame, Gso.TCPV4, 2))) == MAX_SEGMENTS // 2 + 1
        for size in (1, 0, -1):
            with pytest.raises(WireError, match="segments of"):
                segments(frame, Gso.TCPV4, size)

    def test_the_frame_is_left_alone(self):
        frame = bytearray(make(ETHER / IP4, SEGMENT, payload(3000)))
        before = bytes(frame)
        list(segments(memoryview(frame), Gso.TCPV4, 1000))
        assert frame == before


class TestUdpSegments:
    @pytest.mark.parametrize(("length", "size"), [(10, 4), (4000, 1000), (60000, 1399), (0, 9)])
    def test_each_is_a_datagram(self, network, length, size):
        frame = make(network[0], UDP(sport=5000, dport=53), payload(length))
        made = list(segments(made_partial(frame), Gso.UDP_L4, size))
        assert all(is_sound(datagram) for datagram in made)
        assert [data_of(datagram) for datagram in made] == [
            payload(length)[i : i + size] for i in range(0, max(length, 1), size)
        ]
        assert {(Ether(bytes(d))[UDP].sport, Ether(bytes(d))[UDP].dport) for d in made} == {(5000, 53)}

    def test_without_a_checksum_they_have_none(self):
        frame = make(ETHER / IP4, UDP(chksum=0), payload(100))
        assert [datagram[40:42] for datagram in segments(frame, Gso.UDP_L4, 60)] == [b"\0\0", b"\0\0"]


def test_super_frames():
    frame = make(ETHER / IP4, SEGMENT, payload(3000))
    assert is_super_frame(frame, 1500)
    assert not is_super_frame(frame, 65520)
    assert not is_super_frame(frame, len(frame) - 14)
    assert is_super_frame(frame, len(frame) - 15)
    assert not is_super_frame(make(ETHER / IP4, UDP(), payload(3000)), 1500)
    assert not is_super_frame(make(ETHER / IP4, SEGMENT, b"") + bytes(3000), 1500)
    assert not is_super_frame(make(ETHER / Dot1Q() / IP4, TCP(), payload(1460)), 1500)


def only(outgoing) -> tuple:
    assert len(outgoing) == 1
    parts, *metadata = outgoing[0]
    return (b"".join(parts), *metadata)


class TestAdapt:
    @pytest.mark.parametrize("able", [PLAIN, ABLE, SUMS_ONLY])
    def test_an_ordinary_frame_goes_as_it_is(self, network, able):
        frame = make(network[0], SEGMENT, payload(1000))
        assert only(adapt(frame, 0, 0, False, able, able)) == (frame, 0, 0, 0, 0, 0)
        assert adapt(frame, 0, 0, False, able, able)[0][0][0] is frame, "not copied"

    def test_a_super_frame_stays_one_between_links_that_can(self, network):
        ip, gso = network
        frame = made_partial(make(ip, SEGMENT, payload(20000)))
        at = locate(frame)
        assert at is not None
        header = len(frame) - 20000
        sent = adapt(frame, gso, 1200, True, ABLE, ABLE)
        assert only(sent) == (frame, at.start, 16, gso, 1200, header)

    def test_a_partial_checksum_stays_one_between_links_that_can(self, network):
        frame = made_partial(make(network[0], SEGMENT, payload(1000)))
        at = locate(frame)
        assert at is not None
        for source in (ABLE, PLAIN):  # the second says nothing about it
            sent = adapt(frame, 0, 0, source is ABLE, source, SUMS_ONLY)
            assert only(sent) == (frame, at.start, 16, 0, 0, 0)

    @pytest.mark.parametrize("source", [ABLE, PLAIN])
    @pytest.mark.parametrize("transport", [SEGMENT, UDP()], ids=["tcp", "udp"])
    def test_it_is_completed_for_one_that_cannot(self, network, source, transport):
        whole = make(network[0], transport, payload(1000))
        assert only(adapt(made_partial(whole), 0, 0, source is ABLE, source, PLAIN)) == (whole, 0, 0, 0, 0, 0)

    def test_a_wrong_checksum_stays_wrong(self):
        frame = bytearray(make(ETHER / IP4, SEGMENT, payload(1000)))
        frame[-1] ^= 1
        for destination in (PLAIN, ABLE):
            assert only(adapt(frame, 0, 0, False, PLAIN, destination)) == (frame, 0, 0, 0, 0, 0)

    def test_a_whole_checksum_that_looks_partial_stays(self):
        """One frame in 65535 has the pseudo-header's sum as its right checksum."""
        frame = bytearray(make(ETHER / IP4, UDP(), b"\0\0data"))
        at = locate(frame)
        assert at is not None
        partial = bytearray(made_partial(frame))
        rest = 65535 - (ones_sum(partial[at.start : at.end]) + at.pseudo) % 65535
        struct.pack_into("!H", partial, 42, rest)
        assert is_valid(partial[at.start : at.end], at.pseudo)
        for destination in (PLAIN, ABLE):
            assert only(adapt(bytes(partial), 0, 0, False, PLAIN, destination)) == (partial, 0, 0, 0, 0, 0)

    def test_udp_without_a_checksum_goes_without(self):
        frame = make(ETHER / IP4, UDP(chksum=0), payload(100))
        for source in (PLAIN, ABLE):
            for destination in (PLAIN, ABLE):
                for partial in (False, True):
                    assert only(adapt(frame, 0, 0, partial, source, destination)) == (frame, 0, 0, 0, 0, 0)

    @pytest.mark.parametrize("destination", [PLAIN, JUMBO, SUMS_ONLY], ids=["1500", "65520", "sums"])
    def test_a_super_frame_is_cut_for_one_that_cannot(self, network, destination):
        ip, gso = network
        frame = made_partial(make(ip, SEGMENT, payload(20000)))
        sent = adapt(frame, gso, 1200, True, ABLE, destination)
        assert len(sent) == 17
        assert {tuple(metadata) for _, *metadata in sent} == {(0, 0, 0, 0, 0)}
        frames = [b"".join(parts) for parts, *_ in sent]
        assert all(is_sound(one) for one in frames)
        assert b"".join(map(data_of, frames)) == payload(20000)

    def test_no_segment_is_larger_than_the_destination_takes(self, network):
        ip, gso = network
        frame = made_partial(make(ip, SEGMENT, payload(20000)))
        at = locate(frame)
        assert at is not None
        jumbo = replace(ABLE, mtu=9000)
        sent = adapt(frame, gso, 8900, True, jumbo, PLAIN)
        frames = [b"".join(parts) for parts, *_ in sent]
        assert max(map(len, frames)) == 1500 + at.network
        assert b"".join(map(data_of, frames)) == payload(20000)
        header = len(frame) - 20000
        wanted = (frame, at.start, 16, gso, 1500 - header + at.network, header)
        assert only(adapt(frame, gso, 8900, True, jumbo, ABLE)) == wanted

    @pytest.mark.parametrize("partial", [True, False])
    def test_a_super_frame_that_nobody_announced(self, network, partial):
        """libkrun: 64 KiB over a plain stream."""
        ip, gso = network
        whole = make(ip, SEGMENT, payload(60000))
        frame = made_partial(whole) if partial else whole
        at = locate(frame)
        assert at is not None
        frames = [b"".join(parts) for parts, *_ in adapt(frame, 0, 0, False, JUMBO, PLAIN)]
        assert all(is_sound(one) for one in frames)
        assert {len(one) for one in frames[:-1]} == {1500 + at.network}
        assert b"".join(map(data_of, frames)) == payload(60000)
        header = len(frame) - 60000
        wanted = (made_partial(whole), at.start, 16, gso, 1500 - header + at.network, header)
        assert only(adapt(frame, 0, 0, False, JUMBO, ABLE)) == wanted
        assert only(adapt(frame, 0, 0, False, JUMBO, JUMBO)) == (whole, 0, 0, 0, 0, 0)

    def test_datagrams_have_the_size_that_they_have(self, network):
        frame = made_partial(make(network[0], UDP(), payload(6000)))
        at = locate(frame)
        assert at is not None
        assert only(adapt(frame, Gso.UDP_L4, 1200, True, ABLE, ABLE)) == (frame, at.start, 6, 5, 1200, at.start + 8)
        sent = adapt(frame, Gso.UDP_L4, 1200, True, ABLE, PLAIN)
        assert [data_of(b"".join(parts)) for parts, *_ in sent] == [
            payload(6000)[i : i + 1200] for i in range(0, 6000, 1200)
        ]
        assert adapt(frame, Gso.UDP_L4, 2000, True, replace(ABLE, mtu=9000), PLAIN) == ()
        assert adapt(frame, Gso.UDP_L4, 2000, True, replace(ABLE, mtu=9000), ABLE) == ()

    def test_what_is_too_long_and_cannot_be_cut(self, network):
        assert adapt(make(network[0], UDP(), payload(1600)), 0, 0, False, JUMBO, PLAIN) == ()
        assert adapt(bytes(ETHER / IP4 / ICMP() / payload(1600)), 0, 0, False, JUMBO, ABLE) == ()
        assert adapt(make(network[0], TCP(flags="S"), payload(1600)), 0, 0, False, JUMBO, ABLE) == ()
        assert adapt(make(network[0], SEGMENT, b""), Gso.TCPV4, 100, True, ABLE, LinkCapabilities(mtu=60)) == ()

    def test_padding_of_a_super_frame_is_not_sent(self):
        frame = made_partial(make(ETHER / IP4, SEGMENT, payload(3000)))
        assert only(adapt(frame + b"padding", Gso.TCPV4, 1200, True, ABLE, ABLE))[0] == frame

    def test_a_super_frame_that_is_none(self):
        frame = made_partial(make(ETHER / IP4, SEGMENT, payload(100)))
        assert only(adapt(frame, Gso.TCPV4, 1200, True, ABLE, ABLE)) == (frame, 34, 16, 0, 0, 0)
        assert is_sound(only(adapt(frame, Gso.TCPV4, 1200, True, ABLE, PLAIN))[0])
        for gso, size in ((Gso.TCPV6, 1200), (3, 1200), (Gso.UDP_L4, 1200), (Gso.TCPV4, 0)):
            assert adapt(frame, gso, size, True, ABLE, ABLE) == ()
        assert adapt(bytes(ETHER / ARP()), Gso.TCPV4, 1200, True, ABLE, ABLE) == ()

    @pytest.mark.parametrize("mtu", [1500, 9000])
    def test_full_size_frames(self, mtu):
        """The original lost them."""
        able = LinkCapabilities(mtu=mtu)
        whole = make(ETHER / IP4, TCP(), payload(mtu - 40))
        assert only(adapt(whole, 0, 0, False, able, able))[0] == whole
        tagged = make(ETHER / Dot1Q() / IP4, TCP(), payload(mtu - 40))
        assert only(adapt(tagged, 0, 0, False, able, able))[0] == tagged
        ping = bytes(ETHER / Dot1Q() / IP4 / ICMP() / payload(mtu - 28))
        assert only(adapt(ping, 0, 0, False, able, able))[0] == ping
        untagged = bytes(ETHER / IP4 / ICMP() / payload(mtu - 27))
        assert adapt(untagged, 0, 0, False, able, able) == ()

    @given(
        st.binary(max_size=90),
        st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\x00\x01\x08\x00\x45", b""]),
        st.integers(0, 6),
        st.integers(0, 70000),
        st.booleans(),
        st.sampled_from([PLAIN, ABLE]),
        st.sampled_from([PLAIN, ABLE, LinkCapabilities(mtu=68), LinkCapabilities(68, True, True, True, True)]),
    )
    def test_any_octets_raise_nothing(self, data, ethertype, gso, size, partial, source, destination):
        frame = (bytes(12) if ethertype else b"") + ethertype + data
        for parts, start, offset, _, _, header_length in adapt(frame, gso, size, partial, source, destination):
            length = sum(map(len, parts))
            assert header_length <= length
            assert not start or start + offset + 2 <= length
            if not header_length:
                assert length <= destination.mtu + 18
