"""Sockets of ours: bound by us, or by a service manager on our behalf."""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tapdev.sources.host import LinkError
from tapdev.spec import tcp_text
from tapdev.unix_path import BACKLOG, OwnedPath, PathError, claim
from tapdev.vsock import AF_VSOCK, ANY_CID, listen_vsock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)

SEQPACKET: Final = getattr(socket, "SOCK_SEQPACKET", None)
TYPE_NAMES: Final = {socket.SOCK_STREAM: "stream", SEQPACKET: "seqpacket", socket.SOCK_DGRAM: "datagram"}

# A name may have an address of a family that this machine has switched off.
ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class BoundSocket:
    sock: socket.socket
    owned: OwnedPath | None = None  # to be unlinked at the end; None when it has no path or is another's


def bind_unix(path: str, kind: int | None, inherited: Mapping[str, int]) -> BoundSocket:
    """A socket at `path`, listening unless it is for datagrams.  Raises LinkError."""
    if kind is None:
        raise LinkError(f"{path}: this system has no unix sockets of type seqpacket")
    for key in (path, os.path.abspath(path)):
        if key in inherited:
            return BoundSocket(adopt(inherited[key], kind, f"{path} of socket activation"))
    try:
        return BoundSocket(*claim(path, kind))
    except PathError as error:
        raise LinkError(str(error)) from error


def bind_tcp(host: str, port: int, inherited: Mapping[str, int]) -> list[BoundSocket]:
    """Listening sockets, one for each address of `host`; for port 0 one, at the first.  Raises LinkError."""
    text = tcp_text(host, port)
    if text in inherited:
        return [BoundSocket(adopt(inherited[text], socket.SOCK_STREAM, f"{text} of socket activation"))]
    bound: list[BoundSocket] = []
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((info[0], info[4]) for info in infos))
        failure = _bind_each(addresses if port else addresses[:1], bound)
    except OSError as error:
        failure = error
    if failure is not None and (not bound or failure.errno not in ABSENT):
        for made in bound:
            made.sock.close()
        raise LinkError(f"{text} cannot be bound: {_reason(failure)}") from failure
    for made in bound:
        log.info("listening on %s", socket_key(made.sock))
    return bound


def _bind_each(addresses: Iterable[tuple[int, Any]], bound: list[BoundSocket]) -> OSError | None:
    """Add a listening socket for each address to `bound`; the worst that went wrong."""
    failure = None
    for family, address in addresses:
        try:
            bound.append(BoundSocket(socket.create_server(address, family=family, backlog=BACKLOG)))
        except OSError as error:
            if failure is None or error.errno not in ABSENT:
                failure = error
    return failure


def bind_vsock(cid: int | None, port: int, inherited: Mapping[str, int]) -> BoundSocket:
    """A listening AF_VSOCK socket.  Raises LinkError."""
    for key in (vsock_text(cid, port), vsock_text(None, port)):
        if key in inherited:
            return BoundSocket(adopt(inherited[key], socket.SOCK_STREAM, f"{key} of socket activation"))
    try:
        return BoundSocket(listen_vsock(cid, port, backlog=BACKLOG))
    except OSError as error:
        raise LinkError(f"{vsock_text(cid, port)} cannot be bound: {error.strerror}") from error


def vsock_text(cid: int | None, port: int) -> str:
    return f"vsock:{port}" if cid is None else f"vsock:{cid}:{port}"


def socket_key(sock: socket.socket) -> str | None:
    """Under which name `open_source` looks for the bound socket `sock` among those that it may inherit.

    The path of a unix socket, tcp:ADDRESS:PORT, vsock:[CID:]PORT; None when it has none of these.
    """
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return address if isinstance(address, str) and address else None
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return tcp_text(address[0], address[1])
    if AF_VSOCK is not None and sock.family == AF_VSOCK:
        return vsock_text(None if address[0] == ANY_CID else address[0], address[1])
    return None


def adopt(fd: int, kind: int, what: str) -> socket.socket:
    """The descriptor `fd`, a socket of type `kind` that listens if it can, as ours.  Raises LinkError, leaving it."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise LinkError(f"{what}: descriptor {fd} is no socket: {error.strerror}") from error
    if sock.type != kind or (kind != socket.SOCK_DGRAM and not is_listening(sock)):
        found = TYPE_NAMES.get(sock.type, "other")
        sock.detach()
        wanted = "bound datagram" if kind == socket.SOCK_DGRAM else f"listening {TYPE_NAMES[kind]}"
        raise LinkError(f"{what}: descriptor {fd} must be a {wanted} socket; it is a {found} socket")
    return owned_socket(sock)


def owned_socket(sock: socket.socket) -> socket.socket:
    """`sock`, non-blocking and for no child of ours."""
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # a system that does not tell
        return not is_connected(sock)


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process has this port; take another, or end that process"
    return error.strerror or str(error)
