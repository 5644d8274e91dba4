"""Socket activation: sockets that the service manager bound for us, sd_listen_fds(3).

They are found by their address, not by their order: a socket is for whatever on the command line has its path, or its
TCP or vsock address.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapdev.sources import bound_path, socket_key
from tapdev.sources.bind import vsock_text
from tapdev.spec import Kind, tcp_text

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, MutableMapping

    from tapdev.spec import LinkSpec

log = logging.getLogger(__name__)

FIRST: Final = 3  # SD_LISTEN_FDS_START
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    fd: int
    name: str  # of LISTEN_FDNAMES; "" when there is none
    address: str  # a path, tcp:ADDRESS:PORT or vsock:[CID:]PORT; "" when it has none of these

    def __str__(self) -> str:
        words = f"descriptor {self.fd}"
        if self.name:
            words += f" ({self.name})"
        return f"{words}, {self.address or 'of unknown address'}"


def inherited_sockets(environ: MutableMapping[str, str]) -> list[InheritedSocket]:
    """What the service manager passed to this process; no child of ours inherits it, nor the variables.

    Empty when there is none, and when it is meant for another process.
    """
    pid, count, names = (environ.get(variable, "") for variable in VARIABLES[:3])
    for variable in VARIABLES:
        environ.pop(variable, None)
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit()):
        log.warning("LISTEN_FDS is %r, not a number; socket activation is left out", count)
        return []
    labels = names.split(":") if names else []
    found = []
    for index in range(int(count)):
        fd = FIRST + index
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            log.warning("LISTEN_FDS is %s, but descriptor %d: %s", count, fd, error.strerror)
            break
        found.append(InheritedSocket(fd, labels[index] if index < len(labels) else "", _address(fd)))
    return found


def addresses(spec: LinkSpec) -> list[str]:
    """Under which addresses a socket for `spec` may have been bound."""
    path = bound_path(spec)
    if path is not None:
        return [path]
    if spec.kind is Kind.QEMU and spec.host is not None and spec.port is not None:
        return [tcp_text(spec.host, spec.port)]
    if spec.kind is Kind.VSOCK and spec.port is not None:
        return [vsock_text(spec.cid, spec.port), vsock_text(None, spec.port)]
    return []


def adopt(sockets: Iterable[InheritedSocket], wanted: Iterable[str], numbers: Container[int] = ()) -> dict[str, int]:
    """address -> descriptor for those of `wanted` that came with a socket.

    Those whose number is in `numbers` are for whoever asked for the number.  The rest are closed, with a warning.
    """
    known = {_canonical(address): address for address in wanted}
    adopted: dict[str, int] = {}
    for inherited in sockets:
        if inherited.fd in numbers:
            continue
        address = known.get(_canonical(inherited.address)) if inherited.address else None
        if address is None:
            log.warning("socket activation: %s, is not on the command line; closed", inherited)
            os.close(inherited.fd)
        else:
            adopted[address] = inherited.fd
    return adopted


def _canonical(address: str) -> str:
    return address if address.startswith(("tcp:", "vsock:")) else os.path.realpath(address)


def _address(fd: int) -> str:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return ""
    try:
        return socket_key(sock) or ""
    finally:
        sock.detach()
