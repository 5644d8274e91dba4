"""What extension headers must do: RFC 8200 section 4, RFC 7112, RFC 5095; who is told is RFC 4443 section 2.4 (e)."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import WireError
from vpnkit.wire import ipv6
from vpnkit.wire.ipv6 import (
    DESTINATION_OPTIONS,
    ERRONEOUS_HEADER,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    INCOMPLETE_CHAIN,
    MAX_CHAIN,
    MAX_EXTENSIONS,
    ROUTING,
    TCP,
    UDP,
    UNRECOGNIZED_NEXT_HEADER,
    UNRECOGNIZED_OPTION,
    Ipv6ParameterProblem,
)

SOURCE = IPv6Address("fd65:7670:6e6b::3").packed
DESTINATION = IPv6Address("2001:db8::7").packed
ALL_NODES = ipv6.ALL_NODES
PLAIN = 99
PADN4 = b"\x01\x04\0\0\0\0"


def packet(following: int, payload: bytes, *, source: bytes = SOURCE, destination: bytes = DESTINATION) -> bytes:
    return bytes(ipv6.encode_header(source, destination, following, len(payload))) + payload


def decoded(data: bytes) -> ipv6.Ipv6Packet:
    return ipv6.decode(memoryview(data))


def options(following: int, body: bytes = PADN4) -> bytes:
    """An options header."""
    length = (len(body) + 2 + 7) // 8
    return bytes((following, length - 1)) + body.ljust(length * 8 - 2, b"\0")


def routing(following: int, kind: int, left: int, size: int = 8) -> bytes:
    return bytes((following, size // 8 - 1, kind, left)) + bytes(size - 4)


def fragment(following: int, *, start: int = 0, more: bool = True, number: int = 1) -> bytes:
    return struct.pack("!BBHI", following, 0, start | more, number)


def problem(data: bytes) -> tuple[int, int]:
    """Code and pointer of what the sender is told."""
    with pytest.raises(Ipv6ParameterProblem) as caught:
        decoded(data)
    assert caught.value.quoted == data[: ipv6.QUOTE_LIMIT]
    return caught.value.code, caught.value.pointer


def silent(data: bytes) -> str:
    """Why a packet is refused whose sender is not told."""
    with pytest.raises(WireError) as caught:
        decoded(data)
    assert not isinstance(caught.value, Ipv6ParameterProblem)
    return str(caught.value)


class TestChains:
    def test_all_in_the_recommended_order_rfc8200_4_1(self):
        chain = options(DESTINATION_OPTIONS) + options(ROUTING) + routing(DESTINATION_OPTIONS, 2, 0, 24)
        made = decoded(packet(HOP_BY_HOP, chain + options(PLAIN) + b"payload"))
        assert (made.protocol, made.payload, made.next_header_at) == (PLAIN, b"payload", 80)

    @pytest.mark.parametrize("kind", [ROUTING, DESTINATION_OPTIONS])
    def test_any_order_and_any_number_up_to_the_bound_rfc8200_4_1(self, kind):
        """A node must attempt to process extension headers in any order."""
        chain = (bytes((kind, 0)) + b"\x00\x00\0\0\0\0") * (MAX_EXTENSIONS - 1) + bytes((PLAIN, 0)) + bytes(6)
        assert decoded(packet(kind, chain + b"!")).payload == b"!"
        assert "more than" in silent(packet(kind, bytes((kind, 0)) + bytes(6) + chain))

    def test_too_many_octets(self):
        body = b"\x01" + bytes((MAX_CHAIN - 4,)) + bytes(MAX_CHAIN - 4)
        assert decoded(packet(DESTINATION_OPTIONS, options(PLAIN, body))).payload == b""
        assert "octets" in silent(packet(DESTINATION_OPTIONS, options(DESTINATION_OPTIONS, body) + options(PLAIN)))
        assert "octets" in silent(packet(DESTINATION_OPTIONS, bytes((PLAIN, 255)) + bytes(2046)))

    @pytest.mark.parametrize("before", [DESTINATION_OPTIONS, ROUTING, HOP_BY_HOP])
    def test_hop_by_hop_only_comes_first_rfc8200_4(self, before):
        data = packet(before, bytes((HOP_BY_HOP, 0)) + bytes(6) + options(PLAIN))
        assert problem(data) == (UNRECOGNIZED_NEXT_HEADER, 40)
        behind = packet(FRAGMENT, fragment(HOP_BY_HOP, more=False) + options(PLAIN))
        assert problem(behind) == (UNRECOGNIZED_NEXT_HEADER, 40)

    def test_no_next_header_rfc8200_4_7(self):
        made = decoded(packet(ipv6.NO_NEXT_HEADER, b"ignored"))
        assert (made.protocol, made.payload) == (ipv6.NO_NEXT_HEADER, b"ignored")

    @pytest.mark.parametrize("kind", [50, 51, 135, 139, 140, 253, 254])
    def test_headers_that_we_do_not_know_are_protocols(self, kind):
        """AH, ESP, Mobility, HIP, Shim6: whoever takes protocols says that there is none (code 1)."""
        made = decoded(packet(DESTINATION_OPTIONS, options(kind) + bytes(8)))
        assert (made.protocol, made.next_header_at) == (kind, 40)

    @pytest.mark.parametrize("kind", [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, FRAGMENT])
    @pytest.mark.parametrize("length", range(8))
    def test_cut_off(self, kind, length):
        assert "cut off" in silent(packet(kind, bytes(length)))

    @pytest.mark.parametrize("kind", [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS])
    @pytest.mark.parametrize("length", [1, 2, 255])
    def test_longer_than_the_packet(self, kind, length):
        silent(packet(kind, bytes((PLAIN, length)) + bytes(6 + 8 * (length - 1))))

    def test_padding_behind_the_payload_length_is_no_header(self):
        silent(packet(DESTINATION_OPTIONS, b"") + options(PLAIN))


class TestOptions:
    @pytest.mark.parametrize("kind", [HOP_BY_HOP, DESTINATION_OPTIONS])
    @pytest.mark.parametrize("body", [bytes(6), PADN4, b"\x01\x00" * 3, b"\x00\x01\x03abc", b"\x01\x0c" + b"\xff" * 12])
    def test_padding_of_any_content(self, kind, body):
        assert decoded(packet(kind, options(PLAIN, body) + b"!")).payload == b"!"

    @pytest.mark.parametrize("kind", [HOP_BY_HOP, DESTINATION_OPTIONS])
    @pytest.mark.parametrize("option", range(2, 256))
    def test_the_highest_bits_say_what_to_do_rfc8200_4_2(self, kind, option):
        body = b"\0" + bytes((option, 2)) + bytes(2)
        data = packet(kind, options(PLAIN, body))
        everybody = packet(kind, options(PLAIN, body), destination=ALL_NODES)
        action = option >> 6
        if action == 0:
            assert decoded(data).protocol == decoded(everybody).protocol == PLAIN
        elif action == 1:
            assert silent(data) == silent(everybody)
        else:
            assert problem(data) == (UNRECOGNIZED_OPTION, 43)
            if action == 2:
                assert problem(everybody) == (UNRECOGNIZED_OPTION, 43)
            else:
                silent(everybody)

    def test_a_jumbo_payload_is_an_option_that_we_do_not_know(self):
        """RFC 2675; CVE-2024-38063."""
        jumbo = options(PLAIN, b"\xc2\x04" + struct.pack("!I", 70_000))
        assert problem(packet(HOP_BY_HOP, jumbo)) == (UNRECOGNIZED_OPTION, 42)
        no_length = bytearray(packet(HOP_BY_HOP, jumbo))
        no_length[4:6] = bytes(2)
        silent(bytes(no_length))

    @pytest.mark.parametrize("kind", [HOP_BY_HOP, DESTINATION_OPTIONS])
    @pytest.mark.parametrize(
        "body", [bytes(5) + b"\x05", b"\x05\x05" + bytes(4), b"\x01\xff" + bytes(4), b"\x01\x03\0\0\0\x01"]
    )
    def test_an_option_ends_in_its_header(self, kind, body):
        assert "length" in silent(packet(kind, options(PLAIN, body) + bytes(300)))

    def test_the_first_that_is_wrong_is_told(self):
        body = b"\x05\x02\0\0" + b"\x8a\x00" + b"\xca\x00"
        assert problem(packet(HOP_BY_HOP, options(PLAIN, body))) == (UNRECOGNIZED_OPTION, 46)


class TestRouting:
    @pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 253, 255])
    def test_with_segments_left_its_type_is_told_rfc5095_3(self, kind):
        """Type 0 is as unknown as any other (RFC 8200 section 4.4)."""
        data = packet(DESTINATION_OPTIONS, options(ROUTING) + routing(PLAIN, kind, 1, 24))
        assert problem(data) == (ERRONEOUS_HEADER, 50)

    @pytest.mark.parametrize("kind", [0, 2, 4, 255])
    def test_without_it_is_passed_over_rfc8200_4_4(self, kind):
        assert decoded(packet(ROUTING, routing(PLAIN, kind, 0, 24) + b"!")).payload == b"!"


class TestFragmentHeader:
    def test_reserved_bits_are_not_looked_at(self):
        """Section 4.5: ignored on reception."""
        header = bytearray(fragment(PLAIN, start=16))
        header[1], header[3] = 0xFF, header[3] | 6
        made = decoded(packet(FRAGMENT, bytes(header) + bytes(8)))
        assert made.fragment == (16, True, 1)

    @pytest.mark.parametrize("length", [1, 7, 9, 1001])
    def test_a_length_that_is_no_multiple_of_8_rfc8200_4_5(self, length):
        """The pointer is to the payload length."""
        data = packet(FRAGMENT, fragment(PLAIN, start=8) + bytes(length))
        assert problem(data) == (ERRONEOUS_HEADER, 4)
        chained = packet(DESTINATION_OPTIONS, options(FRAGMENT) + fragment(PLAIN) + bytes(length))
        assert problem(chained) == (ERRONEOUS_HEADER, 4)
        assert decoded(packet(FRAGMENT, fragment(PLAIN, start=8, more=False) + bytes(length))).is_fragment

    def test_beyond_65535_rfc8200_4_5(self):
        """The pointer is to the fragment offset; the extension headers before it count."""
        assert decoded(packet(FRAGMENT, fragment(PLAIN, start=65528, more=False) + bytes(7))).is_fragment
        assert problem(packet(FRAGMENT, fragment(PLAIN, start=65528, more=False) + bytes(8))) == (ERRONEOUS_HEADER, 42)
        chained = options(FRAGMENT) + fragment(PLAIN, start=65528, more=False) + b"\0"
        assert problem(packet(DESTINATION_OPTIONS, chained)) == (ERRONEOUS_HEADER, 50)

    @pytest.mark.parametrize(
        ("following", "payload"),
        [
            (TCP, bytes(16)),
            (TCP, bytes(12) + b"\x70" + bytes(11)),  # 28 octets of header
            (UDP, b""),
            (ICMPV6, b""),
            (DESTINATION_OPTIONS, b""),
            (DESTINATION_OPTIONS, bytes((PLAIN, 1)) + bytes(6)),
            (DESTINATION_OPTIONS, options(UDP)),
            (ROUTING, bytes((PLAIN, 2)) + bytes(14)),
            (DESTINATION_OPTIONS, options(FRAGMENT)),
        ],
    )
    def test_the_first_has_the_whole_chain_rfc7112_5(self, following, payload):
        assert problem(packet(FRAGMENT, fragment(following) + payload)) == (INCOMPLETE_CHAIN, 0)

    @pytest.mark.parametrize(
        ("following", "payload"),
        [
            (TCP, bytes(12) + b"\x50" + bytes(11)),
            (UDP, bytes(8)),
            (ICMPV6, bytes(8)),
            (DESTINATION_OPTIONS, options(UDP) + bytes(8)),
            (ipv6.NO_NEXT_HEADER, b""),
        ],
    )
    def test_and_no_more_than_that(self, following, payload):
        assert decoded(packet(FRAGMENT, fragment(following) + payload)).is_fragment

    def test_what_is_in_the_others_is_not_looked_at(self):
        made = decoded(packet(FRAGMENT, fragment(DESTINATION_OPTIONS, start=8) + b"\xff" * 16))
        assert (made.protocol, made.payload) == (DESTINATION_OPTIONS, b"\xff" * 16)

    def test_options_before_it_are_looked_at_and_those_behind_it_wait(self):
        bad = b"\x8a\x04" + bytes(4)
        assert problem(packet(DESTINATION_OPTIONS, options(FRAGMENT, bad) + fragment(PLAIN))) == (2, 42)
        assert decoded(packet(FRAGMENT, fragment(DESTINATION_OPTIONS) + options(PLAIN, bad))).is_fragment
        assert problem(packet(FRAGMENT, fragment(DESTINATION_OPTIONS, more=False) + options(PLAIN, bad))) == (2, 50)

    @pytest.mark.parametrize("more", [(False, False), (False, True), (True, False), (True, True)])
    def test_there_is_one_cve_2021_24086(self, more):
        one, other = more
        data = packet(FRAGMENT, fragment(FRAGMENT, more=one) + fragment(PLAIN, more=other) + bytes(8))
        assert "two" in silent(data)


class TestWhoIsTold:
    BAD = options(PLAIN, b"\x8a\x04" + bytes(4))

    @pytest.mark.parametrize("source", [ipv6.UNSPECIFIED, ALL_NODES])
    def test_nobody_that_is_not_one_host(self, source):
        silent(packet(DESTINATION_OPTIONS, self.BAD, source=source))

    @pytest.mark.parametrize(
        "data",
        [
            packet(ROUTING, routing(PLAIN, 0, 1), destination=ALL_NODES),
            packet(FRAGMENT, fragment(UDP), destination=ALL_NODES),
            packet(FRAGMENT, fragment(PLAIN) + b"!", destination=ALL_NODES),
            packet(DESTINATION_OPTIONS, options(HOP_BY_HOP) + options(PLAIN), destination=ALL_NODES),
        ],
    )
    def test_about_multicasts_only_options_of_that_kind(self, data):
        silent(data)

    @pytest.mark.parametrize("kind", [1, 2, 3, 4, 127, 137])
    def test_no_error_about_an_error(self, kind):
        silent(packet(DESTINATION_OPTIONS, options(ICMPV6, b"\x8a\x04" + bytes(4)) + bytes((kind,)) + bytes(7)))
        silent(packet(ROUTING, routing(DESTINATION_OPTIONS, 0, 1) + options(ICMPV6) + bytes((kind,)) + bytes(7)))

    @pytest.mark.parametrize("kind", [128, 129, 135, 255])
    def test_about_what_informs(self, kind):
        data = packet(DESTINATION_OPTIONS, options(ICMPV6, b"\x8a\x04" + bytes(4)) + bytes((kind,)) + bytes(7))
        assert problem(data) == (UNRECOGNIZED_OPTION, 42)

    def test_a_later_fragment_hides_what_it_is(self):
        data = packet(DESTINATION_OPTIONS, options(FRAGMENT, b"\x8a\x04" + bytes(4)) + fragment(ICMPV6, start=8))
        assert problem(data) == (UNRECOGNIZED_OPTION, 42)


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, FRAGMENT]),
        st.one_of(st.just(PADN4), st.binary(min_size=6, max_size=22)),
    ),
    max_size=10,
)


@given(HEADERS, st.sampled_from([TCP, UDP, ICMPV6, 59, PLAIN]), st.binary(max_size=30), st.booleans())
def test_any_chain_is_a_packet_or_an_error(headers, protocol, payload, to_everybody):
    data = payload
    following = protocol
    for kind, body in reversed(headers):
        made = bytes((following, 0)) + body[:6] if kind == FRAGMENT else options(following, body)
        following, data = kind, made + data
    data = packet(following, data, destination=ALL_NODES if to_everybody else DESTINATION)
    told = found = None
    try:
        found = decoded(data)
    except Ipv6ParameterProblem as error:
        told = error
    except WireError:
        return
    if told is not None:
        assert told.code in (0, 1, 2, 3)
        assert told.pointer < len(data)
        assert not ipv6.is_icmp_error(data)
        return
    assert found is not None
    assert bytes(found.header) + bytes(found.payload) == data
    assert len(found.header) <= 40 + MAX_CHAIN
    protocol_seen, at, _, fragmented = ipv6.upper_layer(data)
    assert fragmented == found.fragmented
    if found.fragment is None or not found.fragment.offset:
        assert (protocol_seen, at) == (found.protocol, len(found.header))
    else:
        assert protocol_seen == ipv6.LATER_FRAGMENT
