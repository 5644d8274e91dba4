from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
    defragment6,
    in6_getnsma,
    in6_getnsmac,
)
from scapy.utils6 import in6_mactoifaceid, in6_ptop

from vpnkit.errors import WireError
from vpnkit.wire import ipv6
from vpnkit.wire.checksum import ones_sum

ADDRESS = st.binary(min_size=16, max_size=16)
SOURCE = bytes.fromhex("fd657670 6e6b0000 00000000 00000003")
DESTINATION = bytes.fromhex("20010db8 00000000 00000000 00000007")
MAC = bytes.fromhex("025000000001")


def packet(payload: bytes, following: int = 17, *, source: bytes = SOURCE, destination: bytes = DESTINATION) -> bytes:
    return bytes(ipv6.encode_header(source, destination, following, len(payload))) + payload


def decoded(data: bytes) -> ipv6.Ipv6Packet:
    return ipv6.decode(memoryview(data))


@given(
    ADDRESS,
    ADDRESS,
    st.sampled_from([6, 17, 58, 59, 99, 255]),
    st.binary(max_size=100),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFFF),
    st.binary(max_size=20),
)
def test_round_trip_and_scapy(source, destination, protocol, payload, ttl, tos, flow_label, padding):
    header = ipv6.encode_header(source, destination, protocol, len(payload), ttl=ttl, tos=tos, flow_label=flow_label)
    made = decoded(bytes(header) + payload + padding)
    assert (made.header, made.payload) == (header, payload)
    assert (made.source, made.destination, made.protocol) == (source, destination, protocol)
    assert (made.ttl, made.tos, made.flow_label) == (ttl, tos, flow_label)
    assert (made.fragment, made.is_fragment, made.dont_fragment, made.flags_offset) == (None, False, True, 0x4000)
    assert (made.next_header_at, made.unfragmentable, made.fragmented) == (6, 0, False)
    read = IPv6(bytes(header) + payload)
    assert (read.hlim, read.tc, read.fl, read.nh, read.plen) == (ttl, tos, flow_label, protocol, len(payload))
    words = source + destination + len(payload).to_bytes(4, "big") + bytes((0, 0, 0, protocol))
    assert made.pseudo_sum() == ipv6.pseudo_sum(source, destination, protocol, len(payload)) == ones_sum(words)


@given(st.binary(max_size=120), st.sampled_from([0, 43, 44, 60, 17, 58]), st.booleans())
def test_anything_is_a_packet_or_an_error(data, following, shaped):
    if shaped:
        data = packet(data, following)
    try:
        made = decoded(data)
    except WireError:
        return
    assert bytes(made.header) + bytes(made.payload) == data[: 40 + int.from_bytes(data[4:6], "big")]
    assert made.header[made.next_header_at] == made.protocol
    assert made.protocol not in ipv6.CHAINED or (made.fragment is not None and made.fragment.offset)


@pytest.mark.parametrize(
    "broken",
    [b"", bytes(39), b"\x45" + bytes(60), packet(b"")[:39], packet(b"x" * 9)[:-1], b"\x70" + packet(b"")[1:]],
)
def test_broken_headers(broken):
    with pytest.raises(WireError):
        decoded(broken)


class TestExtensions:
    def test_scapy_chain(self):
        built = (
            IPv6(src="fd65::3", dst="2001:db8::7")
            / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"ab")])
            / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(10))])
            / IPv6ExtHdrRouting(type=2, segleft=0, addresses=["2001:db8::9"])
            / b"payload!"
        )
        built[IPv6ExtHdrRouting].nh = 99
        made = decoded(bytes(built))
        assert (made.protocol, made.payload) == (99, b"payload!")
        assert len(made.header) == len(bytes(built)) - 8
        assert made.header[made.next_header_at] == 99
        assert made.next_header_at == len(made.header) - 24  # the routing header is 24 octets

    def test_a_fragment_has_its_numbers(self):
        first = IPv6(src="fd65::3", dst="2001:db8::7") / IPv6ExtHdrFragment(id=7, m=1, nh=17) / bytes(16)
        later = IPv6(src="fd65::3", dst="2001:db8::7") / IPv6ExtHdrFragment(id=7, offset=2, nh=60) / b"rest"
        made = decoded(bytes(first))
        assert made.fragment == ipv6.Fragment(0, True, 7)
        assert (made.is_fragment, made.flags_offset, made.unfragmentable, made.next_header_at) == (True, 0x6000, 40, 40)
        assert (made.protocol, made.payload) == (17, bytes(16))
        made = decoded(bytes(later))
        assert made.fragment == (16, False, 7)
        assert (made.flags_offset, made.protocol, made.payload) == (0x4002, 60, b"rest")

    def test_an_atomic_fragment_is_none_rfc6946(self):
        made = decoded(packet(b"\x11\x00\x00\x00\x00\x00\x00\x07" + bytes(8), ipv6.FRAGMENT))
        assert (made.is_fragment, made.fragment, made.unfragmentable, made.fragmented) == (False, None, 0, True)
        assert (made.protocol, made.payload, made.next_header_at, len(made.header)) == (17, bytes(8), 40, 48)


