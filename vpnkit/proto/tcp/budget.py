"""The octets that all connections of a network may keep between them.

As long as little is used, nobody notices.  When it becomes tight each connection may keep a share of what is left:
the more that are stuck, the smaller it is, so that they meet where everybody has as much as the others, and a
connection that moves still finds something.  Windows are never taken back and nothing that is kept is dropped: who has
more than his share gets nothing more until it drained.
"""

from __future__ import annotations

from typing import Final

LIMIT: Final = 64 << 20  # octets
LEAST: Final = 4096  # octets that a connection may always keep


class Budget:
    """`used` is kept by senders and receivers."""

    __slots__ = ("ample", "limit", "used")

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.ample = limit // 4 * 3  # below, nobody is limited: a share would be what one connection may keep anyway
        self.used = 0

    def share(self) -> int:
        """What one connection may keep each way while more than `ample` is used."""
        return max((self.limit - self.used) >> 4, LEAST)
