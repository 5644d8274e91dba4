"""IPv6 frames made octet by octet, as `frames` makes those of IPv4: right unless told otherwise."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from itertools import pairwise

from tests.fuzz import frames
from tests.fuzz.frames import MAC, SERVER_MAC


def packed(address: str | bytes) -> bytes:
    return address if isinstance(address, bytes) else IPv6Address(address).packed


GUEST = packed("fd65:7670:6e6b::50")
LINK_LOCAL = packed("fe80::50:ff:fe00:1")
GATEWAY = packed("fd65:7670:6e6b::1")
HOST = packed("fd65:7670:6e6b::2")
ROUTER = packed("fe80::f416:36ff:febc:f9c6")
REMOTE = packed("2001:db8::9")
ALL_NODES = packed("ff02::1")
ALL_ROUTERS = packed("ff02::2")
ALL_DHCP_SERVERS = packed("ff02::1:2")
UNSPECIFIED = bytes(16)

TCP, UDP, FRAGMENT, ICMP = 6, 17, 44, 58


def solicited(target: bytes) -> bytes:
    return packed("ff02::1:ff00:0")[:13] + target[13:]


def ether(packet: bytes, *, src: bytes = MAC) -> bytes:
    """To our MAC address, or to that of the group which is the destination."""
    group = packet[24:40]
    to = b"\x33\x33" + group[12:] if group[:1] == b"\xff" else SERVER_MAC
    return frames.ether(packet, dst=to, src=src, kind=0x86DD)


def tcp(payload: bytes = b"", *, src: bytes = GUEST, dst: bytes = REMOTE, hops: int = 64, **fields: object) -> bytes:
    """A whole frame, as all below."""
    segment = frames.tcp_segment(payload, src=src, dst=dst, **fields)
    return ether(frames.ipv6(segment, TCP, src=src, dst=dst, hops=hops))


def udp(payload: bytes = b"", *, src: bytes = GUEST, dst: bytes = REMOTE, **fields: object) -> bytes:
    return ether(frames.ipv6(frames.udp_datagram(payload, src=src, dst=dst, **fields), UDP, src=src, dst=dst, hops=64))


def icmp_message(kind: int, code: int, body: bytes, *, src: bytes, dst: bytes) -> bytes:
    """`body` begins with octet 4."""
    whole = bytes((kind, code, 0, 0)) + body
    return whole[:2] + struct.pack("!H", frames.transport_sum(whole, ICMP, src, dst)) + body


def icmp(
    kind: int, code: int, body: bytes, *, src: bytes = GUEST, dst: bytes = GATEWAY, hops: int = 64, mac: bytes = MAC
) -> bytes:
    return ether(
        frames.ipv6(icmp_message(kind, code, body, src=src, dst=dst), ICMP, src=src, dst=dst, hops=hops), src=mac
    )


def ping(data: bytes = b"ping", *, ident: int = 1, seq: int = 1, src: bytes = GUEST, dst: bytes = GATEWAY) -> bytes:
    return icmp(128, 0, struct.pack("!HH", ident, seq) + data, src=src, dst=dst)


def option(kind: int, mac: bytes = MAC) -> bytes:
    return bytes((kind, 1)) + mac


def solicitation(target: bytes = GATEWAY, *, src: bytes = GUEST, dst: bytes | None = None) -> bytes:
    own = b"" if src == UNSPECIFIED else option(1)
    return icmp(135, 0, bytes(4) + target + own, src=src, dst=dst or solicited(target), hops=255)


def dns(message: bytes, *, sport: int = 4000) -> bytes:
    return udp(message, sport=sport, dport=53, dst=GATEWAY)


def dhcp(message: bytes, *, src: bytes = LINK_LOCAL) -> bytes:
    return udp(message, sport=546, dport=547, src=src, dst=ALL_DHCP_SERVERS)


def fragments(
    payload: bytes, cuts: list[int], *, ident: int = 7, protocol: int = UDP, src: bytes = GUEST, dst: bytes = REMOTE
) -> list[bytes]:
    """`payload` (a whole transport datagram) as fragments that begin at `cuts` (octets, multiples of 8)."""
    return [
        fragment(payload[start:end], start, ident=ident, more=end < len(payload), protocol=protocol, src=src, dst=dst)
        for start, end in pairwise([*cuts, len(payload)])
    ]


def fragment(
    share: bytes,
    start: int,
    *,
    ident: int = 7,
    more: bool = False,
    protocol: int = UDP,
    src: bytes = GUEST,
    dst: bytes = REMOTE,
) -> bytes:
    header = struct.pack("!BxHI", protocol, start & 0xFFF8 | more, ident)
    return ether(frames.ipv6(header + share, FRAGMENT, src=src, dst=dst, hops=64))
