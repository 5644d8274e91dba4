"""A source that connects itself: QEMU's `-netdev stream,server=on`."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from tapdev.sources.host import contained
from tapdev.unix_path import connected

if TYPE_CHECKING:
    from tapdev.sources.connections import Serve
    from tapdev.sources.host import Host
    from tapdev.spec import LinkSpec

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.1  # seconds before the next attempt; doubles
LONGEST_DELAY: Final = 1.0
PATIENCE: Final = 10.0  # seconds for one TCP connection to come about


class ConnectingSource:
    """Connects for ever: at once when a guest has left, with growing pauses while nobody is there.

    A connection that lasts less than FIRST_DELAY counts as an attempt that failed.
    """

    def __init__(self, spec: LinkSpec, serve: Serve) -> None:
        self.spec = spec
        self._serve = serve
        self._scope = trio.CancelScope()
        self._closed = False

    async def run(self, host: Host) -> None:
        name = str(self.spec)
        delay = FIRST_DELAY
        told: str | None = None
        with self._scope:
            while True:
                began = trio.current_time()
                try:
                    connection = await self._connect()
                except OSError as error:
                    if told != (told := error.strerror or str(error)):
                        log.info("%s: cannot connect: %s; trying for ever", name, told)
                else:
                    told = None
                    began = trio.current_time()
                    with connection:
                        await contained(self._serve(connection, host, name), name)
                    if trio.current_time() - began >= FIRST_DELAY:
                        delay = FIRST_DELAY
                        continue
                await trio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)

    async def _connect(self) -> socket.socket:
        """Raises OSError."""
        if self.spec.path is not None:
            await trio.lowlevel.checkpoint()
            return connected(self.spec.path)
        assert self.spec.host is not None
        assert self.spec.port is not None
        with trio.move_on_after(PATIENCE):
            stream = await trio.open_tcp_stream(self.spec.host, self.spec.port)
            return socket.socket(fileno=stream.socket.detach())
        raise TimeoutError(f"no answer within {PATIENCE:g} s")

    def close(self) -> None:
        """There is nothing to give up; a `run` that goes on ends."""
        if not self._closed:
            self._closed = True
            try:
                self._scope.cancel()
            except RuntimeError:  # outside of trio: nothing runs
                pass
