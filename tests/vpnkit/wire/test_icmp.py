from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP

from vpnkit.errors import WireError
from vpnkit.wire import icmp, ipv4


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=100))
def test_echo_round_trip_and_scapy(identifier, sequence, data):
    message = icmp.encode(icmp.ECHO_REPLY, 0, identifier, sequence, data)
    icmp.check(message)
    assert icmp.decode_echo(message) == (icmp.ECHO_REPLY, 0, identifier, sequence)
    assert message[8:] == data
    read = ICMP(message)
    assert (read.type, read.code, read.id, read.seq) == (0, 0, identifier, sequence)
    computed = ICMP(bytes(ICMP(type=0, id=identifier, seq=sequence) / data)).chksum
    assert read.chksum % 0xFFFF == computed % 0xFFFF


@given(st.binary(max_size=40))
def test_anything_is_a_message_or_an_error(data):
    for decode in (icmp.decode_echo, icmp.check):
        try:
            decode(data)
        except WireError:
            pass


def test_a_wrong_checksum():
    message = bytearray(icmp.encode(8, 0, 1, 2, b"abc"))
    message[2] ^= 1
    with pytest.raises(WireError):
        icmp.check(message)


@pytest.mark.parametrize("length", [0, 8, 500, 3000])
def test_an_error_quotes_what_there_is_up_to_the_limit(length):
    quoted = bytes(IP(src="192.168.65.3", dst="9.9.9.9") / UDP(sport=1, dport=2) / bytes(length))
    message = icmp.encode_error(icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE, quoted)
    assert ipv4.HEADER.size + len(message) == min(576, 20 + 8 + len(quoted))
    read = ICMP(message)
    assert (read.type, read.code) == (3, 3)
    assert bytes(message[8:]) == quoted[: icmp.QUOTE_LIMIT]
    assert read.payload.dport == 2
    icmp.check(message)


def test_fragmentation_needed_carries_the_mtu():
    message = icmp.encode_error(icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, bytes(28), 1400)
    assert ICMP(message).nexthopmtu == 1400
