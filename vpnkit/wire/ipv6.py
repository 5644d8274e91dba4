"""IPv6 headers, RFC 8200, as far as frames between guests need them.

Extension headers 0, 43 and 60: next header 1 | length in 8 octets less 1 | ...
Fragment header: next header 1 | reserved 1 | offset and flags 2 | identification 4
"""

from __future__ import annotations

from typing import Final

HEADER_SIZE: Final = 40

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMPV6: Final = 58
DESTINATION_OPTIONS: Final = 60
EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS})
MAX_EXTENSIONS: Final = 8  # nobody honest has more; what is behind them is not looked for
OFFSET_MASK: Final = 0xFFF8  # of the offset and flags of a fragment

UNSPECIFIED: Final = bytes(16)


def link_local(mac: bytes) -> bytes:
    """The link-local address of a station with this MAC address (RFC 4291 appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]
