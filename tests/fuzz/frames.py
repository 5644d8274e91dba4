"""Frames made octet by octet, right unless told otherwise: what is wrong with one is what the test says, and nothing
else.  No parser of ours or of anybody else is involved."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from itertools import pairwise

from vpnkit.net.plan import SERVER_MAC, guest_mac

MAC = guest_mac(1)
BROADCAST = b"\xff" * 6

GUEST = "192.168.65.3"
GATEWAY = "192.168.65.1"
HOST = "192.168.65.2"
REMOTE = "9.9.9.9"

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
MF = 0x2000


def packed(address: str | bytes) -> bytes:
    return address if isinstance(address, bytes) else IPv4Address(address).packed


def inet_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def ether(payload: bytes, *, dst: bytes = SERVER_MAC, src: bytes = MAC, kind: int = 0x0800) -> bytes:
    return dst + src + struct.pack("!H", kind) + payload


def ipv4(
    payload: bytes,
    protocol: int,
    *,
    src: str | bytes = GUEST,
    dst: str | bytes = REMOTE,
    options: bytes = b"",
    ihl: int | None = None,
    version: int = 4,
    total: int | None = None,
    ident: int = 0,
    flags_offset: int = 0,
    ttl: int = 64,
    tos: int = 0,
    check: int | None = None,
) -> bytes:
    """`ihl` in words; `options` a multiple of four octets."""
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        tos,
        length & 0xFFFF,
        ident,
        flags_offset,
        ttl,
        protocol,
        0,
        packed(src),
        packed(dst),
    )
    whole = head + options + payload
    value = ~inet_sum(whole[: max(words * 4, 20)]) & 0xFFFF if check is None else check
    return head[:10] + struct.pack("!H", value) + head[12:] + options + payload


def transport_sum(segment: bytes, protocol: int, src: str | bytes, dst: str | bytes) -> int:
    pseudo = packed(src) + packed(dst) + struct.pack("!HH", protocol, len(segment))
    return ~inet_sum(pseudo + segment) & 0xFFFF


def tcp_segment(
    payload: bytes = b"",
    *,
    sport: int = 6000,
    dport: int = 8080,
    seq: int = 1000,
    ack: int = 0,
    flags: int = SYN,
    window: int = 65535,
    urgent: int = 0,
    options: bytes = b"",
    offset: int | None = None,
    src: str | bytes = GUEST,
    dst: str | bytes = REMOTE,
) -> bytes:
    """`offset` in words; `options` a multiple of four octets."""
    words = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags, window, 0, urgent
    )
    whole = head + options + payload
    return whole[:16] + struct.pack("!H", transport_sum(whole, 6, src, dst)) + whole[18:]


def tcp(payload: bytes = b"", *, src: str | bytes = GUEST, dst: str | bytes = REMOTE, **fields: object) -> bytes:
    """A whole frame."""
    return ether(ipv4(tcp_segment(payload, src=src, dst=dst, **fields), 6, src=src, dst=dst))


def udp_datagram(
    payload: bytes = b"",
    *,
    sport: int = 5000,
    dport: int = 9000,
    length: int | None = None,
    check: int | None = None,
    src: str | bytes = GUEST,
    dst: str | bytes = REMOTE,
) -> bytes:
    size = 8 + len(payload) if length is None else length
    whole = struct.pack("!HHHH", sport, dport, size & 0xFFFF, 0) + payload
    value = (transport_sum(whole, 17, src, dst) or 0xFFFF) if check is None else check
    return whole[:6] + struct.pack("!H", value) + whole[8:]


def udp(
    payload: bytes = b"",
    *,
    src: str | bytes = GUEST,
    dst: str | bytes = REMOTE,
    mac: bytes = SERVER_MAC,
    source_mac: bytes = MAC,
    **fields: object,
) -> bytes:
    """A whole frame."""
    datagram = udp_datagram(payload, src=src, dst=dst, **fields)
    return ether(ipv4(datagram, 17, src=src, dst=dst), dst=mac, src=source_mac)


def icmp_message(kind: int, code: int, rest: bytes, data: bytes = b"", *, check: int | None = None) -> bytes:
    """`rest` is octets 4 to 7."""
    whole = bytes((kind, code, 0, 0)) + rest + data
    value = ~inet_sum(whole) & 0xFFFF if check is None else check
    return whole[:2] + struct.pack("!H", value) + whole[4:]


def ping(data: bytes = b"ping", *, ident: int = 1, seq: int = 1, dst: str = GATEWAY, src: str = GUEST) -> bytes:
    """A whole frame."""
    return ether(ipv4(icmp_message(8, 0, struct.pack("!HH", ident, seq), data), 1, src=src, dst=dst))


def icmp_error(kind: int, code: int, quoted: bytes, *, dst: str = GATEWAY) -> bytes:
    return ether(ipv4(icmp_message(kind, code, bytes(4), quoted), 1, dst=dst))


def arp_packet(
    target: str | bytes = GATEWAY,
    *,
    op: int = 1,
    sender: str | bytes = GUEST,
    sender_mac: bytes = MAC,
    target_mac: bytes = bytes(6),
    htype: int = 1,
    ptype: int = 0x0800,
    hlen: int = 6,
    plen: int = 4,
) -> bytes:
    return (
        struct.pack("!HHBBH", htype, ptype, hlen, plen, op) + sender_mac + packed(sender) + target_mac + packed(target)
    )


def arp(*fields: object, **named: object) -> bytes:
    return ether(arp_packet(*fields, **named), dst=BROADCAST, kind=0x0806)


def fragments(payload: bytes, cuts: list[int], *, ident: int = 7, protocol: int = 17, **fields: object) -> list[bytes]:
    """`payload` (a whole transport datagram) as fragments that begin at `cuts` (octets, multiples of 8)."""
    borders = [*cuts, len(payload)]
    return [
        ether(
            ipv4(
                payload[start:end],
                protocol,
                ident=ident,
                flags_offset=start >> 3 | (MF if end < len(payload) else 0),
                **fields,
            )
        )
        for start, end in pairwise(borders)
    ]


def dhcp_message(
    *options: tuple[int, bytes],
    op: int = 1,
    mac: bytes = MAC,
    xid: int = 1,
    ciaddr: bytes = bytes(4),
    giaddr: bytes = bytes(4),
    flags: int = 0,
    end: bytes = b"\xff",
    htype: int = 1,
    hlen: int = 6,
) -> bytes:
    head = struct.pack("!BBBBIHH", op, htype, hlen, 0, xid, 0, flags)
    head += ciaddr + bytes(8) + giaddr + mac.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    return head + b"".join(bytes((code, len(value))) + value for code, value in options) + end


def dhcp(message: bytes, *, source_mac: bytes = MAC) -> bytes:
    """A client's broadcast."""
    return udp(message, sport=68, dport=67, src="0.0.0.0", dst="255.255.255.255", mac=BROADCAST, source_mac=source_mac)


def name(text: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in text.split(".") if label) + b"\0"


def dns_query(
    question: bytes | str = "host.internal",
    *,
    ident: int = 77,
    qtype: int = 1,
    qclass: int = 1,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    rest: bytes = b"",
) -> bytes:
    wire = name(question) if isinstance(question, str) else question
    return struct.pack("!HHHHHH", ident, flags, *counts) + wire + struct.pack("!HH", qtype, qclass) + rest


def dns(message: bytes, *, sport: int = 4000) -> bytes:
    return udp(message, sport=sport, dport=53, dst=GATEWAY)


def ipv6(
    payload: bytes, following: int, *, src: bytes, dst: bytes, length: int | None = None, hops: int = 255
) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28, size, following, hops) + src + dst + payload
