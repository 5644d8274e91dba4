"""Frames, made and taken apart without any code of the network under test.

`parse` is strict: what we send must be what every receiver understands, so anything doubtful is `Bad`.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58
FIN: Final = 1
SYN: Final = 2
RST: Final = 4
PSH: Final = 8
ACK: Final = 16

_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_TCP: Final = struct.Struct("!HHIIBBHHH")


class Bad(Exception):
    """Not a frame that may be on the wire."""


def ones(data: bytes) -> int:
    """The one's complement sum of `data` modulo 65535."""
    if len(data) & 1:
        data += b"\0"
    return int.from_bytes(data, "big") % 65535


def address(text: str) -> bytes:
    """4 or 16 octets."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return bytes(map(int, text.split(".")))


def dotted(packed: bytes) -> str:
    return ".".join(map(str, packed))


@dataclass(slots=True)
class Packet:
    destination_mac: bytes
    source_mac: bytes
    protocol: int  # 0: ARP
    source: bytes
    destination: bytes
    ttl: int = 64
    fragment: tuple[int, int, bool] | None = None  # identification, offset in octets, more
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    mss: int | None = None
    wscale: int | None = None
    payload: bytes = b""
    kind: int = 0  # of ICMP, or the ARP operation
    code: int = 0


def ip_frame(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    **more: int,
) -> bytes:
    """`more`: ttl, identification, flags_offset."""
    head = bytearray(
        _IP.pack(
            0x45,
            0,
            20 + len(payload),
            more.get("identification", 0),
            more.get("flags_offset", 0x4000),
            more.get("ttl", 64),
            protocol,
            0,
            source,
            destination,
        )
    )
    head[10:12] = (65535 - ones(bytes(head))).to_bytes(2, "big")
    return destination_mac + source_mac + b"\x08\x00" + head + payload


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    return ones(source + destination) + protocol + length


def tcp_segment(
    source: bytes,
    destination: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    offset = (20 + len(options)) << 2
    head = _TCP.pack(sport, dport, seq, ack, offset, flags, window, 0, 0) + options
    total = ones(head) + ones(payload) + pseudo(source, destination, TCP, len(head) + len(payload))
    return head[:16] + (65535 - total % 65535).to_bytes(2, "big") + head[18:] + payload


def udp_datagram(source: bytes, destination: bytes, sport: int, dport: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    total = ones(head) + ones(payload) + pseudo(source, destination, UDP, length)
    return head[:6] + ((65535 - total % 65535) or 65535).to_bytes(2, "big") + payload


def icmp_message(kind: int, code: int, rest: bytes) -> bytes:
    head = bytes((kind, code, 0, 0)) + rest
    return head[:2] + (65535 - ones(head)).to_bytes(2, "big") + rest


def fragments(payload: bytes, room: int, identification: int) -> list[tuple[bytes, dict[str, int]]]:
    """Shares of `payload` of at most `room` octets, each with the arguments of `ip_frame`."""
    step = room & ~7
    made = []
    for start in range(0, len(payload), step):
        more = 0x2000 if start + step < len(payload) else 0
        made.append(
            (payload[start : start + step], {"identification": identification, "flags_offset": more | start >> 3})
        )
    return made


def need(true: bool, what: str) -> None:
    if not true:
        raise Bad(what)


def parse(frame: bytes, *, mtu: int = 65520, partial: bool = False, gso_size: int = 0) -> Packet:
    """One frame.  `partial`: the transport checksum is only the pseudo-header's; `gso_size`: a super-frame."""
    need(len(frame) >= 14, "shorter than an Ethernet header")
    ethertype = frame[12:14]
    if ethertype == b"\x08\x06":
        return _arp(frame)
    need(ethertype == b"\x08\x00", f"ethertype {ethertype.hex()}")
    need(len(frame) >= 34, "shorter than an IPv4 header")
    version, _, total, identification, flags, ttl, protocol, _, source, destination = _IP.unpack_from(frame, 14)
    need(version == 0x45, f"version and IHL {version:02x}")
    need(total == len(frame) - 14, f"total length {total} in {len(frame) - 14} octets")
    need(gso_size > 0 or total <= mtu, f"{total} octets on a link of MTU {mtu}")
    need(ones(frame[14:34]) == 0, "IPv4 header checksum")
    need(ttl > 0, "TTL 0")
    need(not flags & 0x8000, "the reserved bit")
    need(not (flags & 0x4000 and flags & 0x3FFF), "a fragment that may not be fragmented")
    need(source[0] not in (0, 127) and source[0] < 224, "source address")
    data = frame[34:]
    packet = Packet(frame[0:6], frame[6:12], protocol, source, destination, ttl)
    if flags & 0x3FFF:
        packet.fragment = (identification, (flags & 0x1FFF) * 8, bool(flags & 0x2000))
        need(not flags & 0x2000 or len(data) % 8 == 0, "a fragment's length is no multiple of eight")
        packet.payload = data
        return packet
    transport(packet, data, partial=partial)
    if gso_size:
        headers = len(data) - len(packet.payload) + 20
        need(partial and len(packet.payload) > gso_size, "a super-frame of one segment")
        need(headers + gso_size <= mtu, f"super-frame with segments of {gso_size} octets")
    return packet


