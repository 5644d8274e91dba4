"""IPv6, RFC 8200: the fixed header, its extension headers, and fragments.

version 4 bits, traffic class 8, flow label 20 | payload length 2 | next header 1 | hop limit 1 |
source 16 | destination 16

Extension headers 0, 43 and 60: next header 1 | length in 8 octets less 1 | options, or routing type 1, segments left 1
Fragment header: next header 1 | reserved 1 | offset and flags 2 | identification 4
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from vpnkit.wire.checksum import Buffer

HEADER: Final = struct.Struct("!IHBB16s16s")
FRAGMENT_HEADER: Final = struct.Struct("!BBHI")
HEADER_SIZE: Final = 40

HOP_BY_HOP: Final = 0
TCP: Final = 6
UDP: Final = 17
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMPV6: Final = 58
NO_NEXT_HEADER: Final = 59
DESTINATION_OPTIONS: Final = 60
EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS})
CHAINED: Final = EXTENSIONS | {FRAGMENT}
MAX_EXTENSIONS: Final = 8  # nobody honest has more; what is behind them is not looked for
MAX_CHAIN: Final = 256  # octets of all extension headers of a packet
OFFSET_MASK: Final = 0xFFF8  # of the offset and flags of a fragment
MORE: Final = 1

VERSION: Final = 6 << 28
MAX_PAYLOAD: Final = 65535
MIN_MTU: Final = 1280  # section 5: every link takes this
DEFAULT_HOP_LIMIT: Final = 64
NEXT_HEADER_OFFSET: Final = 6
HOP_LIMIT_OFFSET: Final = 7

UNSPECIFIED: Final = bytes(16)
ALL_NODES: Final = bytes.fromhex("ff02 0000 0000 0000 0000 0000 0000 0001")
ALL_ROUTERS: Final = bytes.fromhex("ff02 0000 0000 0000 0000 0000 0000 0002")
ALL_DHCP_RELAYS_AND_SERVERS: Final = bytes.fromhex("ff02 0000 0000 0000 0000 0000 0001 0002")
SOLICITED_NODE: Final = bytes.fromhex("ff02 0000 0000 0000 0000 0001 ff")  # and the last 3 octets of the address

# Codes of a Parameter Problem (RFC 4443 section 3.4, RFC 7112 section 5)
ERRONEOUS_HEADER: Final = 0
UNRECOGNIZED_NEXT_HEADER: Final = 1
UNRECOGNIZED_OPTION: Final = 2
INCOMPLETE_CHAIN: Final = 3

QUOTE_LIMIT: Final = MIN_MTU - HEADER_SIZE - 8  # octets; RFC 4443 section 2.4 (c): an error is not larger than MIN_MTU

LATER_FRAGMENT: Final = -1  # for a protocol: it is in the first fragment

PAD1: Final = 0
ERRORS_BELOW: Final = 128  # ICMPv6 types that are errors, RFC 4443 section 2.1
REDIRECT: Final = 137

# The shortest header of the protocols that a first fragment must not cut
_UPPER_LAYER: Final = {TCP: 20, UDP: 8, ICMPV6: 8}


class Ipv6ParameterProblem(WireError):
    """A packet whose sender must be told what is wrong with it: the rules of RFC 4443 section 2.4 (e) were asked.

    `quoted` is its start, as far as an ICMPv6 error quotes it; `pointer` is the octet of it that is wrong.
    """

    def __init__(self, why: str, code: int, pointer: int, quoted: bytes) -> None:
        super().__init__(why)
        self.code = code
        self.pointer = pointer
        self.quoted = quoted


class Fragment(NamedTuple):
    """What a Fragment header says."""

    offset: int  # octets from the start of the fragmentable part
    more: bool
    identification: int


@dataclass(slots=True)
class Ipv6Packet:
    """One received packet or fragment; `header` and `payload` are views into its frame.

    `header` is the fixed header and all extension headers; of a fragment that is not the first, what is up to the
    Fragment header.  A fragment that is the whole packet (RFC 6946) is no fragment.
    """

    header: memoryview
    payload: memoryview
    tos: int  # the traffic class
    flow_label: int
    ttl: int  # the hop limit
    protocol: int  # what `payload` is
    source: bytes
    destination: bytes
    fragment: Fragment | None = None
    next_header_at: int = NEXT_HEADER_OFFSET  # of the octet of `header` that says `protocol`
    unfragmentable: int = 0  # of a fragment: octets before its Fragment header
    fragmented: bool = False  # it had a Fragment header, or is made of those that had

    @property
    def is_fragment(self) -> bool:
        return self.fragment is not None

    @property
    def dont_fragment(self) -> bool:
        """No router may; who fragmented it himself would have it fragmented on its way as well."""
        return not self.fragmented

    @property
    def flags_offset(self) -> int:
        """As an IPv4 packet has them, with DF unless it came in fragments."""
        if self.fragment is None:
            return 0 if self.fragmented else 0x4000
        return 0x4000 | self.fragment.more << 13 | self.fragment.offset >> 3

    def pseudo_sum(self) -> int:
        """The pseudo-header's sum for a transport checksum over all of `payload`."""
        return pseudo_sum(self.source, self.destination, self.protocol, len(self.payload))


