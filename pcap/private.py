"""What a private rule keeps of a packet: its headers, and of DNS the message with its names hashed.

A label becomes as many hexadecimal digits of a hash under a key that is made for this process and never written: the
same label is the same digits, and nobody can try names.  Addresses stay, in headers and in answers; what else records
carry is zeroed.  Whatever is not understood to its end is cut to its headers.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from typing import Final

from pcap.predicates import ARP, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, network, transport
from pcap.ring import OBJECT, RECORD, Ring

DNS_PORT: Final = 53
KEY: Final = os.urandom(32)

HEADERS: Final = {UDP: 8, ICMP: 8, ICMPV6: 8}  # octets; TCP's says so itself
DNS_HEADER: Final = 12
MAX_RECORDS: Final = 256  # of a message; more is not understood
# Records: where a name is in their data, and how many there are
NAMES: Final = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 15: (2, 1), 33: (6, 1), 39: (0, 1)}
SOA: Final = 6
SOA_NUMBERS: Final = 20  # octets behind its names
KEPT: Final = {1: 4, 28: 16}  # A and AAAA: octets
_QUESTION: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHLH")
_COUNTS: Final = struct.Struct(">HHHH")


class PrivateRing(Ring):
    """A ring of packets without what they carried."""

    __slots__ = ()

    def put(self, record: bytes) -> None:
        header, data = record[: RECORD.size], record[RECORD.size :]
        redacted = header + redact(data)
        self._chunk.append(redacted)
        self._room = room = self._room - len(redacted) - OBJECT
        if room < 0:
            self._turn()


def redact(data: bytes) -> bytes:
    """`data` without what is nobody's business; never longer."""
    kind, at = network(data)
    if kind == ARP:
        return data
    if kind not in (IPV4, IPV6):
        return data[: max(at, 14)]
    protocol, start = transport(data)
    if protocol < 0 or protocol == FRAGMENT or not start:
        return data[: at + (20 if kind == IPV4 else 40)]
    if protocol == TCP:
        return data[: start + (data[start + 12] >> 4) * 4] if len(data) > start + 12 else data
    end = start + HEADERS.get(protocol, 0)
    if protocol == UDP and len(data) >= end and DNS_PORT in _QUESTION.unpack_from(data, start):
        hashed = _dns(data, start, end)
        if hashed is not None:
            return hashed
    return data[:end]


def _dns(data: bytes, start: int, end: int) -> bytes | None:
    """`data` with the names of its DNS message hashed; None when it is not all there."""
    length = int.from_bytes(data[start + 4 : start + 6])
    if length < 8 or start + length > len(data):
        return None
    message = bytearray(data[end : start + length])
    try:
        _hash_names(message)
    except (IndexError, struct.error, ValueError):
        return None
    changed = bytearray(data[:end]) + message
    _sum(changed, start)
    return bytes(changed)


def _hash_names(message: bytearray) -> None:
    """Raises when the message is not what it says."""
    questions, *others = _COUNTS.unpack_from(message, 4)
    if questions + sum(others) > MAX_RECORDS:
        raise ValueError("too many records")
    at = DNS_HEADER
    for _ in range(questions):
        at = _hash_name(message, at) + _QUESTION.size
    for _ in range(sum(others)):
        at = _hash_name(message, at)
        kind, _, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise ValueError("a record that does not end")
        if kind in NAMES:
            skip, count = NAMES[kind]
            place = at + skip
            for _ in range(count):
                place = _hash_name(message, place)
            if place + (SOA_NUMBERS if kind == SOA else 0) != at + length:
                raise ValueError("a name that does not fill its record")
        elif KEPT.get(kind) != length:
            message[at : at + length] = bytes(length)
        at += length
    if at != len(message):
        raise ValueError("something behind the message")


def _hash_name(message: bytearray, at: int) -> int:
    """Returns where the name ends.  A pointer leads to a name that is hashed where it is."""
    while True:
        size = message[at]
        if size >= 0xC0:
            return at + 2
        at += 1
        if not size:
            return at
        label = message[at : at + size]
        if size > 63 or len(label) < size:
            raise ValueError("no label")
        message[at : at + size] = blake2b(label.lower(), key=KEY, digest_size=32).hexdigest()[:size].encode()
        at += size


def _sum(frame: bytearray, start: int) -> None:
    """The UDP checksum anew: none in IPv4, where there need not be one."""
    frame[start + 6 : start + 8] = bytes(2)
    kind, at = network(frame)
    if kind == IPV6:
        octets = frame[at + 8 : at + 40] + struct.pack(">LL", len(frame) - start, UDP) + frame[start:]
        total = int.from_bytes(octets + bytes(len(octets) & 1)) % 0xFFFF
        struct.pack_into(">H", frame, start + 6, 0xFFFF - total or 0xFFFF)
