"""IPv6 and ICMPv6 by frames: RFC 8200, 4443, 5095, 6946, 7112 and 8021.

Each header by itself, in every shape, is in vpnkit/wire/test_ipv6_headers.py; here is what a guest hears of it.
"""

from __future__ import annotations

import random
import socket
import struct

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.conformance.wire import MAC, PATIENCE, SERVER
from tests.vpnkit.net.test_neighbours import EVERYBODY, GATEWAY, HOST, LINK_LOCAL, OURS
from vpnkit.net.output import ERROR_BURST
from vpnkit.proto.reassembly6 import TIMEOUT
from vpnkit.wire import ipv6

FAR = "2001:db8::9"
UNKNOWN = 0x9E  # an option that is not known: tell the sender, also about a multicast


@pytest.fixture
async def wire(make_wire):
    """A guest whose router is past its first advertisements."""
    wire = make_wire(ipv6="on")
    wire.pass_time(60)
    return wire


def frame(message: Packet, destination: str = GATEWAY, **fields: object) -> Ether:
    address = socket.inet_pton(socket.AF_INET6, destination)
    to = ipv6.multicast_mac(address).hex(":") if address[0] == 0xFF else SERVER
    return Ether(src=MAC, dst=to) / IPv6(src=LINK_LOCAL, dst=destination, **fields) / message


def errors(found: list[Ether]) -> list[tuple[int, int, int]]:
    """Type, code and parameter of the ICMPv6 errors."""
    return [
        struct.unpack_from("!BBxxI", bytes(one), 54)
        for one in found
        if IPv6 in one and one[IPv6].nh == 58 and bytes(one)[54] < 128
    ]


def unknown(kind: int = UNKNOWN) -> Raw:
    """A Destination Options header with one option, before an echo request's number."""
    return Raw(bytes((58, 0, kind, 4)) + bytes(4))


PING = ICMPv6EchoRequest(id=1, seq=1, data=b"ping")


# RFC 8200


async def test_rfc8200_3_version_and_lengths(wire):
    assert wire.send(frame(PING))
    assert not wire.send(frame(PING, version=4))
    assert not wire.send(frame(PING, plen=13))
    assert wire.counters["malformed"] == 2


async def test_rfc8200_3_what_follows_the_payload_length_is_padding(wire):
    [answer] = wire.send(bytes(frame(PING)) + b"padding")
    assert answer[ICMPv6EchoReply].data == b"ping"


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(20))]),
        IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(segleft=0, type=2, addresses=[FAR]),
        IPv6ExtHdrFragment() / IPv6ExtHdrDestOpt(),
    ],
)
async def test_rfc8200_4_1_extension_headers_are_passed_over(wire, headers):
    sent = frame(headers / PING)
    message = bytes(frame(PING))[54:]
    [answer] = wire.send(bytes(sent)[: -len(message)] + message)
    assert answer[ICMPv6EchoReply].data == b"ping"


async def test_rfc8200_4_1_hop_by_hop_options_are_first(wire):
    [answer] = wire.send(frame(IPv6ExtHdrDestOpt(nh=0) / IPv6ExtHdrHopByHop() / PING))
    assert errors([answer]) == [(4, 1, 40)]


@pytest.mark.parametrize(("kind", "told"), [(0x1E, None), (0x5E, ()), (0x9E, (4, 2, 42)), (0xDE, (4, 2, 42))])
async def test_rfc8200_4_2_an_unknown_option_does_what_it_says(wire, kind, told):
    message = bytes(frame(PING))[54:]
    found = wire.send(frame(unknown(kind) / Raw(message), nh=60))
    if told is None:
        assert ICMPv6EchoReply in found[0]
    else:
        assert errors(found) == ([told] if told else [])
    to_all = errors(wire.send(frame(unknown(kind) / Raw(message), EVERYBODY, nh=60)))
    assert to_all == ([(4, 2, 42)] if kind == 0x9E else [])


@pytest.mark.parametrize("kind", [2, 3, 4, 253])
async def test_rfc8200_4_4_a_routing_type_that_is_not_known(wire, kind):
    header = bytes((58, 2, kind, 1)) + bytes(20)
    assert errors(wire.send(frame(Raw(header + b"\x80" + bytes(7)), nh=43))) == [(4, 0, 42)]


async def test_rfc5095_3_routing_type_0_is_as_unknown(wire):
    sent = frame(IPv6ExtHdrRouting(type=0, segleft=1, addresses=[FAR]) / UDP(sport=1, dport=9))
    assert errors(wire.send(sent)) == [(4, 0, 42)]
    assert not wire.internet.opened