def decode(data: memoryview) -> Ipv6Packet:
    """The packet at the start of `data`; what lies after its payload length is padding.

    Raises Ipv6ParameterProblem where RFC 8200 wants the sender told: an option or a routing header that it does not
    know and must not pass over, a Hop-by-Hop Options header that is not the first header, a fragment that cannot be
    part of any packet, a first fragment without all headers (RFC 7112).  Raises WireError for all else that is wrong.
    """
    if len(data) < HEADER_SIZE:
        raise WireError(f"IPv6 packet of {len(data)} octets")
    first, length, following, ttl, source, destination = HEADER.unpack_from(data)
    if first >> 28 != 6:
        raise WireError(f"IP version {first >> 28} in an IPv6 frame")
    end = HEADER_SIZE + length
    if end > len(data):
        raise WireError(f"IPv6 payload of {length}, frame of {len(data)} octets")
    packet = Ipv6Packet(
        data[:HEADER_SIZE],
        data[HEADER_SIZE:end],
        first >> 20 & 0xFF,
        first & 0xFFFFF,
        ttl,
        following,
        source,
        destination,
    )
    if following in CHAINED:
        _Chain(data[:end], packet).walk()
    return packet


class _Chain:
    """The extension headers of one packet."""

    def __init__(self, data: memoryview, packet: Ipv6Packet) -> None:
        self._data = data
        self._packet = packet
        self._in_first_fragment = False

    def walk(self) -> None:
        """Move the borders of the packet behind its last extension header.  Raises WireError."""
        data, packet = self._data, self._packet
        following, following_at, at = packet.protocol, NEXT_HEADER_OFFSET, HEADER_SIZE
        fragment: Fragment | None = None
        fragment_at = 0
        for number in range(MAX_EXTENSIONS + 1):
            if following not in CHAINED:
                break
            if number == MAX_EXTENSIONS:
                raise WireError(f"more than {MAX_EXTENSIONS} IPv6 extension headers")
            if following == HOP_BY_HOP and at > HEADER_SIZE:
                raise self._problem("Hop-by-Hop Options behind the first", UNRECOGNIZED_NEXT_HEADER, following_at)
            if at + 8 > len(data):
                raise self._cut_off(f"IPv6 header {following} cut off")
            if following == FRAGMENT:
                if fragment_at:
                    raise WireError("two IPv6 Fragment headers")
                fragment = self._fragment(at)
                fragment_at, length = at, 8
            else:
                length = (data[at + 1] + 1) * 8
                if at + length > len(data):
                    raise self._cut_off(f"IPv6 header {following} of {length} octets")
                if at + length > HEADER_SIZE + MAX_CHAIN:
                    raise WireError(f"more than {MAX_CHAIN} octets of IPv6 extension headers")
                self._check(following, at, at + length)
            following, following_at, at = data[at], at, at + length
            if fragment is not None and fragment.offset:
                break
        if self._in_first_fragment and len(data) - at < self._upper_layer(following, at):
            raise self._cut_off("IPv6 upper-layer header cut off")
        packet.header, packet.payload = data[:at], data[at:]
        packet.protocol, packet.next_header_at, packet.fragmented = following, following_at, fragment_at > 0
        if fragment is not None:
            packet.fragment, packet.unfragmentable = fragment, fragment_at

    def _fragment(self, at: int) -> Fragment | None:
        """The Fragment header there; None for one that is the whole packet.  Raises WireError."""
        data = self._data
        _, _, offset_flags, identification = FRAGMENT_HEADER.unpack_from(data, at)
        offset, more = offset_flags & OFFSET_MASK, bool(offset_flags & MORE)
        if not offset and not more:
            return None
        length = len(data) - at - 8
        if more and length & 7:
            raise self._problem(f"IPv6 fragment of {length} octets", ERRONEOUS_HEADER, 4)
        if at - HEADER_SIZE + offset + length > MAX_PAYLOAD:
            raise self._problem(f"IPv6 fragment of {length} octets at {offset}", ERRONEOUS_HEADER, at + 2)
        self._in_first_fragment = not offset
        return Fragment(offset, more, identification)

    def _check(self, kind: int, at: int, end: int) -> None:
        """What is in one extension header; behind the Fragment header, it waits until the packet is whole."""
        if self._in_first_fragment:
            return
        if kind != ROUTING:
            self._check_options(at + 2, end)
        elif self._data[at + 3]:  # segments left: there is no routing type that we know, nor type 0 (RFC 5095)
            raise self._problem(f"IPv6 routing type {self._data[at + 2]}", ERRONEOUS_HEADER, at + 2)

    def _check_options(self, at: int, end: int) -> None:
        """Section 4.2: the two highest bits of an option that is not known say what to do."""
        data = self._data
        while at < end:
            kind = data[at]
            if kind == PAD1:
                at += 1
                continue
            if at + 2 > end or at + 2 + data[at + 1] > end:
                raise WireError(f"length of IPv6 option {kind}")
            action = kind >> 6
            if action == 1:
                raise WireError(f"IPv6 option {kind}")
            if action:
                raise self._problem(f"IPv6 option {kind}", UNRECOGNIZED_OPTION, at, also_multicast=action == 2)
            at += 2 + data[at + 1]

    def _upper_layer(self, kind: int, at: int) -> int:
        """The octets that the upper-layer header there must have."""
        least = _UPPER_LAYER.get(kind, 0)
        if kind == TCP and at + 12 < len(self._data):
            return max(least, (self._data[at + 12] >> 4) * 4)
        return least

    def _cut_off(self, why: str) -> WireError:
        return self._problem(why, INCOMPLETE_CHAIN, 0) if self._in_first_fragment else WireError(why)

    def _problem(self, why: str, code: int, pointer: int, *, also_multicast: bool = False) -> WireError:
        if self._packet.destination[0] == 0xFF and not also_multicast:
            return WireError(why)
        if self._packet.source == UNSPECIFIED or self._packet.source[0] == 0xFF or is_icmp_error(self._data):
            return WireError(why)
        return Ipv6ParameterProblem(why, code, pointer, bytes(self._data[:QUOTE_LIMIT]))


