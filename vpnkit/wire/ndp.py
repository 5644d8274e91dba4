"""Neighbour discovery, RFC 4861, with the options of RFC 8106: what a router says and what it must hear.

A message is one of ICMPv6: type 1 | code 1 | checksum 2 | rest 4 | body ... | options ...
An option: type 1 | length in 8 octets 1 | ...
Advertisements of routers and redirects are not decoded, for whoever sends one to a router is wrong.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from vpnkit.errors import WireError
from vpnkit.wire import icmpv6, ipv6
from vpnkit.wire.dns import encode_name

if TYPE_CHECKING:
    from vpnkit.wire.ipv6 import Ipv6Packet

HOP_LIMIT: Final = 255  # of every message: no router passed it on
INFINITE: Final = 0xFFFFFFFF  # seconds
NO_MAC: Final = b""

SOURCE_LINK_LAYER: Final = 1
TARGET_LINK_LAYER: Final = 2
PREFIX_INFORMATION: Final = 3
MTU: Final = 5
RDNSS: Final = 25
DNSSL: Final = 31

MANAGED: Final = 0x80
OTHER: Final = 0x40
ON_LINK: Final = 0x80
AUTONOMOUS: Final = 0x40
ROUTER: Final = 0x80
SOLICITED: Final = 0x40
OVERRIDE: Final = 0x20

MAX_SEARCH: Final = 1024  # octets of names in an option: an advertisement is not fragmented (RFC 6980), MTU 1280

_TIMERS: Final = struct.Struct("!II")  # reachable time, retransmission timer
_PREFIX: Final = struct.Struct("!BBIII16s")  # length, flags, valid, preferred, reserved, prefix
_LIFETIME: Final = struct.Struct("!HI")  # reserved, seconds


@dataclass(frozen=True, slots=True)
class PrefixInformation:
    """A prefix of the link, 16 octets.  Lifetimes in seconds, at most INFINITE."""

    prefix: bytes
    length: int
    valid: int
    preferred: int
    on_link: bool = True
    autonomous: bool = True

    def encode(self) -> bytes:
        flags = (ON_LINK if self.on_link else 0) | (AUTONOMOUS if self.autonomous else 0)
        body = _PREFIX.pack(self.length, flags, self.valid, self.preferred, 0, self.prefix)
        return _option(PREFIX_INFORMATION, body)


@dataclass(frozen=True, slots=True)
class RouterSolicitation:
    source_mac: bytes = NO_MAC  # 6 octets, or NO_MAC: not told

    def encode(self, source: bytes, destination: bytes) -> bytes:
        """The ICMPv6 message, its checksum complete; so do all of these."""
        return icmpv6.encode(
            icmpv6.ROUTER_SOLICITATION, 0, source, destination, 0, _mac(SOURCE_LINK_LAYER, self.source_mac)
        )


@dataclass(frozen=True, slots=True)
class RouterAdvertisement:
    """Lifetimes in seconds; a hop limit, an MTU or a timer (milliseconds) of 0 says nothing."""

    router_lifetime: int
    source_mac: bytes = NO_MAC
    hop_limit: int = ipv6.DEFAULT_HOP_LIMIT
    managed: bool = False
    other: bool = False
    reachable_time: int = 0
    retransmission_timer: int = 0
    mtu: int = 0
    prefixes: tuple[PrefixInformation, ...] = ()
    dns: tuple[bytes, ...] = ()
    dns_lifetime: int = 0
    search: tuple[str, ...] = ()  # as many as fit MAX_SEARCH are told
    search_lifetime: int = 0

    def encode(self, source: bytes, destination: bytes) -> bytes:
        """Raises ValueError for a search domain that cannot be one."""
        flags = (MANAGED if self.managed else 0) | (OTHER if self.other else 0)
        rest = self.hop_limit << 24 | flags << 16 | self.router_lifetime
        parts = [_TIMERS.pack(self.reachable_time, self.retransmission_timer)]
        parts.append(_mac(SOURCE_LINK_LAYER, self.source_mac))
        if self.mtu:
            parts.append(_option(MTU, struct.pack("!HI", 0, self.mtu)))
        parts += [prefix.encode() for prefix in self.prefixes]
        if self.dns:
            parts.append(_option(RDNSS, _LIFETIME.pack(0, self.dns_lifetime) + b"".join(self.dns)))
        names = b""
        for name in map(encode_name, self.search):
            if len(names) + len(name) > MAX_SEARCH:
                break
            names += name
        if names:
            parts.append(_option(DNSSL, _LIFETIME.pack(0, self.search_lifetime) + names))
        return icmpv6.encode(icmpv6.ROUTER_ADVERTISEMENT, 0, source, destination, rest, b"".join(parts))


@dataclass(frozen=True, slots=True)
class NeighborSolicitation:
    target: bytes
    source_mac: bytes = NO_MAC

    def encode(self, source: bytes, destination: bytes) -> bytes:
        body = self.target + _mac(SOURCE_LINK_LAYER, self.source_mac)
        return icmpv6.encode(icmpv6.NEIGHBOR_SOLICITATION, 0, source, destination, 0, body)


@dataclass(frozen=True, slots=True)
class NeighborAdvertisement:
    target: bytes
    target_mac: bytes = NO_MAC
    router: bool = False
    solicited: bool = False
    override: bool = False

    def encode(self, source: bytes, destination: bytes) -> bytes:
        flags = (ROUTER if self.router else 0) | (SOLICITED if self.solicited else 0)
        flags |= OVERRIDE if self.override else 0
        body = self.target + _mac(TARGET_LINK_LAYER, self.target_mac)
        return icmpv6.encode(icmpv6.NEIGHBOR_ADVERTISEMENT, 0, source, destination, flags << 24, body)


Heard: TypeAlias = RouterSolicitation | NeighborSolicitation | NeighborAdvertisement


def decode(packet: Ipv6Packet) -> Heard:
    """The solicitation or advertisement in `packet`.

    Raises WireError for what RFC 4861 sections 6.1.1, 7.1.1 and 7.1.2 say must be discarded, except for the checksum,
    which is looked at where all checksums are, and for what a router does not hear.
    """
    data = packet.payload
    if packet.ttl != HOP_LIMIT:
        raise WireError(f"neighbour discovery with hop limit {packet.ttl}")
    if len(data) < 8:
        raise WireError(f"neighbour discovery of {len(data)} octets")
    kind, code = data[0], data[1]
    if code:
        raise WireError(f"neighbour discovery, type {kind} with code {code}")
    unspecified = packet.source == ipv6.UNSPECIFIED
    if kind == icmpv6.ROUTER_SOLICITATION:
        mac = _told_mac(data[8:], SOURCE_LINK_LAYER)
        if unspecified and mac:
            raise WireError("a link-layer address of nobody")
        return RouterSolicitation(mac)
    if kind not in (icmpv6.NEIGHBOR_SOLICITATION, icmpv6.NEIGHBOR_ADVERTISEMENT):
        raise WireError(f"neighbour discovery, type {kind}")
    if len(data) < 24:
        raise WireError(f"neighbour discovery of {len(data)} octets")
    target = bytes(data[8:24])
    if target[0] == 0xFF:
        raise WireError("a neighbour that is a multicast group")
    if kind == icmpv6.NEIGHBOR_ADVERTISEMENT:
        flags = data[4]
        if flags & SOLICITED and packet.destination[0] == 0xFF:
            raise WireError("a solicited advertisement for everybody")
        mac = _told_mac(data[24:], TARGET_LINK_LAYER)
        return NeighborAdvertisement(target, mac, bool(flags & ROUTER), bool(flags & SOLICITED), bool(flags & OVERRIDE))
    mac = _told_mac(data[24:], SOURCE_LINK_LAYER)
    if unspecified and (mac or packet.destination[:13] != ipv6.SOLICITED_NODE):
        raise WireError("a probe for an address with a link-layer address, or to others than those who may have it")
    return NeighborSolicitation(target, mac)


def _told_mac(options: memoryview, wanted: int) -> bytes:
    """The MAC address in the first option `wanted`, else NO_MAC.  All others are skipped."""
    found = NO_MAC
    at = 0
    while at < len(options):
        length = options[at + 1] * 8 if at + 1 < len(options) else 0
        if not length or at + length > len(options):
            raise WireError(f"length of neighbour discovery option {options[at]}")
        if options[at] == wanted and not found:
            if length != 8:
                raise WireError("a link-layer address that is none of Ethernet")
            found = bytes(options[at + 2 : at + 8])
        at += length
    return found


def _mac(kind: int, mac: bytes) -> bytes:
    return _option(kind, mac) if mac else b""


def _option(kind: int, body: bytes) -> bytes:
    """`body` with zeros to a multiple of 8 octets, as DNSSL's names must be."""
    length = len(body) + 9 >> 3
    return bytes((kind, length)) + body.ljust(length * 8 - 2, b"\0")
