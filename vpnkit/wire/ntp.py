"""NTP, the header of RFC 5905 section 7.3, which SNTP shares (RFC 4330 section 4).

LI 2 bits, VN 3, Mode 3 | stratum 1 | poll 1 | precision 1 | root delay 4 | root dispersion 4 | reference ID 4
reference timestamp 8 | origin timestamp 8 | receive timestamp 8 | transmit timestamp 8

What follows, extension fields and a digest, is not looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from vpnkit.errors import WireError

Buffer: TypeAlias = bytes | bytearray | memoryview

PORT: Final = 123
HEADER: Final = struct.Struct("!BBbbII4sQQQQ")
EPOCH: Final = 2_208_988_800  # seconds from 1900 to 1970
BILLION: Final = 1_000_000_000

# RFC 5905 figure 9
LEAP_NONE: Final = 0
LEAP_INSERT: Final = 1  # the last minute of this day has 61 seconds
LEAP_DELETE: Final = 2  # 59
LEAP_UNKNOWN: Final = 3  # the clock is not synchronised

# RFC 5905 figure 10
SYMMETRIC_ACTIVE: Final = 1
SYMMETRIC_PASSIVE: Final = 2
CLIENT: Final = 3
SERVER: Final = 4


@dataclass(frozen=True, slots=True)
class NtpPacket:
    """One header.  Timestamps are 64 bits since 1900, the upper 32 of them seconds; `poll` and `precision` are
    exponents of 2, of seconds; root delay and dispersion are seconds in 1/65536."""

    leap: int
    version: int
    mode: int
    stratum: int = 0
    poll: int = 0
    precision: int = 0
    root_delay: int = 0
    root_dispersion: int = 0
    reference_id: bytes = bytes(4)
    reference: int = 0
    origin: int = 0
    receive: int = 0
    transmit: int = 0

    def encode(self) -> bytes:
        return HEADER.pack(
            self.leap << 6 | self.version << 3 | self.mode,
            self.stratum,
            self.poll,
            self.precision,
            self.root_delay,
            self.root_dispersion,
            self.reference_id,
            self.reference,
            self.origin,
            self.receive,
            self.transmit,
        )


def decode(data: Buffer) -> NtpPacket:
    """The header at the start of `data`.  Raises WireError when it is cut."""
    if len(data) < HEADER.size:
        raise WireError(f"NTP packet of {len(data)} octets")
    first, *rest = HEADER.unpack_from(data)
    return NtpPacket(first >> 6, first >> 3 & 7, first & 7, *rest)


def timestamp(unix_ns: int) -> int:
    """Nanoseconds since 1970 as a timestamp; its seconds begin anew in 2036 (RFC 5905 section 6)."""
    seconds, rest = divmod(unix_ns, BILLION)
    return ((seconds + EPOCH) & 0xFFFFFFFF) << 32 | (rest << 32) // BILLION
