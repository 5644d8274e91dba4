"""Host sockets: how one is opened, and what its errors mean.

The one place that makes sockets towards the host's network, so that a simulated host can stand in for it.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from enum import Enum, auto
from typing import Final, Protocol

from vpnkit.flow import error_queue

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: close sends a RST
IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EINTR})

Address = tuple[str, int]


class HostSockets(Protocol):
    """The host's network as flows need it: this module, or a simulation."""

    def tcp_socket(self) -> socket.socket: ...
    def start_connect(self, made: socket.socket, address: Address) -> int: ...
    def udp_socket(self, *, gro: bool) -> socket.socket: ...
    def ping_socket(self) -> tuple[socket.socket, bool]: ...
    def resolver_socket(self, family: socket.AddressFamily) -> socket.socket: ...
    def is_local(self, address: str) -> bool: ...


class Failure(Enum):
    """What a failed `connect` looked like, and so what the guest must see."""

    REFUSED = auto()
    NET_UNREACHABLE = auto()
    HOST_UNREACHABLE = auto()
    PROTOCOL_UNREACHABLE = auto()
    PROHIBITED = auto()
    TIMED_OUT = auto()  # a black hole: the guest sees silence
    EXHAUSTED = auto()  # we are out of descriptors or memory


_MEANING: Final = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ECONNRESET: Failure.REFUSED,  # accepted and reset before we looked
    errno.ENETUNREACH: Failure.NET_UNREACHABLE,
    errno.ENETDOWN: Failure.NET_UNREACHABLE,
    errno.EHOSTUNREACH: Failure.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Failure.HOST_UNREACHABLE,
    errno.ENOPROTOOPT: Failure.PROTOCOL_UNREACHABLE,
    errno.EACCES: Failure.PROHIBITED,
    errno.EPERM: Failure.PROHIBITED,
    errno.ETIMEDOUT: Failure.TIMED_OUT,
    errno.EMFILE: Failure.EXHAUSTED,
    errno.ENFILE: Failure.EXHAUSTED,
    errno.ENOBUFS: Failure.EXHAUSTED,
    errno.ENOMEM: Failure.EXHAUSTED,
    errno.EADDRNOTAVAIL: Failure.EXHAUSTED,  # every local port is in use
    errno.EAGAIN: Failure.EXHAUSTED,  # the same, as Linux says it
}


def failure(number: int) -> Failure:
    """The meaning of an errno; one that is not known (EINVAL of a blackhole route) is an unreachable host."""
    return _MEANING.get(number, Failure.HOST_UNREACHABLE)


def tcp_socket() -> socket.socket:
    """A non-blocking TCP socket without Nagle's delay: the two real ends already decided.  Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


def start_connect(made: socket.socket, address: Address) -> int:
    """Begin or go on connecting: 0 when connected, EINPROGRESS while the answer is not there, else the error."""
    number = made.connect_ex(address)
    if number in IN_PROGRESS:
        # On the loopback the answer is there already; asking once more tells, and saves a turn of the loop.
        number = made.connect_ex(address)
        if number in IN_PROGRESS:
            return errno.EINPROGRESS
    return 0 if number == errno.EISCONN else number


def reset(made: socket.socket) -> None:
    """Close so that the peer sees a reset."""
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass
    made.close()


def is_local(address: str) -> bool:
    """Whether `address` is one of the host's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


UDP_GRO: Final = 104  # linux/udp.h, level IPPROTO_UDP: several datagrams of one sender in one read
UDP_RECEIVE_BUFFER: Final = 1 << 20
UDP_SEND_BUFFER: Final = 1 << 18  # on the BSDs it limits a datagram, to 9216 octets unless it is set


def udp_socket(*, gro: bool) -> socket.socket:
    """A non-blocking UDP socket on a port of the kernel's choice, with ICMP errors where the system has them.

    Raises OSError.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.bind(("", 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RECEIVE_BUFFER)
        if sys.platform == "linux":
            error_queue.enable(made)
            if gro:
                made.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UDP_SEND_BUFFER)
    except BaseException:
        made.close()
        raise
    return made


SOL_RAW: Final = 255
ICMP_FILTER: Final = 1  # linux/icmp.h: a bit for each type that a raw socket does not hear
ALL_BUT_ECHO_REPLIES: Final = struct.pack("=I", 0xFFFFFFFE)


def ping_socket() -> tuple[socket.socket, bool]:
    """A non-blocking socket for ICMP echo, and whether it is a raw one, whose packets begin with the IP header.

    Raises OSError when the system allows neither.
    """
    try:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        raw = sys.platform == "darwin"  # there even the unprivileged socket shows the header
    except OSError:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw = True
    try:
        made.setblocking(False)
        error_queue.enable(made)
        if raw and sys.platform == "linux":
            made.setsockopt(SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES)
    except BaseException:
        made.close()
        raise
    return made, raw


def resolver_socket(family: socket.AddressFamily) -> socket.socket:
    """A non-blocking UDP socket for one question to one server.  Raises OSError."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
