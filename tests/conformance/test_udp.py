"""UDP itself: RFC 768 and RFC 1122 section 4.1."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether

from tapdev.link import LinkCapabilities
from tests.conformance.wire import GATEWAY, GUEST, HOST, closed_port, datagram, errors, far, is_sound, octets


async def test_rfc1122_4_1_3_1_port_unreachable_of_the_gateway(wire):
    [frame] = wire.send(datagram(b"?", 99, GATEWAY))
    assert errors([frame]) == [(3, 3)]
    assert frame[IP].src == GATEWAY


async def test_rfc1122_4_1_3_1_port_unreachable_of_the_host(wire):
    """The host's kernel knows that nobody listens; the guest gets it as if he had asked that host himself."""
    port = closed_port()
    sent = datagram(b"anybody?", port)
    wire.send(sent)
    frame = next(Ether(frame) for frame in wire.heard if frame[23] == 1)
    assert errors([frame]) == [(3, 3)]
    assert frame[IP].src == HOST
    quoted = IP(bytes(frame)[42:])
    assert (quoted.src, quoted.dst, quoted.len) == (GUEST, HOST, 36)
    assert (quoted[UDP].sport, quoted[UDP].dport, quoted[UDP].len) == (5000, port, 16)
    assert bytes(frame)[70:] == b"anybody?"


async def test_rfc1122_4_1_3_3_each_refused_datagram_is_told_once(wire):
    """And then it is quiet: nobody turns in circles on an error that was read (gvproxy #584)."""
    port = closed_port()
    for i in range(5):
        found = wire.send(datagram(b"?", port, source_port=5000 + i)) or wire.until(ICMP)
        assert errors(found) == [(3, 3)]
    for _ in range(10):
        assert wire.guest.turn() == 0
    assert wire.counters["udp_econnrefused"] == 5


async def test_rfc1122_4_1_3_3_one_socket_may_be_refused_again_and_again(wire):
    port = closed_port()
    told = [code for _ in range(20) for code in errors(wire.send(datagram(b"?", port)))]
    assert told == [(3, 3)] * 20


async def test_rfc1122_4_1_3_3_an_error_stops_nothing_that_follows(wire):
    """The kernel hands the error of the last datagram to the next `send`: that one must leave all the same."""
    refusing = closed_port("127.0.0.2")
    with wire.server("127.0.0.3") as server:
        for _ in range(5):
            wire.send(datagram(b"?", refusing, far(2)), datagram(b"data", server.getsockname()[1], far(3)))
            assert server.recvfrom(100)[0] == b"data"


@pytest.fixture
async def strict(make_wire):
    """A wire on which checksums are looked at, as on any link that can corrupt."""
    return make_wire(verify_checksums=True)


async def test_rfc1122_4_1_3_4_a_bad_checksum_is_dropped(strict):
    with strict.server() as server:
        port = server.getsockname()[1]
        for octet in range(34, 34 + 8 + 4):
            frame = bytearray(octets(datagram(b"data", port)))
            frame[octet] ^= 1
            assert not strict.exchange(bytes(frame))
        assert strict.counters["malformed"] == 12
        strict.send(datagram(b"good", port))
        assert server.recvfrom(100)[0] == b"good"


async def test_rfc1122_4_1_3_4_a_bad_checksum_is_dropped_where_the_link_can_corrupt(make_wire):
    wire = make_wire(capabilities=LinkCapabilities(mtu=1500, reliable=False))
    bad = datagram(b"?", 99, GATEWAY)
    bad[UDP].chksum = 0x1234
    assert not wire.send(bad)
    assert wire.counters["malformed"] == 1


async def test_rfc1122_4_1_3_4_a_checksum_of_zero_is_none(strict):
    with strict.server() as server:
        packet = datagram(b"data", server.getsockname()[1])
        packet[UDP].chksum = 0
        strict.send(packet)
        assert server.recvfrom(100)[0] == b"data"


async def test_rfc1122_4_1_3_4_checksums_are_made(wire):
    """Every one that comes is looked at by `Wire.exchange`; here it is there at all."""
    with wire.server() as server:
        wire.send(datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        for length in (0, 1, 2, 3, 1471, 1472):
            server.sendto(bytes(i % 251 for i in range(length)), peer)
            [frame] = wire.until(UDP)
            assert frame[UDP].chksum


async def test_rfc1122_4_1_3_4_a_computed_zero_is_sent_as_all_ones(wire):
    """Else it would say that there is none."""
    with wire.server() as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"?", port))
        _, peer = server.recvfrom(100)
        pseudo = bytes(map(int, f"{HOST}.{GUEST}".split("."))) + struct.pack("!HHHHHH", 17, 10, port, 5000, 10, 0)
        rest = 0xFFFF - int.from_bytes(pseudo, "big") % 0xFFFF
        server.sendto(rest.to_bytes(2, "big"), peer)
        [frame] = wire.until(UDP)
    assert frame[UDP].chksum == 0xFFFF
    assert is_sound(bytes(frame))


async def test_rfc1122_4_1_3_5_an_answer_comes_from_the_address_that_was_asked(wire):
    """One port of the guest, three names of hosts, of which two are this machine's loopback."""
    with wire.server() as alias, wire.server("127.0.0.2") as one, wire.server("127.0.0.3") as two:
        for server, address in ((alias, HOST), (one, far(2)), (two, far(3))):
            wire.send(datagram(b"?", server.getsockname()[1], address))
            _, peer = server.recvfrom(100)
            server.sendto(b"!", peer)
            [frame] = wire.until(UDP)
            assert (frame[IP].src, frame[UDP].sport) == (address, server.getsockname()[1])


@pytest.mark.parametrize(
    "source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.168.65.255", "8.8.8.8"]
)
async def test_rfc1122_4_1_3_6_a_datagram_from_an_impossible_source_is_dropped(wire, source):
    with wire.server() as server:
        packet = datagram(b"?", server.getsockname()[1])
        packet.src = source
        assert not wire.send(packet)
        assert not wire.internet.opened
        assert wire.counters["bad_source"] == 1


@pytest.mark.parametrize("length", [0, 7, 13, 65535])
async def test_rfc1122_4_1_3_6_a_length_that_cannot_be_is_dropped(wire, length):
    packet = datagram(b"data", 99, GATEWAY)
    packet[UDP].len = length
    assert not wire.send(packet)
    assert wire.counters["malformed"] == 1
