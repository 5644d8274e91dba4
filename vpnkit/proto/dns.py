"""The rules of a DNS forwarder, RFC 5625: what to ask whom next, and what to believe.

A query that nobody here can answer becomes a `Lookup` of the `Forwarder`, which says which servers to ask next and when
to stop waiting; whoever owns the sockets sends, listens and delivers.  The forwarder understands no record: what a
server answers is what the client gets, with the client's own id and spelling of the name put back, cut to the client's
buffer if the server did not (RFC 6891).

The same question from several clients, or a client that repeats itself, waits for the one lookup under way.  That is
what makes guessing ids unattractive (RFC 5452 section 5), and it also ends loops: a server that is in truth ourselves
sends the question back, it joins its own lookup, and both fail together when the time is over.

Deliberately absent: validation (CD, AD and signatures pass).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.dns_upstreams import ATTEMPT_SECONDS, MAX_SERVERS, Choice
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vpnkit.proto.dns_cache import Entry
    from vpnkit.proto.dns_upstreams import Server
    from vpnkit.wire.dns import Query

MAX_IN_FLIGHT: Final = 512  # lookups; one more is answered SERVFAIL
MAX_WAITERS: Final = 16  # clients, or repetitions of one, per lookup; one more is dropped and will ask again
MAX_TWINS: Final = 8  # lookups of one question that differ in flags or options; one more is dropped
SWEEP_AT: Final = 256  # entries in the heap of deadlines, beyond four for each lookup
TOTAL_SECONDS: Final = 4.5  # clients' own patience is 5 s
IDENTS: Final = 64  # ids drawn at once; the kernel is asked for each draw

_FIRST: Final = MappingProxyType({0: 1})  # the first server was asked once


class Dice(Protocol):
    """The part of random.Random that is used; real ids come from random.SystemRandom."""

    def getrandbits(self, k: int, /) -> int: ...


# What a datagram from a server means
WRONG: Final = "wrong"  # not an answer to what we asked; go on waiting
FINAL: Final = "final"
UNWILLING: Final = "unwilling"  # SERVFAIL or REFUSED: another server may know
HELD: Final = "held"  # an answer, but one that is still asked may have a better one


class Lookup:
    """One question under way.  `message` is what servers get: the client's, under an id of ours.

    What most lookups never need is the class's until it is assigned: to make one costs half of what it would.
    """

    cache_key: bytes | None = None  # what its answer is kept under; None: it is not
    deadline: float = NEVER  # when it wants to be looked at
    attempt_ends: float = NEVER  # when the last server asked has been silent long enough
    stale: Entry | None = None  # what to say when nobody answers,
    stale_at: float = NEVER  # or when nobody did until then
    at: int = -1  # the server asked last
    asked: Mapping[int, int] = MappingProxyType({})  # how often
    answered_by: int = -1  # the server heard last
    heard: Mapping[int, bytes] = MappingProxyType({})  # the answers of servers that race
    generation: int = 0  # of what the servers were chosen from
    best: bytes | None = None  # the answer of an unwilling server, or the one that won

    def __init__(
        self,
        key: bytes,
        question: bytes,
        query: Query,
        message: bytes,
        ident: int,
        choice: Choice,
        started: float,
        waiters: list[tuple[Query, Callable[[bytes], None]]],
        stream: bool = False,
    ) -> None:
        self.key = key
        self.question = question  # its name in lower case, type and class
        self.query = query
        self.message = message
        self.ident = ident
        self.choice = choice
        self.started = started
        self.waiters = waiters
        self.stream = stream  # servers are asked over TCP
        self.failed: set[int] = set()
        self.silent: set[int] = set()  # those whose silence was counted

    @property
    def servers(self) -> Sequence[Server]:
        return self.choice.servers

    def judge(self, server: int, data: bytes) -> str:
        """What `data`, received from the address of `server`, means."""
        if not dns.answers_question(data, self.query, self.ident):
            return WRONG
        if self.choice.racing:
            self.heard = {**self.heard, server: data}
            self.failed.add(server)
            return FINAL if self.is_decided() else HELD
        if data[3] & dns.RCODE in (dns.SERVFAIL, dns.REFUSED):
            self.best = data
            self.failed.add(server)
            return UNWILLING
        self.best = data
        return FINAL

    def is_decided(self) -> bool:
        """Where servers race: whether `best` is the answer, since nobody who is waited for may have a better one.

        An answer with records wins over one without, then NXDOMAIN over other failures; lower orders come first.
        """
        waiting = [
            self.servers[i].order
            for i in range(self.choice.awaited)
            if i not in self.failed and i not in self.silent
        ]  # fmt: skip
        ranks = [(_rank(data), self.servers[i].order, i) for i, data in self.heard.items()]
        if not ranks:
            return False
        rank, order, index = min(ranks)
        self.best = self.heard[index]
        return not waiting or (rank == 0 and all(order <= other for other in waiting))


def _rank(data: bytes) -> int:
    rcode = data[3] & dns.RCODE
    if rcode == dns.NOERROR:
        return 0 if data[6:8] != b"\0\0" else 1
    return 1 if rcode == dns.NXDOMAIN else 2


@dataclass
class ForwarderCounters:
    started: int = 0
    merged: int = 0  # waited for a lookup that was under way
    retried: int = 0  # questions sent again, or to the next server
    raced: int = 0  # questions sent to one more server at once
    unanswered: int = 0  # SERVFAIL because all servers were silent or dead
    overflowed: int = 0  # SERVFAIL because MAX_IN_FLIGHT were under way
    crowded: int = 0  # dropped because MAX_WAITERS waited, or there were MAX_TWINS
    truncated: int = 0  # answers that a server sent bigger than the client can take


def _one_second(_: Server) -> float:
    return ATTEMPT_SECONDS


class Forwarder:
    """Lookups under way.  Time is seconds, and never goes back; `patience` is how long a server is waited for."""

    def __init__(self, rng: Dice, patience: Callable[[Server], float] = _one_second) -> None:
        self._rng = rng
        self._patience = patience
        self._pending: dict[bytes, Lookup] = {}
        self._twins: dict[bytes, int] = {}  # how many lookups of one question there are, where there are more
        self._heap: list[tuple[float, int, Lookup]] = []  # entries whose time is not the lookup's mean nothing
        self._numbers = count()
        self._idents: list[int] = []
        self.counters = ForwarderCounters()

    def __len__(self) -> int:
        return len(self._pending)

    def next_deadline(self) -> float:
        heap = self._heap
        while heap:
            when, _, lookup = heap[0]
            if lookup.deadline == when:
                return when
            heapq.heappop(heap)
        return NEVER

    def overdue(self, now: float) -> list[Lookup]:
        """The lookups that want to be looked at; each must be given to `advance`, `wait` or `finish`."""
        due = []
        while self.next_deadline() <= now:
            lookup = heapq.heappop(self._heap)[2]
            lookup.deadline = NEVER
            due.append(lookup)
        return due

    def wait(self, lookup: Lookup) -> None:
        """Look at it again when the attempt ends, or when clients are told what is stale."""
        deadline = lookup.attempt_ends
        if lookup.stale_at < deadline:
            deadline = lookup.stale_at
        if deadline != lookup.deadline:
            lookup.deadline = deadline
            heapq.heappush(self._heap, (deadline, next(self._numbers), lookup))
            if len(self._heap) > SWEEP_AT + 4 * len(self._pending):
                self._sweep()

    def under_way(self, query: Query, message: bytes, *, stream: bool = False) -> Lookup | None:
        """The lookup that will answer this too, if there is one."""
        return self._pending.get(_key(query, message, stream))

    def ask(
        self,
        query: Query,
        message: bytes,
        choice: Choice | Sequence[Server],
        reply: Callable[[bytes], None] | None,
        now: float,
        *,
        stream: bool = False,
    ) -> Lookup | None:
        """A new lookup, which wants `advance`; None when one under way will answer this too, or never will.

        `reply` is kept for `finish` and never called here; None when nobody waits.  The caller has seen that
        `is_full()` is false.
        """
        key = _key(query, message, stream)
        under_way = self._pending.get(key)
        if under_way is not None:
            if reply is None:
                return None
            if len(under_way.waiters) < MAX_WAITERS:
                under_way.waiters.append((query, reply))
                self.counters.merged += 1
            else:
                self.counters.crowded += 1
            return None
        question = query.name + query.question[-4:]
        twins = self._twins
        if question in twins:
            if twins[question] >= MAX_TWINS:
                self.counters.crowded += 1
                return None
            twins[question] += 1
        else:
            twins[question] = 1
        if not isinstance(choice, Choice):
            servers = tuple(choice)[:MAX_SERVERS]
            choice = Choice(servers, 1, len(servers), racing=False, hopeless=False)
        ident = self._idents.pop() if self._idents else self._draw()
        self.counters.started += 1
        waiters = [] if reply is None else [(query, reply)]
        sent = ident.to_bytes(2, "big") + message[2:]
        lookup = self._pending[key] = Lookup(key, question, query, sent, ident, choice, now, waiters, stream)
        return lookup

    def _draw(self) -> int:
        bits = self._rng.getrandbits(16 * IDENTS)
        self._idents = [bits >> 16 * i & 0xFFFF for i in range(IDENTS)]
        return self._idents.pop()

    def is_full(self) -> bool:
        return len(self._pending) >= MAX_IN_FLIGHT

    def advance(self, lookup: Lookup, now: float, *, silent: bool = False) -> list[int]:
        """The indices of the servers to ask now; when there are none, give up, `finish` it.

        `silent` says that nothing came at all; otherwise the last server failed.
        """
        chosen = self._racing(lookup, now) if lookup.choice.racing else self._in_turn(lookup, now, silent)
        lookup.asked = {**lookup.asked, **{index: lookup.asked.get(index, 0) + 1 for index in chosen}}
        if chosen:
            lookup.at = chosen[-1]
            self.wait(lookup)
        return chosen

    def advance_single(self, lookup: Lookup, patience: float, now: float) -> None:
        """The first `advance` of a lookup whose choice is single: its server is asked now, and may take `patience`."""
        lookup.asked = _FIRST
        lookup.at = 0
        lookup.attempt_ends = deadline = now + patience
        if lookup.stale_at < deadline:
            deadline = lookup.stale_at
        lookup.deadline = deadline
        heap = self._heap
        if len(heap) >= SWEEP_AT + 4 * len(self._pending):
            self._sweep()
        heapq.heappush(self._heap, (deadline, next(self._numbers), lookup))

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
        heapq.heapify(self._heap)

    def _in_turn(self, lookup: Lookup, now: float, silent: bool) -> list[int]:
        servers = lookup.servers
        if not lookup.asked:
            chosen = list(range(min(lookup.choice.at_once, len(servers))))
            self.counters.raced += max(len(chosen) - 1, 0)
            if chosen:
                lookup.attempt_ends = now + min(self._patience(servers[i]) for i in chosen)
            return chosen
        for step in range(1, len(servers) + 1):
            index = (lookup.at + step) % len(servers)
            if index in lookup.failed:
                continue
            if silent and lookup.best is not None and index in lookup.asked:
                return []  # everybody had his turn, and one said something
            seconds = min(self._patience(servers[index]) * 2 ** lookup.asked.get(index, 0), ATTEMPT_SECONDS)
            if now + seconds > lookup.started + TOTAL_SECONDS:
                return []
            lookup.attempt_ends = now + seconds
            self.counters.retried += 1
            return [index]
        return []

    def _racing(self, lookup: Lookup, now: float) -> list[int]:
        if lookup.asked:
            for i, server in enumerate(lookup.servers):
                if now >= lookup.started + min(server.timeout, TOTAL_SECONDS - ATTEMPT_SECONDS):
                    lookup.silent.add(i)
            if lookup.is_decided():
                return []
        asked = [i for i in range(len(lookup.servers)) if i not in lookup.failed and i not in lookup.silent]
        again = bool(lookup.asked)
        self.counters.retried += len(asked) if again else 0
        self.counters.raced += max(len(asked) - 1, 0) if not again else 0
        ends = now + ATTEMPT_SECONDS
        for i in asked:
            ends = min(ends, max(lookup.started + lookup.servers[i].timeout, now + 0.001))
        lookup.attempt_ends = ends
        return asked

    def tell(self, lookup: Lookup, make: Callable[[Query], bytes]) -> list[tuple[Callable[[bytes], None], bytes]]:
        """What each of those who wait is told; the lookup goes on without them."""
        waiters, lookup.waiters = lookup.waiters, []
        return [(reply, make(query)) for query, reply in waiters]

    def finish(self, lookup: Lookup, answer: bytes | None) -> list[tuple[Callable[[bytes], None], bytes]]:
        """End a lookup.  What each of those who wait is told: `answer`, else the best there was, else SERVFAIL."""
        if self._pending.pop(lookup.key, None) is None:
            return []
        lookup.deadline = lookup.attempt_ends = lookup.stale_at = NEVER
        twins = self._twins.pop(lookup.question) - 1
        if twins:
            self._twins[lookup.question] = twins
        if answer is None:
            answer = lookup.best
        if answer is None:
            self.counters.unanswered += 1
            return self.tell(lookup, lambda query: dns.encode_reply(query, dns.SERVFAIL))
        waiters, lookup.waiters = lookup.waiters, []
        return [(reply, self._for_client(answer, query)) for query, reply in waiters]

    def _for_client(self, answer: bytes, query: Query) -> bytes:
        if answer.startswith(query.question, dns.HEADER.size) and answer[4:6] == b"\0\1":  # nearly always
            mine = query.ident.to_bytes(2, "big") + answer[2:]
        else:
            mine = dns.for_client(answer, query)
        if len(mine) > query.udp_size:
            self.counters.truncated += 1
            return dns.truncate(mine, query.udp_size)
        return mine

    def abandon(self) -> list[Lookup]:
        """Forget every lookup, and say which they were."""
        lookups = list(self._pending.values())
        self._pending.clear()
        self._twins.clear()
        self._heap.clear()
        return lookups


def _key(query: Query, message: bytes, stream: bool) -> bytes:
    name_end = dns.HEADER.size + len(query.name)
    key = message[2 : dns.HEADER.size] + query.name + message[name_end:]
    return key + b"T" if stream else key
