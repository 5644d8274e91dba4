"""Sources to which guests connect: any number, one after the other and at once."""

from __future__ import annotations

import errno
import logging
import socket
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from tapdev.sources.host import Complaints, contained
from tapdev.unix_path import permitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapdev.sources.bind import BoundSocket
    from tapdev.sources.connections import Serve
    from tapdev.sources.host import Host
    from tapdev.spec import LinkSpec

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 1024  # of one source at once, handshakes included
# accept(2): out of descriptors or memory.  The connection stays in the backlog, so the socket stays readable: to try
# again at once would spin.
CAPACITY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# The connection died in the backlog (accept(2) on Linux also passes on errors of the network).
DIED: Final = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETUNREACH})
BACK_OFF: Final = 0.1  # seconds
CAPACITY_INTERVAL: Final = 10.0  # seconds between two complaints about it


class Listener:
    """One listening socket, of any type that can."""

    def __init__(self, bound: BoundSocket, complaints: Complaints) -> None:
        self._sock = bound.sock
        self._sock.setblocking(False)
        self._owned = bound.owned
        self._complaints = complaints
        self._short_of_room = Complaints(complaints.name, CAPACITY_INTERVAL)

    async def accept(self) -> socket.socket:
        """The next connection of somebody who may.  Raises trio.ClosedResourceError when the listener was closed."""
        while True:
            if self._sock.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._sock)
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in DIED:
                    continue
                if error.errno not in CAPACITY:
                    raise
                self._short_of_room.say(f"cannot accept: {error.strerror}; trying again every {BACK_OFF:g} s")
                await trio.sleep(BACK_OFF)
                continue
            if self._admit(connection):
                connection.setblocking(False)
                return connection
            connection.close()

    def _admit(self, connection: socket.socket) -> bool:
        try:
            if connection.family != socket.AF_UNIX or permitted(connection):
                return True
        except OSError:  # it is gone already
            return False
        self._complaints.say("a connection of another user was refused: the VM has to run as our user or as root")
        return False

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        if self._owned is not None:
            self._owned.unlink()
        notify_closing(self._sock)
        self._sock.close()


class ListeningSource:
    """Takes over the sockets `bound`.  `serve` is what happens on each connection."""

    def __init__(
        self, spec: LinkSpec, bound: Sequence[BoundSocket], serve: Serve, complaints: Complaints | None = None
    ) -> None:
        self.spec = spec
        self._serve = serve
        self._complaints = complaints or Complaints(str(spec))
        self._listeners = [Listener(one, self._complaints) for one in bound]
        self._numbers = count(1)
        self._connections = 0

    async def run(self, host: Host) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, host, nursery)

    async def _accept(self, listener: Listener, host: Host, nursery: trio.Nursery) -> None:
        while True:
            try:
                connection = await listener.accept()
            except trio.ClosedResourceError:
                return
            if self._connections >= MAX_CONNECTIONS:
                connection.close()
                self._complaints.say(f"a connection was refused: {MAX_CONNECTIONS} are there")
                continue
            self._connections += 1
            nursery.start_soon(self._serve_one, connection, host)

    async def _serve_one(self, connection: socket.socket, host: Host) -> None:
        name = f"{self.spec}#{next(self._numbers)}"
        try:
            await contained(self._serve(connection, host, name), name)
        finally:
            connection.close()
            self._connections -= 1

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


def notify_closing(sock: socket.socket) -> None:
    """Whoever waits for `sock` has to know; outside of trio nobody can."""
    try:
        trio.lowlevel.notify_closing(sock)
    except RuntimeError:
        pass
