"""Connections to DNS servers, over TCP (RFC 7766) or TLS (RFC 7858), kept open and shared.

There is one connection to a server, with any number of questions under way on it, each under an id of its own; answers
come in any order and are matched by id and question.  It is closed when nothing was asked for a while.  A question on a
connection that ends is asked once more on a new one (RFC 7766 section 6.2.4), unless it was the first on a new one.

TLS is strict: the certificate must be valid and for the name that was given, or for the address when none was.
"""

from __future__ import annotations

import logging
import socket
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import trio

from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.proto.dns import Dice
    from vpnkit.proto.dns_upstreams import Server
    from vpnkit.wire.dns import Query

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 4.0  # for connecting and the handshake of TLS
IDLE_SECONDS: Final = 10.0  # since the last question was answered
MAX_WRONG: Final = 64  # messages in a row that answer nothing; then the connection is closed
MAX_CONNECTIONS: Final = 32  # beyond, a question fails
MAX_UNDER_WAY: Final = 4096  # questions on one connection


class ConnectionEnded(Exception):
    """The connection is gone, or never came to be; says why."""


@lru_cache(maxsize=64)
def socket_address(server: Server) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family and socket address of a literal address.  Raises OSError for anything else."""
    host, port = server.address, server.port
    if ":" not in host:
        socket.inet_pton(socket.AF_INET, host)
        return socket.AF_INET, (host, port)
    host, _, zone = host.partition("%")
    socket.inet_pton(socket.AF_INET6, host)
    scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
    return socket.AF_INET6, (host, port, 0, scope)


async def receive_message(stream: trio.abc.ReceiveStream, received: bytearray) -> bytes | None:
    """The next message of at least a header, RFC 1035 section 4.2.2, or None when the stream ends before one does.

    `received` keeps what came after it for the next call.  Shorter messages cannot be answered and are skipped.
    """
    while True:
        while len(received) >= 2 and len(received) >= (end := 2 + int.from_bytes(received[:2], "big")):
            message = bytes(received[2:end])
            del received[:end]
            if len(message) >= dns.HEADER.size:
                return message
        data = await stream.receive_some()
        if not data:
            return None
        received += data


class _Question:
    __slots__ = ("answer", "done", "query")

    def __init__(self, query: Query) -> None:
        self.query = query
        self.done = trio.Event()
        self.answer: bytes | None = None


class _Connection:
    """One connection, from before it is made until it is closed."""

    def __init__(self, owner: Connections, server: Server) -> None:
        self._owner = owner
        self._server = server
        self._under_way: dict[int, _Question] = {}
        self._outgoing = bytearray()
        self._has_outgoing = trio.Event()
        self._used_at = trio.current_time()
        self._reason = ""
        self.has_answered = False
        self.is_over = False

    async def ask(self, query: Query, message: bytes) -> bytes:
        """The response, under the id of `message`.  Raises ConnectionEnded."""
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise ConnectionEnded("too many questions are under way")
        ident = self._owner.rng.getrandbits(16)
        while ident in self._under_way:
            ident = (ident + 1) & 0xFFFF
        question = self._under_way[ident] = _Question(query)
        self._outgoing += len(message).to_bytes(2, "big") + dns.with_ident(message, ident)
        self._has_outgoing.set()
        try:
            await question.done.wait()
        finally:
            del self._under_way[ident]
            self._used_at = trio.current_time()
        if question.answer is None:
            raise ConnectionEnded(self._reason)
        return question.answer

    async def run(self) -> None:
        """Connect, and stay connected while there is a use for it."""
        try:
            with trio.move_on_after(CONNECT_SECONDS) as slow:
                stream = await self._owner.connect(self._server)
            if slow.cancelled_caught:
                self._reason = "it takes too long"
                return
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, stream)
                    nursery.start_soon(self._end_when_idle, nursery.cancel_scope)
                    await self._receive(stream)
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.CertificateError) as group:
            self._reason = _reason(group)
        finally:
            self.is_over = True
            for question in self._under_way.values():
                question.done.set()

    async def _send(self, stream: trio.abc.SendStream) -> None:
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing = trio.Event()
            data, self._outgoing = self._outgoing, bytearray()
            await stream.send_all(data)

    async def _receive(self, stream: trio.abc.ReceiveStream) -> None:
        received = bytearray()
        wrong = 0
        while wrong < MAX_WRONG and (data := await receive_message(stream, received)) is not None:
            ident = int.from_bytes(data[:2], "big")
            question = self._under_way.get(ident)
            if question is None or question.done.is_set() or not dns.answers_question(data, question.query, ident):
                wrong += 1
                self._owner.mismatched += 1
                continue
            wrong = 0
            self.has_answered = True
            question.answer = data
            question.done.set()
        self._reason = "closed by the server"

    async def _end_when_idle(self, connection: trio.CancelScope) -> None:
        while True:
            await trio.sleep_until(self._used_at + IDLE_SECONDS)
            if not self._under_way and trio.current_time() >= self._used_at + IDLE_SECONDS:
                connection.cancel()
            elif self._under_way:
                self._used_at = trio.current_time()


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return str(error) or type(error).__name__


class Connections:
    """All of them.  `run` must run while `exchange` is used; `tls` makes the context of TLS when one is needed."""

    def __init__(self, rng: Dice, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> None:
        self.rng = rng
        self.mismatched = 0
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._open: dict[Server, _Connection] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def exchange(self, server: Server, query: Query, message: bytes) -> bytes:
        """The response to `query`, sent as `message`, under that message's id.  Raises ConnectionEnded."""
        while True:
            connection = self._open.get(server)
            is_new = connection is None or connection.is_over
            if connection is None or connection.is_over:
                connection = self._connection(server)
            had_answered = connection.has_answered
            try:
                return dns.with_ident(await connection.ask(query, message), int.from_bytes(message[:2], "big"))
            except ConnectionEnded:
                if is_new or not had_answered:
                    raise

    def _connection(self, server: Server) -> _Connection:
        if self._nursery is None:
            raise ConnectionEnded("the resolver does not run")
        if len(self._open) >= MAX_CONNECTIONS and server not in self._open:
            raise ConnectionEnded("too many connections")
        made = self._open[server] = _Connection(self, server)
        self._nursery.start_soon(self._run, server, made)
        return made

    async def _run(self, server: Server, connection: _Connection) -> None:
        try:
            await connection.run()
        except Exception:  # the containment boundary of one connection
            log.exception("DNS server %s: internal error", server)
        finally:
            if self._open.get(server) is connection:
                del self._open[server]

    async def connect(self, server: Server) -> trio.abc.Stream:
        """A connection to `server`.  Raises OSError, BrokenResourceError."""
        family, address = socket_address(server)
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.connect(address)
        except BaseException:
            sock.close()
            raise
        stream = trio.SocketStream(sock)
        if server.kind != "tls":
            return stream
        try:
            if self._tls is None:
                self._tls = self._make_tls()
            name = server.tls_name or server.address.partition("%")[0]
            secure = trio.SSLStream(stream, self._tls, server_hostname=name, https_compatible=True)
            await secure.do_handshake()
        except BaseException:
            sock.close()
            raise
        return secure
