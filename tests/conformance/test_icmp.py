"""ICMP of the gateway: RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2, RFC 4884."""

from __future__ import annotations

import random
import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from tests.conformance.wire import (
    BROADCAST,
    GATEWAY,
    GUEST,
    HOST,
    MAC,
    SERVER,
    Nowhere,
    datagram,
    errors,
    octets,
    ping,
    syn,
)

UNKNOWN_PROTOCOL = IP(src=GUEST, dst=GATEWAY, proto=132) / b"this is no protocol of ours"
ERROR_TYPES = [3, 4, 5, 11, 12]


def error_about(quoted: bytes | IP, kind: int = 3, code: int = 3, unused: int = 0) -> IP:
    """An ICMP error of the guest."""
    return IP(src=GUEST, dst=GATEWAY) / ICMP(type=kind, code=code, unused=unused) / bytes(quoted)


@pytest.mark.parametrize("kind", [*range(1, 3), 6, 7, 9, 10, *range(13, 20), 30, 40, 41, 42, 253, 255])
async def test_rfc1122_3_2_2_an_unknown_type_is_dropped(wire, kind):
    assert not wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=kind) / bytes(40))
    assert wire.counters["icmp_ignored"] == 1


async def test_rfc1122_3_2_2_an_answer_that_nobody_asked_for_is_dropped(wire):
    assert not wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=0, id=1, seq=1) / b"pong")


async def test_rfc1122_3_2_2_a_bad_checksum_is_dropped(wire):
    assert not wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=8, chksum=1) / b"ping")
    assert wire.counters["malformed"] == 1


async def test_rfc1122_3_2_2_a_message_below_eight_octets_is_dropped(wire):
    for length in range(8):
        assert not wire.send(IP(src=GUEST, dst=GATEWAY, proto=1) / bytes(length))
    assert wire.counters["malformed"] == 8


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 519, 520, 521, 1400])
async def test_rfc1122_3_2_2_an_error_quotes_what_came_and_no_more(wire, length):
    """The same octets, at least eight where there are as many, up to 576 in all (RFC 1812 section 4.3.2.3), and never
    more than came (CVE-2026-120830)."""
    sent = IP(src=GUEST, dst=GATEWAY, proto=132, tos=4, id=77, ttl=9) / bytes(i % 251 for i in range(length))
    [frame] = wire.send(sent)
    assert bytes(frame)[42:] == bytes(sent)[: 576 - 28]
    assert len(frame[IP]) <= 576


