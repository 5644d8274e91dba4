"""Ethernet II, RFC 894.

destination 6 | source 6 | ethertype 2 | payload ...
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("!6s6sH")
BROADCAST: Final = b"\xff" * 6

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD


def is_group(mac: bytes) -> bool:
    """Broadcast or multicast."""
    return bool(mac[0] & 1)
