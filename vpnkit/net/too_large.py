"""A datagram between guests that is larger than the other's link: cut it, or tell its sender.

A switch would lose it, and the sender would never learn why, as links of one LAN have one MTU.  Ours have not, so the
LAN does what a router between them would (RFC 791 section 2.3, RFC 1191, RFC 8200 section 5).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.wire import ethernet, ipv4, ipv6
from vpnkit.wire.checksum import checksum, ones_sum
from vpnkit.wire.icmp import QUOTE_LIMIT
from vpnkit.wire.offload import complete_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.wire.checksum import Buffer

FLAGS: Final = 6  # where the flags and the offset are in an IPv4 header


def cut_or_refuse(
    frame: memoryview,
    mtu: int,
    deliver: Callable[[Sequence[Buffer]], object],
    refuse: Callable[[bytes, int], object],
) -> bool:
    """Hand `frame`, in fragments, to `deliver`, or the start of its datagram and the MTU to `refuse` if it has DF, as
    all IPv6 has.

    False when neither is right: it is no datagram, or an IPv4 one that cannot be cut.
    """
    if bytes(frame[12:14]) == b"\x86\xdd":
        return _refuse_ipv6(frame[ethernet.HEADER.size :], mtu, refuse)
    if len(frame) < ethernet.HEADER.size + ipv4.HEADER.size or bytes(frame[12:14]) != b"\x08\x00":
        return False
    try:
        packet = ipv4.decode(frame[ethernet.HEADER.size :])
    except WireError:
        return False
    if packet.flags_offset & ipv4.DF:
        if not frame[0] & 1:  # nobody is told about a multicast, RFC 1122 section 3.2.2
            refuse(bytes(packet.header) + bytes(packet.payload[:QUOTE_LIMIT]), mtu)
        return True
    if len(packet.header) > ipv4.HEADER.size:
        return False
    payload = packet.payload
    if not packet.is_fragment:
        whole = complete_checksum(frame)
        if whole is not None:
            payload = memoryview(whole)[ethernet.HEADER.size + ipv4.HEADER.size :][: len(payload)]
    base, more = packet.flags_offset & ipv4.OFFSET_MASK, packet.flags_offset & ipv4.MF
    made = ipv4.fragments(bytearray(packet.header), payload, mtu)
    for number, (header, share) in enumerate(made):
        if base or more:
            assert isinstance(header, bytearray)
            last = number == len(made) - 1
            (flags,) = struct.unpack_from("!H", header, FLAGS)
            struct.pack_into("!HHH", header, FLAGS, flags + base | (more if last else 0), header[8] << 8 | header[9], 0)
            struct.pack_into("!H", header, 10, checksum(ones_sum(header)))
        deliver((frame[: ethernet.HEADER.size], header, share))
    return True


def _refuse_ipv6(packet: memoryview, mtu: int, refuse: Callable[[bytes, int], object]) -> bool:
    """Who sent it to a multicast address is told too (RFC 4443 section 2.4 (e.3)); its headers are not our business."""
    if len(packet) < ipv6.HEADER_SIZE or packet[0] >> 4 != 6:
        return False
    _, length, _, _, source, _ = ipv6.HEADER.unpack_from(packet)
    if ipv6.HEADER_SIZE + length > len(packet):
        return False
    if source != ipv6.UNSPECIFIED and source[0] != 0xFF and not ipv6.is_icmp_error(packet):
        refuse(bytes(packet[: ipv6.QUOTE_LIMIT]), mtu)
    return True
