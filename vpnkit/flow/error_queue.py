"""The error queue of a Linux socket: ICMP errors about what it sent, and what the kernel itself refused (ip(7))."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from vpnkit.wire import icmpv6

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.flow.host import Address

IP_RECVERR: Final = 11  # linux/in.h: errors wait in the socket's error queue
IPV6_RECVERR: Final = 25  # linux/in6.h
MSG_ERRQUEUE: Final = 0x2000
# linux/errqueue.h struct sock_extended_err: errno 4 | origin 1 | type 1 | code 1 | pad 1 | info 4 | data 4, and then
# the sockaddr_in of the offender: family 2 | port 2 | address 4, or its sockaddr_in6: family 2 | port 2 | flow 4 |
# address 16
EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
OFFENDER: Final = slice(EXTENDED_ERROR.size + 4, EXTENDED_ERROR.size + 8)
OFFENDER6: Final = slice(EXTENDED_ERROR.size + 8, EXTENDED_ERROR.size + 24)
ORIGIN_LOCAL: Final = 1
ORIGIN_ICMP: Final = 2
ORIGIN_ICMPV6: Final = 3
QUEUES: Final = frozenset({(socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)})
LINUX: Final = sys.platform == "linux"


class HostError(NamedTuple):
    """One error of the queue."""

    number: int  # errno
    origin: int
    kind: int  # of ICMP, and its code
    code: int
    info: int  # the next hop's MTU, where the error is about that
    offender: bytes  # the address that said so; empty when the kernel did not tell
    destination: Address | None  # where the datagram went to
    data: bytes  # of it, behind the UDP header or the IP header, as far as the error quoted it

    @property
    def from_network(self) -> bool:
        return self.origin in (ORIGIN_ICMP, ORIGIN_ICMPV6)

    @property
    def version(self) -> int:
        """4 or 6: whose type and code it has."""
        return 6 if self.origin == ORIGIN_ICMPV6 else 4


def enable(host: socket.socket) -> None:
    """Let errors wait for `take`.  Raises OSError."""
    if LINUX:
        if host.family == socket.AF_INET6:
            host.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            host.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def tell(host: socket.socket | None, network_error: Callable[[HostError], None]) -> list[HostError]:
    """Empty the queue of `host`, if it is open, and call `network_error` with what the network said of it."""
    errors = [] if host is None else take(host)
    for error in errors:
        if error.from_network:
            network_error(error)
    return errors


def too_large_for(errors: list[HostError]) -> int | None:
    """The path's MTU, if one of `errors` is the kernel's own refusal of a datagram that is larger and has DF."""
    return next((e.info for e in errors if e.number == errno.EMSGSIZE and not e.from_network), None)


def take(host: socket.socket) -> list[HostError]:
    """Empty the queue.  Where the system has none it is always empty."""
    found: list[HostError] = []
    if not LINUX:
        return found
    while True:
        try:
            data, ancillary, _, destination = host.recvmsg(icmpv6.QUOTE_LIMIT, 512, MSG_ERRQUEUE)
        except OSError:
            return found
        if not ancillary:
            return found  # no socket of the Internet: it has no such queue, and what this is does not end
        for level, kind, value in ancillary:
            if (level, kind) in QUEUES and len(value) >= EXTENDED_ERROR.size:
                number, origin, icmp_type, code, info, _ = EXTENDED_ERROR.unpack_from(value)
                offender = value[OFFENDER if level == socket.IPPROTO_IP else OFFENDER6]
                if len(offender) not in (4, 16) or not any(offender):
                    offender = b""
                found.append(HostError(number, origin, icmp_type, code, info, offender, destination, data))
