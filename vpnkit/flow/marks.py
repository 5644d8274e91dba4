"""What the IP header of a guest's datagram says, said by the host's socket too: TTL, DF and DSCP.

A connection says it for the guest's SYN only, which is what a traceroute by TCP sends.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

from vpnkit.flow import error_queue

# A system's own choice, which tells nothing; the host has its own.  Any other is a program's, traceroute's mostly.
USUAL_TTLS: Final = frozenset({64, 128, 255})
DSCP: Final = 0xFC  # of the TOS octet; ECN is between the two ends of a path, and we are one (RFC 3168 section 6.1)

IP_MTU_DISCOVER: Final = 10  # linux/in.h
IP_PMTUDISC_DONT: Final = 0  # fragment here, and let routers do so
IP_PMTUDISC_DO: Final = 2  # DF, and EMSGSIZE for what is larger than the path's MTU
LINUX: Final = sys.platform == "linux"
DEFAULT_TTL: Final = -1 if LINUX else 64  # what setsockopt takes for it


def onward(ttl: int) -> int:
    """The TTL of a datagram of the guest behind us: we are a router, so one less; DEFAULT_TTL for a usual one."""
    return DEFAULT_TTL if ttl in USUAL_TTLS else max(ttl - 1, 1)


class Marks:
    """What one socket says now.  Each option is set only when it changes."""

    __slots__ = ("_dont_fragment", "_dscp", "_ttl")

    def __init__(self) -> None:
        self._ttl = DEFAULT_TTL
        self._dscp = 0
        self._dont_fragment: bool | None = None

    @property
    def dont_fragment(self) -> bool:
        return bool(self._dont_fragment)

    def put(self, host: socket.socket, *, ttl: int, tos: int, dont_fragment: bool) -> None:
        """For a datagram of the guest with these.  A system that cannot do it sends the datagram without."""
        onward_ttl = onward(ttl)
        if onward_ttl != self._ttl:
            self._ttl = onward_ttl
            _set(host, socket.IP_TTL, onward_ttl)
        if tos & DSCP != self._dscp:
            self._dscp = tos & DSCP
            _set(host, socket.IP_TOS, self._dscp)
        if LINUX and dont_fragment is not self._dont_fragment:
            self._dont_fragment = dont_fragment
            _set(host, IP_MTU_DISCOVER, IP_PMTUDISC_DO if dont_fragment else IP_PMTUDISC_DONT)


def mark_connection(host: socket.socket, ttl: int, tos: int) -> None:
    """`host` will connect for a SYN with these.  If it may expire on its way, the error queue tells where."""
    if ttl not in USUAL_TTLS:
        _set(host, socket.IP_TTL, onward(ttl))
        if LINUX:
            _set(host, error_queue.IP_RECVERR, 1)
    if tos & DSCP:
        _set(host, socket.IP_TOS, tos & DSCP)


def mark_connected(host: socket.socket, ttl: int) -> None:
    """`host` is connected for a SYN with this TTL.  With IP_RECVERR an ICMP error would end the connection."""
    if ttl not in USUAL_TTLS:
        _set(host, socket.IP_TTL, DEFAULT_TTL)
        if LINUX:
            _set(host, error_queue.IP_RECVERR, 0)


def _set(host: socket.socket, option: int, value: int) -> None:
    try:
        host.setsockopt(socket.IPPROTO_IP, option, value)
    except OSError:
        pass
