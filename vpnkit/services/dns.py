"""The DNS service of one LAN: our names answered at once, the others asked of the host's resolvers.

A UDP query becomes a fresh socket per server asked, connected so that the kernel drops what others send, and closed
with the answer: a random port and a random id for every question (RFC 5452 section 9).  Nothing waits in a task: the
poller says when a socket has something, one deadline for all lookups says when a server was silent too long.  A TCP
query goes upstream over TCP (RFC 5625 section 4.4.1) in a task of its own, so a slow answer keeps nobody waiting.

Zone transfers are answered NOTIMP: their answers are many messages, and nobody transfers a zone through a gateway.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import trio

from vpnkit.errors import WireError
from vpnkit.flow.host import resolver_socket
from vpnkit.flow.poller import READABLE
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.dns import ATTEMPT_SECONDS, MAX_SERVERS, TOTAL_SECONDS, UNWILLING, WRONG, Forwarder
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.flow.clock import Deadlines
    from vpnkit.flow.poller import Poller
    from vpnkit.proto.dns import Dice, LocalNames, Lookup, Server
    from vpnkit.wire.dns import Query

MAX_ANSWER: Final = 65535  # octets
MAX_WRONG: Final = 64  # answers to something else on one socket; then its server counts as dead
MAX_SOCKETS: Final = 768  # UDP sockets open; a lookup that wants another gives up its oldest
MAX_STREAMS: Final = 128  # TCP connections of guests; one more is closed at once
MAX_PIPELINED: Final = 32  # queries of one connection under way; the next is read when one is answered
MAX_STREAM_LOOKUPS: Final = 128  # TCP lookups of all connections; one more is answered SERVFAIL
IDLE_SECONDS: Final = 10.0  # between complete messages on a connection, and for a client to take an answer


@dataclass(frozen=True)
class DnsStatistics:
    udp_queries: int
    tcp_queries: int
    local: int  # answered here
    forwarded: int  # lookups started, UDP and TCP
    merged: int  # queries that waited for a lookup under way
    retried: int  # questions sent to another server, or again
    unanswered: int  # SERVFAIL: no server answered in time
    overflowed: int  # SERVFAIL: too many lookups under way
    crowded: int  # dropped: too many waited for one lookup
    malformed: int  # FORMERR, or dropped when there was not even a header
    responses: int  # dropped: a response where a query belongs
    not_implemented: int
    mismatched: int  # answers from servers to something that was not asked
    truncated: int  # answers cut to the client's buffer
    failed: int  # lookups given up because handling them raised
    idle: int  # connections closed because nothing came
    refused_streams: int  # connections closed because there were too many
    in_flight: int
    sockets: int
    streams: int


@lru_cache(maxsize=64)
def _socket_address(server: Server) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family and socket address of a literal address.  Raises OSError for anything else."""
    host, port = server
    if ":" not in host:
        socket.inet_pton(socket.AF_INET, host)
        return socket.AF_INET, (host, port)
    host, _, zone = host.partition("%")
    socket.inet_pton(socket.AF_INET6, host)
    scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
    return socket.AF_INET6, (host, port, 0, scope)


class _Attempt:
    """One socket, one server, one lookup; the poller's handler."""

    __slots__ = ("index", "lookup", "service", "sock", "wrong")

    def __init__(self, service: DnsService, lookup: Lookup, index: int) -> None:
        """Send the question.  Raises OSError."""
        family, address = _socket_address(lookup.servers[index])
        self.service = service
        self.lookup = lookup
        self.index = index
        self.wrong = 0
        self.sock = service.open_socket(family)
        try:
            self.sock.connect(address)
            self.send()
        except BaseException:
            self.sock.close()
            raise

    def send(self) -> None:
        """Send the question, or lose it as the network might.  Raises OSError."""
        try:
            self.sock.send(self.lookup.message)
        except BlockingIOError:
            pass

    def on_ready(self, events: int) -> None:
        if not events & READABLE:
            return
        while True:
            try:
                data = self.sock.recv(MAX_ANSWER)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there, or no way leads there
                self.service._server_failed(self)
                return
            verdict = self.lookup.judge(self.index, data)
            if verdict == WRONG:
                self.service._mismatched += 1
                self.wrong += 1
                if self.wrong >= MAX_WRONG:
                    self.service._server_failed(self)
                    return
            elif verdict == UNWILLING:
                self.service._server_failed(self)
                return
            else:
                self.service._finish(self.lookup, data)
                return

    def on_failure(self, error: BaseException) -> None:
        self.service._abandon(self.lookup)