def upper_layer(data: Buffer, network: int = 0) -> tuple[int, int, int, bool]:
    """Where the extension headers of the packet at `network` in `data` lead to: the protocol there, or LATER_FRAGMENT;
    the offset in `data`; the end of what can be read; whether there was a Fragment header.

    For who only passes the packet on: the lengths are followed, and nothing is refused.  The protocol is an extension
    header's where the packet ends before that header does, and where there are too many.  Of a first fragment, the end
    is that of the packet, as what follows is padding; else that of `data`.  The fixed header is there.
    """
    protocol, at, end = data[network + NEXT_HEADER_OFFSET], network + HEADER_SIZE, len(data)
    fragmented = False
    for _ in range(MAX_EXTENSIONS):
        if protocol not in CHAINED or at + 8 > end:
            break
        if protocol != FRAGMENT:
            protocol, at = data[at], at + 8 + data[at + 1] * 8
        elif (data[at + 2] << 8 | data[at + 3]) & OFFSET_MASK:
            return LATER_FRAGMENT, at + 8, end, True
        else:
            fragmented = True
            end = min(end, network + HEADER_SIZE + (data[network + 4] << 8 | data[network + 5]))
            protocol, at = data[at], at + 8
    return protocol, at, end, fragmented


def is_icmp_error(data: Buffer) -> bool:
    """Whether the packet `data`, of at least HEADER_SIZE octets, holds an ICMPv6 error or redirect, as far as can be
    seen: no error is sent about it (RFC 4443 section 2.4 (e))."""
    protocol, at, _, _ = upper_layer(data)
    return protocol == ICMPV6 and at < len(data) and (data[at] < ERRORS_BELOW or data[at] == REDIRECT)