async def test_rfc1122_3_2_2_an_error_quotes_the_options_too(wire):
    sent = (
        bytes(IP(src=GUEST, dst=GATEWAY, proto=132, ihl=6, len=24 + 12, chksum=None)) + b"\x01\x01\x01\x01" + b"x" * 12
    )
    packet = bytearray(sent)
    packet[10:12] = bytes(2)
    total = sum(int.from_bytes(packet[i : i + 2], "big") for i in range(0, 24, 2))
    packet[10:12] = (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
    [frame] = wire.send(bytes(Ether(src=MAC, dst=SERVER, type=0x0800)) + packet)
    assert errors([frame]) == [(3, 2)]
    assert bytes(frame[ICMP].payload) == bytes(packet)


async def test_rfc1122_3_2_2_an_error_has_a_tos_of_zero(wire):
    [frame] = wire.send(IP(src=GUEST, dst=GATEWAY, proto=132, tos=0xB8) / b"?")
    assert frame[IP].tos == 0


@pytest.mark.parametrize("kind", ERROR_TYPES)
async def test_rfc1122_3_2_2_no_error_about_an_error(wire, kind):
    """Neither where it cannot be taken nor where its destination is closed or prohibited."""
    about = IP(src=GATEWAY, dst=GUEST) / UDP(sport=53, dport=5000) / b"?"
    for destination in (GATEWAY, HOST, "169.254.169.254", "9.9.9.9"):
        assert not wire.send(IP(src=GUEST, dst=destination, ttl=1) / ICMP(type=kind) / bytes(about))


@pytest.mark.parametrize("destination", ["255.255.255.255", "224.0.0.1", "239.255.255.250", "192.168.65.255"])
@pytest.mark.parametrize("protocol", [UDP(sport=5000, dport=99) / b"?", ICMP() / b"?", TCP(flags="S")], ids=type)
async def test_rfc1122_3_2_2_no_error_about_a_broadcast_or_multicast(wire, destination, protocol):
    assert not wire.send(IP(src=GUEST, dst=destination, ttl=1) / protocol)


@pytest.mark.parametrize("destination", ["255.255.255.255", "224.0.0.1", "239.255.255.250", "192.168.65.255"])
async def test_rfc1122_3_2_2_no_error_about_an_unknown_protocol_to_everybody(wire, destination):
    assert not wire.send(IP(src=GUEST, dst=destination, ttl=1, proto=132) / b"?")


async def test_rfc1122_3_2_2_no_error_about_a_link_layer_broadcast(wire):
    assert not wire.send(Ether(src=MAC, dst=BROADCAST) / UNKNOWN_PROTOCOL)
    assert not wire.send(Ether(src=MAC, dst="01:00:5e:00:00:01") / UNKNOWN_PROTOCOL)


async def test_rfc1122_3_2_2_no_error_about_a_later_fragment(wire):
    assert not wire.send(IP(src=GUEST, dst=GATEWAY, proto=132, frag=3) / bytes(16))


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.168.65.255", GATEWAY])
async def test_rfc1122_3_2_2_no_error_to_a_source_that_is_no_single_host(wire, source):
    assert not wire.send(IP(src=source, dst=GATEWAY, proto=132) / b"?", IP(src=source, dst=GATEWAY) / UDP(dport=99))


async def test_rfc1122_3_2_2_at_most_one_error_for_any_frame(make_wire):
    """Two thousand frames that are wrong here and there: one error each at the most, and to the guest's own address."""
    wire = make_wire(host=Nowhere())
    dice = random.Random(5722)
    seeds = [UNKNOWN_PROTOCOL, datagram(b"?", 99, GATEWAY), syn(99, GATEWAY), ping(GATEWAY), ping("169.254.1.1")]
    seeds = [octets(seed) for seed in seeds]
    told = 0
    for _ in range(2000):
        frame = bytearray(dice.choice(seeds))
        if dice.random() < 0.8:
            for _ in range(dice.randrange(1, 4)):
                frame[dice.randrange(14, len(frame))] = dice.randrange(256)
            frame[24:26] = bytes(2)  # else the checksum stops nearly everything
            total = sum(int.from_bytes(frame[i : i + 2], "big") for i in range(14, 34, 2))
            frame[24:26] = (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
        wire.time += 1
        found = [f for f in wire.exchange(bytes(frame)) if f[23] == 1 and f[34] not in (0, 8)]
        assert len(found) <= 1
        told += len(found)
        assert all(f[30:33] == bytes([192, 168, 65]) for f in found)
    assert told > 200


@pytest.mark.parametrize("protocol", [0, 2, 41, 47, 50, 132, 255])
async def test_rfc1122_3_2_2_1_protocol_unreachable(wire, protocol):
    for destination in (GATEWAY, HOST):
        [frame] = wire.send(IP(src=GUEST, dst=destination, proto=protocol) / bytes(8))
        assert errors([frame]) == [(3, 2)]
        assert (frame[IP].src, frame[IP].dst) == (destination, GUEST)


async def test_rfc1122_3_2_2_1_port_unreachable(wire):
    [frame] = wire.send(datagram(b"?", 99, GATEWAY))
    assert errors([frame]) == [(3, 3)]
    assert frame[IP].src == GATEWAY


@pytest.mark.parametrize("code", [2, 3])
async def test_rfc1122_3_2_2_1_unreachable_is_passed_up(wire, code):
    """The guest says that nobody is there: who called him through a forward is told."""
    call, question = called(wire)
    with call:
        wire.send(error_about(question, 3, code))
        with pytest.raises(ConnectionResetError):
            call.recv(1)


def called(wire) -> tuple[socket.socket, IP]:
    """A client of the host who calls the guest's port 80 through a forward, and the SYN that the guest got."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    client.settimeout(5)
    accepted.setblocking(False)
    flow = wire.guest.tcp.call(
        bytes([192, 168, 65, 2]), bytes([192, 168, 65, 3]), 80, accepted, bytes.fromhex(MAC.replace(":", ""))
    )
    wire.guest.settle_now(flow)
    [frame] = wire.work()
    assert frame[TCP].flags == "S"
    return client, frame[IP]


@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (12, 0)])
async def test_rfc1122_3_2_2_1_what_may_pass_ends_nothing(wire, kind, code):
    call, question = called(wire)
    with call:
        wire.send(error_about(question, kind, code))
        [flow] = wire.guest.tcp.flows.values()
        assert not flow.connection.is_closed
        assert wire.pass_time(3)[0][TCP].flags == "S"


async def test_rfc1122_3_2_2_2_redirects_are_ignored(wire):
    with wire.server() as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"1", port))
        server.recvfrom(10)
        redirect = IP(src=GUEST, dst=HOST) / ICMP(type=5, code=1, gw="192.168.65.77") / bytes(datagram(b"1", port))
        assert not wire.send(redirect)
        wire.send(datagram(b"2", port))
        assert server.recvfrom(10)[0] == b"2"


async def test_rfc1122_3_2_2_2_redirects_are_not_sent(wire):
    """Not even to who could speak to his neighbour himself."""
    found = wire.send(*(datagram(b"?", 99, f"192.168.65.{i}") for i in (3, 4, 77)), ping("192.168.65.77"))
    assert not [code for code in errors(found) if code[0] == 5]


@pytest.mark.parametrize("address", [GATEWAY, HOST])
@pytest.mark.parametrize("length", [0, 1, 2, 55, 56, 1471, 1472])
async def test_rfc1122_3_2_2_6_echo_gives_the_same_data_from_the_address_asked(wire, address, length):
    data = bytes(i % 251 for i in range(length))
    [frame] = wire.send(ping(address, data, identifier=40_000, sequence=65_535))
    reply = frame[ICMP]
    assert (reply.type, reply.code, reply.id, reply.seq) == (0, 0, 40_000, 65_535)
    assert (frame[IP].src, frame[IP].dst) == (address, GUEST)
    assert bytes(reply.payload) == data
    assert len(frame) == 42 + length


@pytest.mark.parametrize("destination", ["255.255.255.255", "192.168.65.255", "224.0.0.1"])
async def test_rfc1122_3_2_2_6_echo_to_everybody_is_discarded(wire, destination):
    assert not wire.send(ping(destination), Ether(src=MAC, dst=BROADCAST) / ping(destination))


async def test_rfc1122_3_2_2_6_an_echo_with_a_code_is_none(wire):
    assert not wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=8, code=1) / b"ping")


CLOSED = octets(datagram(b"?", 99, GATEWAY))


async def test_rfc1812_4_3_2_8_errors_are_limited_and_come_again(wire):
    first = len(wire.exchange(*[CLOSED] * 1000))
    assert 20 <= first <= 150
    assert wire.counters["icmp_rate_limited"] == 1000 - first
    wire.pass_time(1)
    assert 20 <= len(wire.exchange(*[CLOSED] * 1000)) <= 150


async def test_rfc1812_4_3_2_8_the_rate_holds_over_time(wire):
    """A second of flood: about a thousand errors."""
    told = 0
    for _ in range(1000):
        wire.time += 0.001
        told += len(wire.exchange(*[CLOSED] * 4))
    assert 500 <= told <= 1500


async def test_rfc1812_4_3_2_8_echo_is_not_limited(wire):
    wire.exchange(*[CLOSED] * 300)
    assert [frame[34] for frame in wire.exchange(*[octets(ping(GATEWAY))] * 100)] == [0] * 100


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
async def test_rfc4884_5_any_length_field_is_survived(wire, protocol):
    """An error of the guest with an extension, and with a length that is right, wrong or beyond the end."""
    about = {
        "udp": IP(src=HOST, dst=GUEST) / UDP(sport=99, dport=5000) / bytes(100),
        "tcp": IP(src=HOST, dst=GUEST) / TCP(sport=99, dport=40_000, flags="A") / bytes(80),
    }[protocol]
    extension = b"\x20\x00\xdf\xff\x00\x08\x01\x01\x00\x01\x01\x01"
    header = octets(IP(src=GUEST, dst=HOST, proto=1) / bytes(8 + 128 + len(extension)))[:34]
    for length in range(256):
        for kind in (3, 11, 12):
            message = bytearray(bytes([kind, 0, 0, 0, 0, length, 0, 0]) + bytes(about).ljust(128, b"\0") + extension)
            message[2:4] = (0xFFFF - int.from_bytes(message, "big") % 0xFFFF).to_bytes(2, "big")
            assert not wire.exchange(header + message)
    assert not wire.counters["malformed"]


async def test_rfc4884_5_a_quote_that_is_cut_is_survived(wire):
    whole = bytes(IP(src=HOST, dst=GUEST) / TCP(sport=99, dport=40_000))
    for length in range(len(whole)):
        assert not wire.send(error_about(whole[:length]))
