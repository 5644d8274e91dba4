"""The rules of a DNS forwarder, RFC 5625: which names are ours, whom to ask about the others, and what to believe.

A query is answered here (`LocalNames`) or becomes a `Lookup` of the `Forwarder`, which says which server to ask next
and when to stop waiting; whoever owns the sockets sends, listens and delivers.  The forwarder understands no record:
what a server answers is what the client gets, with the client's own id and spelling of the name put back, cut to the
client's buffer if the server did not (RFC 6891).

The same question from several clients, or a client that repeats itself, waits for the one lookup under way.  That is
what makes guessing ids unattractive (RFC 5452 section 5), and it also ends loops: a server that is in truth ourselves
sends the question back, it joins its own lookup, and both fail together when the time is over.

Deliberately absent: a cache (the host's resolver has one) and validation (CD, AD and signatures pass).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vpnkit.wire.dns import Query

Server: TypeAlias = tuple[str, int]  # a literal address and a port

MAX_IN_FLIGHT: Final = 512  # lookups; one more is answered SERVFAIL
MAX_WAITERS: Final = 16  # clients, or repetitions of one, per lookup; one more is dropped and will ask again
MAX_SERVERS: Final = 3  # asked about one question; what glibc takes from resolv.conf
ATTEMPT_SECONDS: Final = 1.0  # of silence before the next server is asked
TOTAL_SECONDS: Final = 4.5  # clients' own patience is 5 s
LOCAL_TTL: Final = 30  # seconds; asking us again costs nobody anything

_LOCALHOST: Final = b"\x09localhost\0"
_REVERSE_4: Final = b"\x07in-addr\x04arpa\0"
_REVERSE_6: Final = b"\x03ip6\x04arpa\0"
_LOOPBACKS: Final = (bytes((127, 0, 0, 1)), IPv6Address("::1").packed)


class Dice(Protocol):
    """The part of random.Random that is used; real ids come from random.SystemRandom."""

    def getrandbits(self, k: int, /) -> int: ...


class LocalNames:
    """Names that are answered here.  `networks` are ours, as (address, prefix length): reverse queries about an
    address in them that nobody has are answered NXDOMAIN instead of being told to strangers.

    Names are added by the operator, so the table is not bounded.
    """

    def __init__(self, networks: Iterable[tuple[bytes, int]] = ()) -> None:
        self._networks = [
            (len(address), 8 * len(address) - prefix, int.from_bytes(address, "big") >> (8 * len(address) - prefix))
            for address, prefix in networks
        ]
        self._names: dict[bytes, tuple[list[bytes], list[bytes]]] = {}  # records: A, AAAA
        self._askers: set[bytes] = set()
        self._asker = b""  # the first of them, which is what an asker's own address is called
        self._reverse: dict[bytes, bytes] = {}  # address to name
        self.add("localhost", *_LOOPBACKS)

    def add(self, name: str, *addresses: bytes) -> None:
        """`name` has `addresses` (4 or 16 octets) too; the first name of an address is the one PTR tells.

        A name without addresses exists, and has none.  Raises ValueError when it is not a domain name.
        """
        key = dns.encode_name(name)
        records = self._names.setdefault(key, ([], []))
        for address in addresses:
            four = len(address) == 4
            record = dns.encode_record(dns.A if four else dns.AAAA, LOCAL_TTL, address)
            if record not in records[not four]:
                records[not four].append(record)
            self._reverse.setdefault(address, key)

    def remove(self, name: str) -> None:
        """Undo `add`; an unknown name is ignored."""
        key = dns.encode_name(name)
        self._names.pop(key, None)
        for address in [address for address, known in self._reverse.items() if known == key]:
            del self._reverse[address]

    def add_asker(self, name: str) -> None:
        """`name` is whoever asks for it.  Raises ValueError when it is not a domain name."""
        key = dns.encode_name(name)
        self._askers.add(key)
        self._asker = self._asker or key

    def answer(self, query: Query, client_ip: bytes) -> bytes | None:
        """Our answer to the client at `client_ip` (4 or 16 octets), or None: somebody else must know."""
        name = query.name
        known = self._names.get(name)
        if known is None:
            if name in self._askers:
                record = dns.encode_record(dns.A if len(client_ip) == 4 else dns.AAAA, LOCAL_TTL, client_ip)
                known = ([record], []) if len(client_ip) == 4 else ([], [record])
            elif name.endswith(b"\x04arpa\0"):
                return self._answer_reverse(query, client_ip)
            elif name.endswith(_LOCALHOST):
                known = self._names[_LOCALHOST]  # RFC 6761 section 6.3
            else:
                return None
        if query.qclass not in (dns.IN, dns.ANY):
            return None
        if query.qtype == dns.A:
            records = known[0]
        elif query.qtype == dns.AAAA:
            records = known[1]
        else:
            records = known[0] + known[1] if query.qtype == dns.ANY else []
        return _reply(query, dns.NOERROR, records)

    def _answer_reverse(self, query: Query, client_ip: bytes) -> bytes | None:
        address = reverse_address(query.name)
        if address is None or query.qclass not in (dns.IN, dns.ANY):
            return None
        name = self._reverse.get(address) or (self._asker if address == client_ip else b"")
        if name:
            wanted = query.qtype in (dns.PTR, dns.ANY)
            return _reply(query, dns.NOERROR, [dns.encode_record(dns.PTR, LOCAL_TTL, name)] if wanted else [])
        number = int.from_bytes(address, "big")
        for length, shift, network in self._networks:
            if length == len(address) and number >> shift == network:
                return _reply(query, dns.NXDOMAIN, [])
        return None


def _reply(query: Query, rcode: int, records: Sequence[bytes]) -> bytes:
    if query.edns_version:
        return dns.encode_reply(query, dns.BADVERS)
    return dns.encode_reply(query, rcode, records, authoritative=True)


def reverse_address(name: bytes) -> bytes | None:
    """The address that a whole name under in-addr.arpa or ip6.arpa stands for, 4 or 16 octets; else None."""
    if name.endswith(_REVERSE_4):
        base, count, digits = name[: -len(_REVERSE_4)], 4, 10
    elif name.endswith(_REVERSE_6):
        base, count, digits = name[: -len(_REVERSE_6)], 32, 16
    else:
        return None
    parts: list[int] = []
    i = 0
    while i < len(base):
        label = base[i + 1 : i + 1 + base[i]]
        i += 1 + base[i]
        if not label.isalnum() or len(label) > (3 if digits == 10 else 1):
            return None
        try:
            parts.append(int(label, digits))
        except ValueError:
            return None
    if len(parts) != count or (digits == 10 and max(parts) > 255):
        return None
    parts.reverse()
    if digits == 10:
        return bytes(parts)
    return bytes(high << 4 | low for high, low in zip(parts[::2], parts[1::2], strict=True))


# What a datagram from a server means
WRONG: Final = "wrong"  # not an answer to what we asked; go on waiting
FINAL: Final = "final"
UNWILLING: Final = "unwilling"  # SERVFAIL or REFUSED: another server may know


@dataclass(slots=True, eq=False)
class Lookup:
    """One question under way.  `message` is what servers get: the client's, under an id of ours."""

    key: bytes
    query: Query
    message: bytes
    ident: int
    servers: Sequence[Server]
    started: float
    waiters: list[tuple[Query, Callable[[bytes], None]]]
    deadline: float = NEVER
    at: int = -1  # the server asked last
    asked: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    best: bytes | None = None  # the answer of an unwilling server

    def judge(self, server: int, data: bytes) -> str:
        """What `data`, received from the address of `server`, means: WRONG, FINAL or UNWILLING."""
        if not dns.answers_question(data, self.query, self.ident):
            return WRONG
        if data[3] & dns.RCODE in (dns.SERVFAIL, dns.REFUSED):
            self.best = data
            self.failed.add(server)
            return UNWILLING
        return FINAL


