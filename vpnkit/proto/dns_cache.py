"""A cache of answers: what a server said is said again, with the time since then taken off every TTL.

An answer is kept under its question, the flags of the query, and whether DNSSEC records were wanted; it is put together
anew for each client, with the client's spelling, id and buffer.  A query that came before octet for octet (apart from
its id) needs no looking at: the `Variant` made for it then is a dict lookup away, and its TTLs are written at most once
a second.

What is not kept: answers that were cut or failed, without a TTL, negative ones without a SOA (RFC 2308 section 5), and
answers to queries with anything in them that could change the answer: other classes, unknown EDNS options (client
subnets, name server ids), signatures.  An OPT record speaks for one hop (RFC 6891 section 6), so the server's is not
kept, apart from the reasons it gives (RFC 8914), and an answer from here has ours.

RFC 8767: an answer whose time is over stays for STALE_SECONDS, for when nobody can say better.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.wire import dns

if TYPE_CHECKING:
    from vpnkit.wire.dns import Query, Record

MAX_ENTRIES: Final = 8192  # the one not asked for longest makes room
MAX_OCTETS: Final = 16 << 20  # of all answers and variants
MAX_VARIANTS: Final = 4  # of one entry; other spellings are put together each time
MAX_VARIANT: Final = 1452  # octets; a bigger answer is put together each time
OVERHEAD: Final = 600  # octets that an entry or a variant takes besides its messages

MAX_TTL: Final = 86400  # seconds that an answer is kept, whatever its TTL (RFC 8767 section 4 wants a bound)
MAX_NEGATIVE_TTL: Final = 10800  # RFC 2308 section 5
STALE_SECONDS: Final = 86400  # RFC 8767 section 5: 1 to 3 days
STALE_TTL: Final = 30  # RFC 8767 section 4
STALE_RETRY: Final = 30.0  # seconds, RFC 8767 section 5: after a failure nobody is asked again for so long
POPULAR: Final = 3  # questions for an entry that make it worth asking anew before its time is over
PREFETCH_AT: Final = 0.9  # of its time
MIN_PREFETCH_TTL: Final = 10  # seconds; shorter ones would be asked all the time

_TTL: Final = struct.Struct("!L")
_NOTHING: Final = bytes(4)  # no records in two sections; a TTL of 0
_KEPT: Final = (dns.NOERROR, dns.NXDOMAIN)
_ABOUT_IT: Final = dns.POINTER_TO_QUESTION  # how nearly every first record begins
_HARMLESS: Final = frozenset({dns.COOKIE, dns.TCP_KEEPALIVE, dns.PADDING})  # options that change no answer


@dataclass(slots=True, eq=False)
class Variant:
    """An entry, as the answer to one very query.  `body` is the message after its id."""

    entry: Entry
    template: bytearray
    ttls: list[tuple[int, int]]  # where each is, and what it was
    body: bytes = b""
    age: int = -1  # seconds; what `body` says
    until: float = 0.0  # when the entry must be looked at

    def grow_older(self, age: int) -> None:
        """Say how long ago it was, in seconds."""
        template = self.template
        for offset, ttl in self.ttls:
            _TTL.pack_into(template, offset, ttl - age if ttl > age else 0)
        self.age = age
        self.body = bytes(template[2:])


@dataclass(slots=True, eq=False)
class Entry:
    """An answer.  Times are those of the caller's clock, in seconds."""

    key: bytes
    flags: int
    counts: tuple[int, int, int]  # of answers, authority and additional records, without the OPT record
    tail: bytes  # what follows the question, without the OPT record
    shift: int  # the length of the question
    ttls: list[tuple[int, int]]  # where in `tail`, and what
    reasons: bytes  # EDNS options
    stored: float
    expires: float
    refresh_at: float
    hits: int = 0
    refreshing: bool = False
    retry_at: float = 0.0  # when a stale entry may be asked for again
    queries: list[bytes] = field(default_factory=list)  # those that have a variant
    octets: int = 0

    def is_negative(self) -> bool:
        return self.flags & dns.RCODE == dns.NXDOMAIN


@dataclass(slots=True, eq=False)
class Unread:
    """A response that nobody has asked for since it came."""

    key: bytes
    response: bytes
    stored: float
    before: Entry | None  # what was known, until it is read
    octets: int = 0


@dataclass
class CacheCounters:
    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    stale: int = 0  # answers whose time was over
    truncated: int = 0  # answers that were bigger than the client can take, when they were put together
    prefetched: int = 0  # lookups for entries whose time was nearly over


