"""IPv4 headers, TTL and identifications: RFC 791, RFC 1122 section 3.2.1, RFC 1812, RFC 6864."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tapdev.link import LinkCapabilities
from tests.conformance.wire import GATEWAY, GUEST, HOST, MAC, SERVER, datagram, errors, ping, syn

# "this" host, loopback, multicast, reserved, broadcast, and the two ends of the subnet
NOWHERE = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.168.65.0", "192.168.65.255"]
FRAME = Ether(src=MAC, dst=SERVER, type=0x0800)


def with_header(packet: IP, **changes: int) -> bytes:
    """`packet` in a frame, octets of its header changed by position ("o8=1"), its checksum right again."""
    raw = bytearray(bytes(packet))
    for name, value in changes.items():
        raw[int(name[1:])] = value
    length = max((raw[0] & 15) * 4, 20)
    raw[10:12] = bytes(2)
    total = sum(int.from_bytes(raw[i : i + 2], "big") for i in range(0, length, 2))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    raw[10:12] = (0xFFFF - total).to_bytes(2, "big")
    return bytes(FRAME / Raw(bytes(raw)))


@pytest.mark.parametrize("version", [0, 3, 5, 6, 15])
async def test_rfc1122_3_2_1_1_another_version_is_dropped(wire, version):
    assert not wire.send(with_header(ping(GATEWAY), o0=version << 4 | 5))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("octet", range(20))
async def test_rfc1122_3_2_1_2_a_bad_header_checksum_is_dropped(wire, octet):
    raw = bytearray(bytes(FRAME / ping(GATEWAY)))
    raw[14 + octet] ^= 0x10
    assert not wire.send(bytes(raw))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("octet", range(20))
async def test_rfc1122_3_2_1_2_a_bad_header_checksum_of_a_known_flow_is_dropped(make_wire, octet):
    """On a link that can corrupt."""
    wire = make_wire(capabilities=LinkCapabilities(mtu=1500, reliable=False))
    with wire.server() as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"first", port))
        bad = bytearray(bytes(FRAME / datagram(b"second", port)))
        bad[14 + octet] ^= 0x10
        wire.send(bytes(bad), datagram(b"third", port))
        assert [server.recvfrom(100)[0] for _ in range(2)] == [b"first", b"third"]
    assert wire.counters["malformed"] == 1


async def test_rfc1122_3_2_1_2_what_we_send_has_a_good_one(wire):
    """`Wire.work` asks scapy about every frame that comes."""
    [frame] = wire.send(ping(GATEWAY))
    sent = frame[IP].chksum
    del frame[IP].chksum
    assert Ether(bytes(frame))[IP].chksum == sent


@pytest.mark.parametrize(
    "source",
    [*NOWHERE, "10.0.0.1", GATEWAY, HOST],
)
@pytest.mark.parametrize("protocol", [UDP(sport=5000, dport=99) / b"?", ICMP(), TCP(dport=99, flags="S")], ids=type)
async def test_rfc1122_3_2_1_3_a_bad_source_is_dropped(wire, source, protocol):
    assert not wire.send(IP(src=source, dst=GATEWAY) / protocol)
    assert wire.counters["bad_source"] == 1


@pytest.mark.parametrize(
    "destination",
    [*NOWHERE, "0.1.2.3", "127.9.9.9", "192.168.65.77"],
)
@pytest.mark.parametrize("protocol", [UDP(sport=5000, dport=99) / b"?", ICMP(), TCP(dport=99, flags="S")], ids=type)
async def test_rfc1122_3_2_1_3_a_bad_destination_is_dropped(wire, destination, protocol):
    """Nothing is sent on the host, and nothing is said to the guest."""
    assert not wire.send(IP(src=GUEST, dst=destination) / protocol)
    assert not wire.internet.opened
    counted = {"udp_bad_destination", "tcp_bad_destination", "icmp_bad_destination", "broadcast_ignored"}
    assert sum(wire.counters[name] for name in counted) == 1


@pytest.mark.parametrize("destination", [*NOWHERE, "0.1.2.3", "127.9.9.9", "192.168.65.77"])
async def test_rfc1122_3_2_1_3_a_bad_destination_of_an_unknown_protocol_is_dropped(wire, destination):
    assert not wire.send(IP(src=GUEST, dst=destination, proto=132) / b"?")
    assert wire.counters["bad_destination"] + wire.counters["broadcast_ignored"] == 1


@pytest.mark.parametrize("words", range(5))
async def test_rfc791_3_1_a_header_below_20_octets_is_dropped(wire, words):
    assert not wire.send(with_header(ping(GATEWAY), o0=0x40 | words))
    assert wire.counters["malformed"] == 1


async def test_rfc791_3_1_a_header_longer_than_its_datagram_is_dropped(wire):
    """The total length says 28, the header length 32 and more."""
    for words in range(8, 16):
        assert not wire.send(with_header(ping(GATEWAY, b"") / Raw(bytes(60)), o0=0x40 | words, o2=0, o3=28))
    assert wire.counters["malformed"] == 8


@pytest.mark.parametrize("total", [0, 1, 19, 33, 1500, 65535])
async def test_rfc791_3_1_a_total_length_that_cannot_be_is_dropped(wire, total):
    assert not wire.send(with_header(ping(GATEWAY), o2=total >> 8, o3=total & 255))
    assert wire.counters["malformed"] == 1


async def test_rfc791_3_1_a_datagram_that_is_cut_is_dropped(wire):
    whole = bytes(FRAME / ping(GATEWAY))
    for length in range(14, len(whole)):
        assert not wire.send(whole[:length])
    assert wire.counters["malformed"] == len(whole) - 14


async def test_rfc791_3_1_padding_is_no_payload_of_a_ping(wire):
    [frame] = wire.send(bytes(FRAME / ping(GATEWAY, b"abc")) + bytes(15))
    assert bytes(frame[ICMP].payload) == b"abc"


async def test_rfc791_3_1_padding_is_no_payload_of_a_datagram(wire):
    """Ethernet's least frame is 60 octets.  The second one takes the fast path."""
    with wire.server() as server:
        for data in (b"x", b"y"):
            wire.send(bytes(FRAME / datagram(data, server.getsockname()[1])).ljust(60, b"\xee"))
            assert server.recvfrom(100)[0] == data


