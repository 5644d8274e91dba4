"""Connecting to a guest's vsock port: no link of his is needed, only his CID."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from portfwd.spec import Spec

CONNECT_SECONDS: Final = 10.0
AF_VSOCK: Final = getattr(socket, "AF_VSOCK", None)  # Linux


async def connect_vsock(spec: Spec) -> trio.SocketStream:
    """A stream to `spec`'s vsock port.  Raises OSError."""
    if AF_VSOCK is None:
        raise OSError("this system has no AF_VSOCK")
    where = f"vsock {spec.guest_cid}:{spec.guest_port}"
    try:
        made = trio.socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(error.errno, f"{where}: {error.strerror}") from error
    try:
        with trio.fail_after(CONNECT_SECONDS):
            await made.connect((spec.guest_cid, spec.guest_port))
    except BaseException as error:
        made.close()
        if isinstance(error, trio.TooSlowError):
            raise OSError(f"{where} did not answer in {CONNECT_SECONDS:g} s") from error
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{where}: {error.strerror}") from error
        raise
    return trio.SocketStream(made)
