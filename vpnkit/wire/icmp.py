"""ICMP for IPv4, RFC 792.

type 1 | code 1 | checksum 2 | rest of header 4 | data ...
"""

from __future__ import annotations

import struct
from typing import Final

from vpnkit.errors import WireError
from vpnkit.wire.checksum import Buffer, checksum, is_valid, ones_sum

HEADER: Final = struct.Struct("!BBHHH")

ECHO_REPLY: Final = 0
DEST_UNREACHABLE: Final = 3
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
ADMIN_PROHIBITED: Final = 13

TTL_EXCEEDED: Final = 0
REASSEMBLY_TIME_EXCEEDED: Final = 1

ERRORS: Final = frozenset({DEST_UNREACHABLE, 4, 5, TIME_EXCEEDED, PARAMETER_PROBLEM})

QUOTE_LIMIT: Final = 576 - 20 - HEADER.size  # RFC 1812 section 4.3.2.3: as much as fits 576 octets


def decode_echo(data: Buffer) -> tuple[int, int, int, int]:
    """Type, code, identifier and sequence of an ICMP message; what follows octet 8 is its data.  Raises WireError."""
    if len(data) < HEADER.size:
        raise WireError(f"ICMP message of {len(data)} octets")
    kind, code, _, identifier, sequence = HEADER.unpack_from(data)
    return kind, code, identifier, sequence


def check(data: Buffer) -> None:
    """Raises WireError unless the checksum is right."""
    if not is_valid(data):
        raise WireError("ICMP checksum")


def encode(kind: int, code: int, identifier: int, sequence: int, data: Buffer) -> bytes:
    """A whole message, its checksum computed."""
    header = HEADER.pack(kind, code, 0, identifier, sequence)
    total = ones_sum(header) + ones_sum(data)
    return HEADER.pack(kind, code, checksum(total), identifier, sequence) + data


def encode_error(kind: int, code: int, quoted: Buffer, parameter: int = 0) -> bytes:
    """An error about the datagram `quoted`; `parameter` is the next-hop MTU for FRAGMENTATION_NEEDED (RFC 1191)."""
    return encode(kind, code, 0, parameter, bytes(quoted[:QUOTE_LIMIT]))
