"""Reassembly of the guest's IPv6 packets, RFC 8200 section 4.5, RFC 5722, RFC 7112 (conformance.md 2.3, B13).

What a single fragment shows to be wrong, `ipv6.decode` has refused already: a length that is no multiple of 8, a place
beyond 65535, a first fragment without all headers, a second Fragment header.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vpnkit.proto.reassembly import Core
from vpnkit.wire import ipv6

if TYPE_CHECKING:
    from vpnkit.wire.ipv6 import Ipv6Packet

TIMEOUT: Final = 60.0  # seconds; RFC 8200 section 4.5


class Reassembler6(Core):
    """The IPv6 packets of one guest that are not whole yet."""

    timeout = TIMEOUT
    quoted = ipv6.QUOTE_LIMIT

    def add(self, packet: Ipv6Packet, now: float) -> Ipv6Packet | None:
        """Take in a fragment, whose views are not kept.  Returns the packet that it completed.

        Raises what `ipv6.decode` raises about that packet, whose options are looked at only now.
        """
        fragment = packet.fragment
        assert fragment is not None
        start = packet.unfragmentable + ipv6.FRAGMENT_HEADER.size
        share: bytes | memoryview = packet.payload
        if len(packet.header) > start:  # the first one, with extension headers behind the Fragment header
            share = bytes(packet.header[start:]) + bytes(share)
        found = self._put(
            packet.source + packet.destination + fragment.identification.to_bytes(4, "big"),
            packet.header[:start],
            share,
            fragment.offset,
            now,
            more=fragment.more,
            most=ipv6.MAX_PAYLOAD + ipv6.HEADER_SIZE - packet.unfragmentable,
        )
        return None if found is None else self._completed(*found)

    def _may_be_told(self, first: bytes) -> bool:
        """RFC 4443 section 2.4 (e.1) and (e.3)."""
        return first[24] != 0xFF and not ipv6.is_icmp_error(first)

    def _completed(self, first: bytes, pieces: list[bytes]) -> Ipv6Packet | None:
        """The unfragmentable part of the first fragment, without the Fragment header, and all that it was cut into."""
        end = len(first) - ipv6.FRAGMENT_HEADER.size
        header = bytearray(first[:end])
        length = end - ipv6.HEADER_SIZE + sum(map(len, pieces))
        if length > ipv6.MAX_PAYLOAD:  # the first fragment has more extension headers than the last one
            self._count("fragment_too_large")
            return None
        following_at, at = ipv6.NEXT_HEADER_OFFSET, ipv6.HEADER_SIZE
        while at < end:
            following_at, at = at, at + (header[at + 1] + 1) * 8
        header[following_at] = first[end]
        struct.pack_into("!H", header, 4, length)
        self._count("fragment_reassembled")
        whole = ipv6.decode(memoryview(b"".join((header, *pieces))))
        whole.fragmented = True
        return whole
