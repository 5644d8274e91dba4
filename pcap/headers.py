"""Whether the headers of a frame make sense: what a parser would reject, without parsing more than lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pcap.predicates import ARP, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, network, transport

if TYPE_CHECKING:
    from pcap.predicates import Buffer

ETHERNET_HEADER: Final = 14
LEAST: Final = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 4}  # octets of a transport header


def fault(head: Buffer, length: int) -> str:
    """What is wrong with the frame of `length` octets that begins with `head`; nothing when it could be read.

    Checksums are not verified, and what is behind `head` is believed.
    """
    if len(head) < ETHERNET_HEADER:
        return "no Ethernet header"
    kind, at = network(head)
    if kind == IPV4:
        return _ipv4(head, at, length)
    if kind == IPV6:
        return _ipv6(head, at, length)
    if kind == ARP and (len(head) < at + 28 or bytes(head[at : at + 6]) != b"\0\1\x08\0\6\4"):
        return "no ARP of Ethernet and IPv4"
    return "a tag and nothing in it" if kind < 0 else ""


def _ipv4(head: Buffer, at: int, length: int) -> str:
    if len(head) < at + 20 or head[at] >> 4 != 4 or head[at] & 15 < 5:
        return "no IPv4 header"
    end = at + (head[at + 2] << 8 | head[at + 3])
    if end > length or end < at + (head[at] & 15) * 4:
        return "IPv4 length"
    return _transport(head, end)


def _ipv6(head: Buffer, at: int, length: int) -> str:
    if len(head) < at + 40 or head[at] >> 4 != 6:
        return "no IPv6 header"
    end = at + 40 + (head[at + 4] << 8 | head[at + 5])
    if end > length:
        return "IPv6 length"
    return _transport(head, end)


def _transport(head: Buffer, end: int) -> str:
    protocol, at = transport(head)
    if protocol < 0:
        return "no end of IPv6 headers"
    if not at or protocol == FRAGMENT:
        return ""
    least = LEAST.get(protocol, 0)
    if end < at + least or len(head) < at + least:
        return "no transport header"
    if protocol == TCP and not 20 <= (head[at + 12] >> 4) * 4 <= end - at:
        return "TCP header length"
    if protocol == UDP and not 8 <= (head[at + 4] << 8 | head[at + 5]) <= end - at:
        return "UDP length"
    return ""
