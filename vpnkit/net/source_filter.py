"""What one guest may not say to another: forged sources, and the parts that only the gateway plays.

The verdicts are those of a good access switch: IP source guard, dynamic ARP inspection, RA guard (RFC 6105), ND
inspection (RFC 6620 in spirit), DHCP snooping.  VLAN tags are refused: a tag of VLAN 0 would hide what is behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vpnkit.wire import arp, ethernet, ipv4

if TYPE_CHECKING:
    from vpnkit.net.lan import Station

VLAN_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100})
DHCP_SERVER: Final = b"\x00\x43"  # UDP port 67
DHCP_CLIENT: Final = b"\x00\x44"
DHCPV6_SERVER: Final = b"\x02\x23"  # UDP port 547
UNSPECIFIED: Final = bytes(16)

ICMPV6: Final = 58
# RFC 4861 section 4
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOR_SOLICITATION: Final = 135
NEIGHBOR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
SOURCE_LINK_LAYER: Final = 1
TARGET_LINK_LAYER: Final = 2

# RFC 8200 section 4: hop-by-hop options, routing, destination options: next header 1 | length in 8 octets less 1 | ...
EXTENSIONS: Final = frozenset({0, 43, 60})
MAX_EXTENSIONS: Final = 8  # nobody honest has more; what is behind them is not looked for


def objection(station: Station, frame: memoryview, source_mac: bytes, ethertype: int) -> str:
    """The counter of what is wrong with `frame`, whose Ethernet source is admitted; empty when nothing is."""
    if ethertype == ethernet.ETHERTYPE_IPV4:
        return _ipv4(station, frame, source_mac)
    if ethertype == ethernet.ETHERTYPE_ARP:
        return arp_objection(station, frame, source_mac)
    if ethertype == ethernet.ETHERTYPE_IPV6:
        return _ipv6(station, frame, source_mac)
    return "vlan_dropped" if ethertype in VLAN_TAGS else ""


def _ipv4(station: Station, frame: memoryview, source_mac: bytes) -> str:
    if len(frame) < 34 or frame[14] >> 4 != 4:
        return "malformed"
    source = bytes(frame[26:30])
    if frame[23] == ipv4.UDP:
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
    next_header = frame[20]
    start = 54
    for _ in range(MAX_EXTENSIONS):
        if next_header not in EXTENSIONS or len(frame) < start + 8:
            break
        next_header, start = frame[start], start + 8 + frame[start + 1] * 8
    else:
        return "malformed"
    if next_header == ICMPV6 and len(frame) > start:
        verdict = _icmpv6(station, frame[start:], source, source_mac)
        if verdict:
            return verdict
    elif next_header == ipv4.UDP and bytes(frame[start : start + 2]) == DHCPV6_SERVER:
        return "rogue_dhcp"
    if source == UNSPECIFIED:  # before he has an address: duplicate address detection, MLD
        return "" if next_header == ICMPV6 else "spoofed_ip"
    return "" if station.owns(source, source_mac) else "spoofed_ip"


def _icmpv6(station: Station, message: memoryview, source: bytes, source_mac: bytes) -> str:
    kind = message[0]
    if kind in (ROUTER_ADVERTISEMENT, REDIRECT):
        return "rogue_router"
    if kind not in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        return ""
    if len(message) < 24:
        return "malformed"
    option = TARGET_LINK_LAYER if kind == NEIGHBOR_ADVERTISEMENT else SOURCE_LINK_LAYER
    if kind == NEIGHBOR_ADVERTISEMENT and not station.owns(bytes(message[8:24]), source_mac):
        return "spoofed_nd"
    if kind == NEIGHBOR_SOLICITATION and source != UNSPECIFIED and not station.owns(source, source_mac):
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
