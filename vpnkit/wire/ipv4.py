"""IPv4, RFC 791.

version and IHL 1 | TOS 1 | total length 2 | identification 2 | flags and fragment offset 2 |
TTL 1 | protocol 1 | header checksum 2 | source 4 | destination 4 | options ...
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vpnkit.errors import WireError
from vpnkit.wire.checksum import Buffer, checksum, is_valid, ones_sum

HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
PSEUDO: Final = struct.Struct("!4s4sHH")  # source, destination, protocol, length: RFC 9293 section 3.1

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17

DF: Final = 0x4000
MF: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF

DEFAULT_TTL: Final = 64
TTL_OFFSET: Final = 8
BROADCAST: Final = b"\xff\xff\xff\xff"

OPTION_LSRR: Final = 131
OPTION_SSRR: Final = 137


@dataclass(slots=True)
class Ipv4Packet:
    """One received datagram or fragment; `header` and `payload` are views into its frame."""

    header: memoryview
    payload: memoryview
    tos: int
    identification: int
    flags_offset: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes

    @property
    def is_fragment(self) -> bool:
        return bool(self.flags_offset & (MF | OFFSET_MASK))

    @property
    def dont_fragment(self) -> bool:
        return bool(self.flags_offset & DF)

    def pseudo_sum(self) -> int:
        """The pseudo-header's sum for a transport checksum over all of `payload`."""
        return pseudo_sum(self.source, self.destination, self.protocol, len(self.payload))


def decode(data: memoryview) -> Ipv4Packet:
    """The datagram at the start of `data`; what lies after its total length is padding.

    A broadcast may go without a checksum.  Raises WireError for a bad version, length or checksum, and for source
    routing (RFC 7126 section 4.3).
    """
    if len(data) < HEADER.size:
        raise WireError(f"IPv4 packet of {len(data)} octets")
    version_ihl, tos, total, identification, flags_offset, ttl, protocol, check, source, destination = (
        HEADER.unpack_from(data)
    )
    if version_ihl >> 4 != 4:
        raise WireError(f"IP version {version_ihl >> 4} in an IPv4 frame")
    header_length = (version_ihl & 15) * 4
    if header_length < HEADER.size or total < header_length or total > len(data):
        raise WireError(f"IPv4 header of {header_length}, total {total}, frame of {len(data)} octets")
    header = data[:header_length]
    if not is_valid(header) and (check or destination != BROADCAST):  # the Go client's DHCPDISCOVER has none
        raise WireError("IPv4 header checksum")
    if header_length > HEADER.size:
        _check_options(header)
    return Ipv4Packet(
        header, data[header_length:total], tos, identification, flags_offset, ttl, protocol, source, destination
    )


def _check_options(header: memoryview) -> None:
    i = HEADER.size
    while i < len(header):
        kind = header[i]
        if kind == 0:
            return
        if kind == 1:
            i += 1
            continue
        if kind in (OPTION_LSRR, OPTION_SSRR):
            raise WireError("IPv4 source routing")
        if i + 1 >= len(header) or header[i + 1] < 2 or i + header[i + 1] > len(header):
            raise WireError(f"length of IPv4 option {kind}")
        i += header[i + 1]


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The pseudo-header's share of a transport checksum."""
    return ones_sum(PSEUDO.pack(source, destination, protocol, length))


def encode_header(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload_length: int,
    *,
    ttl: int = DEFAULT_TTL,
    tos: int = 0,
    identification: int = 0,
    flags_offset: int = DF,
) -> bytearray:
    """A header without options.  A datagram that may not be fragmented needs no identification (RFC 6864)."""
    header = bytearray(
        HEADER.pack(
            0x45,
            tos,
            HEADER.size + payload_length,
            identification,
            flags_offset,
            ttl,
            protocol,
            0,
            source,
            destination,
        )
    )
    header[10:12] = checksum(ones_sum(header)).to_bytes(2, "big")
    return header


def fragments(header: bytearray, payload: Buffer, mtu: int) -> list[list[Buffer]]:
    """`payload` behind `header` as datagrams that fit `mtu`, each a header and its share (RFC 791 section 2.3).

    The header's DF bit is cleared; its identification must be unique among datagrams in flight.
    """
    if HEADER.size + len(payload) <= mtu:
        return [[header, payload]]
    view = memoryview(payload)
    step = (mtu - HEADER.size) & ~7
    made: list[list[Buffer]] = []
    for start in range(0, len(view), step):
        share = view[start : start + step]
        more = MF if start + step < len(view) else 0
        copy = bytearray(header)
        struct.pack_into("!H", copy, 2, HEADER.size + len(share))
        struct.pack_into("!H", copy, 6, more | start >> 3)
        struct.pack_into("!H", copy, 10, 0)
        struct.pack_into("!H", copy, 10, checksum(ones_sum(copy)))
        made.append([copy, share])
    return made
