"""A forward of streams: it accepts, and every connection is a task of its own."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio

from portfwd.accept import Acceptor
from portfwd.complaints import Complaints
from portfwd.connect import abort
from portfwd.forward import Forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from portfwd.connect import Deliver
    from portfwd.spec import Spec

log = logging.getLogger(__name__)


class StreamForward(Forward):
    """A port or unix socket whose connections go to `deliver`."""

    def __init__(
        self,
        spec: Spec,
        listeners: list[socket.socket],
        deliver: Deliver,
        admit: Callable[[], bool] = lambda: True,
        unlink: Callable[[], None] = lambda: None,
    ) -> None:
        """`admit` says whether one more connection may be; `unlink` takes away the path that was bound, if one was."""
        addresses = [] if spec.host_path is not None else [listener.getsockname()[:2] for listener in listeners]
        super().__init__(spec, addresses)
        self._deliver = deliver
        self._admit = admit
        self._unlink = unlink
        self._scopes: set[trio.CancelScope] = set()
        self._failed = Complaints(log)
        self._full = Complaints(log)
        self._acceptors = [
            Acceptor(trio.SocketListener(trio.socket.from_stdlib_socket(listener)), f"forward {spec}")
            for listener in listeners
        ]
        self._is_open = True

    @property
    def connections(self) -> int:
        return len(self._scopes)

    def start(self, nursery: trio.Nursery) -> None:
        for acceptor in self._acceptors:
            nursery.start_soon(self._accept, acceptor, nursery)

    def close(self, *, connections: bool = False) -> None:
        if self._is_open:
            self._is_open = False
            self._unlink()
            for acceptor in self._acceptors:
                acceptor.close()
        if connections:
            for scope in self._scopes:
                scope.cancel()

    async def _accept(self, acceptor: Acceptor, nursery: trio.Nursery) -> None:
        try:
            while True:
                try:
                    stream = await acceptor.accept()
                except trio.ClosedResourceError:
                    return
                if not self._admit():
                    self.refused += 1
                    self._full.warning("forward %s: refused a connection: there are too many", self.spec)
                    abort(stream)
                    continue
                self.accepted += 1
                scope = trio.CancelScope()
                self._scopes.add(scope)
                nursery.start_soon(self._serve, stream, scope)
        finally:
            self.close()

    async def _serve(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """One connection.  Its failure is its own: the client sees a reset, the log one line."""
        with scope:
            try:
                keep_alive(stream)
                await self._deliver(stream, self.spec)
            except Exception as error:
                self.failures += 1
                self._failed.warning("forward %s: a connection failed: %s", self.spec, _reason(error))
                log.debug("forward %s", self.spec, exc_info=error)
                abort(stream)
            finally:
                self._scopes.discard(scope)
                if scope.cancel_called:
                    abort(stream)
                await trio.aclose_forcefully(stream)


def keep_alive(stream: trio.SocketStream) -> None:
    """A client that is gone without a word is noticed, by the system's clock (two hours on Linux)."""
    if stream.socket.family in (socket.AF_INET, socket.AF_INET6):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