@dataclass
class ForwarderCounters:
    started: int = 0
    merged: int = 0  # waited for a lookup that was under way
    retried: int = 0  # questions sent again, or to the next server
    unanswered: int = 0  # SERVFAIL because all servers were silent or dead
    overflowed: int = 0  # SERVFAIL because MAX_IN_FLIGHT were under way
    crowded: int = 0  # dropped because MAX_WAITERS waited
    truncated: int = 0  # answers that a server sent bigger than the client can take


class Forwarder:
    """Lookups under way, the one that has waited longest first.  Time is seconds, and never goes back."""

    def __init__(self, rng: Dice) -> None:
        self._rng = rng
        self._pending: dict[bytes, Lookup] = {}  # in the order of their deadlines: each is put last when it is sent
        self.counters = ForwarderCounters()

    def __len__(self) -> int:
        return len(self._pending)

    def next_deadline(self) -> float:
        for lookup in self._pending.values():
            return lookup.deadline
        return NEVER

    def overdue(self, now: float) -> list[Lookup]:
        """The lookups whose server was silent for ATTEMPT_SECONDS; each must be given to `next_server` or `finish`."""
        due = []
        for lookup in self._pending.values():
            if lookup.deadline > now:
                break
            due.append(lookup)
        return due

    def ask(
        self, query: Query, message: bytes, servers: Sequence[Server], reply: Callable[[bytes], None], now: float
    ) -> Lookup | None:
        """A new lookup, which wants `next_server`; None when one under way will answer this too, or never will.

        `reply` is kept for `finish` and never called here.  The caller has seen that `is_full()` is false.
        """
        name_end = dns.HEADER.size + len(query.name)
        key = message[2 : dns.HEADER.size] + query.name + message[name_end:]
        under_way = self._pending.get(key)
        if under_way is not None:
            if len(under_way.waiters) < MAX_WAITERS:
                under_way.waiters.append((query, reply))
                self.counters.merged += 1
            else:
                self.counters.crowded += 1
            return None
        ident = self._rng.getrandbits(16)
        self.counters.started += 1
        lookup = Lookup(key, query, dns.with_ident(message, ident), ident, servers[:MAX_SERVERS], now, [(query, reply)])
        self._pending[key] = lookup
        return lookup

    def is_full(self) -> bool:
        return len(self._pending) >= MAX_IN_FLIGHT

    def next_server(self, lookup: Lookup, now: float, *, silent: bool = False) -> int | None:
        """The index of the server to ask now, or None: give up, `finish` it.

        `silent` says that nothing came at all; otherwise the last server failed.
        """
        count = len(lookup.servers)
        if now - lookup.started > TOTAL_SECONDS - ATTEMPT_SECONDS:
            return None
        for step in range(1, count + 1):
            index = (lookup.at + step) % count
            if index in lookup.failed:
                continue
            if silent and lookup.best is not None and index in lookup.asked:
                return None  # everybody had his turn, and one said something
            if lookup.asked:
                self.counters.retried += 1
            lookup.at = index
            lookup.asked.add(index)
            lookup.deadline = now + ATTEMPT_SECONDS
            del self._pending[lookup.key]
            self._pending[lookup.key] = lookup
            return index
        return None

    def finish(self, lookup: Lookup, answer: bytes | None) -> list[tuple[Callable[[bytes], None], bytes]]:
        """End a lookup.  What each of those who wait is told: `answer`, else the best there was, else SERVFAIL."""
        if self._pending.pop(lookup.key, None) is None:
            return []
        if answer is None:
            answer = lookup.best
        if answer is None:
            self.counters.unanswered += 1
            return [(reply, dns.encode_reply(query, dns.SERVFAIL)) for query, reply in lookup.waiters]
        told = []
        for query, reply in lookup.waiters:
            mine = dns.for_client(answer, query)
            if len(mine) > query.udp_size:
                self.counters.truncated += 1
                mine = dns.truncate(mine, query.udp_size)
            told.append((reply, mine))
        return told

    def abandon(self) -> list[Lookup]:
        """Forget every lookup, and say which they were."""
        lookups = list(self._pending.values())
        self._pending.clear()
        return lookups
