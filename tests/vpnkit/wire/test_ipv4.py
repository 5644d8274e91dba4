from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, defragment

from vpnkit.errors import WireError
from vpnkit.wire import ipv4
from vpnkit.wire.checksum import checksum, ones_sum

ADDRESS = st.binary(min_size=4, max_size=4)
SOURCE, DESTINATION = bytes([192, 168, 65, 3]), bytes([10, 9, 8, 7])


def header(options: bytes = b"", payload: bytes = b"", **fields: int) -> bytearray:
    """A header with options and fields as the test wants them, its checksum right."""
    made = bytearray(ipv4.encode_header(SOURCE, DESTINATION, 17, len(options) + len(payload))) + options
    made[0] = 0x40 | len(made) // 4
    for place, value in ((int(k[1:]), v) for k, v in fields.items()):
        made[place] = value
    made[10:12] = bytes(2)
    made[10:12] = checksum(ones_sum(made)).to_bytes(2, "big")
    return made + payload


@given(
    ADDRESS,
    ADDRESS,
    st.integers(0, 255),
    st.binary(max_size=100),
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.sampled_from([0, ipv4.DF, ipv4.MF, 185, ipv4.MF | 8191]),
    st.binary(max_size=20),
)
def test_round_trip(source, destination, protocol, payload, ttl, tos, identification, flags_offset, padding):
    encoded = ipv4.encode_header(
        source,
        destination,
        protocol,
        len(payload),
        ttl=ttl,
        tos=tos,
        identification=identification,
        flags_offset=flags_offset,
    )
    packet = ipv4.decode(memoryview(bytes(encoded) + payload + padding))
    assert packet.payload == payload
    assert packet.header == encoded
    assert (packet.source, packet.destination, packet.protocol) == (source, destination, protocol)
    assert (packet.ttl, packet.tos, packet.identification, packet.flags_offset) == (
        ttl,
        tos,
        identification,
        flags_offset,
    )
    assert packet.dont_fragment == (flags_offset == ipv4.DF)
    assert packet.is_fragment == (flags_offset not in (0, ipv4.DF))
    read = IP(bytes(encoded) + payload)
    again = IP(bytes(read))
    del again.chksum
    assert (read.chksum % 0xFFFF, read.len, read.ttl) == (IP(bytes(again)).chksum % 0xFFFF, 20 + len(payload), ttl)


@given(st.binary(max_size=80))
def test_anything_is_a_packet_or_an_error(data):
    try:
        packet = ipv4.decode(memoryview(data))
    except WireError:
        return
    assert len(packet.header) + len(packet.payload) <= len(data)


@given(st.binary(max_size=40).map(lambda data: data[: len(data) & ~3]))
def test_any_options_are_passed_over_or_an_error(options):
    try:
        packet = ipv4.decode(memoryview(header(options, b"payload")))
    except WireError:
        return
    assert packet.payload == b"payload"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        bytes(19),
        header(p0=0x65),
        header(p0=0x44),
        header(p0=0x4F),
        header(p3=19),
        header(p3=21),
        header(p2=255),
        header()[:-1] + b"\x00",
    ],
)
def test_broken_headers(broken):
    with pytest.raises(WireError):
        ipv4.decode(memoryview(bytes(broken)))


@pytest.mark.parametrize("option", [ipv4.OPTION_LSRR, ipv4.OPTION_SSRR])
def test_source_routing_is_refused(option):
    with pytest.raises(WireError, match="source routing"):
        ipv4.decode(memoryview(header(bytes([1, option, 7, 4, 1, 2, 3, 4]))))


@pytest.mark.parametrize(
    "options", [b"\x07\x00\x00\x00", b"\x07\x01\x00\x00", b"\x07\x05\x00\x00", b"\x01\x01\x01\x07"]
)
def test_illegal_option_lengths(options):
    with pytest.raises(WireError, match="option"):
        ipv4.decode(memoryview(header(options)))


def test_a_broadcast_may_lack_its_checksum():
    made = ipv4.encode_header(bytes(4), ipv4.BROADCAST, 17, 0)
    made[10:12] = bytes(2)
    ipv4.decode(memoryview(made))
    made[10:12] = b"\x00\x01"
    with pytest.raises(WireError):
        ipv4.decode(memoryview(made))
    made = ipv4.encode_header(SOURCE, DESTINATION, 17, 0)
    made[10:12] = bytes(2)
    with pytest.raises(WireError):
        ipv4.decode(memoryview(made))


class TestFragments:
    @given(st.binary(min_size=1, max_size=5000), st.sampled_from([68, 69, 75, 76, 100, 576, 1500]))
    def test_scapy_puts_them_together(self, payload, mtu):
        whole = ipv4.encode_header(SOURCE, DESTINATION, 17, len(payload), identification=77, flags_offset=0)
        made = [b"".join(parts) for parts in ipv4.fragments(whole, payload, mtu)]
        assert all(len(datagram) <= mtu for datagram in made)
        for datagram in made:
            packet = ipv4.decode(memoryview(datagram))
            assert not packet.dont_fragment
            assert packet.identification == 77
        (again,) = defragment([IP(datagram) for datagram in made])
        assert bytes(again.payload) == payload

    def test_what_fits_stays_whole(self):
        whole = ipv4.encode_header(SOURCE, DESTINATION, 17, 80)
        assert ipv4.fragments(whole, bytes(80), 100) == [[whole, bytes(80)]]

    def test_all_but_the_last_are_full(self):
        whole = ipv4.encode_header(SOURCE, DESTINATION, 17, 4000, flags_offset=0)
        assert [len(share) for _, share in ipv4.fragments(whole, bytes(4000), 1500)] == [1480, 1480, 1040]


@given(ADDRESS, ADDRESS, st.integers(0, 255), st.integers(0, 65535))
def test_pseudo_header(source, destination, protocol, length):
    words = source + destination + bytes([0, protocol]) + length.to_bytes(2, "big")
    assert ipv4.pseudo_sum(source, destination, protocol, length) == ones_sum(words)
