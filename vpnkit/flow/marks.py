"""What the IP header of a guest's datagram says, said by the host's socket too: TTL, DF and DSCP.

A connection says it for the guest's SYN only, which is what a traceroute by TCP sends.
"""

from __future__ import annotations

import socket
import sys
from typing import Final, NamedTuple

from vpnkit.flow import error_queue

# A system's own choice, which tells nothing; the host has its own.  Any other is a program's, traceroute's mostly.
USUAL_TTLS: Final = frozenset({64, 128, 255})
DSCP: Final = 0xFC  # of the TOS octet; ECN is between the two ends of a path, and we are one (RFC 3168 section 6.1)

PMTUDISC_DONT: Final = 0  # linux/in.h and linux/in6.h: fragment here, and let routers do so
PMTUDISC_DO: Final = 2  # DF, and EMSGSIZE for what is larger than the path's MTU
LINUX: Final = sys.platform == "linux"
DEFAULT_TTL: Final = -1 if LINUX else 64  # what setsockopt takes for it


class Options(NamedTuple):
    """One family's names of the same socket options."""

    ttl: int
    tos: int
    mtu_discover: int
    recverr: int


IPV4: Final = Options(socket.IP_TTL, socket.IP_TOS, 10, error_queue.IP_RECVERR)
IPV6: Final = Options(socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS, 23, error_queue.IPV6_RECVERR)


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
        options = _options(host)
        onward_ttl = onward(ttl)
        if onward_ttl != self._ttl:
            self._ttl = onward_ttl
            _set(host, options.ttl, onward_ttl)
        if tos & DSCP != self._dscp:
            self._dscp = tos & DSCP
            _set(host, options.tos, self._dscp)
        if LINUX and dont_fragment is not self._dont_fragment:
            self._dont_fragment = dont_fragment
            _set(host, options.mtu_discover, PMTUDISC_DO if dont_fragment else PMTUDISC_DONT)


def mark_connection(host: socket.socket, ttl: int, tos: int) -> None:
    """`host` will connect for a SYN with these.  If it may expire on its way, the error queue tells where."""
    options = _options(host)
    if ttl not in USUAL_TTLS:
        _set(host, options.ttl, onward(ttl))
        if LINUX:
            _set(host, options.recverr, 1)
    if tos & DSCP:
        _set(host, options.tos, tos & DSCP)


def mark_connected(host: socket.socket, ttl: int) -> None:
    """`host` is connected for a SYN with this TTL.  With RECVERR an ICMP error would end the connection."""
    if ttl not in USUAL_TTLS:
        options = _options(host)
        _set(host, options.ttl, DEFAULT_TTL)
        if LINUX:
            _set(host, options.recverr, 0)


def _options(host: socket.socket) -> Options:
    return IPV6 if host.family == socket.AF_INET6 else IPV4


def _set(host: socket.socket, option: int, value: int) -> None:
    level = socket.IPPROTO_IPV6 if host.family == socket.AF_INET6 else socket.IPPROTO_IP
    try:
        host.setsockopt(level, option, value)
    except OSError:
        pass