async def test_rfc791_3_1_padding_is_no_data_of_a_stream(wire):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [answer] = wire.send(syn(port))
        own = {"sport": 40_000, "dport": port, "ack": answer[TCP].seq + 1}
        for sequence, data in ((1001, b""), (1001, b"x"), (1002, b"y")):
            segment = IP(src=GUEST, dst=HOST) / TCP(seq=sequence, flags="A", **own) / data
            wire.send(bytes(FRAME / segment).ljust(60, b"\xee"))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(100) == b"xy"


@given(data=st.binary(max_size=80))
def test_rfc791_3_1_any_header_is_decoded_or_refused(data):
    from vpnkit.errors import WireError
    from vpnkit.wire import ipv4

    try:
        packet = ipv4.decode(memoryview(data))
    except WireError:
        return
    assert 20 <= len(packet.header) <= len(packet.header) + len(packet.payload) <= len(data)


@pytest.mark.parametrize("ttl", [0, 1, 2, 255])
async def test_rfc1122_3_2_1_7_a_datagram_for_us_is_taken_with_any_ttl(wire, ttl):
    [echo] = wire.send(ping(GATEWAY, ttl=ttl))
    assert echo[ICMP].type == 0
    [closed] = wire.send(datagram(b"?", 99, GATEWAY, ttl=ttl))
    assert errors([closed]) == [(3, 3)]


