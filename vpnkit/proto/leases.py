"""What the two DHCP servers share: what a lease is to the operator, and the names of its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INFINITE: Final = 0xFFFFFFFF  # seconds, in both protocols
FOREVER: Final = float("inf")

OFFERED: Final = "offered"
BOUND: Final = "bound"
RELEASED: Final = "released"
EXPIRED: Final = "expired"
STATIC: Final = "static"

_HOST_NAME_OCTETS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


@dataclass(frozen=True)
class Drop:
    """No reply, and why; reasons are few, so that they can be counted."""

    reason: str


@dataclass(frozen=True)
class Lease:
    """A binding, for the operator.  `expires_at` is in seconds of the clock that `now` came from."""

    ip: bytes  # 4 or 16 octets
    mac: bytes
    client_id: bytes  # option 61, or the DUID; empty when the client sent none
    hostname: str
    expires_at: float
    state: str  # offered, bound, released, expired, static


def printable_name(name: bytes) -> str:
    """What may be shown of a name that a client says it has."""
    return bytes(octet for octet in name[:255] if octet in _HOST_NAME_OCTETS).decode("ascii")
