"""One server asked about one lookup: by a datagram from a socket of its own, or by a task that waits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from vpnkit.flow.poller import READABLE
from vpnkit.services.dns_connections import ConnectionEnded, socket_address

if TYPE_CHECKING:
    import socket

    from vpnkit.proto.dns import Lookup
    from vpnkit.services.dns_resolver import Resolver

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 65535  # octets


class Owner(Protocol):
    """Whoever is told what became of an attempt."""

    def open_socket(self, family: socket.AddressFamily, /) -> socket.socket: ...

    def heard(self, attempt: Attempt, data: bytes) -> bool:
        """It got `data`.  Whether it should go on listening."""
        ...

    def server_failed(self, attempt: Attempt) -> None:
        """It will get nothing."""
        ...

    def abandon(self, lookup: Lookup, error: BaseException) -> None:
        """Something raised that."""
        ...

    def came(self, attempt: TaskAttempt, data: bytes | None) -> None:
        """The task got `data`, or nothing; tell `heard` or `server_failed` when it suits."""
        ...


class Attempt:
    """What the two kinds have in common."""

    __slots__ = ("index", "lookup", "owner", "sent_at", "wrong")

    def __init__(self, owner: Owner, lookup: Lookup, index: int, now: float) -> None:
        self.owner = owner
        self.lookup = lookup
        self.index = index
        self.sent_at = now
        self.wrong = 0

    def send(self) -> None:
        """Ask again: the question or its answer may have been lost.  Raises OSError."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class DatagramAttempt(Attempt):
    """A socket, connected so that the kernel drops what others send; the poller's handler."""

    __slots__ = ("sock",)

    def __init__(self, owner: Owner, lookup: Lookup, index: int, now: float) -> None:
        """Send the question.  Raises OSError."""
        self.owner = owner
        self.lookup = lookup
        self.index = index
        self.sent_at = now
        self.wrong = 0
        family, address = socket_address(lookup.choice.servers[index])
        sock = self.sock = owner.open_socket(family)
        try:
            sock.connect(address)
            try:
                sock.send(lookup.message)
            except BlockingIOError:
                pass  # lost, as the network might lose it
        except BaseException:
            sock.close()
            raise

    def send(self) -> None:
        try:
            self.sock.send(self.lookup.message)
        except BlockingIOError:
            pass  # lost, as the network might lose it

    def close(self) -> None:
        self.sock.close()

    def on_ready(self, events: int) -> None:
        if not events & READABLE:
            return
        while True:
            try:
                data = self.sock.recv(MAX_ANSWER)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there, or no way leads there
                self.owner.server_failed(self)
                return
            if not self.owner.heard(self, data):
                return

    def on_failure(self, error: BaseException) -> None:
        self.owner.abandon(self.lookup, error)


class TaskAttempt(Attempt):
    """A task of the resolver that waits for the answer."""

    __slots__ = ("_cancelled", "_resolver")

    def __init__(self, owner: Owner, lookup: Lookup, index: int, now: float, resolver: Resolver) -> None:
        """Start to ask.  Raises OSError."""
        super().__init__(owner, lookup, index, now)
        if resolver.nursery is None:
            raise OSError("the resolver does not run")
        self._resolver = resolver
        self._cancelled = trio.CancelScope()
        resolver.nursery.start_soon(self._run)

    async def _run(self) -> None:
        data: bytes | None = None
        lookup = self.lookup
        with self._cancelled:
            try:
                data = await self._resolver.ask(lookup.servers[self.index], lookup.query, lookup.message)
            except ConnectionEnded as error:
                log.debug("DNS server %s: %s", lookup.servers[self.index], error)
            except Exception:  # the containment boundary of one question
                log.exception("DNS server %s: internal error", lookup.servers[self.index])
            self.owner.came(self, data)

    def send(self) -> None:
        """Nothing is lost on a connection."""

    def close(self) -> None:
        self._cancelled.cancel()
