"""Sources of one guest, whose descriptors are there from the start: TAP devices, adopted connections, stdio."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import trio

from tapdev.sources.host import Host, LinkError, contained, serve_link

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from tapdev.link import Link
    from tapdev.sources.connections import Serve
    from tapdev.spec import LinkSpec

    # Takes over the descriptors.  Raises OSError, leaving them.
    MakeLink: TypeAlias = Callable[[], Link]


class DescriptorSource:
    """The link that `make` makes of `descriptors` when the source runs.  `run` returns when it is closed."""

    def __init__(self, spec: LinkSpec, descriptors: Sequence[int], make: MakeLink) -> None:
        self.spec = spec
        self._descriptors = tuple(descriptors)
        self._make = make

    async def run(self, host: Host) -> None:
        await trio.lowlevel.checkpoint()
        if not self._descriptors:
            return
        try:
            link = self._make()
        except OSError as error:
            raise LinkError(f"{self.spec}: {error.strerror}") from error
        self._descriptors = ()
        await contained(serve_link(host, link, str(self.spec)), str(self.spec))

    def close(self) -> None:
        descriptors, self._descriptors = self._descriptors, ()
        for fd in set(descriptors):
            os.close(fd)


class ConnectionSource:
    """One connected socket, with its handshake if its protocol has one.  `run` returns when the guest has left."""

    def __init__(self, spec: LinkSpec, sock: socket.socket, serve: Serve) -> None:
        self.spec = spec
        self._sock = sock
        self._serve = serve
        self._ran = False

    async def run(self, host: Host) -> None:
        await trio.lowlevel.checkpoint()
        if self._ran or self._sock.fileno() < 0:
            return
        self._ran = True
        with self._sock:
            await contained(self._serve(self._sock, host, str(self.spec)), str(self.spec))

    def close(self) -> None:
        if not self._ran:
            self._sock.close()