@pytest.mark.parametrize("length", [1460, 3000, 65000])
async def test_rfc8200_4_5_fragments_in_any_order(wire, length):
    data = random.Random(1).randbytes(length)
    whole = IPv6(src=LINK_LOCAL, dst=GATEWAY) / IPv6ExtHdrFragment(id=7) / ICMPv6EchoRequest(id=1, data=data)
    pieces = [Ether(src=MAC, dst=SERVER) / one for one in fragment6(whole, 1280)]
    random.Random(2).shuffle(pieces)
    found = wire.send(*pieces)
    share = sorted((one[IPv6ExtHdrFragment].offset, bytes(one[IPv6ExtHdrFragment].payload)) for one in found)
    assert b"".join(octets for _, octets in share)[8:] == data
    assert wire.counters["fragment_reassembled"] == 1


async def test_rfc8200_4_5_it_is_given_up_in_time_and_told(wire):
    first = frame(IPv6ExtHdrFragment(id=9, m=1, nh=58) / Raw(bytes(frame(PING))[54:].ljust(1208, b"x")))
    wire.send(first)
    assert not errors(wire.pass_time(TIMEOUT - 0.1))
    found = [one for one in wire.pass_time(0.2) if ICMPv6TimeExceeded in one]
    assert errors(found) == [(3, 1, 0)]
    assert bytes(found[0])[62:] == bytes(first)[14:][: 1280 - 48]


async def test_rfc8200_4_5_without_its_first_fragment_nothing_is_told(wire):
    wire.send(frame(IPv6ExtHdrFragment(id=9, offset=1, nh=58) / Raw(bytes(80))))
    assert not errors(wire.pass_time(TIMEOUT + 1))


async def test_rfc8200_4_5_lengths_and_places_that_cannot_be(wire):
    odd = frame(IPv6ExtHdrFragment(id=9, m=1, nh=17) / Raw(bytes(81)))
    far = frame(IPv6ExtHdrFragment(id=9, offset=8191, nh=17) / Raw(bytes(8)))
    assert errors(wire.send(odd, far)) == [(4, 0, 4), (4, 0, 42)]


