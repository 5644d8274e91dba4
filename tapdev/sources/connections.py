"""What happens on one connection of each protocol: from a connected socket to a guest that has joined."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tapdev.http_connect import serve_either
from tapdev.packet import PacketLink
from tapdev.sources.host import Complaints, Host, serve_link
from tapdev.stream import QEMU, VMNET, stream_link
from tapdev.vmnet import HandshakeError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PENDING: Final = 64  # handshakes of one source; the oldest makes place, for a client says all of it at once

# (connected socket, host, name of the guest): serves the guest until it leaves; the caller closes the socket.
Serve: TypeAlias = Callable[[socket.socket, Host, str], Awaitable[None]]


def qemu(mtu: int) -> Serve:
    """32-bit lengths, no handshake: QEMU, libkrun's unixstream, passt's clients."""

    async def serve(sock: socket.socket, host: Host, name: str) -> None:
        await serve_link(host, stream_link(sock, QEMU, mtu=mtu), name)

    return serve


def packets(mtu: int) -> Serve:
    """One frame per packet: BESS and user-mode Linux, socket pairs."""

    async def serve(sock: socket.socket, host: Host, name: str) -> None:
        await serve_link(host, PacketLink(sock, mtu=mtu), name)

    return serve


class Vmnet:
    """The VMN3T handshake or gvproxy's HTTP upgrade, as the client begins; 16-bit lengths behind either."""

    def __init__(self, mtu: int, complaints: Complaints) -> None:
        self._mtu = mtu
        self._complaints = complaints
        self._pending: dict[trio.CancelScope, None] = {}  # oldest first

    async def __call__(self, sock: socket.socket, host: Host, name: str) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            with self._patience() as scope:
                registration, received = await serve_either(stream, host.register, mtu=self._mtu)
        except (HandshakeError, Refused) as error:
            self._complaints.say(f"a client was turned away: {error}")
            return
        if scope.cancelled_caught:
            self._complaints.say(f"a client was dropped: {MAX_PENDING} others began a handshake after it")
            return
        connected = socket.socket(fileno=stream.socket.detach())
        try:
            link = stream_link(connected, VMNET, mtu=self._mtu, received=received)
        except BaseException:
            connected.close()
            raise
        await serve_link(host, link, name, registration)

    @contextmanager
    def _patience(self) -> Iterator[trio.CancelScope]:
        """A scope that ends early when too many came after it."""
        while len(self._pending) >= MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._pending[scope] = None
            try:
                yield scope
            finally:
                self._pending.pop(scope, None)
