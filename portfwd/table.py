"""The forward table: listeners on the host, each of which hands what it accepts to one `deliver`.

A forward that names no host address listens on both loopback addresses, where there are both, at the same port.
Sockets never have SO_REUSEPORT: a port that somebody has is an error, never shared silently.

`unexpose` stops accepting; connections that are open go on until either side ends them.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from portfwd.accept import Acceptor
from portfwd.connect import abort
from portfwd.errors import ForwardError
from portfwd.owner import who_listens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from portfwd.spec import Spec

__all__ = ["Forward", "ForwardError", "ForwardTable"]

log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.0.0.1", "::1")
BACKLOG: Final = 128
PORT_ATTEMPTS: Final = 16  # to find a port that is free on both loopback addresses
NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


class Forward:
    """One exposed port.  `spec` has the port that the system chose when 0 was asked for."""

    def __init__(self, spec: Spec, listeners: list[socket.socket]) -> None:
        self.spec = spec
        self.addresses: list[tuple[str, int]] = [listener.getsockname()[:2] for listener in listeners]
        self.connections = 0  # open now
        self.accepted = 0
        self.failures = 0  # connections that `deliver` could not deliver
        self._acceptors = [
            Acceptor(trio.SocketListener(trio.socket.from_stdlib_socket(listener)), f"forward {spec}")
            for listener in listeners
        ]

    def start(self, deliver: Callable[[trio.SocketStream, Spec], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Accept in `nursery` until closed; every connection is a task of its own there."""
        for acceptor in self._acceptors:
            nursery.start_soon(self._accept, acceptor, deliver, nursery)

    def close(self) -> None:
        """Stop accepting.  Idempotent."""
        for acceptor in self._acceptors:
            acceptor.close()

    async def _accept(
        self,
        acceptor: Acceptor,
        deliver: Callable[[trio.SocketStream, Spec], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        try:
            while True:
                try:
                    stream = await acceptor.accept()
                except trio.ClosedResourceError:
                    return
                self.accepted += 1
                self.connections += 1
                nursery.start_soon(self._serve, stream, deliver)
        finally:
            acceptor.close()

    async def _serve(
        self, stream: trio.SocketStream, deliver: Callable[[trio.SocketStream, Spec], Awaitable[None]]
    ) -> None:
        """One connection.  Its failure is its own: the client sees a reset, the log one line."""
        try:
            await deliver(stream, self.spec)
        except Exception as error:
            self.failures += 1
            log.warning("forward %s: a connection failed: %s", self.spec, _reason(error))
            log.debug("forward %s", self.spec, exc_info=error)
            abort(stream)
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)


class ForwardTable:
    """Every forward of one network.  `deliver` takes an accepted connection to where its spec says, and owns it
    meanwhile; when it returns or raises, the connection is closed.
    """

    def __init__(self, deliver: Callable[[trio.SocketStream, Spec], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._forwards: list[Forward] = []

    async def expose(self, spec: Spec, nursery: trio.Nursery) -> Forward:
        """Listen for `spec`, accepting in `nursery`.  Raises ForwardError, and then nothing listens."""
        await trio.lowlevel.checkpoint()
        if spec.protocol != "tcp":
            raise ForwardError(f"cannot forward {spec}: {spec.protocol} is not there yet, tcp is")
        if spec.host_port and any(forward.spec == spec for forward in self.list()):
            raise ForwardError(f"{spec} is forwarded already")
        listeners = _listeners(spec)
        forward = Forward(replace(spec, host_port=listeners[0].getsockname()[1]), listeners)
        self._forwards.append(forward)
        forward.start(self._deliver, nursery)
        return forward

    async def unexpose(self, spec: Spec) -> None:
        """Stop listening for `spec` (with the port that was chosen).  Raises ForwardError when nothing did."""
        await trio.lowlevel.checkpoint()
        for forward in self._forwards:
            if forward.spec == spec:
                self._forwards.remove(forward)
                forward.close()
                return
        known = ", ".join(str(forward.spec) for forward in self._forwards) or "nothing is"
        raise ForwardError(f"{spec} is not forwarded; {known}")

    def list(self) -> list[Forward]:
        """The forwards, oldest first."""
        return list(self._forwards)


def _listeners(spec: Spec) -> list[socket.socket]:
    if spec.host_address is not None:
        return [_listen(spec, spec.host_address, spec.host_port)]
    for attempt in range(1, PORT_ATTEMPTS + 1):
        first = _listen_if_there(spec, LOOPBACK[0], spec.host_port)
        port = first.getsockname()[1] if first else spec.host_port
        try:
            second = _listen_if_there(spec, LOOPBACK[1], port)
        except ForwardError:
            if first:
                first.close()
            if spec.host_port == 0 and attempt < PORT_ATTEMPTS:
                continue  # the port that was free on one is not on the other
            raise
        if listeners := [listener for listener in (first, second) if listener]:
            return listeners
        break
    raise ForwardError(f"cannot forward {spec}: this host has no loopback address")


def _listen_if_there(spec: Spec, address: str, port: int) -> socket.socket | None:
    try:
        return _listen(spec, address, port)
    except ForwardError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SUCH_FAMILY:
            return None
        raise


def _listen(spec: Spec, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it means to take a port away from its owner
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if listener:
            listener.close()
        raise ForwardError(f"cannot forward {spec}: {_explain(error, address, port)}") from error
    return listener


def _explain(error: OSError, address: str, port: int) -> str:
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        owner = who_listens(address, port)
        return f"{place} is in use by {owner}" if owner else f"{place} is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this host"
    if error.errno == errno.EACCES and port < 1024:
        return f"{place} needs privilege; ports from 1024 up do not (see sysctl net.ipv4.ip_unprivileged_port_start)"
    return f"cannot listen on {place}: {error.strerror}"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
