"""Frames of a guest, made by hand and not by the code under test."""

from __future__ import annotations

import socket
import struct

from tests.interop.guest_tools import ALIAS, GATEWAY_MAC, GUEST

GUEST_MAC = bytes.fromhex("025000000001")
SERVER_MAC = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
BROADCAST = b"\xff" * 6
SOURCE = socket.inet_aton(GUEST)
DESTINATION = socket.inet_aton(ALIAS)


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(payload: bytes, ethertype: int = 0x0800, destination: bytes = SERVER_MAC) -> bytes:
    return destination + GUEST_MAC + ethertype.to_bytes(2, "big") + payload


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    source: bytes = SOURCE,
    destination: bytes = DESTINATION,
    flags_offset: int = 0,
    identification: int = 1,
    options: bytes = b"",
) -> bytes:
    length = 20 + len(options)

    def header(check: int) -> bytes:
        first = 0x40 | length // 4
        fields = (first, 0, length + len(payload), identification, flags_offset, 64, protocol, check)
        return struct.pack("!BBHHHBBH", *fields) + source + destination + options

    return header(checksum(header(0))) + payload


def _pseudo(protocol: int, length: int, source: bytes, destination: bytes) -> bytes:
    return source + destination + struct.pack("!BBH", 0, protocol, length)


def tcp_segment(
    source_port: int,
    destination_port: int,
    sequence: int,
    acknowledgement: int,
    flags: int,
    payload: bytes = b"",
    *,
    options: bytes = b"",
    source: bytes = SOURCE,
    destination: bytes = DESTINATION,
) -> bytes:
    def header(check: int) -> bytes:
        offset = (5 + len(options) // 4) << 4
        ports = (source_port, destination_port)
        return struct.pack("!HHIIBBHHH", *ports, sequence, acknowledgement, offset, flags, 65535, check, 0) + options

    data = header(0) + payload
    return header(checksum(_pseudo(6, len(data), source, destination) + data)) + payload


def udp_datagram(
    source_port: int,
    destination_port: int,
    payload: bytes,
    *,
    source: bytes = SOURCE,
    destination: bytes = DESTINATION,
) -> bytes:
    length = 8 + len(payload)
    data = struct.pack("!HHHH", source_port, destination_port, length, 0) + payload
    check = checksum(_pseudo(17, length, source, destination) + data) or 0xFFFF
    return data[:6] + check.to_bytes(2, "big") + payload


def echo_request(payload: bytes, identifier: int = 7, sequence: int = 1) -> bytes:
    head = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence)
    return head[:2] + checksum(head + payload).to_bytes(2, "big") + head[4:] + payload


def arp_request(target: str) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + SOURCE + bytes(6) + socket.inet_aton(target) + bytes(18)
    )


def dhcp_discover(transaction: int) -> bytes:
    bootp = struct.pack("!BBBBIHH", 1, 1, 6, 0, transaction, 0, 0x8000) + bytes(16) + GUEST_MAC + bytes(202)
    bootp += bytes.fromhex("63825363350101") + bytes.fromhex("370401030606ff")
    nobody, everybody = bytes(4), b"\xff" * 4
    datagram = udp_datagram(68, 67, bootp, source=nobody, destination=everybody)
    return ethernet(ipv4(17, datagram, source=nobody, destination=everybody), destination=BROADCAST)
