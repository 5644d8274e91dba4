"""Inputs by which one guest harmed another, or their gateway: ARP, neighbour discovery, router advertisements, DHCP
servers, layer 2 tricks (conformance.md 3.1 G6, G9 and 3.3, 3.5 N).  See test_cves.py."""

from __future__ import annotations

import itertools
import struct

import pytest

from tests.fuzz import frames
from tests.fuzz.frames import BROADCAST, GATEWAY, SERVER_MAC, arp_packet, ether, ipv4, packed

ALL_NODES = b"\xff\x02" + bytes(13) + b"\1"
ALL_NODES_MAC = b"\x33\x33\0\0\0\1"


@pytest.fixture
async def anna(village):
    made = village.come()
    yield made
    assert village.lan.holder(packed(made.ip)).station is made.guest.station
    assert village.lan.switch.owner(made.mac) is made.guest.station.port
    assert made.is_served()


@pytest.fixture
async def mallory(village, anna):
    made = village.come()
    yield made
    assert made.guest.counters["internal_error"] == 0


def icmpv6(kind: int, body: bytes, *, src: bytes, dst: bytes) -> bytes:
    message = bytes((kind, 0, 0, 0)) + body
    pseudo = src + dst + struct.pack("!II", len(message), 58)
    check = ~frames.inet_sum(pseudo + message) & 0xFFFF
    return frames.ipv6(message[:2] + struct.pack("!H", check) + message[4:], 58, src=src, dst=dst)


def from_other_than(frame: bytes, mallory) -> bool:
    """Whether a frame that came by Mallory's doing pretends to be somebody else's."""
    return frame[6:12] not in (mallory.mac, SERVER_MAC)


async def test_arp_spoofing_for_a_neighbour_and_for_the_gateway(village, anna, mallory):
    for op, sender, who in itertools.product((1, 2), (anna.ip, GATEWAY, "192.168.65.2"), (mallory.mac, anna.mac)):
        packet = arp_packet(anna.ip, op=op, sender=sender, sender_mac=who, target_mac=anna.mac)
        for dst, src in itertools.product(
            (BROADCAST, anna.mac), (mallory.mac, anna.mac, SERVER_MAC, bytes(6), BROADCAST)
        ):
            mallory.says(ether(packet, dst=dst, src=src, kind=0x0806))
    assert anna.hears() == []


async def test_cve_2020_10749_router_advertisements_of_a_guest(village, anna, mallory):
    """Also CVE-2020-13401, CVE-2020-13597, and behind extension headers as in CVE-2021-27854."""
    src = mallory.ip6
    body = struct.pack("!BBHII", 64, 0xC0, 9000, 0, 0) + b"\1\1" + mallory.mac
    plain = icmpv6(134, body, src=src, dst=ALL_NODES)
    message = plain[40:]
    hidden = [plain]
    for following, depth in itertools.product((0, 43, 60), (1, 2, 7)):
        chain = (bytes((following, 0)) + bytes(6)) * (depth - 1) + bytes((58, 0)) + bytes(6)
        hidden.append(frames.ipv6(chain + message, following, src=src, dst=ALL_NODES))
    for packet in hidden:
        for dst in (ALL_NODES_MAC, anna.mac, BROADCAST):
            mallory.says(mallory.ether(packet, dst=dst, kind=0x86DD))
    mallory.says(mallory.ether(icmpv6(137, bytes(36), src=src, dst=ALL_NODES), dst=ALL_NODES_MAC, kind=0x86DD))
    assert anna.hears() == []
    assert mallory.guest.counters["rogue_router"] == 3 * len(hidden) + 1


