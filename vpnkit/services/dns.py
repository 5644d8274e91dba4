"""The DNS service of one guest: what is known answered at once, the rest asked of servers.

A query that came before is answered from the cache's variants: a dict lookup, an id, and TTLs written once a second.
Any other is looked at: our own names, zones and hosts files, the cache, and then a lookup.  A UDP query becomes a fresh
socket per server asked, connected so that the kernel drops what others send, and closed with the answer: a random port
and a random id for every question (RFC 5452 section 9).  Nothing waits in a task: the poller says when a socket has
something, one deadline for all lookups says when a server was silent too long.  A TCP query goes upstream over TCP (RFC
5625 section 4.4.1), and so does any query over TLS where that is asked for; a task waits for those, and puts what it
got where the next deadline, which is now, finds it.

Zone transfers are answered NOTIMP: their answers are many messages, and nobody transfers a zone through a gateway.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from vpnkit.flow.host import resolver_socket
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.dns import FINAL, HELD, TOTAL_SECONDS, WRONG, Forwarder
from vpnkit.proto.dns_cache import STALE_RETRY, STALE_SECONDS, cache_key
from vpnkit.proto.dns_upstreams import ATTEMPT_SECONDS
from vpnkit.services import dns64 as dns64_service
from vpnkit.services.dns_attempts import Attempt, DatagramAttempt, TaskAttempt
from vpnkit.services.dns_intake import STREAM_SIZE, understand
from vpnkit.services.dns_log import logged
from vpnkit.services.dns_statistics import DnsStatistics, Own, statistics
from vpnkit.services.dns_stream import MAX_STREAM_LOOKUPS, MAX_STREAMS, StreamClient
from vpnkit.wire import dns

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from vpnkit.flow.clock import Deadlines
    from vpnkit.flow.poller import Poller
    from vpnkit.proto.dns import Dice, Lookup
    from vpnkit.proto.dns_cache import Entry
    from vpnkit.services.dns_resolver import Resolver
    from vpnkit.wire.dns import Query

    Reply: TypeAlias = Callable[[bytes], None]

log = logging.getLogger(__name__)

MAX_LATE: Final = 16  # losers of races that are listened to; the others are not
MAX_WRONG: Final = 64  # answers to something else on one socket; then its server counts as dead
MAX_SOCKETS: Final = 768  # UDP sockets open; a lookup that wants another gives up its oldest
STALE_AFTER: Final = 1.8  # seconds without an answer until what is stale is told, RFC 8767 section 5


class DnsService:
    """The resolver that a guest sees; `resolver` is what he shares with others.

    Construct it where `poller.poll()` and `deadlines` are served; it has no task of its own.
    """

    queued_at = NEVER

    def __init__(
        self,
        resolver: Resolver,
        poller: Poller,
        deadlines: Deadlines,
        clock: Callable[[], float],
        rng: Dice,
        open_socket: Callable[[socket.AddressFamily], socket.socket] = resolver_socket,
    ) -> None:
        self.open_socket = open_socket
        self.resolver = resolver
        self._cache = resolver.cache
        self._variants = resolver.cache.variants
        self._poller = poller
        self._deadlines = deadlines
        self._clock = clock
        self._forwarder = Forwarder(rng, resolver.upstreams.patience)
        self._attempts: dict[Lookup, list[Attempt]] = {}
        self._late: dict[Attempt, float] = {}  # attempts of lookups that are over, and until when they may answer
        self._came: deque[tuple[TaskAttempt, bytes | None]] = deque()
        self._sockets = 0
        self._streams = 0
        self._stream_lookups = 0
        self._closed = False
        self.own = Own()

    def query(self, message: bytes, client_ip: bytes, reply: Reply) -> None:
        """Answer a UDP query from `client_ip` (4 or 16 octets) by calling `reply` at most once, now or later."""
        if self._closed:
            return
        self.own.udp_queries += 1
        resolver = self.resolver
        now = self._clock()
        if now >= resolver.look_at:
            resolver.look(now)
        variant = self._variants.get(message[2:])
        if variant is not None and now < variant.until and not resolver.log_queries:
            entry = variant.entry
            age = int(now - entry.stored)
            if age != variant.age:
                variant.grow_older(age)
            entry.hits += 1
            self._cache.counters.hits += 1
            reply(message[:2] + variant.body)
            return
        query = understand(message, self.own)
        if query is None:
            return
        if isinstance(query, bytes):
            reply(query)
            return
        self._answer(query, message, client_ip, reply, now)

    def _answer(
        self, query: Query, message: bytes, client_ip: bytes, reply: Reply, now: float, *, stream: bool = False
    ) -> None:
        """Answer from anywhere."""
        resolver = self.resolver
        if resolver.log_queries:
            reply = logged(query, client_ip, reply, now, self._clock)
        if resolver.nat64 is not None and dns64_service.answers(
            query,
            message,
            reply,
            resolver.nat64,
            known=lambda: resolver.answer(query, client_ip) is not None,
            ask=lambda inner, told: self._inner(inner, client_ip, told, stream),
        ):
            return
        answer = resolver.answer(query, client_ip)
        if answer is not None:
            self.own.local += 1
            reply(dns.truncate(answer, query.udp_size))
            return
        self._look_up(query, message, reply, now, stream=stream, may_repeat=not stream)

    def _inner(self, message: bytes, client_ip: bytes, reply: Reply, stream: bool) -> None:
        """Ask something that no client asked: `reply` gets all of the answer."""
        query = dns.decode_query(message)
        query.udp_size = STREAM_SIZE
        answer = self.resolver.answer(query, client_ip)
        if answer is not None:
            reply(answer)
        else:
            self._look_up(query, message, reply, self._clock(), stream=stream)

    # Lookups

    def _look_up(
        self, query: Query, message: bytes, reply: Reply, now: float, *, stream: bool, may_repeat: bool = False
    ) -> None:
        """Answer from the cache or by asking.  `may_repeat`: the same message will have the same answer."""
        cache = self._cache
        key = cache_key(query)
        entry = cache.find_key(key) if key is not None else None
        if entry is not None and now < entry.expires:
            reply(cache.answer(entry, query, message, now, keep=may_repeat))
            if cache.wants_refresh(entry, now) and not self._forwarder.is_full():
                self._start(query, message, None, now, key, None, stream=stream)
            return
        cache.counters.misses += 1
        if entry is not None and now >= entry.expires + STALE_SECONDS:
            entry = None
        if entry is not None and now < entry.retry_at:
            reply(cache.stale_answer(entry, query, now))
            return
        forwarder = self._forwarder
        if forwarder.is_full():
            forwarder.counters.overflowed += 1
            reply(dns.encode_reply(query, dns.SERVFAIL) if entry is None else cache.stale_answer(entry, query, now))
            return
        self._start(query, message, reply, now, key, entry, stream=stream)

    def _start(
        self,
        query: Query,
        message: bytes,
        reply: Reply | None,
        now: float,
        key: bytes | None,
        stale: Entry | None,
        *,
        stream: bool,
    ) -> None:
        """Ask servers; `reply` is None when nobody waits, `key` what the answer is kept under, `stale` what to say
        when they are gone."""
        resolver = self.resolver
        choice = resolver.choose(query, now)
        if stale is not None and reply is not None:
            under_way = self._forwarder.under_way(query, message, stream=stream)
            told_already = under_way is not None and under_way.stale is not None and under_way.stale_at == NEVER
            if choice.hopeless or told_already:
                reply(self._cache.stale_answer(stale, query, now))
                reply = None
        lookup = self._forwarder.ask(query, message, choice, reply, now, stream=stream)
        if lookup is None:
            return
        if stale is not None:
            lookup.stale = stale
            if reply is not None:
                lookup.stale_at = now + STALE_AFTER
        lookup.cache_key = key
        lookup.generation = resolver.generation
        attempts: list[Attempt] = []
        self._attempts[lookup] = attempts
        if not choice.is_single or stream:
            self._ask_next(lookup)
            return
        # nearly always: what `_ask_next` does, without its loops
        self._forwarder.advance_single(lookup, resolver.upstreams.patience(choice.servers[0]), now)
        if not self._ask(lookup, attempts, 0, now):
            self._ask_next(lookup)
        elif lookup.deadline < self.queued_at:
            self._deadlines.update(self)

    def next_deadline(self) -> float:
        """For the guest's Deadlines."""
        if self._came:
            return float("-inf")
        if self._late:
            return min(self._forwarder.next_deadline(), *self._late.values())
        return self._forwarder.next_deadline()

    def on_deadline(self, now: float) -> None:
        """Hear what tasks got, and go on to the next server for those who waited long enough."""
        while self._came:
            attempt, data = self._came.popleft()
            if attempt not in self._attempts.get(attempt.lookup, ()) and attempt not in self._late:
                continue
            with self._contained(attempt.lookup):
                if data is None or self.heard(attempt, data):
                    self.server_failed(attempt)
        for late in [late for late, until in self._late.items() if until <= now]:
            self.server_failed(late)
        for lookup in self._forwarder.overdue(now):
            with self._contained(lookup):
                self._overdue(lookup, now)

    def _overdue(self, lookup: Lookup, now: float) -> None:
        stale = lookup.stale
        if stale is not None and now >= lookup.stale_at:
            lookup.stale_at = NEVER
            self._tell_stale(lookup, stale, now)
        if now < lookup.attempt_ends:
            self._forwarder.wait(lookup)
            return
        self._count_silence(lookup, now)
        self._ask_next(lookup, silent=True)

    def _tell_stale(self, lookup: Lookup, stale: Entry, now: float) -> None:
        for reply, data in self._forwarder.tell(lookup, lambda query: self._cache.stale_answer(stale, query, now)):
            reply(data)

    def _count_silence(self, lookup: Lookup, now: float) -> None:
        """Those who were asked and have not answered in their time are failing, each once.  Where servers race, the
        forwarder says who is."""
        upstreams = self.resolver.upstreams
        for attempt in () if lookup.choice.racing else self._attempts.get(lookup, ()):
            server = lookup.servers[attempt.index]
            if attempt.index not in lookup.silent and now >= attempt.sent_at + upstreams.patience(server):
                lookup.silent.add(attempt.index)
                upstreams.failed(server, now)

    def _ask_next(self, lookup: Lookup, *, silent: bool = False) -> None:
        forwarder = self._forwarder
        while True:
            attempts = self._attempts.get(lookup)
            if attempts is None:
                return  # a reply to another lookup closed the service
            now = self._clock()
            known = set(lookup.silent) if lookup.choice.racing else lookup.silent
            chosen = forwarder.advance(lookup, now, silent=silent)
            if lookup.choice.racing:
                for index in lookup.silent - known:
                    self.resolver.upstreams.failed(lookup.servers[index], now)
            if not chosen:
                self._finish(lookup, None)
                return
            asked = [self._ask(lookup, attempts, index, now) for index in chosen]
            if any(asked):
                break
            silent = False
        self._deadlines.update(self)

    def _ask(self, lookup: Lookup, attempts: list[Attempt], index: int, now: float) -> bool:
        """Ask one server, or ask it again; whether that was possible."""
        server = lookup.servers[index]
        try:
            for attempt in attempts:
                if attempt.index == index:
                    attempt.send()
                    return True
            if lookup.stream or server.kind != "dns":
                attempts.append(TaskAttempt(self, lookup, index, now, self.resolver))
                return True
            if self._sockets >= MAX_SOCKETS:
                oldest = next((attempt for attempt in attempts if isinstance(attempt, DatagramAttempt)), None)
                if oldest is not None:
                    attempts.remove(oldest)
                    self._close(oldest)
            made = DatagramAttempt(self, lookup, index, now)
            self._sockets += 1
            attempts.append(made)
            self._poller.register_reader(made.sock.fileno(), made)
        except OSError:
            lookup.failed.add(index)
            self.resolver.upstreams.failed(server, now)
            return False
        return True

    # What attempts tell

    def heard(self, attempt: Attempt, data: bytes) -> bool:
        lookup = attempt.lookup
        verdict = lookup.judge(attempt.index, data)
        if verdict == FINAL and lookup.choice.is_single and lookup in self._attempts:  # nearly always
            now = self._clock()
            self.resolver.upstreams.answered(lookup.choice.servers[0], now - attempt.sent_at)
            for over in self._attempts.pop(lookup):
                self._close(over)
            if lookup.cache_key is not None and lookup.generation == self.resolver.generation:
                self._cache.store_key(lookup.cache_key, lookup.query, data, now)
            for reply, answer in self._forwarder.finish(lookup, data):
                reply(answer)
            return False
        if lookup not in self._attempts:
            return self._heard_late(attempt, verdict)
        if verdict == WRONG:
            self.own.mismatched += 1
            attempt.wrong += 1
            if attempt.wrong < MAX_WRONG:
                return True
            self.server_failed(attempt)
            return False
        self.resolver.upstreams.answered(lookup.servers[attempt.index], self._clock() - attempt.sent_at)
        lookup.answered_by = attempt.index
        if verdict == FINAL:
            self._finish(lookup, lookup.best)
        elif verdict == HELD:
            self._attempts[lookup].remove(attempt)
            self._close(attempt)
        else:
            self._go_on_without(attempt)
        return False

    def server_failed(self, attempt: Attempt) -> None:
        self.resolver.upstreams.failed(attempt.lookup.servers[attempt.index], self._clock())
        if attempt.lookup in self._attempts:
            self._go_on_without(attempt)
        else:
            self._forget_late(attempt)

    # Those who lost a race are listened to for a while: that is how one is known to be back, or not so slow any more.

    def _heard_late(self, attempt: Attempt, verdict: str) -> bool:
        if verdict == WRONG:
            self.own.mismatched += 1
            attempt.wrong += 1
            if attempt.wrong < MAX_WRONG:
                return True
            self._forget_late(attempt)
            return False
        self.resolver.upstreams.answered(attempt.lookup.servers[attempt.index], self._clock() - attempt.sent_at)
        self._forget_late(attempt)
        return False

    def _forget_late(self, attempt: Attempt) -> None:
        if self._late.pop(attempt, None) is not None:
            self._close(attempt)

    def _go_on_without(self, attempt: Attempt) -> None:
        """The server of `attempt` will not help: ask another, unless one is being asked already."""
        lookup = attempt.lookup
        lookup.failed.add(attempt.index)
        attempts = self._attempts[lookup]
        attempts.remove(attempt)
        self._close(attempt)
        if lookup.choice.racing:
            if lookup.is_decided() or not attempts:
                self._finish(lookup, None)
        elif lookup.at == attempt.index or not attempts:
            self._ask_next(lookup)

    def came(self, attempt: TaskAttempt, data: bytes | None) -> None:
        self._came.append((attempt, data))
        self._deadlines.update(self)

    def _finish(self, lookup: Lookup, answer: bytes | None) -> None:
        self._end_attempts(lookup, listen=lookup.choice.at_once > 1 and not lookup.choice.racing)
        answer = lookup.best if answer is None else answer
        now = self._clock()
        if answer is None or answer[3] & dns.RCODE in (dns.SERVFAIL, dns.REFUSED):
            stale = lookup.stale
            if stale is not None:
                stale.retry_at = now + STALE_RETRY
                self._tell_stale(lookup, stale, now)
        elif lookup.cache_key is not None and lookup.generation == self.resolver.generation:
            self._cache.store_key(lookup.cache_key, lookup.query, answer, now)
        for reply, data in self._forwarder.finish(lookup, answer):
            reply(data)

    @contextmanager
    def _contained(self, lookup: Lookup) -> Iterator[None]:
        """What raises while one lookup is served ends that lookup, and no other."""
        try:
            yield
        except Exception as error:
            self.abandon(lookup, error)

    def abandon(self, lookup: Lookup, error: BaseException) -> None:
        """Something raised: end the lookup, and tell nobody."""
        log.error("a lookup failed", exc_info=error)
        self.own.failed += 1
        self._end_attempts(lookup)
        self._forwarder.finish(lookup, None)

    def _end_attempts(self, lookup: Lookup, *, listen: bool = False) -> None:
        for attempt in self._attempts.pop(lookup, ()):
            over = attempt.index in (lookup.answered_by, *lookup.silent, *lookup.failed)
            if listen and not over and len(self._late) < MAX_LATE:
                self._late[attempt] = attempt.sent_at + ATTEMPT_SECONDS
                self._deadlines.update(self)
            else:
                self._close(attempt)

    def _close(self, attempt: Attempt) -> None:
        if isinstance(attempt, DatagramAttempt):
            self._sockets -= 1
            self._poller.closing(attempt.sock.fileno())
        attempt.close()

    # TCP

    async def serve_stream(self, stream: trio.abc.HalfCloseableStream, client_ip: bytes) -> None:
        """Answer the queries on a TCP connection (RFC 7766) until the client finishes, breaks off or is idle.

        The stream is closed afterwards.  Answers leave in the order in which they come.
        """
        if self._closed or self._streams >= MAX_STREAMS:
            self.own.refused_streams += 1
            await trio.aclose_forcefully(stream)
            return
        self._streams += 1
        try:
            async with stream:
                await StreamClient(self, stream, client_ip).serve()
        finally:
            self._streams -= 1

    async def answer_stream(self, message: bytes, client_ip: bytes) -> bytes | None:
        """The answer to a message that came over TCP, or None when it gets none."""
        self.own.tcp_queries += 1
        now = self._clock()
        if now >= self.resolver.look_at:
            self.resolver.look(now)
        query = understand(message, self.own, stream=True)
        if query is None or isinstance(query, bytes):
            return query
        if self._stream_lookups >= MAX_STREAM_LOOKUPS:
            self.own.stream_overflowed += 1
            return dns.encode_reply(query, dns.SERVFAIL)
        answered = trio.Event()
        answers: list[bytes] = []

        def reply(data: bytes) -> None:
            answers.append(data)
            answered.set()

        self._stream_lookups += 1
        try:
            self._answer(query, message, client_ip, reply, now, stream=True)
            with trio.move_on_after(2 * TOTAL_SECONDS):  # or nobody will: it was one too many
                await answered.wait()
        finally:
            self._stream_lookups -= 1
        return answers[0] if answers else dns.encode_reply(query, dns.SERVFAIL)

    def statistics(self) -> DnsStatistics:
        return statistics(
            self.own,
            self._forwarder.counters,
            self.resolver,
            in_flight=len(self._forwarder),
            sockets=self._sockets,
            streams=self._streams,
        )

    def close(self) -> None:
        """Forget every lookup, telling nobody, and take no more queries.  Connections end with their tasks."""
        self._closed = True
        self._forwarder.abandon()
        for lookup in list(self._attempts):
            self._end_attempts(lookup)
        for attempt in list(self._late):
            self._forget_late(attempt)
        self._came.clear()