def decode_quote(data: memoryview) -> Ipv6Packet:
    """The start of a packet of ours that an ICMPv6 error quotes: at least 8 octets behind its headers, which are no
    other than a Fragment header.  Raises WireError."""
    if len(data) < HEADER_SIZE + 8:
        raise WireError(f"quote of {len(data)} octets in an ICMPv6 error")
    first, length, following, ttl, source, destination = HEADER.unpack_from(data)
    if first >> 28 != 6:
        raise WireError("quote in an ICMPv6 error")
    start, next_header_at, fragment = HEADER_SIZE, NEXT_HEADER_OFFSET, None
    if following == FRAGMENT:
        next_header_at, start = HEADER_SIZE, HEADER_SIZE + FRAGMENT_HEADER.size
        following, _, offset_flags, identification = FRAGMENT_HEADER.unpack_from(data, HEADER_SIZE)
        fragment = Fragment(offset_flags & OFFSET_MASK, bool(offset_flags & MORE), identification)
    end = min(HEADER_SIZE + length, len(data))
    if start + 8 > end or (fragment is not None and fragment.offset) or following in CHAINED:
        raise WireError("headers of the quote in an ICMPv6 error")
    return Ipv6Packet(
        data[:start],
        data[start:end],
        first >> 20 & 0xFF,
        first & 0xFFFFF,
        ttl,
        following,
        source,
        destination,
        None,
        next_header_at,
    )


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The pseudo-header's share of a transport checksum (section 8.1)."""
    return (int.from_bytes(source + destination, "big") + protocol + length) % 65535


def encode_header(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload_length: int,
    *,
    ttl: int = DEFAULT_HOP_LIMIT,
    tos: int = 0,
    flow_label: int = 0,
) -> bytearray:
    """A fixed header."""
    return bytearray(
        HEADER.pack(VERSION | tos << 20 | flow_label, payload_length, protocol, ttl, source, destination),
    )


def fragments(header: bytearray, payload: Buffer, mtu: int, identification: int) -> list[list[Buffer]]:
    """`payload` behind `header`, a fixed header, as packets that fit `mtu`, each its headers and its share.

    Section 4.5; `identification` must be unique among the packets in flight between the two.
    """
    if HEADER_SIZE + len(payload) <= mtu:
        return [[header, payload]]
    view = memoryview(payload)
    step = (mtu - HEADER_SIZE - FRAGMENT_HEADER.size) & ~7
    made: list[list[Buffer]] = []
    for start in range(0, len(view), step):
        share = view[start : start + step]
        more = MORE if start + step < len(view) else 0
        copy = header + FRAGMENT_HEADER.pack(header[NEXT_HEADER_OFFSET], 0, start | more, identification)
        struct.pack_into("!HB", copy, 4, FRAGMENT_HEADER.size + len(share), FRAGMENT)
        made.append([copy, share])
    return made


def interface_id_address(prefix: bytes, mac: bytes) -> bytes:
    """The address that a station with this MAC address has in a prefix of 8 octets (RFC 4291 appendix A)."""
    return prefix + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]


def link_local(mac: bytes) -> bytes:
    """The link-local address of a station with this MAC address."""
    return interface_id_address(b"\xfe\x80" + bytes(6), mac)


def solicited_node(address: bytes) -> bytes:
    """The multicast address by which the owner of `address` is asked for (RFC 4291 section 2.7.1)."""
    return SOLICITED_NODE + address[13:]


def multicast_mac(address: bytes) -> bytes:
    """The Ethernet address of a multicast address (RFC 2464 section 7)."""
    return b"\x33\x33" + address[12:]