async def test_cve_2021_27854_router_advertisements_in_fragments(village, anna, mallory):
    """RFC 7113: what a fragment header or too long a chain hides must not reach a neighbour either."""
    src = mallory.ip6
    message = icmpv6(134, bytes(12), src=src, dst=ALL_NODES)[40:]
    fragment = bytes((58, 0, 0, 1, 0, 0, 0, 9))
    chain = (bytes((60, 0)) + bytes(6)) * 20 + bytes((58, 0)) + bytes(6)
    first = frames.ipv6(fragment + message, 44, src=src, dst=ALL_NODES)
    whole = frames.ipv6(bytes((58, 0, 0, 0, 0, 0, 0, 9)) + message, 44, src=src, dst=ALL_NODES)
    options = frames.ipv6(
        bytes((60, 0, 0, 1, 0, 0, 0, 9)) + bytes((58, 0)) + bytes(6) + message, 44, src=src, dst=ALL_NODES
    )
    deep = frames.ipv6(chain + message, 60, src=src, dst=ALL_NODES)
    for packet in (first, whole, options, deep):
        mallory.says(mallory.ether(packet, dst=ALL_NODES_MAC, kind=0x86DD))
    solicitation = icmpv6(135, bytes(4) + anna.ip6, src=src, dst=anna.ip6)[40:]
    mallory.says(
        mallory.ether(frames.ipv6(fragment + solicitation, 44, src=src, dst=anna.ip6), dst=anna.mac, kind=0x86DD)
    )
    padded = frames.ipv6(bytes((58, 0, 0, 1, 0, 0, 0, 9)), 44, src=src, dst=ALL_NODES) + bytes((128,)) * 46
    mallory.says(mallory.ether(padded, dst=ALL_NODES_MAC, kind=0x86DD))
    assert anna.hears() == []


async def test_honest_fragments_pass(village, anna, mallory):
    """What a guest with a small MTU does to a large datagram over IPv6."""
    datagram = struct.pack("!HHHH", 1000, 2000, 3008, 0) + bytes(3000)
    cuts = [0, 1440, 2880, len(datagram)]
    for start, end in itertools.pairwise(cuts):
        header = struct.pack("!BBHI", 17, 0, start | (end < len(datagram)), 9)
        packet = frames.ipv6(header + datagram[start:end], 44, src=mallory.ip6, dst=anna.ip6)
        mallory.says(mallory.ether(packet, dst=anna.mac, kind=0x86DD))
    assert len(anna.hears()) == 3


async def test_neighbour_discovery_options_that_lie(village, anna, mallory):
    """Lengths of 0, of more than there is, another's address; SNDbleed and CVE-2020-16898's shapes."""
    for kind in (135, 136):
        for option in (
            b"\1\0",
            b"\2\0",
            b"\1\xff" + bytes(6),
            b"\1\1" + anna.mac,
            b"\2\1" + anna.mac,
            b"\1",
            b"\x19\2",
        ):
            for target in (anna.ip6, mallory.ip6, bytes(16), ALL_NODES):
                body = bytes(4) + target + option
                packet = icmpv6(kind, body, src=mallory.ip6, dst=anna.ip6)
                mallory.says(mallory.ether(packet, dst=anna.mac, kind=0x86DD))
        for length in range(24):
            packet = icmpv6(kind, bytes(length), src=mallory.ip6, dst=anna.ip6)
            mallory.says(mallory.ether(packet, dst=anna.mac, kind=0x86DD))
    for frame in anna.hears():
        assert frame[6:12] == mallory.mac
        believed = {135: b"\1\1", 136: b"\2\1"}[frame[54]]
        assert believed + anna.mac not in frame[54:]


async def test_cve_2021_27853_tags_and_llc_between_guests(village, anna, mallory):
    inner = struct.pack("!H", 0x0806) + arp_packet(anna.ip, op=2, sender=GATEWAY, sender_mac=mallory.mac)
    for kind in (0x8100, 0x88A8, 0x9100):
        mallory.says(mallory.ether(b"\0\0" + inner, dst=anna.mac, kind=kind))
        mallory.says(mallory.ether(b"\0\0" + struct.pack("!H", kind) + b"\0\0" + inner, dst=anna.mac, kind=kind))
    assert anna.hears() == []


