from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from vpnkit.errors import WireError
from vpnkit.proto.arp import answer
from vpnkit.wire.arp import REPLY, REQUEST, ArpPacket, decode

MAC, IP = st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4)
PACKETS = st.builds(ArpPacket, st.sampled_from([REQUEST, REPLY]), MAC, IP, MAC, IP)
OUR_MAC = bytes.fromhex("f61636bcf9c6")
GATEWAY, HOST, GUEST = (bytes([192, 168, 65, n]) for n in (1, 2, 3))
GUEST_MAC = bytes.fromhex("025000000001")
ANY = bytes(4)


@given(PACKETS, st.binary(max_size=18))
def test_round_trip_with_padding(packet, padding):
    assert decode(memoryview(packet.encode() + padding)) == packet


@given(PACKETS)
def test_scapy_reads_the_same(packet):
    read = ARP(packet.encode())
    assert (read.hwtype, read.ptype, read.hwlen, read.plen, read.op) == (1, 0x0800, 6, 4, packet.operation)
    assert read.psrc == ".".join(map(str, packet.sender_ip))
    assert read.hwdst == packet.target_mac.hex(":")


@given(st.binary(max_size=60))
def test_anything_is_a_packet_or_an_error(data):
    try:
        assert decode(data).operation in (REQUEST, REPLY)
    except WireError:
        pass


@pytest.mark.parametrize("change", [(0, 1), (2, 9), (4, 5), (5, 16), (7, 0), (7, 3), (7, 9)])
def test_what_is_not_ipv4_over_ethernet_or_no_known_operation(change):
    packet = bytearray(ArpPacket(REQUEST, GUEST_MAC, GUEST, bytes(6), GATEWAY).encode())
    packet[change[0]] = change[1]
    with pytest.raises(WireError):
        decode(packet)


def request(target: bytes, sender: bytes = GUEST) -> ArpPacket | None:
    return answer(ArpPacket(REQUEST, GUEST_MAC, sender, bytes(6), target), {GATEWAY, HOST}, OUR_MAC)


@pytest.mark.parametrize("target", [GATEWAY, HOST])
def test_our_addresses_are_answered(target):
    assert request(target) == ArpPacket(REPLY, OUR_MAC, target, GUEST_MAC, GUEST)


def test_a_probe_for_the_guests_own_address_is_not():
    assert request(GUEST, sender=ANY) is None
    assert request(GUEST, sender=GUEST) is None


def test_an_address_of_ours_is_defended():
    assert request(GATEWAY, sender=ANY) == ArpPacket(REPLY, OUR_MAC, GATEWAY, GUEST_MAC, ANY)
    assert request(GATEWAY, sender=GATEWAY) == ArpPacket(REPLY, OUR_MAC, GATEWAY, GUEST_MAC, GATEWAY)


def test_replies_are_not_answered():
    assert answer(ArpPacket(REPLY, GUEST_MAC, GUEST, OUR_MAC, GATEWAY), {GATEWAY}, OUR_MAC) is None
