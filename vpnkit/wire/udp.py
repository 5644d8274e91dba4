"""UDP, RFC 768.

source port 2 | destination port 2 | length 2 | checksum 2 | data ...
"""

from __future__ import annotations

import struct
from typing import Final

from vpnkit.errors import WireError

HEADER: Final = struct.Struct("!HHHH")
CHECKSUM_OFFSET: Final = 6


def decode(data: memoryview) -> tuple[int, int, int, memoryview]:
    """Source port, destination port, checksum and payload.  Raises WireError when the lengths disagree."""
    if len(data) < HEADER.size:
        raise WireError(f"UDP datagram of {len(data)} octets")
    source, destination, length, check = HEADER.unpack_from(data)
    if length < HEADER.size or length > len(data):
        raise WireError(f"UDP length {length} in {len(data)} octets")
    return source, destination, check, data[HEADER.size : length]
