"""What one guest may not say to another: forged sources, and the parts that only the gateway plays.

The verdicts are those of a good access switch: IP source guard, dynamic ARP inspection, RA guard (RFC 6105), ND
inspection (RFC 6620 in spirit), DHCP snooping.  VLAN tags and 802.2 headers are refused: what is behind them would be
hidden (CVE-2021-27853, CVE-2021-27861); so is IPv6 that hides in fragments what is looked for (RFC 7113, RFC 6980).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vpnkit.wire import arp, ethernet, icmpv6, ipv4, ipv6, ndp

if TYPE_CHECKING:
    from vpnkit.net.lan import Station

VLAN_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100})
SMALLEST_TYPE: Final = 0x0600  # below, the field is the length of an IEEE 802.2 frame
DHCP_SERVER: Final = b"\x00\x43"  # UDP port 67
DHCPV6_SERVER: Final = b"\x02\x23"  # UDP port 547


def objection(station: Station, frame: memoryview, source_mac: bytes, ethertype: int) -> str:
    """The counter of what is wrong with `frame`, whose Ethernet source is admitted; empty when nothing is."""
    if ethertype == ethernet.ETHERTYPE_IPV4:
        return _ipv4(station, frame, source_mac)
    if ethertype == ethernet.ETHERTYPE_ARP:
        return arp_objection(station, frame, source_mac)
    if ethertype == ethernet.ETHERTYPE_IPV6:
        return _ipv6(station, frame, source_mac)
    if ethertype < SMALLEST_TYPE:
        return "llc_dropped"
    return "vlan_dropped" if ethertype in VLAN_TAGS else ""


def _ipv4(station: Station, frame: memoryview, source_mac: bytes) -> str:
    if len(frame) < 34 or frame[14] >> 4 != 4:
        return "malformed"
    source = bytes(frame[26:30])
    behind_the_first = frame[20] & 0x1F or frame[21]
    if frame[23] == ipv4.UDP and not behind_the_first:
        start = 14 + (frame[14] & 15) * 4
        ports = bytes(frame[start : start + 4])
        if ports[:2] == DHCP_SERVER or ports[2:] == DHCP_SERVER:
            return "rogue_dhcp" if ports[:2] == DHCP_SERVER else "dhcp_to_guest"
    return "" if station.owns(source, source_mac) else "spoofed_ip"


def arp_objection(station: Station, frame: memoryview, source_mac: bytes) -> str:
    """RFC 826 and RFC 5227: the sender is who sent the frame, and has the address that he says."""
    packet = arp.decode(frame[ethernet.HEADER.size :])
    if packet.sender_mac != source_mac:
        return "spoofed_arp"
    if packet.sender_ip == bytes(4):  # a probe, section 2.1.1 of RFC 5227
        return "" if packet.operation == arp.REQUEST else "spoofed_arp"
    return "" if station.owns(packet.sender_ip, source_mac) else "spoofed_arp"


def _ipv6(station: Station, frame: memoryview, source_mac: bytes) -> str:
    if len(frame) < 54 or frame[14] >> 4 != 6:
        return "malformed"
    source = bytes(frame[22:38])
    protocol, start = frame[20], 54
    fragmented = False
    if protocol in ipv6.CHAINED:
        protocol, start, end, fragmented = ipv6.upper_layer(frame, 14)
        if protocol == ipv6.LATER_FRAGMENT:
            return "" if station.owns(source, source_mac) else "spoofed_ip"  # the first one is looked at
        if (fragmented and end < start + 8) or (protocol in ipv6.CHAINED and start + 8 <= end):
            return "malformed"  # RFC 7112: the first fragment has all headers; or there are too many
    if protocol == ipv6.ICMPV6 and len(frame) > start:
        verdict = _icmpv6(station, frame[start:], source, source_mac)
        if verdict:
            return verdict
        if fragmented and icmpv6.ROUTER_SOLICITATION <= frame[start] <= icmpv6.REDIRECT:
            return "spoofed_nd"  # RFC 6980: the rest of its options is not here
    elif protocol == ipv6.UDP:
        ports = bytes(frame[start : start + 4])
        if ports[:2] == DHCPV6_SERVER or ports[2:] == DHCPV6_SERVER:
            return "rogue_dhcp" if ports[:2] == DHCPV6_SERVER else "dhcp_to_guest"
    if source == ipv6.UNSPECIFIED:  # before he has an address: duplicate address detection, MLD
        return "" if protocol == ipv6.ICMPV6 else "spoofed_ip"
    return "" if station.owns(source, source_mac) else "spoofed_ip"


def _icmpv6(station: Station, message: memoryview, source: bytes, source_mac: bytes) -> str:
    """Every option is looked at, and not only the one that `ndp.decode` takes: a neighbour may take another."""
    kind = message[0]
    if kind in (icmpv6.ROUTER_ADVERTISEMENT, icmpv6.REDIRECT):
        return "rogue_router"
    if kind not in (icmpv6.NEIGHBOR_SOLICITATION, icmpv6.NEIGHBOR_ADVERTISEMENT):
        return ""
    if len(message) < 24:
        return "malformed"
    advertised = kind == icmpv6.NEIGHBOR_ADVERTISEMENT
    option = ndp.TARGET_LINK_LAYER if advertised else ndp.SOURCE_LINK_LAYER
    if advertised and not station.owns(bytes(message[8:24]), source_mac):
        return "spoofed_nd"
    if not advertised and source != ipv6.UNSPECIFIED and not station.owns(source, source_mac):
        return "spoofed_nd"
    at = 24
    while at + 8 <= len(message):
        length = message[at + 1] * 8
        if not length:
            return "malformed"
        if message[at] == option and bytes(message[at + 2 : at + 8]) != source_mac:
            return "spoofed_nd"
        at += length
    return ""
