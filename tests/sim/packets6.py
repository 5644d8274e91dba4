"""IPv6 frames, and frames of either version taken apart, without any code of the network under test."""

from __future__ import annotations

import struct
from typing import Final

from tests.sim import packets
from tests.sim.packets import ICMPV6, Packet, address, need, ones, pseudo, transport

FRAGMENT: Final = 44
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_SOLICITATION: Final = 135
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
PACKET_TOO_BIG: Final = 2
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129

SOURCE_MAC: Final = 1  # options of neighbour discovery
TARGET_MAC: Final = 2
PREFIX: Final = 3
MTU: Final = 5
DNS: Final = 25

UNSPECIFIED: Final = bytes(16)
ALL_NODES: Final = address("ff02::1")
ALL_ROUTERS: Final = address("ff02::2")
ALL_DHCP_SERVERS: Final = address("ff02::1:2")

_IP6: Final = struct.Struct("!IHBB16s16s")


def own_address(prefix: bytes, mac: bytes) -> bytes:
    """The address that a station makes for itself (RFC 4291 appendix A)."""
    return prefix[:8] + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def solicited(target: bytes) -> bytes:
    return address("ff02::1:ff00:0")[:13] + target[13:]


def group_mac(group: bytes) -> bytes:
    return b"\x33\x33" + group[12:]


def ip6_frame(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
) -> bytes:
    head = _IP6.pack(6 << 28, len(payload), protocol, hop_limit, source, destination)
    return destination_mac + source_mac + b"\x86\xdd" + head + payload


def icmp6_message(source: bytes, destination: bytes, kind: int, code: int, rest: bytes) -> bytes:
    head = bytes((kind, code, 0, 0)) + rest
    total = ones(head) + pseudo(source, destination, ICMPV6, len(head))
    return head[:2] + (65535 - total % 65535).to_bytes(2, "big") + rest


def fragments6(payload: bytes, protocol: int, room: int, identification: int) -> list[bytes]:
    """`payload` cut into packets of at most `room` octets, each with its Fragment header."""
    step = (room - 8) & ~7
    made = []
    for start in range(0, len(payload), step):
        more = start + step < len(payload)
        made.append(struct.pack("!BxHI", protocol, start | more, identification) + payload[start : start + step])
    return made


def parse(frame: bytes, *, mtu: int = 65520, partial: bool = False, gso_size: int = 0) -> Packet:
    """One frame of either version, or ARP; see `packets.parse`."""
    if frame[12:14] != b"\x86\xdd":
        return packets.parse(frame, mtu=mtu, partial=partial, gso_size=gso_size)
    need(len(frame) >= 54, "shorter than an IPv6 header")
    first, length, protocol, hop_limit, source, destination = _IP6.unpack_from(frame, 14)
    need(first >> 28 == 6, f"version {first >> 28}")
    need(length == len(frame) - 54, f"payload length {length} in {len(frame) - 54} octets")
    need(gso_size > 0 or length + 40 <= mtu, f"{length + 40} octets on a link of MTU {mtu}")
    need(source[0] != 0xFF and source != address("::1"), "source address")
    need(source != UNSPECIFIED or protocol == ICMPV6, "no source address")
    data = frame[54:]
    packet = Packet(frame[0:6], frame[6:12], protocol, source, destination, hop_limit)
    if protocol == FRAGMENT:
        _fragment(packet, data)
        return packet
    transport(packet, data, partial=partial)
    if gso_size:
        headers = len(data) - len(packet.payload) + 40
        need(partial and len(packet.payload) > gso_size, "a super-frame of one segment")
        need(headers + gso_size <= mtu, f"super-frame with segments of {gso_size} octets")
    return packet


def _fragment(packet: Packet, data: bytes) -> None:
    need(len(data) > 8, "shorter than a Fragment header")
    packet.protocol, reserved, offset, identification = struct.unpack_from("!BBHI", data)
    more = bool(offset & 1)
    offset &= ~7
    need(not reserved, "reserved bits of a Fragment header")
    need(offset > 0 or more, "an atomic fragment")  # RFC 8021
    packet.payload = data[8:]
    need(not more or len(packet.payload) % 8 == 0, "a fragment's length is no multiple of eight")
    packet.fragment = (identification, offset, more)


def options(data: bytes) -> dict[int, bytes]:
    """The options of a message of neighbour discovery: what follows type and length.  Raises Bad."""
    found = {}
    while data:
        need(len(data) >= 8 and 0 < data[1] * 8 <= len(data), "length of an option of neighbour discovery")
        found[data[0]] = data[2 : data[1] * 8]
        data = data[data[1] * 8 :]
    return found