async def test_cve_2021_27861_llc_snap_with_a_length(village, anna, mallory):
    """A frame whose type is a length, an IPv4 ARP inside: some systems unpack it."""
    inner = b"\xaa\xaa\x03\0\0\0\x08\x06" + arp_packet(anna.ip, op=2, sender=GATEWAY, sender_mac=mallory.mac)
    mallory.says(mallory.ether(inner, dst=anna.mac, kind=len(inner)))
    mallory.says(mallory.ether(inner, dst=BROADCAST, kind=len(inner)))
    assert anna.hears() == []


async def test_a_guest_is_no_dhcp_server(village, anna, mallory):
    for sport, dport in ((67, 68), (67, 67), (68, 67)):
        datagram = frames.udp_datagram(bytes(300), sport=sport, dport=dport, src=mallory.ip, dst=anna.ip)
        for options in (b"", b"\1" * 4, b"\1" * 40):
            packet = ipv4(datagram, 17, src=mallory.ip, dst=anna.ip, options=options)
            mallory.says(mallory.ether(packet, dst=anna.mac))
            mallory.says(mallory.ether(packet, dst=BROADCAST))
    assert anna.hears() == []


async def test_dhcp_server_hidden_in_a_fragment(village, anna, mallory):
    """The ports are in the first fragment; what follows has data where they would be, and may pass."""
    datagram = frames.udp_datagram(bytes(300), sport=67, dport=68, src=mallory.ip, dst=anna.ip)
    first, _ = frames.fragments(datagram, [0, 8], src=mallory.ip, dst=anna.ip)
    mallory.says(anna.mac + mallory.mac + first[12:])
    assert anna.hears() == []


async def test_cve_2026_22715_a_reset_of_another_guest(village, anna, mallory):
    """N: a forged segment of another guest changes nothing of the connection that he has."""
    flow = {"sport": 4000, "dport": 8080, "dst": frames.REMOTE, "src": anna.ip}

    def frame(**fields: object) -> bytes:
        return anna.ether(ipv4(frames.tcp_segment(**flow, **fields), 6, src=anna.ip, dst=frames.REMOTE))

    anna.says(frame())
    (syn_ack,) = [answer for answer in anna.hears() if answer[23] == 6]
    ack = int.from_bytes(syn_ack[38:42], "big") + 1
    anna.says(frame(seq=1001, ack=ack, flags=frames.ACK))
    for src, flags in itertools.product((anna.mac, mallory.mac), (frames.RST, frames.FIN | frames.ACK, frames.SYN)):
        forged = frame(seq=1001, ack=ack, flags=flags)
        mallory.says(forged[:6] + src + forged[12:])
        mallory.says(anna.mac + src + forged[12:])
    village.settle()
    anna.says(frame(payload=b"mine", seq=1001, ack=ack, flags=frames.ACK | frames.PSH))
    village.settle()
    assert village.host.far[-1].recv(100) == b"mine"
    anna.says(frame(seq=1005, ack=ack, flags=frames.RST))


async def test_frames_cut_at_every_length_between_guests(village, anna, mallory):
    whole = [
        mallory.datagram_to(anna, b"x" * 20),
        mallory.ether(arp_packet(anna.ip, sender=mallory.ip, sender_mac=mallory.mac), dst=BROADCAST, kind=0x0806),
        mallory.ether(
            icmpv6(136, bytes(4) + mallory.ip6 + b"\2\1" + mallory.mac, src=mallory.ip6, dst=anna.ip6),
            dst=anna.mac,
            kind=0x86DD,
        ),
    ]
    for frame in whole:
        for length in range(14, len(frame) + 1):
            mallory.says(frame[:length])
    assert not [frame for frame in anna.hears() if from_other_than(frame, mallory)]


async def test_port_shadow_cve_2021_3773(village, anna, mallory):
    """Two guests with the same ports to the same server: each has a mapping of his own."""
    for villager in (anna, mallory):
        datagram = frames.udp_datagram(b"from %d" % villager.number, src=villager.ip)
        villager.says(villager.ether(ipv4(datagram, 17, src=villager.ip)))
    village.settle()
    assert sorted(village.host.heard) == [b"from 1", b"from 2"]
    assert len(anna.guest.udp.mappings) == len(mallory.guest.udp.mappings) == 1