@pytest.mark.parametrize("second", [(8, 16), (0, 8), (16, 8)])
async def test_rfc8200_4_5_overlap_drops_the_packet_silently(wire, second):
    start, length = second
    message = bytes(frame(PING))[54:].ljust(24, b"x")
    wire.send(frame(IPv6ExtHdrFragment(id=9, m=1, nh=58) / Raw(message)))
    wire.send(frame(IPv6ExtHdrFragment(id=9, m=1, offset=start // 8, nh=58) / Raw(bytes(length))))
    assert not wire.send(frame(IPv6ExtHdrFragment(id=9, offset=3, nh=58) / Raw(b"end")))
    assert wire.counters["fragment_overlap"] == 1
    assert not errors(wire.pass_time(TIMEOUT + 1))


async def test_rfc8200_4_7_no_next_header(wire):
    assert not wire.send(frame(Raw(b"ignored"), nh=59))
    assert not wire.send(frame(IPv6ExtHdrDestOpt(nh=59) / Raw(bytes(8))))


async def test_rfc6946_4_an_atomic_fragment_is_alone(wire):
    wire.send(frame(IPv6ExtHdrFragment(id=9, m=1, nh=58) / Raw(bytes(16))))
    message = bytes(frame(PING))[54:]
    [answer] = wire.send(frame(IPv6ExtHdrFragment(id=9, nh=58) / Raw(message)))
    assert answer[ICMPv6EchoReply].data == b"ping"
    assert len(wire.guest.intake._reassembler6) == 1


@pytest.mark.parametrize(
    ("following", "start"), [(6, bytes(16)), (17, b""), (60, b""), (60, bytes((17, 1)) + bytes(6)), (43, bytes(8))]
)
async def test_rfc7112_5_a_first_fragment_has_all_headers(wire, following, start):
    if following == 43:
        start = bytes((17, 0)) + bytes(6)
    assert errors(wire.send(frame(IPv6ExtHdrFragment(id=9, m=1, nh=following) / Raw(start)))) == [(4, 3, 0)]


@pytest.mark.parametrize("mtu", [0, 68, 1279])
async def test_rfc8021_4_no_atomic_fragments_are_made(wire, mtu):
    [answer] = wire.send(frame(PING))
    wire.send(frame(ICMPv6PacketTooBig(mtu=mtu) / Raw(bytes(answer[IPv6]))))
    [answer] = wire.send(frame(ICMPv6EchoRequest(data=bytes(1200))))
    assert IPv6ExtHdrFragment not in answer


# RFC 4443


@pytest.mark.parametrize("address", [GATEWAY, HOST, OURS])
async def test_rfc4443_4_2_an_echo_comes_from_where_it_went_with_its_data(wire, address):
    data = random.Random(1).randbytes(1000)
    [answer] = wire.send(frame(ICMPv6EchoRequest(id=5, seq=6, data=data), address))
    assert (answer.src, answer.dst, answer[IPv6].src, answer[IPv6].dst) == (SERVER, MAC, address, LINK_LOCAL)
    assert (answer[ICMPv6EchoReply].id, answer[ICMPv6EchoReply].seq, answer[ICMPv6EchoReply].data) == (5, 6, data)


async def test_rfc4443_2_3_a_wrong_checksum(wire):
    assert not wire.send(frame(ICMPv6EchoRequest(cksum=1)))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("kind", [129, 138, 144, 200, 255])
async def test_rfc4443_2_4_b_what_is_not_known_is_dropped(wire, kind):
    sent = bytearray(bytes(frame(PING)))
    old, sent[54] = sent[54], kind
    check = (int.from_bytes(sent[56:58], "big") + ((old - kind) << 8)) % 65535
    sent[56:58] = check.to_bytes(2, "big")
    assert not wire.send(bytes(sent))
    assert not wire.counters["malformed"]


@pytest.mark.parametrize("length", [0, 1000, 1184, 1185, 1400])
async def test_rfc4443_2_4_c_as_much_as_fits_1280_octets_is_quoted(wire, length):
    sent = frame(Raw(bytes(i % 256 for i in range(length))), nh=99)
    [answer] = wire.send(sent)
    assert bytes(answer)[62:] == bytes(sent)[14:][: 1280 - 48]


@pytest.mark.parametrize(
    "sent",
    [
        frame(unknown() / Raw(bytes((1, 4)) + bytes(50)), nh=60),
        frame(unknown() / Raw(bytes((137, 0)) + bytes(50)), nh=60),
        frame(Raw(bytes(50)), EVERYBODY, nh=99),
        frame(UDP(sport=1, dport=9), EVERYBODY),
        frame(IPv6ExtHdrRouting(segleft=1) / UDP(), EVERYBODY),
        Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=LINK_LOCAL, dst=GATEWAY, nh=99) / Raw(bytes(8)),
        Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=LINK_LOCAL, dst=GATEWAY, nh=60) / unknown() / Raw(bytes(8)),
        Ether(src=MAC, dst=SERVER) / IPv6(src="::", dst=GATEWAY, nh=99) / Raw(bytes(8)),
        Ether(src=MAC, dst=SERVER) / IPv6(src="::", dst=GATEWAY, nh=60) / unknown() / Raw(bytes(8)),
        Ether(src=MAC, dst=SERVER) / IPv6(src="ff02::1", dst=GATEWAY, nh=60) / unknown() / Raw(bytes(8)),
    ],
    ids=lambda sent: sent.summary(),
)
async def test_rfc4443_2_4_e_about_what_none_is_sent(wire, sent):
    assert not errors(wire.send(sent))


async def test_rfc4443_2_4_f_errors_are_limited(wire):
    found = wire.send(*(frame(Raw(bytes(8)), nh=99) for _ in range(3 * ERROR_BURST)))
    assert 0 < len(errors(found)) <= ERROR_BURST
    assert wire.counters["icmp_rate_limited"] > 0


async def test_rfc4443_3_1_a_closed_port(wire):
    [answer] = wire.send(frame(UDP(sport=1, dport=9)))
    assert errors([answer]) == [(1, 4, 0)]
    assert answer[IPv6].src == GATEWAY


async def test_rfc4443_3_4_a_next_header_that_is_not_known(wire):
    assert errors(wire.send(frame(Raw(bytes(8)), nh=99))) == [(4, 1, 6)]
    [answer] = wire.send(frame(IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(nh=51) / Raw(bytes(12))))
    assert answer[ICMPv6ParamProblem].ptr == 48


async def test_rfc8200_8_1_udp_without_a_checksum(wire):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::1", 0))
        server.settimeout(PATIENCE)
        port = server.getsockname()[1]
        wire.send(
            frame(UDP(sport=7, dport=port, chksum=0) / b"dropped", HOST), frame(UDP(sport=7, dport=port) / b"x", HOST)
        )
        assert server.recv(100) == b"x"
    assert wire.counters["malformed"] == 1
