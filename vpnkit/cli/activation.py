"""Socket activation: sockets that the service manager bound for us, sd_listen_fds(3).

They are found by their address, not by their order: a unix socket is for whatever on the command line has its path.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, MutableMapping

log = logging.getLogger(__name__)

FIRST: Final = 3  # SD_LISTEN_FDS_START
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    fd: int
    name: str  # of LISTEN_FDNAMES; "" when there is none
    address: str  # the path of a unix socket, of another what people read; "" when it is no socket

    def __str__(self) -> str:
        words = f"descriptor {self.fd}"
        if self.name:
            words += f" ({self.name})"
        return f"{words}, {self.address or 'which is no socket'}"


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


def adopt(sockets: Iterable[InheritedSocket], paths: Iterable[str], numbers: Container[int] = ()) -> dict[str, int]:
    """path -> descriptor for those of `paths` that came with a socket.

    Those whose number is in `numbers` are for whoever asked for the number.  The rest are closed, with a warning.
    """
    wanted = {os.path.realpath(path): path for path in paths}
    adopted: dict[str, int] = {}
    for inherited in sockets:
        if inherited.fd in numbers:
            continue
        path = wanted.get(os.path.realpath(inherited.address)) if inherited.address else None
        if path is None:
            log.warning("socket activation: %s, is not on the command line; closed", inherited)
            os.close(inherited.fd)
        else:
            adopted[path] = inherited.fd
    return adopted


def _address(fd: int) -> str:
    try:
        ours = socket.socket(fileno=fd)
    except OSError:
        return ""
    try:
        address = ours.getsockname()
    finally:
        ours.detach()
    if isinstance(address, bytes):  # of the abstract namespace
        return f"@{os.fsdecode(address[1:])}"
    return address if isinstance(address, str) else str(address)