async def test_rfc1122_3_2_1_7_nothing_is_sent_with_a_ttl_of_zero(wire):
    with wire.server() as server:
        wire.send(datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        server.sendto(bytes(4000), peer)
        wire.until(IP)
    wire.send(ping(GATEWAY, ttl=0), datagram(b"?", 99, GATEWAY, ttl=0), syn(99, GATEWAY, ttl=1), syn(53, GATEWAY))
    assert len(wire.heard) >= 7
    assert min(Ether(frame)[IP].ttl for frame in wire.heard) >= 64


def with_options(packet: IP, options: bytes) -> bytes:
    """`packet` in a frame, with `options` in its header."""
    raw = bytes(packet)
    total = len(raw) + len(options)
    raw = raw[:20] + options + raw[20:]
    return with_header(Raw(raw), o0=0x45 + len(options) // 4, o2=total >> 8, o3=total & 255)


OPTIONS = {
    "no operation": b"\x01\x01\x01\x01",
    "router alert": b"\x94\x04\x00\x00",
    "record route": b"\x07\x07\x04\x00\x00\x00\x00\x00",
    "timestamp": b"\x44\x08\x05\x00\x00\x00\x00\x00",
    "unknown": b"\x9e\x04\xab\xcd",
    "as many as there can be": b"\x9e\x04\xab\xcd" * 10,
    "a source route behind the end": b"\x00\x83\x03\x04",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_rfc1122_3_2_1_8_options_are_ignored(wire, options):
    [echo] = wire.send(with_options(ping(GATEWAY), options))
    assert (echo[ICMP].type, bytes(echo[ICMP].payload)) == (0, b"ping")
    assert echo[IP].ihl == 5
    with wire.server() as server:
        wire.send(with_options(datagram(b"data", server.getsockname()[1]), options))
        assert server.recvfrom(100)[0] == b"data"


@pytest.mark.parametrize(
    "options", [b"\x9e\x00\xab\xcd", b"\x9e\x01\xab\xcd", b"\x9e\x05\xab\xcd", b"\x01\x01\x01\x9e"]
)
async def test_rfc1122_3_2_1_8_options_of_an_impossible_length_are_refused(wire, options):
    assert not wire.send(with_options(ping(GATEWAY), options))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("kind", [131, 137], ids=["loose", "strict"])
async def test_rfc1122_3_2_1_8c_source_routes_are_dropped(wire, kind):
    assert not wire.send(with_options(ping(GATEWAY), bytes([kind, 7, 4, 9, 9, 9, 9, 1])))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("identification", [0, 1, 65535])
async def test_rfc6864_4_1_the_identification_of_a_whole_datagram_is_ignored(wire, identification):
    with wire.server() as server:
        for i in range(3):
            wire.send(datagram(b"%d" % i, server.getsockname()[1], flags="DF", id=identification))
            assert server.recvfrom(100)[0] == b"%d" % i


async def test_rfc6864_4_1_segments_and_small_datagrams_have_df(wire):
    wire.send(ping(GATEWAY), datagram(b"?", 99, GATEWAY), syn(99, GATEWAY), syn(53, GATEWAY))
    assert {str(Ether(frame)[IP].flags) for frame in wire.heard} == {"DF"}


async def test_rfc6864_4_1_fragmented_datagrams_have_identifications_of_their_own(make_wire):
    wire = make_wire(capabilities=LinkCapabilities(mtu=576))
    with wire.server() as server:
        wire.send(datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        for _ in range(50):
            server.sendto(bytes(1000), peer)
        found = wire.until(IP, count=100)
    frames = [frame[IP] for frame in found] + [f[IP] for f in wire.send(ping(GATEWAY, bytes(520) * 1))]
    split = [frame for frame in frames if frame.flags.MF or frame.frag]
    assert len(split) == 100
    assert len({frame.id for frame in split}) == 50
    assert not any(frame.flags.DF for frame in split)