class TestFragments:
    @given(st.binary(min_size=1, max_size=5000), st.sampled_from([96, 97, 103, 104, 576, 1280, 1500]))
    def test_scapy_puts_them_together(self, payload, mtu):
        whole = ipv6.encode_header(SOURCE, DESTINATION, 99, len(payload), tos=3, flow_label=5)
        made = [b"".join(parts) for parts in ipv6.fragments(whole, payload, mtu, 0x1234567)]
        assert all(len(one) <= mtu for one in made)
        if len(made) == 1:
            assert made[0] == bytes(whole) + payload
            return
        for one in made:
            fragment = decoded(one).fragment
            assert fragment is not None
            assert fragment.identification == 0x1234567
        again = defragment6([IPv6(one) for one in made])
        assert bytes(again) == bytes(whole) + payload

    def test_all_but_the_last_are_full(self):
        whole = ipv6.encode_header(SOURCE, DESTINATION, 17, 4000)
        assert [len(share) for _, share in ipv6.fragments(whole, bytes(4000), 1500, 1)] == [1448, 1448, 1104]


class TestQuotes:
    def test_the_start_of_a_packet_will_do(self):
        made = ipv6.decode_quote(memoryview(packet(bytes(range(100)), 6)[:60]))
        assert (made.protocol, made.payload, made.source, made.destination) == (
            6,
            bytes(range(20)),
            SOURCE,
            DESTINATION,
        )

    def test_of_a_first_fragment(self):
        whole = ipv6.encode_header(SOURCE, DESTINATION, 17, 4000)
        first, second, _ = ipv6.fragments(whole, bytes(4000), 1500, 1)
        made = ipv6.decode_quote(memoryview(b"".join(first)))
        assert (made.protocol, len(made.payload), made.next_header_at) == (17, 1448, 40)
        with pytest.raises(WireError):
            ipv6.decode_quote(memoryview(b"".join(second)))

    @pytest.mark.parametrize(
        "quoted",
        [
            b"",
            packet(bytes(7)),
            b"\x45" + bytes(60),
            packet(bytes(8), ipv6.FRAGMENT),
            packet(bytes(16), ipv6.HOP_BY_HOP),
            packet(b"") + bytes(8),
        ],
    )
    def test_broken_ones(self, quoted):
        with pytest.raises(WireError):
            ipv6.decode_quote(memoryview(quoted))


@given(ADDRESS, st.binary(min_size=6, max_size=6))
def test_derived_addresses(address, mac):
    asked = in6_getnsma(address)
    assert ipv6.solicited_node(address) == asked
    assert ipv6.multicast_mac(asked).hex(":") == in6_getnsmac(asked)
    identifier = in6_mactoifaceid(mac.hex(":"))
    assert ipv6.link_local(mac) == b"\xfe\x80" + bytes(6) + interface_id(identifier)
    assert ipv6.interface_id_address(address[:8], mac)[:8] == address[:8]


def interface_id(identifier: str) -> bytes:
    return b"".join(int(part, 16).to_bytes(2, "big") for part in identifier.split(":"))


def test_well_known_addresses():
    named = {
        "ff02::1": ipv6.ALL_NODES,
        "ff02::2": ipv6.ALL_ROUTERS,
        "ff02::1:2": ipv6.ALL_DHCP_RELAYS_AND_SERVERS,
        "::": ipv6.UNSPECIFIED,
        in6_ptop("fe80::50:ff:fe00:1"): ipv6.link_local(MAC),
    }
    for text, octets in named.items():
        assert IPv6(dst=text).dst == IPv6(packet(b"", destination=octets)).dst
