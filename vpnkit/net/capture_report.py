"""What the operator is told of captures, and tells about them: plain records with names that the API promises."""

from __future__ import annotations

import msgspec

DIRECTIONS = ("both", "in", "out")


class CaptureReport(msgspec.Struct, frozen=True):
    """One ring."""

    name: str
    filter: str
    snaplen: int  # octets of each packet
    ring: int  # octets of memory at most
    direction: str  # both; in: from the guest; out: to it
    private: bool
    packets: int  # that are here now
    bytes: int  # captured octets of them
    seen: int  # packets since the beginning
    dropped: int  # of them, no longer here


class CaptureRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule to add."""

    name: str
    filter: str = ""  # tcpdump's language, and `name PATTERN`; empty: everything
    snaplen: int = 1500
    ring: int = 256 * 1024
    direction: str = "both"
    private: bool = False


class AuditReport(msgspec.Struct):
    """Who did what with captures."""

    time: float  # seconds since 1970, UTC: when it began
    uid: int | None  # of the process; null where the system does not tell
    pid: int | None
    action: str  # read, follow, add, remove
    rule: str  # its name, or the filter that was followed
    packets: int = 0
    bytes: int = 0  # octets that were written
    lost: int = 0  # packets that the reader was too slow for
    ended: bool = False
