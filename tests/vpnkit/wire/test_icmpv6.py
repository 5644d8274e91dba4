from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    IPerror6,
    IPv6,
    UDPerror,
)

from vpnkit.errors import WireError
from vpnkit.wire import icmpv6, ipv6

SOURCE = bytes.fromhex("20010db8 00000000 00000000 00000007")
DESTINATION = bytes.fromhex("fd657670 6e6b0000 00000000 00000003")


def in_packet(message: bytes) -> bytes:
    return bytes(ipv6.encode_header(SOURCE, DESTINATION, ipv6.ICMPV6, len(message))) + message


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=1000))
def test_echo_round_trip_and_scapy(identifier, sequence, data):
    message = icmpv6.encode(icmpv6.ECHO_REPLY, 0, SOURCE, DESTINATION, identifier << 16 | sequence, data)
    icmpv6.check(ipv6.decode(memoryview(in_packet(message))))
    assert icmpv6.decode_echo(message) == (icmpv6.ECHO_REPLY, 0, identifier, sequence)
    assert message[8:] == data
    read = IPv6(in_packet(message))[ICMPv6EchoReply]
    assert (read.id, read.seq, read.data) == (identifier, sequence, data)
    sent = read.cksum
    del read.cksum
    again = IPv6(bytes(IPv6(src="2001:db8::7", dst="fd65:7670:6e6b::3") / read))
    assert again[ICMPv6EchoReply].cksum % 0xFFFF == sent % 0xFFFF


@given(st.binary(max_size=40))
def test_anything_is_a_message_or_an_error(data):
    packet = ipv6.decode(memoryview(in_packet(data)))
    for decode in (lambda: icmpv6.decode_echo(data), lambda: icmpv6.check(packet)):
        try:
            decode()
        except WireError:
            pass


@pytest.mark.parametrize("place", [0, 2, 9])
def test_a_wrong_checksum(place):
    message = bytearray(icmpv6.encode(128, 0, SOURCE, DESTINATION, 1, b"abc"))
    message[place] ^= 1
    with pytest.raises(WireError):
        icmpv6.check(ipv6.decode(memoryview(in_packet(bytes(message)))))


def test_the_addresses_are_summed():
    data = bytearray(in_packet(icmpv6.encode(128, 0, SOURCE, DESTINATION, 1, b"abc")))
    data[39] ^= 1
    with pytest.raises(WireError):
        icmpv6.check(ipv6.decode(memoryview(data)))


@pytest.mark.parametrize("length", [0, 8, 1184, 1185, 3000])
def test_an_error_quotes_as_much_as_fits_1280(length):
    udp = b"\x00\x01\x00\x02" + (8 + length).to_bytes(2, "big") + b"\x12\x34" + bytes(length)
    quoted = bytes(ipv6.encode_header(DESTINATION, SOURCE, 17, len(udp))) + udp
    message = icmpv6.encode_error(icmpv6.DEST_UNREACHABLE, icmpv6.PORT_UNREACHABLE, SOURCE, DESTINATION, quoted)
    assert 40 + len(message) == min(1280, 40 + 8 + len(quoted))
    read = IPv6(in_packet(message))
    assert (read[ICMPv6DestUnreach].code, read[IPerror6].dst, read[UDPerror].dport) == (4, "2001:db8::7", 2)
    icmpv6.check(ipv6.decode(memoryview(in_packet(message))))


def test_parameters():
    quoted = bytes(ipv6.encode_header(DESTINATION, SOURCE, 17, 8)) + bytes(8)
    message = icmpv6.encode_error(icmpv6.PACKET_TOO_BIG, 0, SOURCE, DESTINATION, quoted, 1400)
    assert IPv6(in_packet(message))[ICMPv6PacketTooBig].mtu == 1400
    message = icmpv6.encode_error(
        icmpv6.PARAMETER_PROBLEM, ipv6.UNRECOGNIZED_OPTION, SOURCE, DESTINATION, quoted, 0x10002
    )
    read = IPv6(in_packet(message))[ICMPv6ParamProblem]
    assert (read.code, read.ptr) == (2, 0x10002)


def test_errors_are_the_low_half():
    assert icmpv6.PARAMETER_PROBLEM in icmpv6.ERRORS
    assert 127 in icmpv6.ERRORS
    assert icmpv6.ECHO_REQUEST not in icmpv6.ERRORS
