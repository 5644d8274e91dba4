"""What listens in a network namespace, as Linux says by NETLINK_SOCK_DIAG (sock_diag(7)), and when one of it goes.

A netlink socket is for good that of the namespace in which it was made, whoever has its descriptor.  Nothing here needs
privilege, nor anything but the standard library: the agent in a guest has no more.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_DUMP: Final = 0x300
INET_DIAG_SKV6ONLY: Final = 11
DESTROY_GROUPS: Final = 0b1111  # TCP and UDP, of both families
HEADER: Final = struct.Struct("=IHHII")
REQUEST: Final = struct.Struct("=BBBxI48x")
MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sI8x5I")
ATTRIBUTE: Final = struct.Struct("=HH")

TCP_CLOSE: Final = 7  # include/net/tcp_states.h; a UDP socket that has a port and no peer
TCP_LISTEN: Final = 10
PROTOCOLS: Final = {
    "tcp": (socket.IPPROTO_TCP, 1 << TCP_LISTEN),
    "udp": (socket.IPPROTO_UDP, 1 << TCP_CLOSE),
}
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
LOOPBACK_INDEX: Final = 1  # of `lo` in every namespace
RECEIVE: Final = 1 << 16  # octets
MAX_LISTENERS: Final = 4096  # of one dump; more are not looked at

# A classic BPF program, linux/filter.h: those whose remote port is 0, which listened or had no peer.
SO_ATTACH_FILTER: Final = 26
REMOTE_PORT: Final = 16 + 6  # octets from the start of the netlink message
LISTENED: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x28, 0, 0, REMOTE_PORT), (0x15, 0, 1, 0), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
)


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A socket of a guest that takes connections, or datagrams from anybody."""

    protocol: str
    port: int
    address: str  # 0.0.0.0 and :: are all of a family
    only6: bool = False  # an IPv6 socket that has no IPv4 (IPV6_V6ONLY)


def open_diag() -> socket.socket:
    """A socket for `listeners`.  Raises OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


def watch_ends(made: socket.socket) -> None:
    """Make `made`, as of `open_diag`, one that is readable when a listener has gone.  Raises OSError."""
    import ctypes

    program = ctypes.create_string_buffer(LISTENED, len(LISTENED))
    filter_ = struct.pack("@HP", len(LISTENED) // 8, ctypes.addressof(program))
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
    made.bind((0, DESTROY_GROUPS))
    made.setblocking(False)


def drain(made: socket.socket) -> None:
    """Read all that a socket of `watch_ends` has; it says no more than that something went."""
    while True:
        try:
            made.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # too many: it is the same to us
                raise


def listeners(made: socket.socket) -> set[Listener]:
    """All that listen there now; it takes some hundred microseconds.  Raises OSError."""
    found: set[Listener] = set()
    for protocol, (number, states) in PROTOCOLS.items():
        for family in FAMILIES:
            try:
                found.update(_dump(made, family, protocol, number, states))
            except FileNotFoundError:
                continue  # the kernel has no such protocol
    return found


def _dump(made: socket.socket, family: int, protocol: str, number: int, states: int) -> Iterator[Listener]:
    body = REQUEST.pack(family, number, 0, states)
    length = HEADER.size + len(body)
    made.settimeout(5)
    made.send(HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    count = 0
    while True:
        for kind, message in messages(made.recv(RECEIVE)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                [code] = struct.unpack_from("=i", message)
                raise OSError(-code, "sock_diag")
            listener = decode(message, protocol)
            count += 1
            if listener is not None and count <= MAX_LISTENERS:
                yield listener


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The netlink messages of one datagram: type and body."""
    position = 0
    while position + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, position)
        if length < HEADER.size:
            return
        yield kind, data[position + HEADER.size : position + length]
        position += (length + 3) & ~3


def decode(message: bytes, protocol: str) -> Listener | None:
    """The listener of one struct inet_diag_msg; None for one that only the guest himself reaches."""
    if len(message) < MESSAGE.size:
        return None
    family, _, _, _, port, _, source, _, interface, *_ = MESSAGE.unpack_from(message)
    if interface == LOOPBACK_INDEX:
        return None
    number = int.from_bytes(port, "big")
    if family == socket.AF_INET:
        return Listener(protocol, number, str(IPv4Address(source[:4]))) if number else None
    address = IPv6Address(source)
    if address.ipv4_mapped is not None:
        return Listener(protocol, number, str(address.ipv4_mapped)) if number else None
    only6 = any(kind == INET_DIAG_SKV6ONLY and value[:1] == b"\1" for kind, value in _attributes(message))
    return Listener(protocol, number, str(address), only6) if number else None


def _attributes(message: bytes) -> Iterator[tuple[int, bytes]]:
    position = MESSAGE.size
    while position + ATTRIBUTE.size <= len(message):
        length, kind = ATTRIBUTE.unpack_from(message, position)
        if length < ATTRIBUTE.size:
            return
        yield kind, message[position + ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