class DnsService:
    """The resolver that guests see.  `servers` returns literal addresses and ports, and is called for every lookup.

    Construct it where `poller.poll()` and `deadlines` are served; it has no task of its own.
    """

    queued_at = NEVER

    def __init__(
        self,
        names: LocalNames,
        servers: Callable[[], Sequence[Server]],
        poller: Poller,
        deadlines: Deadlines,
        clock: Callable[[], float],
        rng: Dice,
        open_socket: Callable[[socket.AddressFamily], socket.socket] = resolver_socket,
    ) -> None:
        self.open_socket = open_socket
        self.names = names
        self._servers = servers
        self._poller = poller
        self._deadlines = deadlines
        self._clock = clock
        self._rng = rng
        self._forwarder = Forwarder(rng)
        self._attempts: dict[Lookup, list[_Attempt]] = {}
        self._sockets = 0
        self._streams = 0
        self._stream_lookups = 0
        self._closed = False
        self._udp_queries = self._tcp_queries = self._local = self._malformed = self._responses = 0
        self._not_implemented = self._mismatched = self._failed = self._idle = self._refused_streams = 0
        self._stream_started = self._stream_retried = self._stream_unanswered = self._stream_overflowed = 0

    def query(self, message: bytes, client_ip: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer a UDP query from `client_ip` (4 or 16 octets) by calling `reply` at most once, now or later."""
        if self._closed:
            return
        self._udp_queries += 1
        query = self._understand(message, client_ip)
        if query is None:
            return
        if isinstance(query, bytes):
            reply(query)
            return
        answer = self.names.answer(query, client_ip)
        if answer is not None:
            self._local += 1
            reply(dns.truncate(answer, query.udp_size))
            return
        forwarder = self._forwarder
        if forwarder.is_full():
            forwarder.counters.overflowed += 1
            reply(dns.encode_reply(query, dns.SERVFAIL))
            return
        lookup = forwarder.ask(query, message, self._servers(), reply, self._clock())
        if lookup is not None:
            self._attempts[lookup] = []
            self._ask_next(lookup)

    def _understand(self, message: bytes, client_ip: bytes, *, stream: bool = False) -> Query | bytes | None:
        """The query, or an answer that says what is wrong with it, or None: not to be answered at all."""
        if len(message) < dns.HEADER.size:
            self._malformed += 1
            return None
        if message[2] & 0x80:  # QR: answering responses is how two servers never stop talking (CVE-2024-2169)
            self._responses += 1
            return None
        if message[2] & 0x78:  # an opcode other than QUERY
            self._not_implemented += 1
            return dns.encode_error(message, dns.NOTIMP)
        try:
            query = dns.decode_query(message)
        except WireError:
            self._malformed += 1
            return dns.encode_error(message, dns.FORMERR)
        if query.qtype == dns.AXFR or (stream and query.qtype == dns.IXFR):
            self._not_implemented += 1
            return dns.encode_reply(query, dns.NOTIMP)
        return query

    # UDP lookups

    def next_deadline(self) -> float:
        """For the guest's Deadlines."""
        return self._forwarder.next_deadline()

    def on_deadline(self, now: float) -> None:
        """Go on to the next server for those who waited long enough."""
        for lookup in self._forwarder.overdue(now):
            self._ask_next(lookup, silent=True)

    def _ask_next(self, lookup: Lookup, *, silent: bool = False) -> None:
        forwarder = self._forwarder
        attempts = self._attempts.get(lookup)
        if attempts is None:
            return  # a reply to another lookup closed the service
        while True:
            index = forwarder.next_server(lookup, self._clock(), silent=silent)
            if index is None:
                self._finish(lookup, None)
                return
            try:
                for attempt in attempts:
                    if attempt.index == index:
                        attempt.send()  # again: its answer may have been lost
                        break
                else:
                    if self._sockets >= MAX_SOCKETS and attempts:
                        self._close(attempts.pop(0))
                    attempt = _Attempt(self, lookup, index)
                    self._sockets += 1
                    attempts.append(attempt)
                    self._poller.register(attempt.sock.fileno(), attempt)
                break
            except OSError:
                lookup.failed.add(index)
                silent = False
        self._deadlines.update(self)

    def _server_failed(self, attempt: _Attempt) -> None:
        """The server of `attempt` will not answer: ask another, unless one is being asked already."""
        lookup = attempt.lookup
        lookup.failed.add(attempt.index)
        self._attempts[lookup].remove(attempt)
        self._close(attempt)
        if lookup.at == attempt.index or not self._attempts[lookup]:
            self._ask_next(lookup)

    def _finish(self, lookup: Lookup, answer: bytes | None) -> None:
        for attempt in self._attempts.pop(lookup):
            self._close(attempt)
        for reply, data in self._forwarder.finish(lookup, answer):
            reply(data)

    def _abandon(self, lookup: Lookup) -> None:
        """Something raised: end the lookup, and tell nobody."""
        self._failed += 1
        for attempt in self._attempts.pop(lookup, ()):
            self._close(attempt)
        self._forwarder.finish(lookup, None)

    def _close(self, attempt: _Attempt) -> None:
        self._sockets -= 1
        self._poller.unregister(attempt.sock.fileno())
        attempt.sock.close()

    # TCP

    async def serve_stream(self, stream: trio.abc.HalfCloseableStream, client_ip: bytes) -> None:
        """Answer the queries on a TCP connection (RFC 7766) until the client finishes, breaks off or is idle.

        The stream is closed afterwards.  Answers leave in the order in which they come.
        """
        if self._closed or self._streams >= MAX_STREAMS:
            self._refused_streams += 1
            await trio.aclose_forcefully(stream)
            return
        self._streams += 1
        try:
            async with stream:
                await _Connection(self, stream, client_ip).serve()
        finally:
            self._streams -= 1

    async def _answer_stream(self, message: bytes, client_ip: bytes) -> bytes | None:
        self._tcp_queries += 1
        query = self._understand(message, client_ip, stream=True)
        if query is None or isinstance(query, bytes):
            return query
        answer = self.names.answer(query, client_ip)
        if answer is not None:
            self._local += 1
            return answer
        if self._stream_lookups >= MAX_STREAM_LOOKUPS:
            self._stream_overflowed += 1
            return dns.encode_reply(query, dns.SERVFAIL)
        self._stream_lookups += 1
        try:
            found = await self._look_up_stream(query, message)
        finally:
            self._stream_lookups -= 1
        if found is None:
            self._stream_unanswered += 1
            return dns.encode_reply(query, dns.SERVFAIL)
        return dns.for_client(found, query)

    async def _look_up_stream(self, query: Query, message: bytes) -> bytes | None:
        """Ask the servers over TCP; each has ATTEMPT_SECONDS until the next is asked too.  The first answer wins."""
        self._stream_started += 1
        ident = self._rng.getrandbits(16)
        sent = dns.with_ident(message, ident)
        found: bytes | None = None
        unwilling: bytes | None = None

        async def ask(server: Server, failed: trio.Event, race: trio.CancelScope) -> None:
            nonlocal found, unwilling
            try:
                data = await self._exchange(server, query, ident, sent)
            except (OSError, trio.BrokenResourceError):
                data = b""
            if data and data[3] & dns.RCODE not in (dns.SERVFAIL, dns.REFUSED):
                found = data
                race.cancel()
                return
            unwilling = data or unwilling
            failed.set()

        with trio.move_on_after(TOTAL_SECONDS):
            async with trio.open_nursery() as nursery:
                for number, server in enumerate(self._servers()[:MAX_SERVERS]):
                    self._stream_retried += number > 0
                    failed = trio.Event()
                    nursery.start_soon(ask, server, failed, nursery.cancel_scope)
                    with trio.move_on_after(ATTEMPT_SECONDS):
                        await failed.wait()
        return found or unwilling

    async def _exchange(self, server: Server, query: Query, ident: int, message: bytes) -> bytes:
        """Ask one server over a connection of its own.  Empty when it closes; raises OSError, BrokenResourceError."""
        family, address = _socket_address(server)
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        with sock:
            await sock.connect(address)
            stream = trio.SocketStream(sock)
            await stream.send_all(len(message).to_bytes(2, "big") + message)
            received = bytearray()
            while True:
                answer = await receive_message(stream, received)
                if answer is None or dns.answers_question(answer, query, ident):
                    return answer or b""
                self._mismatched += 1

    def statistics(self) -> DnsStatistics:
        counters = self._forwarder.counters
        return DnsStatistics(
            udp_queries=self._udp_queries,
            tcp_queries=self._tcp_queries,
            local=self._local,
            forwarded=counters.started + self._stream_started,
            merged=counters.merged,
            retried=counters.retried + self._stream_retried,
            unanswered=counters.unanswered + self._stream_unanswered,
            overflowed=counters.overflowed + self._stream_overflowed,
            crowded=counters.crowded,
            malformed=self._malformed,
            responses=self._responses,
            not_implemented=self._not_implemented,
            mismatched=self._mismatched,
            truncated=counters.truncated,
            failed=self._failed,
            idle=self._idle,
            refused_streams=self._refused_streams,
            in_flight=len(self._forwarder) + self._stream_lookups,
            sockets=self._sockets,
            streams=self._streams,
        )

    def close(self) -> None:
        """Forget every UDP lookup, telling nobody, and take no more queries.  Connections end with their tasks."""
        self._closed = True
        self._forwarder.abandon()
        for attempts in self._attempts.values():
            for attempt in attempts:
                self._close(attempt)
        self._attempts.clear()


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


class _Connection:
    """One guest's TCP connection."""

    def __init__(self, service: DnsService, stream: trio.abc.HalfCloseableStream, client_ip: bytes) -> None:
        self._service = service
        self._stream = stream
        self._client_ip = client_ip
        self._sending = trio.Lock()
        self._pipelined = trio.Semaphore(MAX_PIPELINED)

    async def serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self._read(nursery)
            with trio.move_on_after(IDLE_SECONDS):
                await self._stream.send_eof()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client broke off; what it asked is of no use to anybody

    async def _read(self, nursery: trio.Nursery) -> None:
        received = bytearray()
        while True:
            message = None
            with trio.move_on_after(IDLE_SECONDS) as idle:
                message = await receive_message(self._stream, received)
            if idle.cancelled_caught:
                self._service._idle += 1
                nursery.cancel_scope.cancel()
            if message is None:
                return
            await self._pipelined.acquire()
            nursery.start_soon(self._answer, message, nursery.cancel_scope)

    async def _answer(self, message: bytes, connection: trio.CancelScope) -> None:
        try:
            answer = await self._service._answer_stream(message, self._client_ip)
            if answer is None:
                return
            with trio.move_on_after(IDLE_SECONDS) as slow:
                async with self._sending:
                    await self._stream.send_all(len(answer).to_bytes(2, "big") + answer)
            if slow.cancelled_caught:
                connection.cancel()  # half a message may have left
        finally:
            self._pipelined.release()