class Cache:
    """Answers of servers, and what they are for.  It does no lookup and has no clock."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_octets: int = MAX_OCTETS) -> None:
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._entries: OrderedDict[bytes, Entry | Unread] = OrderedDict()
        self.variants: dict[bytes, Variant] = {}  # by the query after its id
        self.octets = 0
        self.counters = CacheCounters()

    def __len__(self) -> int:
        return len(self._entries)

    def flush(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.variants.clear()
        self.octets = 0

    def forget_variants(self) -> None:
        """Names that are answered elsewhere changed: look at every query again."""
        for entry in self._entries.values():
            self.octets -= entry.octets
            self._forget_variants_of(entry)
            self.octets += entry.octets

    def find(self, query: Query) -> Entry | None:
        """What is known about `query`, be its time over or not; `Entry.expires` and `STALE_SECONDS` say."""
        key = cache_key(query)
        return None if key is None else self.find_key(key)

    def find_key(self, key: bytes) -> Entry | None:
        """What is known under a key, likewise."""
        found = self._entries.get(key)
        if found is None:
            return None
        if isinstance(found, Unread):
            return self._read(found)
        self._entries.move_to_end(key)
        return found

    def wants_refresh(self, entry: Entry, now: float) -> bool:
        """Whether a fresh entry is worth asking for before its time is over.  True once until it is stored again."""
        if now < entry.refresh_at or entry.refreshing:
            return False
        entry.refresh_at = entry.expires  # asked once: if nobody looks, it ends
        for asked in entry.queries:
            self.variants[asked].until = entry.expires
        if entry.hits < POPULAR:
            return False
        entry.refreshing = True
        self.counters.prefetched += 1
        return True

    def answer(self, entry: Entry, query: Query, message: bytes, now: float, *, keep: bool = True) -> bytes:
        """The answer to `query`, which came as `message`, from a fresh entry.

        With `keep` the same message will have the same answer, without being looked at.
        """
        self.counters.hits += 1
        entry.hits += 1
        variant = self.variants.get(message[2:]) if keep else None
        if variant is None:
            variant = self._variant(entry, query)
            small = len(variant.template) <= MAX_VARIANT
            if keep and small and not query.options and len(entry.queries) < MAX_VARIANTS:
                self.variants[message[2:]] = variant
                entry.queries.append(message[2:])
                self._grow(entry, 3 * len(variant.template) + OVERHEAD)
        variant.grow_older(int(now - entry.stored))
        variant.until = min(entry.refresh_at, entry.expires)
        return message[:2] + variant.body

    def stale_answer(self, entry: Entry, query: Query, now: float) -> bytes:
        """The answer to `query` from an entry whose time is over, RFC 8767."""
        self.counters.stale += 1
        why = dns.extended_error(dns.STALE_NXDOMAIN if entry.is_negative() else dns.STALE_ANSWER)
        variant = self._variant(entry, query, why)
        age = int(now - entry.stored)
        for offset, ttl in variant.ttls:
            _TTL.pack_into(variant.template, offset, ttl - age if ttl > age else STALE_TTL)
        return query.ident.to_bytes(2, "big") + bytes(variant.template[2:])

    def _variant(self, entry: Entry, query: Query, why: bytes = b"") -> Variant:
        edns = query.edns_flags >= 0
        answers, authority, additional = entry.counts
        head = dns.HEADER.pack(0, entry.flags, 1, answers, authority, additional + edns)
        message = head + query.question + entry.tail
        if edns:
            message += dns.encode_opt(query.edns_flags & dns.DO, entry.reasons + why)
        at = dns.HEADER.size + len(query.question)
        ttls = [(at + offset, ttl) for offset, ttl in entry.ttls]
        if len(message) > query.udp_size:
            self.counters.truncated += 1
            message = dns.truncate(message, query.udp_size)
            end = len(message) - 4
            kept = sum(dns.HEADER.unpack_from(message)[3:5])
            ttls = [(offset, ttl) for offset, ttl in ttls[:kept] if offset <= end]
        return Variant(entry, bytearray(message), ttls)

    def store(self, query: Query, response: bytes, now: float) -> bool:
        """Keep the response to `query`, which was seen to answer it; False when it is one that is not kept.

        It is read when it is asked for, and only then may turn out to be none to keep: most answers are asked for once.
        """
        key = cache_key(query)
        return key is not None and self.store_key(key, query, response, now)

    def store_key(self, key: bytes, query: Query, response: bytes, now: float) -> bool:
        """The same, where the query's key is known."""
        if response[2] & 0x02 or response[3] & 0x0F not in _KEPT:  # TC, and the rcode
            return False
        if response[4:6] != b"\0\1" or response[6:10] == _NOTHING:
            return False
        first = dns.HEADER.size + len(query.question)
        if response.startswith(_ABOUT_IT, first) and response[first + 6 : first + 10] == _NOTHING:
            return False  # the TTL of the first record
        before = self._entries.pop(key, None)
        if before is not None:
            self.octets -= before.octets
            self._forget_variants_of(before)
        kept = before if isinstance(before, Entry) else None
        unread = self._entries[key] = Unread(key, response, now, kept)
        self.counters.stored += 1
        self._grow(unread, len(response) + OVERHEAD + (kept.octets if kept is not None else 0))
        return True

    def _read(self, unread: Unread) -> Entry | None:
        """What was stored, or what was known before when that is none to keep."""
        try:
            entry = _entry(unread.key, unread.response, unread.stored)
        except WireError:
            entry = None
        del self._entries[unread.key]
        self.octets -= unread.octets
        if entry is not None:
            entry.hits = unread.before.hits // 2 if unread.before is not None else 0  # popular is who is so again
            entry.octets = _size(entry)
        else:
            entry = unread.before
            if entry is None:
                return None
        self._entries[unread.key] = entry
        self.octets += entry.octets
        return entry

    def _grow(self, entry: Entry | Unread, octets: int) -> None:
        entry.octets += octets
        self.octets += octets
        if len(self._entries) <= self._max_entries and self.octets <= self._max_octets:
            return
        while len(self._entries) > 1 and (len(self._entries) > self._max_entries or self.octets > self._max_octets):
            oldest = next(iter(self._entries.values()))
            if oldest is entry:  # only when it is itself the one not asked for longest
                self._entries.move_to_end(oldest.key)
                continue
            self._remove(oldest)
            self.counters.evicted += 1

    def _remove(self, entry: Entry | Unread) -> None:
        del self._entries[entry.key]
        self.octets -= entry.octets
        self._forget_variants_of(entry)

    def _forget_variants_of(self, entry: Entry | Unread) -> None:
        if isinstance(entry, Entry):
            for asked in entry.queries:
                del self.variants[asked]
            entry.queries.clear()
            entry.octets = _size(entry)


