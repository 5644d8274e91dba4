"""pcapng files (draft-ietf-opsawg-pcapng), written by hand.

Every function returns whole blocks, so that a file is readable after any of them, and by a reader who follows it while
it grows.  Nanoseconds, the names of links, each packet's direction and comment, and how many packets were lost before
it are kept; that is what classic pcap cannot do.

>>> writer = Pcapng(capture.interface)
>>> file.write(writer.begin())
>>> file.write(writer.packets(ring))
>>> file.write(writer.end(ring.seen, ring.dropped))
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pcap.ring import Packet

ETHERNET: Final = 1  # LINKTYPE_ETHERNET

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
NAME_RESOLUTION: Final = 4
INTERFACE_STATISTICS: Final = 5
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
# Interface statistics: interface 4 | timestamp, high and low 4 4
STATISTICS: Final = struct.Struct("<LLL")

# Options of any block, of the section header, of the interface, of the packet, of the statistics
OPT_COMMENT: Final = 1
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_TSRESOL: Final = 9
IF_FILTER: Final = 11
EPB_FLAGS: Final = 2
EPB_DROPCOUNT: Final = 4
ISB_IFDROP: Final = 5
ISB_FILTERACCEPT: Final = 6
RECORD_IPV4: Final = 1  # of names
RECORD_IPV6: Final = 2
NANOSECONDS: Final = b"\x09"  # 10 to the power of -9
PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


def file_header(interface: str, *, application: str = "vpnkit", snaplen: int = 0) -> bytes:
    """What a file begins with: a section by `application` with one Ethernet interface, number 0."""
    return section_header(application) + interface_description(interface, snaplen=snaplen)


def section_header(application: str) -> bytes:
    """The block that begins a section, and resets the numbering of interfaces."""
    return _block(SECTION_HEADER, SECTION.pack(BYTE_ORDER, 1, 0, -1), ((SHB_USERAPPL, _text(application)),))


def interface_description(name: str, *, snaplen: int = 0, filter_text: str = "") -> bytes:
    """The block that makes the next interface number mean `name`, on which `filter_text` was wanted."""
    options = [(IF_NAME, _text(name)), (IF_TSRESOL, NANOSECONDS)]
    if filter_text:
        options.append((IF_FILTER, b"\0" + _text(filter_text)[:0xFFFE]))
    return _block(INTERFACE_DESCRIPTION, INTERFACE.pack(ETHERNET, 0, snaplen), options)


def packet_block(packet: Packet, interface: int = 0, *, comment: str = "", lost: int = 0) -> bytes:
    """One packet, on an interface described before; `lost` are those between it and the one before."""
    data = packet.data
    length = len(data)
    padding = PADDING[length & 3]
    options = b""
    if comment:
        options = _option(OPT_COMMENT, _text(comment))
    if lost:
        options += _option(EPB_DROPCOUNT, lost.to_bytes(8, "little"))
    total = PACKET_OVERHEAD + length + len(padding) + len(options)
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
        options,
        PACKET_END.pack(EPB_FLAGS, 4, packet.direction, 0, total),
    ))  # fmt: skip


def names_block(names: Iterable[tuple[bytes, Sequence[str]]]) -> bytes:
    """Names of addresses (4 or 16 octets), for who shows the packets."""
    body = b""
    for address, known in names:
        value = address + b"".join(name.encode("ascii", "replace") + b"\0" for name in known)
        body += _option(RECORD_IPV4 if len(address) == 4 else RECORD_IPV6, value[:0xFFFF])
    return _block(NAME_RESOLUTION, body + bytes(4), ())


def statistics_block(interface: int, timestamp_ns: int, *, accepted: int, dropped: int) -> bytes:
    """How many packets were wanted and how many of them are not here."""
    fixed = STATISTICS.pack(interface, timestamp_ns >> 32 & 0xFFFFFFFF, timestamp_ns & 0xFFFFFFFF)
    counts = ((ISB_IFDROP, dropped.to_bytes(8, "little")), (ISB_FILTERACCEPT, accepted.to_bytes(8, "little")))
    return _block(INTERFACE_STATISTICS, fixed, counts)


class Pcapng:
    """One file, in pieces: the blocks of each piece are whole.

    `interface_name` says how a link is called, and `comment` what is to be said of a packet.  A link is described
    when its first packet comes.
    """

    content_type = "application/x-pcapng"

    def __init__(
        self,
        interface_name: Callable[[int], str] = lambda number: "",
        *,
        application: str = "vpnkit",
        snaplen: int = 0,
        filter_text: str = "",
        comment: Callable[[Packet], str] = lambda packet: "",
    ) -> None:
        self._interface_name = interface_name
        self._application = application
        self._snaplen = snaplen
        self._filter_text = filter_text
        self._comment = comment
        self._interfaces: dict[tuple[int, str], int] = {}
        self._lost = 0

    def begin(self) -> bytes:
        """What the file begins with."""
        return section_header(self._application)

    def lost(self, count: int) -> None:
        """`count` packets are missing here."""
        self._lost += count

    def packets(self, packets: Iterable[Packet]) -> bytes:
        """Their blocks, and those of links that are new."""
        pieces: list[bytes] = []
        for packet in packets:
            link = (packet.interface, self._interface_name(packet.interface))
            number = self._interfaces.get(link)
            if number is None:
                number = self._interfaces[link] = len(self._interfaces)
                pieces.append(self._describe(link))
            pieces.append(packet_block(packet, number, comment=self._comment(packet), lost=self._lost))
            self._lost = 0
        return b"".join(pieces)

    def _describe(self, link: tuple[int, str]) -> bytes:
        name = link[1] or f"link {link[0]}"
        return interface_description(name, snaplen=self._snaplen, filter_text=self._filter_text)

    def end(self, accepted: int, dropped: int, *, clock_ns: Callable[[], int] = time.time_ns) -> bytes:
        """The counts of the rule; one number for all links, said of the first."""
        if not self._interfaces:
            self._interfaces[0, ""] = 0
            return self._describe((0, "")) + statistics_block(0, clock_ns(), accepted=accepted, dropped=dropped)
        return statistics_block(0, clock_ns(), accepted=accepted, dropped=dropped)


def dump(packets: Iterable[Packet], interface: str, *, application: str = "vpnkit", snaplen: int = 0) -> bytes:
    """A whole file."""
    header = file_header(interface, application=application, snaplen=snaplen)
    return header + b"".join(map(packet_block, packets))


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:0xFFFF]


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + PADDING[len(value) & 3]


def _block(kind: int, fixed: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    body = fixed + b"".join(_option(code, value) for code, value in options)
    if options:
        body += bytes(4)  # end of options
    total = len(body) + 12
    return struct.pack("<LL", kind, total) + body + struct.pack("<L", total)
