"""Host sockets: how one is opened, and what its errors mean.

The one place that makes sockets towards the host's network, so that a simulated host can stand in for it.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from enum import Enum, auto
from ipaddress import IPv6Address
from typing import Final, Protocol

from vpnkit.flow import error_queue

_SOCK_NONBLOCK: Final[int] = getattr(socket, "SOCK_NONBLOCK", 0)  # not on macOS
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: close sends a RST
IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EINTR})

Address = tuple[str, int]


class HostSockets(Protocol):
    """The host's network as flows need it: this module, or a simulation."""

    def tcp_socket(self, family: socket.AddressFamily = ...) -> socket.socket: ...
    def start_connect(self, made: socket.socket, address: Address) -> int: ...
    def udp_socket(self, family: socket.AddressFamily = ..., *, gro: bool) -> socket.socket: ...
    def ping_socket(self, family: socket.AddressFamily = ...) -> tuple[socket.socket, bool]: ...
    def resolver_socket(self, family: socket.AddressFamily) -> socket.socket: ...
    def is_local(self, address: str) -> bool: ...
    def has_ipv6(self) -> bool: ...


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


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET6 for an IPv6 address, else AF_INET."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def text(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """ADDRESS:PORT of a socket's address, IPv6 in brackets."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def tcp_socket(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A non-blocking TCP socket without Nagle's delay: the two real ends already decided.  Raises OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
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
    try:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


A_ROOT_SERVER: Final = "2001:503:ba3e::2:30"  # asked for a way to it, not for anything else


def has_ipv6() -> bool:
    """Whether there is a route to the IPv6 world, and an address to go there from.  Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((A_ROOT_SERVER, 53))
            source = IPv6Address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return False
    return not (source.is_link_local or source.is_loopback or source.is_unspecified)


UDP_GRO: Final = 104  # linux/udp.h, level IPPROTO_UDP: several datagrams of one sender in one read
UDP_RECEIVE_BUFFER: Final = 1 << 20
UDP_SEND_BUFFER: Final = 1 << 18  # on the BSDs it limits a datagram, to 9216 octets unless it is set


def udp_socket(family: socket.AddressFamily = socket.AF_INET, *, gro: bool) -> socket.socket:
    """A non-blocking UDP socket on a port of the kernel's choice, with ICMP errors where the system has them.

    Raises OSError.
    """
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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
ICMPV6_FILTER: Final = 1  # linux/icmpv6.h, level IPPROTO_ICMPV6: 256 bits, likewise
ALL_BUT_ECHO_REPLIES6: Final = struct.pack("=8I", *(0xFFFFFFFF,) * 4, 0xFFFFFFFD, *(0xFFFFFFFF,) * 3)


def ping_socket(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, bool]:
    """A non-blocking socket for echo, and whether it is a raw one, which hears everybody's replies; over IPv4 the
    packets of a raw one begin with the IP header.

    Raises OSError when the system allows neither.
    """
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    try:
        made = socket.socket(family, socket.SOCK_DGRAM, protocol)
        raw = sys.platform == "darwin"  # there even the unprivileged socket shows the header
    except OSError:
        made = socket.socket(family, socket.SOCK_RAW, protocol)
        raw = True
    try:
        made.setblocking(False)
        error_queue.enable(made)
        if raw and sys.platform == "linux":
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, ALL_BUT_ECHO_REPLIES6)
            else:
                made.setsockopt(SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES)
    except BaseException:
        made.close()
        raise
    return made, raw


def resolver_socket(family: socket.AddressFamily) -> socket.socket:
    """A non-blocking UDP socket for one question to one server.  Raises OSError."""
    if _SOCK_NONBLOCK:
        return socket.socket(family, socket.SOCK_DGRAM | _SOCK_NONBLOCK)
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