def cache_key(query: Query) -> bytes | None:
    """What answers to `query` are kept under; None when they are not to be kept."""
    if not query.is_plain or query.qclass != dns.IN or query.qtype == dns.OPT or 128 <= query.qtype <= dns.ANY:
        return None
    if query.edns_flags >= 0:
        if query.edns_flags & ~dns.DO:
            return None
        if query.options:
            try:
                if not _HARMLESS.issuperset(dns.option_codes(query.options)):
                    return None
            except WireError:
                return None
        if query.edns_flags:
            return b"\1" + query.flags.to_bytes(2, "big") + query.name + query.question[-4:]
    return b"\0" + query.flags.to_bytes(2, "big") + query.name + query.question[-4:]


def _size(entry: Entry) -> int:
    return len(entry.tail) + len(entry.key) + OVERHEAD


def _entry(key: bytes, response: bytes, now: float) -> Entry | None:
    """Raises WireError."""
    flags = int.from_bytes(response[2:4], "big")
    start, records = dns.records(response)
    end = len(response)
    reasons = b""
    if records and records[-1].end != end:
        return None  # there is something behind the message
    opts = [record for record in records if record.rtype == dns.OPT]
    if opts:
        opt = opts[0]
        if len(opts) > 1 or opt is not records[-1] or opt.ttl >> 16:
            return None  # an extended rcode, or a later version
        options = dns.split_options(response[opt.data : opt.end])
        reasons = b"".join(whole for code, whole in options if code == dns.EXTENDED_ERROR)
        end = opt.start
        records.pop()
    ttl = _lifetime(flags, response, records, int.from_bytes(response[start - 4 : start - 2], "big"))
    if ttl <= 0:
        return None
    _, _, _, answers, authority, additional = dns.HEADER.unpack_from(response)
    return Entry(
        key,
        flags & ~dns.AA,
        (answers, authority, additional - len(opts)),
        response[start:end],
        start - dns.HEADER.size,
        [(record.data - 6 - start, record.ttl) for record in records],
        reasons,
        now,
        now + ttl,
        now + ttl * PREFETCH_AT if ttl >= MIN_PREFETCH_TTL else now + ttl,
    )


def _lifetime(flags: int, response: bytes, records: list[Record], qtype: int) -> int:
    """Seconds that an answer may be kept; 0 when not at all."""
    if not records:
        return 0
    ttl = min(min(record.ttl for record in records), MAX_TTL)
    answered = any(record.section == dns.ANSWER and record.rtype == qtype for record in records)
    if answered and flags & dns.RCODE == dns.NOERROR:
        return ttl
    for record in records:
        if record.section == dns.AUTHORITY and record.rtype == dns.SOA and record.end - record.data >= 22:
            minimum: int = _TTL.unpack_from(response, record.end - 4)[0]
            return min(ttl, minimum, MAX_NEGATIVE_TTL)
    return 0
