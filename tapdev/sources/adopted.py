"""Descriptors that somebody opened for us: what they are decides what is done with them."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from tapdev.sources.bind import SEQPACKET, is_connected, is_listening, owned_socket
from tapdev.sources.host import LinkError
from tapdev.spec import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTENING: Final = "listening"
CONNECTED: Final = "connected"
UNCONNECTED: Final = "unconnected"  # bound, for datagrams
UNBOUND: Final = "unbound"  # nor connected: nobody can reach it

# What a bare fd:N is taken for.  A listening stream is the original's `--ethernet fd:N`, a connected one passt's --fd.
MEANING: Final[Mapping[tuple[int | None, str], Kind]] = {
    (socket.SOCK_STREAM, LISTENING): Kind.VMNET,
    (socket.SOCK_STREAM, CONNECTED): Kind.QEMU,
    (SEQPACKET, LISTENING): Kind.BESS,
    (SEQPACKET, CONNECTED): Kind.BESS,
    (socket.SOCK_DGRAM, CONNECTED): Kind.DGRAM,
}
# What a protocol can use.
USABLE: Final[Mapping[Kind, frozenset[tuple[int | None, str]]]] = {
    Kind.QEMU: frozenset({(socket.SOCK_STREAM, LISTENING), (socket.SOCK_STREAM, CONNECTED)}),
    Kind.VMNET: frozenset({(socket.SOCK_STREAM, LISTENING), (socket.SOCK_STREAM, CONNECTED)}),
    Kind.BESS: frozenset({(SEQPACKET, LISTENING), (SEQPACKET, CONNECTED)}),
    Kind.DGRAM: frozenset({(socket.SOCK_DGRAM, CONNECTED), (socket.SOCK_DGRAM, UNCONNECTED)}),
    Kind.VFKIT: frozenset({(socket.SOCK_DGRAM, CONNECTED), (socket.SOCK_DGRAM, UNCONNECTED)}),
}
NEEDED: Final[Mapping[Kind, str]] = {
    Kind.FD: "a TAP device, a listening or connected stream or seqpacket socket, or a connected datagram socket",
    Kind.QEMU: "a listening or connected stream socket",
    Kind.VMNET: "a listening or connected stream socket",
    Kind.BESS: "a listening or connected seqpacket socket",
    Kind.DGRAM: "a bound or connected unix datagram socket",
    Kind.VFKIT: "a bound or connected unix datagram socket",
}
FILE_TYPES: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
SOCKET_TYPES: Final = {
    socket.SOCK_STREAM: "stream",
    SEQPACKET: "seqpacket",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_RAW: "raw",
}


def check_open(fd: int) -> os.stat_result:
    """Raises LinkError."""
    try:
        return os.fstat(fd)
    except OSError:
        raise LinkError(f"descriptor {fd} is not open; whoever starts us has to pass it on") from None


def adopt_socket(fd: int, kind: Kind) -> tuple[socket.socket, Kind, str]:
    """The socket `fd`, the protocol it is for, and LISTENING, CONNECTED or UNCONNECTED.

    Raises LinkError when `kind`, which may be FD, can do nothing with it; the descriptor is then left as it is.
    """
    mode = check_open(fd).st_mode
    if not stat.S_ISSOCK(mode):
        found = next((words for test, words in FILE_TYPES if test(mode)), "something else")
        raise LinkError(f"descriptor {fd} is {found}; {kind} needs {NEEDED[kind]}")
    sock = socket.socket(fileno=fd)
    role = _role(sock)
    found_kind = MEANING.get((sock.type, role)) if kind is Kind.FD else kind
    if found_kind is None or (sock.type, role) not in USABLE[found_kind]:
        article = "an" if role in (UNCONNECTED, UNBOUND) else "a"
        found = f"{article} {role} {SOCKET_TYPES.get(sock.type, 'strange')} socket"
        sock.detach()
        hint = f"; for this one write vfkit:fd:{fd} or dgram:fd:{fd}" if role == UNCONNECTED else ""
        raise LinkError(f"descriptor {fd} is {found}; {kind} needs {NEEDED[kind]}{hint}")
    return owned_socket(sock), found_kind, role


def _role(sock: socket.socket) -> str:
    if sock.type != socket.SOCK_DGRAM and is_listening(sock):
        return LISTENING
    if is_connected(sock):
        return CONNECTED
    address = sock.getsockname()
    bound = address[1] if sock.family == socket.AF_INET else sock.family == socket.AF_UNIX and address
    return UNCONNECTED if bound and sock.type == socket.SOCK_DGRAM else UNBOUND