def transport(packet: Packet, data: bytes, *, partial: bool) -> None:
    protocol = packet.protocol
    if protocol in (TCP, UDP):
        covered = pseudo(packet.source, packet.destination, protocol, len(data))
        if partial:
            at = 16 if protocol == TCP else 6
            need(int.from_bytes(data[at : at + 2], "big") % 65535 == covered % 65535, "partial checksum")
        else:
            need((ones(data) + covered) % 65535 == 0, "transport checksum")
    if protocol == TCP:
        _tcp(packet, data)
    elif protocol == UDP:
        need(len(data) >= 8, "shorter than a UDP header")
        packet.sport, packet.dport, length, check = struct.unpack_from("!HHHH", data)
        need(length == len(data), f"UDP length {length} of {len(data)}")
        need(check != 0, "no UDP checksum")
        packet.payload = data[8:]
    elif protocol == ICMP:
        need(len(packet.source) == 4, "ICMP over IPv6")
        need(len(data) >= 8, "shorter than an ICMP header")
        need(ones(data) == 0, "ICMP checksum")
        packet.kind, packet.code = data[0], data[1]
        packet.payload = data[4:]
        if packet.kind in (3, 11, 12):
            quoted = data[8:]
            need(len(quoted) >= 28 and quoted[0] >> 4 == 4, "what an ICMP error quotes")
            need(len(data) + 20 <= 576, "an ICMP error of more than 576 octets")
    elif protocol == ICMPV6:
        _icmpv6(packet, data)
    else:
        raise Bad(f"protocol {protocol}")


def _icmpv6(packet: Packet, data: bytes) -> None:
    need(len(packet.source) == 16, "ICMPv6 over IPv4")
    need(len(data) >= 8, "shorter than an ICMPv6 header")
    need((ones(data) + pseudo(packet.source, packet.destination, ICMPV6, len(data))) % 65535 == 0, "ICMPv6 checksum")
    packet.kind, packet.code = data[0], data[1]
    packet.payload = data[4:]
    if packet.kind < 128:
        quoted = data[8:]
        need(len(quoted) >= 48 and quoted[0] >> 4 == 6, "what an ICMPv6 error quotes")
        need(len(data) + 40 <= 1280, "an ICMPv6 error of more than 1280 octets")


def _tcp(packet: Packet, data: bytes) -> None:
    need(len(data) >= 20, "shorter than a TCP header")
    packet.sport, packet.dport, packet.seq, packet.ack, offset, flags, packet.window, _, urgent = _TCP.unpack_from(data)
    size = (offset >> 4) * 4
    need(20 <= size <= len(data), f"data offset {size}")
    need(not offset & 15 and not flags & 0xE0, "reserved bits, URG or ECN")
    need(urgent == 0, "urgent pointer")
    need(flags & (SYN | FIN) != SYN | FIN and flags & (SYN | RST) != SYN | RST, f"flags {flags:02x}")
    need(bool(flags & (SYN | RST | ACK)), "neither SYN nor RST nor ACK")
    need(packet.sport != 0 and packet.dport != 0, "port 0")
    packet.flags = flags
    packet.payload = data[size:]
    i = 20
    while i < size:
        kind = data[i]
        if kind == 0:
            need(not any(data[i:size]), "octets after the end of options")
            break
        if kind == 1:
            i += 1
            continue
        need(i + 1 < size and 2 <= data[i + 1] <= size - i, f"length of option {kind}")
        value = data[i + 2 : i + data[i + 1]]
        if kind == 2:
            need(len(value) == 2 and bool(flags & SYN), "MSS option")
            packet.mss = int.from_bytes(value, "big")
        elif kind == 3:
            need(len(value) == 1 and value[0] <= 14 and bool(flags & SYN), "window scale option")
            packet.wscale = value[0]
        elif kind == 4:
            need(not value and bool(flags & SYN), "SACK-permitted option")
        elif kind == 5:
            need(len(value) % 8 == 0 and len(value) > 0 and not flags & SYN, "SACK option")
        i += data[i + 1]


def _arp(frame: bytes) -> Packet:
    need(len(frame) >= 42, "shorter than ARP")
    need(frame[14:20] == b"\x00\x01\x08\x00\x06\x04", "ARP for something else")
    operation = int.from_bytes(frame[20:22], "big")
    need(operation in (1, 2), f"ARP operation {operation}")
    return Packet(frame[0:6], frame[6:12], 0, frame[28:32], frame[38:42], payload=frame[22:28], kind=operation)


class Reassembly:
    """Datagrams from fragments, as a simple receiver does it."""

    def __init__(self) -> None:
        self._parts: dict[tuple[bytes, bytes, int, int], dict[int, tuple[bytes, bool]]] = {}

    def add(self, packet: Packet) -> Packet | None:
        """The whole datagram when `packet` is the last piece of it.  Raises Bad."""
        assert packet.fragment is not None
        identification, offset, more = packet.fragment
        key = (packet.source, packet.destination, packet.protocol, identification)
        parts = self._parts.setdefault(key, {})
        parts[offset] = (packet.payload, more)
        data = b""
        while len(data) in parts:
            share, more = parts[len(data)]
            data += share
            if not more:
                del self._parts[key]
                whole = Packet(
                    packet.destination_mac, packet.source_mac, packet.protocol, packet.source, packet.destination
                )
                transport(whole, data, partial=False)
                return whole
        if len(self._parts) > 64:
            del self._parts[next(iter(self._parts))]
        return None
