"""Reading back what `pcapng` wrote, up to the first octet that is wrong: a process may have died while it wrote."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pcap import pcapng
from pcap.ring import Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BLOCK: Final = 1 << 20  # octets
MAX_INTERFACES: Final = 65536
_BLOCK: Final = struct.Struct("<LL")
_LENGTH: Final = struct.Struct("<L")
_OPTION: Final = struct.Struct("<HH")


def read(data: bytes) -> Iterator[tuple[Packet, str]]:
    """The packets of a file, each with the name of its link.  Ends where the file is cut or damaged."""
    names: list[str] = []
    for kind, body in _blocks(data):
        try:
            if kind == pcapng.SECTION_HEADER:
                if pcapng.SECTION.unpack_from(body)[0] != pcapng.BYTE_ORDER:
                    return  # of another machine; we write little endian
                names.clear()
            elif kind == pcapng.INTERFACE_DESCRIPTION and len(names) < MAX_INTERFACES:
                options = _options(body[pcapng.INTERFACE.size :])
                names.append(options.get(pcapng.IF_NAME, b"").decode("utf-8", "replace"))
            elif kind == pcapng.ENHANCED_PACKET:
                packet = _packet(body)
                yield packet, names[packet.interface]
        except (struct.error, IndexError):
            return


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 12 <= len(data):
        kind, total = _BLOCK.unpack_from(data, at)
        if total < 12 or total & 3 or total > MAX_BLOCK or at + total > len(data):
            return
        if _LENGTH.unpack_from(data, at + total - 4)[0] != total:
            return
        yield kind, data[at + 8 : at + total - 4]
        at += total


def _packet(body: bytes) -> Packet:
    """Raises IndexError and struct.error."""
    interface, high, low, captured, length = struct.unpack_from("<LLLLL", body)
    data = body[20 : 20 + captured]
    if len(data) < captured:
        raise IndexError("a packet behind its block")
    flags = _options(body[20 + captured + (-captured & 3) :]).get(pcapng.EPB_FLAGS, bytes(4))
    return Packet(high << 32 | low, length, data, flags[0] & 3, interface=interface)


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, length = _OPTION.unpack_from(data, at)
        if not code:
            break
        found[code] = data[at + 4 : at + 4 + length]
        at += 4 + length + (-length & 3)
    return found
