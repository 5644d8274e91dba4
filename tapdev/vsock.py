"""Where a VM's vsock ends on the host: AF_VSOCK, or the unix sockets that stand for it.

Firecracker, Cloud Hypervisor and vhost-device-vsock connect a guest's stream to port P of the host to the unix socket
`PATH_P` (passt-slirp-qemu.md 5.5); HyperKit connects it to `00000002.PPPPPPPP` in its directory, CID and port in
hexadecimal (gvproxy.md 1.5, vpnkit.md 1.2).  In both cases we listen.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

AF_VSOCK: Final = getattr(socket, "AF_VSOCK", None)
ANY_CID: Final = 0xFFFFFFFF  # VMADDR_CID_ANY
HOST_CID: Final = 2
PRIVILEGED: Final = 1024  # the first port that everybody may bind


def hybrid_path(path: str, port: int) -> str:
    """The unix socket behind `port` of the host, of a VM whose vsock is `path`."""
    return f"{path}_{port}"


def hyperkit_path(directory: str, port: int) -> str:
    """The unix socket behind `port` of the host, in HyperKit's `directory`."""
    return os.path.join(directory, f"{HOST_CID:08x}.{port:08x}")


def listen_vsock(cid: int | None, port: int, *, backlog: int) -> socket.socket:
    """A listening AF_VSOCK socket for guests that connect to `cid`, None for every one that we have.

    Raises OSError whose text says what would help.
    """
    if AF_VSOCK is None:
        raise OSError(errno.EAFNOSUPPORT, "this system has no AF_VSOCK; on Linux, load the module vhost_vsock")
    sock = None
    try:
        sock = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
        sock.bind((ANY_CID if cid is None else cid, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OSError(error.errno, f"{error.strerror}{_advice(error.errno, port)}") from error
    return sock


def _advice(number: int | None, port: int) -> str:
    if number == errno.EAFNOSUPPORT:
        return "; load the kernel module vhost_vsock"
    if number == errno.EADDRNOTAVAIL:
        return "; leave the CID out, or give one of this machine's own"
    if number == errno.EADDRINUSE:
        return "; another process has this port"
    if number in (errno.EACCES, errno.EPERM) and port < PRIVILEGED:
        return f"; ports below {PRIVILEGED} need root, take one above"
    return ""
