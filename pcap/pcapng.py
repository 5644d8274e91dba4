"""pcapng files (draft-ietf-opsawg-pcapng), written by hand.

Three blocks are enough: one section header, one description of the interface, one enhanced packet for each frame.
Every function returns whole blocks, so that a file is readable after any of them, and by a reader who follows it
while it grows.  Nanoseconds, the interface's name and each packet's direction are kept; that is what classic pcap
cannot do.

>>> file.write(file_header("guest 1", application="vpnkit 0.1.0"))
>>> for packet in ring:
...     file.write(packet_block(packet))
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pcap.ring import Packet

ETHERNET: Final = 1  # LINKTYPE_ETHERNET

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
ENHANCED_PACKET: Final = 6

# Section header: byte-order magic 4 | major 2 | minor 2 | section length 8 (-1: not known)
SECTION: Final = struct.Struct("<LHHq")
BYTE_ORDER: Final = 0x1A2B3C4D
# Interface description: link type 2 | reserved 2 | snaplen 4 (0: no limit)
INTERFACE: Final = struct.Struct("<HHL")
# Enhanced packet: type 4 | total length 4 | interface 4 | timestamp, high and low 4 4 | captured 4 | original 4
PACKET: Final = struct.Struct("<LLLLLLL")
# Its end: epb_flags 2, length 2, value 4 | end of options 4 | total length 4
PACKET_END: Final = struct.Struct("<HHLLL")
PACKET_OVERHEAD: Final = PACKET.size + PACKET_END.size

# Options of the section header, of the interface, of the packet
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_TSRESOL: Final = 9
EPB_FLAGS: Final = 2
NANOSECONDS: Final = b"\x09"  # 10 to the power of -9
PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


def file_header(interface: str, *, application: str = "vpnkit", snaplen: int = 0) -> bytes:
    """What a file begins with: a section by `application` with one Ethernet interface, number 0."""
    return section_header(application) + interface_description(interface, snaplen=snaplen)


def section_header(application: str) -> bytes:
    """The block that begins a section, and resets the numbering of interfaces."""
    return _block(SECTION_HEADER, SECTION.pack(BYTE_ORDER, 1, 0, -1), ((SHB_USERAPPL, _text(application)),))


def interface_description(name: str, *, snaplen: int = 0) -> bytes:
    """The block that makes the next interface number mean `name`."""
    fixed = INTERFACE.pack(ETHERNET, 0, snaplen)
    return _block(INTERFACE_DESCRIPTION, fixed, ((IF_NAME, _text(name)), (IF_TSRESOL, NANOSECONDS)))


def packet_block(packet: Packet, interface: int = 0) -> bytes:
    """One packet, on an interface described before."""
    data = packet.data
    length = len(data)
    padding = PADDING[length & 3]
    total = PACKET_OVERHEAD + length + len(padding)
    timestamp = packet.timestamp_ns
    return b"".join((
        PACKET.pack(
            ENHANCED_PACKET,
            total,
            interface,
            timestamp >> 32 & 0xFFFFFFFF,
            timestamp & 0xFFFFFFFF,
            length,
            packet.length,
        ),
        data,
        padding,
        PACKET_END.pack(EPB_FLAGS, 4, packet.direction, 0, total),
    ))  # fmt: skip


def dump(packets: Iterable[Packet], interface: str, *, application: str = "vpnkit", snaplen: int = 0) -> bytes:
    """A whole file."""
    header = file_header(interface, application=application, snaplen=snaplen)
    return header + b"".join(map(packet_block, packets))


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:0xFFFF]


def _block(kind: int, fixed: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    body = fixed
    for code, value in options:
        body += struct.pack("<HH", code, len(value)) + value + PADDING[len(value) & 3]
    body += bytes(4)  # end of options
    total = len(body) + 12
    return struct.pack("<LL", kind, total) + body + struct.pack("<L", total)
