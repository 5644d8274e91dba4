"""The far end of a StreamLink, written apart from it: frames with their length over trio's own streams."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from tapdev.stream import Framing, StreamLink, stream_link

if TYPE_CHECKING:
    from collections.abc import Callable


def framed(framing: Framing, *frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(framing.size, framing.byteorder) + frame for frame in frames)


class StreamFarEnd:
    """`send` and `receive` are the two directions; `close` closes both."""

    def __init__(
        self,
        framing: Framing,
        outgoing: trio.abc.SendStream,
        incoming: trio.abc.ReceiveStream,
        close: Callable[[], None],
    ) -> None:
        self.framing = framing
        self.outgoing = outgoing
        self.incoming = incoming
        self.close = close
        self._received = bytearray()

    async def send(self, frame: bytes) -> None:
        await self.outgoing.send_all(framed(self.framing, frame))

    async def receive(self) -> bytes:
        length = int.from_bytes(await self._exactly(self.framing.size), self.framing.byteorder)
        return await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self.incoming.receive_some()
            if not data:
                raise EOFError
            self._received += data
        data = bytes(self._received[:count])
        del self._received[:count]
        return data


def over_socket(
    ours: socket.socket, theirs: socket.socket, framing: Framing, mtu: int
) -> tuple[StreamLink, StreamFarEnd]:
    theirs.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    return stream_link(ours, framing, mtu=mtu), StreamFarEnd(framing, stream, stream, stream.socket.close)


def over_unix(framing: Framing, mtu: int) -> tuple[StreamLink, StreamFarEnd]:
    return over_socket(*socket.socketpair(), framing, mtu)


def over_tcp(framing: Framing, mtu: int) -> tuple[StreamLink, StreamFarEnd]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return over_socket(ours, theirs, framing, mtu)


def over_pipes(framing: Framing, mtu: int) -> tuple[StreamLink, StreamFarEnd]:
    from_guest, guest_out = os.pipe()
    guest_in, to_guest = os.pipe()
    outgoing, incoming = trio.lowlevel.FdStream(guest_out), trio.lowlevel.FdStream(guest_in)

    def close() -> None:
        outgoing.close()
        incoming.close()

    return StreamLink(from_guest, to_guest, framing, mtu=mtu), StreamFarEnd(framing, outgoing, incoming, close)
