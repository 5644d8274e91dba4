"""Classic pcap files, as the original writes them: little endian, version 2.4, microseconds (vpnkit.md 6.1)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pcap.pcapng import ETHERNET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pcap.ring import Packet

MAGIC: Final = 0xA1B2C3D4
# magic 4 | version 2.4: 2 2 | time zone 4 | accuracy 4 | snaplen 4 | link type 4
FILE: Final = struct.Struct("<LHHlLLL")
# seconds 4 | microseconds 4 | captured octets 4 | octets of the whole frame 4
RECORD: Final = struct.Struct("<LLLL")
NO_LIMIT: Final = 262144  # tcpdump's


class Classic:
    """One file, in pieces of whole records.  What it cannot say is left out."""

    content_type = "application/vnd.tcpdump.pcap"

    def __init__(self, *, snaplen: int = NO_LIMIT) -> None:
        self._snaplen = snaplen

    def begin(self) -> bytes:
        """What the file begins with."""
        return FILE.pack(MAGIC, 2, 4, 0, 0, self._snaplen, ETHERNET)

    def lost(self, count: int) -> None:
        """`count` packets are missing here: there is no place to say so."""

    def packets(self, packets: Iterable[Packet]) -> bytes:
        """Their records."""
        pieces: list[bytes] = []
        for packet in packets:
            seconds, nanoseconds = divmod(packet.timestamp_ns, 1_000_000_000)
            head = RECORD.pack(seconds & 0xFFFFFFFF, nanoseconds // 1000, len(packet.data), packet.length)
            pieces += (head, packet.data)
        return b"".join(pieces)

    def end(self, accepted: int, dropped: int) -> bytes:
        """Nothing."""
        return b""
