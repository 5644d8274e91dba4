"""Getting to where a guest's forwarder is."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from portfwd.mux.address import ForwarderAddress

MAX_REPLY: Final = 32  # octets of Firecracker's "OK PORT\n"
AF_VSOCK: Final = getattr(socket, "AF_VSOCK", None)


async def connect(address: ForwarderAddress) -> trio.SocketStream:
    """A stream to the forwarder.  Raises OSError."""
    if address.kind == "tcp":
        return await trio.open_tcp_stream(address.where, address.port)
    if address.kind == "vsock":
        return await _connect_vsock(address)
    if address.kind == "hyperkit":
        stream = await trio.open_unix_socket(os.path.join(address.where, "connect"))
    else:
        stream = await trio.open_unix_socket(address.where)
    try:
        if address.kind == "hyperkit":
            await stream.send_all(f"{address.cid:08x}.{address.port:08x}\n".encode())
        elif address.kind == "fc-vsock":
            await stream.send_all(f"CONNECT {address.port}\n".encode())
            await _confirmed(stream, address)
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            raise OSError(f"{address}: it closed the connection") from error
        raise
    return stream


async def _connect_vsock(address: ForwarderAddress) -> trio.SocketStream:
    if AF_VSOCK is None:
        raise OSError("this system has no AF_VSOCK")
    made = trio.socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    try:
        await made.connect((address.cid, address.port))
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


async def _confirmed(stream: trio.SocketStream, address: ForwarderAddress) -> None:
    """Firecracker says `OK PORT`, or closes."""
    line = b""
    while not line.endswith(b"\n"):
        octet = await stream.receive_some(1)  # what follows is not ours to read yet
        if not octet or len(line) >= MAX_REPLY:
            raise OSError(f"{address}: nobody listens there in the guest")
        line += octet
    if not line.startswith(b"OK "):
        raise OSError(f"{address}: it says {line!r}")
