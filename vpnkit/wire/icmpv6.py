"""ICMPv6, RFC 4443; the types of neighbour discovery (RFC 4861) and multicast listeners (RFC 2710, RFC 3810) too.

type 1 | code 1 | checksum 2 | rest of header 4 | data ...

The codes of PARAMETER_PROBLEM are in vpnkit.wire.ipv6, where the problems are found.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.wire import ipv6
from vpnkit.wire.checksum import Buffer, checksum, data_sum, is_valid

if TYPE_CHECKING:
    from vpnkit.wire.ipv6 import Ipv6Packet

HEADER: Final = struct.Struct("!BBHI")
ECHO: Final = struct.Struct("!BBHHH")

DEST_UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
LISTENER_QUERY: Final = 130
LISTENER_REPORT: Final = 131
LISTENER_DONE: Final = 132
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOR_SOLICITATION: Final = 135
NEIGHBOR_ADVERTISEMENT: Final = 136
REDIRECT: Final = ipv6.REDIRECT
LISTENER_REPORT_V2: Final = 143

NO_ROUTE: Final = 0
ADMIN_PROHIBITED: Final = 1
BEYOND_SCOPE: Final = 2
ADDRESS_UNREACHABLE: Final = 3
PORT_UNREACHABLE: Final = 4
SOURCE_POLICY: Final = 5
REJECT_ROUTE: Final = 6

HOP_LIMIT_EXCEEDED: Final = 0
REASSEMBLY_TIME_EXCEEDED: Final = 1

ERRORS: Final = frozenset(range(ipv6.ERRORS_BELOW))

QUOTE_LIMIT: Final = ipv6.QUOTE_LIMIT


def decode_echo(data: Buffer) -> tuple[int, int, int, int]:
    """Type, code, identifier and sequence of a message; what follows octet 8 is its data.  Raises WireError."""
    if len(data) < ECHO.size:
        raise WireError(f"ICMPv6 message of {len(data)} octets")
    kind, code, _, identifier, sequence = ECHO.unpack_from(data)
    return kind, code, identifier, sequence


def check(packet: Ipv6Packet) -> None:
    """Raises WireError unless the checksum of the message that is the payload of `packet` is right."""
    if not is_valid(packet.payload, packet.pseudo_sum()):
        raise WireError("ICMPv6 checksum")


def encode(kind: int, code: int, source: bytes, destination: bytes, rest: int, data: Buffer) -> bytes:
    """A whole message, its checksum computed; `rest` is octets 4 to 8: of an echo, identifier << 16 | sequence."""
    header = HEADER.pack(kind, code, 0, rest)
    pseudo = ipv6.pseudo_sum(source, destination, ipv6.ICMPV6, HEADER.size + len(data))
    total = pseudo + int.from_bytes(header, "big") + data_sum(data)
    return HEADER.pack(kind, code, checksum(total), rest) + data


def encode_error(kind: int, code: int, source: bytes, destination: bytes, quoted: Buffer, parameter: int = 0) -> bytes:
    """An error about the packet `quoted`, as much of it as fits the least MTU (section 2.4 (c)).

    `parameter` is the MTU of PACKET_TOO_BIG and the pointer of PARAMETER_PROBLEM.
    """
    return encode(kind, code, source, destination, parameter, bytes(quoted[:QUOTE_LIMIT]))
