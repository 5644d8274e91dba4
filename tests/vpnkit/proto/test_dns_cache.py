from __future__ import annotations

import random
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import dns.tsigkeyring
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vpnkit.proto import dns_cache
from vpnkit.proto.dns_cache import MAX_NEGATIVE_TTL, MAX_TTL, STALE_TTL, Cache, cache_key
from vpnkit.wire import dns as wire


def query_bytes(name: str = "www.example", rdtype: str = "A", **options: Any) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()


def rrset(name: str, ttl: int, rdclass: str, rdtype: str, text: str) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(name + ".", ttl, rdclass, rdtype, [text], origin=dns.name.root, relativize=False)


def response(query: bytes, *answer: str, authority: tuple[str, ...] = (), rcode: int = 0, **edns: Any) -> bytes:
    """Records as in a master file; with `edns` an OPT record."""
    theirs = dns.message.from_wire(query)
    made = dns.message.make_response(theirs, recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(rcode))
    made.flags |= dns.flags.AA
    for section, records in ((made.answer, answer), (made.authority, authority)):
        for record in records:
            name, ttl, rdclass, rdtype, *rest = record.split(" ")
            section.append(rrset(name, int(ttl), rdclass, rdtype, " ".join(rest)))
    if edns:
        made.use_edns(0, **edns)
    return made.to_wire(max_size=65535)


def negative(query: bytes, rcode: int = 3, ttl: int = 600, minimum: int = 300) -> bytes:
    theirs = dns.message.from_wire(query)
    made = dns.message.make_response(theirs, recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(rcode))
    made.authority.append(rrset("example", ttl, "IN", "SOA", f"ns.example admin.example 1 2 3 4 {minimum}"))
    return made.to_wire()


@pytest.fixture
def cache() -> Cache:
    return Cache()


def keep(cache: Cache, query: bytes, answer: bytes, now: float = 100.0) -> bool:
    """Whether it is known from then on."""
    decoded = wire.decode_query(query)
    before = cache.find(decoded)
    cache.store(decoded, answer, now)
    return cache.find(decoded) not in (None, before)


def get(cache: Cache, query: bytes, now: float) -> dns.message.Message | None:
    """What a client is told; None when a server must be asked."""
    decoded = wire.decode_query(query)
    entry = cache.find(decoded)
    if entry is None or now >= entry.expires:
        return None
    answer = cache.answer(entry, decoded, query, now)
    made = dns.message.from_wire(answer)
    assert dns.message.from_wire(query).is_response(made)
    return made


def ttls(message: dns.message.Message | None) -> list[int]:
    assert message is not None
    return [rrset.ttl for section in (message.answer, message.authority, message.additional) for rrset in section]


def test_ttls_count_down(cache: Cache) -> None:
    """vpnkit.md 4.2 [BUG]: answers served from the cache carry the original TTL."""
    query = query_bytes()
    assert keep(cache, query, response(query, "www.example 60 IN CNAME a.example", "a.example 30 IN A 10.0.0.1"))
    assert ttls(get(cache, query, 100.0)) == [60, 30]
    assert ttls(get(cache, query, 100.9)) == [60, 30]
    assert ttls(get(cache, query, 129.9)) == [31, 1]
    assert get(cache, query, 130.0) is None


def test_the_client_sees_its_own_id_and_spelling(cache: Cache) -> None:
    query = query_bytes("WWW.eXample", id=7)
    keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1"))
    told = get(cache, query_bytes("www.EXAMPLE", id=9), 101.0)
    assert told is not None
    assert (told.id, told.question[0].name.to_text()) == (9, "www.EXAMPLE.")
    assert not told.flags & dns.flags.AA


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize(("ttl", "minimum", "lives"), [(600, 300, 300), (200, 300, 200), (90000, 90000, 10800)])
def test_negative_answers_live_as_the_soa_says(cache: Cache, rcode: int, ttl: int, minimum: int, lives: int) -> None:
    """RFC 2308 section 5."""
    query = query_bytes()
    assert keep(cache, query, negative(query, rcode, ttl, minimum))
    told = get(cache, query, 100 + lives - 1)
    assert told is not None
    assert (told.rcode(), told.authority[0].rdtype.name, told.authority[0].ttl) == (rcode, "SOA", ttl - lives + 1)
    assert get(cache, query, 100 + lives) is None
    assert lives <= MAX_NEGATIVE_TTL


def test_what_is_not_kept(cache: Cache) -> None:
    query = query_bytes()
    good = response(query, "www.example 60 IN A 10.0.0.1")
    assert keep(cache, query, good)
    assert not keep(cache, query, response(query, "www.example 0 IN A 10.0.0.1"))
    assert not keep(cache, query, response(query))  # no data, and no SOA
    assert not keep(cache, query, response(query, rcode=3))
    assert not keep(cache, query, response(query, "www.example 60 IN CNAME b.example"))  # and what b.example is?
    assert not keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1", rcode=2))
    assert not keep(cache, query, wire.with_tc(good))
    assert not keep(cache, query, good[:-3])
    assert not keep(cache, query, good + b"x")
    referral = response(query, authority=("example 60 IN NS ns.example",))
    assert not keep(cache, query, referral)


@pytest.mark.parametrize(
    "options",
    [
        {"rdclass": "CH"},
        {"rdtype": "ANY"},
        {"use_edns": 1},
        {"use_edns": 0, "ednsflags": 0x4000},
        {"use_edns": 0, "options": [dns.edns.ECSOption("10.0.0.0", 8)]},
        {"use_edns": 0, "options": [dns.edns.GenericOption(dns.edns.OptionType.NSID, b"")]},
        {"use_edns": 0, "options": [dns.edns.GenericOption(65001, b"x")]},
    ],
)
def test_queries_that_ask_for_more_are_not_answered_from_here(options: dict[str, Any]) -> None:
    assert cache_key(wire.decode_query(query_bytes(**options))) is None


def test_signed_queries_are_not_answered_from_here() -> None:
    message = dns.message.make_query("www.example", "A")
    message.use_tsig(dns.tsigkeyring.from_text({"key.": "c2VjcmV0"}))
    assert cache_key(wire.decode_query(message.to_wire())) is None


def test_flags_and_dnssec_are_different_questions(cache: Cache) -> None:
    plain = query_bytes()
    keep(cache, plain, response(plain, "www.example 60 IN A 10.0.0.1"))
    for other in (
        query_bytes(flags=dns.flags.RD | dns.flags.CD),
        query_bytes(flags=dns.flags.RD | dns.flags.AD),
        query_bytes(flags=0),
        query_bytes(use_edns=0, want_dnssec=True),
        query_bytes(rdtype="AAAA"),
        query_bytes("other.example"),
    ):
        assert get(cache, other, 101.0) is None
    edns = get(cache, query_bytes(use_edns=0, options=[dns.edns.GenericOption(wire.COOKIE, b"12345678")]), 101.0)
    assert edns is not None
    assert (edns.edns, edns.options) == (0, ())


def test_the_servers_opt_record_stays_behind_but_for_its_reasons(cache: Cache) -> None:
    """RFC 6891 section 6: hop by hop; RFC 8914."""
    query = query_bytes(use_edns=0)
    options = [dns.edns.GenericOption(wire.COOKIE, b"x" * 16), dns.edns.EDEOption(18, "because")]
    keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1", payload=4096, options=options))
    told = get(cache, query, 101.0)
    assert told is not None
    assert [option.otype for option in told.options] == [dns.edns.OptionType.EDE]
    assert told.payload == wire.OUR_UDP_SIZE
    plain = get(cache, query_bytes(), 101.0)
    assert plain is not None
    assert plain.edns == -1


def test_answers_are_cut_to_the_buffer_with_the_right_ttls(cache: Cache) -> None:
    query = query_bytes(use_edns=0, payload=4096)
    theirs = dns.message.from_wire(query)
    made = dns.message.make_response(theirs)
    made.answer.append(dns.rrset.from_text("www.example.", 60, "IN", "A", *(f"10.0.0.{n}" for n in range(40))))
    keep(cache, query, made.to_wire())
    small = get(cache, query_bytes(), 110.0)
    assert small is not None
    assert small.flags & dns.flags.TC
    assert len(small.answer[0]) == 30
    assert small.answer[0].ttl == 50
    whole = get(cache, query, 110.0)
    assert whole is not None
    assert len(whole.answer[0]) == 40


def test_a_variant_says_what_looking_at_the_query_says(cache: Cache) -> None:
    query = query_bytes(id=1)
    keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1"))
    first = get(cache, query, 101.0)
    again = query_bytes(id=2)
    variant = cache.variants[again[2:]]
    variant.grow_older(7)
    assert dns.message.from_wire(again[:2] + variant.body).answer[0].ttl == 53
    assert first is not None
    cache.forget_variants()
    assert not cache.variants
    assert get(cache, query, 107.0) is not None
    cache.flush()
    assert (len(cache), cache.octets, cache.variants) == (0, 0, {})


def test_variants_are_bounded(cache: Cache) -> None:
    """A client that spells each query differently (0x20) makes no more than MAX_VARIANTS of one entry."""
    query = query_bytes("abcdefgh.example")
    keep(cache, query, response(query, "abcdefgh.example 60 IN A 10.0.0.1"))
    for number in range(64):
        name = "".join(c.upper() if number >> i & 1 else c for i, c in enumerate("abcdefgh"))
        get(cache, query_bytes(f"{name}.example"), 101.0)
    assert len(cache.variants) == dns_cache.MAX_VARIANTS


def test_entries_and_octets_are_bounded() -> None:
    cache = Cache(max_entries=10)
    for number in range(30):
        query = query_bytes(f"n{number}.example")
        keep(cache, query, response(query, f"n{number}.example 60 IN A 10.0.0.1"))
        assert get(cache, query_bytes("n0.example"), 101.0) is not None  # asked for again and again, it stays
    assert len(cache) == 10
    assert cache.counters.evicted == 20
    small = Cache(max_octets=5000)
    for number in range(30):
        query = query_bytes(f"n{number}.example")
        keep(small, query, response(query, f"n{number}.example 60 IN A 10.0.0.1"))
        get(small, query, 101.0)
        assert small.octets <= 5000
    assert 1 <= len(small) < 8


def test_a_ttl_is_not_believed_without_end(cache: Cache) -> None:
    query = query_bytes()
    keep(cache, query, response(query, "www.example 2000000 IN A 10.0.0.1"))
    assert get(cache, query, 100.0 + MAX_TTL - 1) is not None
    assert get(cache, query, 100.0 + MAX_TTL) is None


def test_an_answer_that_turns_out_to_be_none_leaves_what_was_known(cache: Cache) -> None:
    query = query_bytes()
    good = response(query, "www.example 60 IN A 10.0.0.1")
    keep(cache, query, good)
    get(cache, query, 101.0)
    assert cache.store(wire.decode_query(query), good[:-3], 102.0)
    assert not cache.variants
    assert ttls(get(cache, query, 103.0)) == [57]
    assert cache.octets == sum(entry.octets for entry in cache._entries.values())


def test_stale_answers(cache: Cache) -> None:
    """RFC 8767 section 4: TTL 30; RFC 8914: a reason."""
    query = query_bytes(use_edns=0)
    keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1"))
    decoded = wire.decode_query(query)
    entry = cache.find(decoded)
    assert entry is not None
    told = dns.message.from_wire(cache.stale_answer(entry, decoded, 500.0))
    assert (told.id, told.answer[0].ttl, told.options[0].code) == (4660, STALE_TTL, 3)
    missing = query_bytes("missing.example", use_edns=0)
    keep(cache, missing, negative(missing))
    entry = cache.find(wire.decode_query(missing))
    assert entry is not None
    told = dns.message.from_wire(cache.stale_answer(entry, wire.decode_query(missing), 5000.0))
    assert (told.rcode(), told.options[0].code) == (3, 19)


def test_popular_names_are_asked_for_before_their_time_is_over(cache: Cache) -> None:
    query = query_bytes()
    decoded = wire.decode_query(query)
    keep(cache, query, response(query, "www.example 60 IN A 10.0.0.1"))
    entry = cache.find(decoded)
    assert entry is not None
    for _ in range(dns_cache.POPULAR):
        get(cache, query, 110.0)
    assert not cache.wants_refresh(entry, 153.0)
    assert cache.wants_refresh(entry, 154.5)
    assert not cache.wants_refresh(entry, 154.6)
    assert cache.variants[query[2:]].until == entry.expires
    lonely = query_bytes("lonely.example")
    keep(cache, lonely, response(lonely, "lonely.example 60 IN A 10.0.0.1"))
    entry = cache.find(wire.decode_query(lonely))
    assert entry is not None
    assert not cache.wants_refresh(entry, 159.0)


@given(st.binary(max_size=200), st.binary(max_size=40), st.integers(0, 20))
def test_any_response(noise: bytes, spoil: bytes, at: int) -> None:
    """Whatever a server says is kept or not, and what is kept can be told."""
    cache = Cache()
    query = query_bytes(use_edns=0)
    good = bytearray(response(query, "www.example 60 IN CNAME b.example", "b.example 60 IN A 10.0.0.1", payload=1232))
    place = 12 + at * 4
    good[place : place + len(spoil)] = spoil
    for message in (bytes(good), query[:2] + b"\x81\x80" + query[4:] + noise, query[:12] + noise):
        if keep(cache, query, message):
            entry = cache.find(wire.decode_query(query))
            assert entry is not None
            answer = cache.answer(entry, wire.decode_query(query), query, 100.5)
            assert answer[:2] == query[:2]
            assert len(answer) <= 1232


class Asking(RuleBasedStateMachine):
    """A cache beside a model of it: a dict of what was stored when."""

    @initialize(entries=st.integers(1, 6))
    def start(self, entries: int) -> None:
        self.cache = Cache(max_entries=entries)
        self.now = 0.0
        self.stored: dict[str, tuple[float, int, str]] = {}
        self.rng = random.Random(1)

    @rule(number=st.integers(0, 8), ttl=st.integers(0, 50), address=st.integers(0, 255))
    def store(self, number: int, ttl: int, address: int) -> None:
        name = f"n{number}.example"
        query = query_bytes(name)
        kept = keep(self.cache, query, response(query, f"{name} {ttl} IN A 10.0.0.{address}"), self.now)
        assert kept is (ttl > 0)
        if kept:
            self.stored[name] = (self.now, ttl, f"10.0.0.{address}")

    @rule(seconds=st.floats(0, 20))
    def time(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        number=st.integers(0, 8),
        upper=st.booleans(),
        edns=st.sampled_from([{}, {"use_edns": 0}]),
        look=st.booleans(),
        forget=st.booleans(),
    )
    def ask(self, number: int, upper: bool, edns: dict[str, Any], look: bool, forget: bool) -> None:
        name = f"n{number}.example"
        query = query_bytes(name.upper() if upper else name, id=self.rng.getrandbits(16), **edns)
        variant = self.cache.variants.get(query[2:])
        if variant is not None and self.now < variant.until and not look:
            variant.grow_older(int(self.now - variant.entry.stored))
            told: dns.message.Message | None = dns.message.from_wire(query[:2] + variant.body)
        else:
            told = get(self.cache, query, self.now)
        entry = self.cache.find(wire.decode_query(query))
        if entry is not None and self.now < entry.expires:
            self.cache.wants_refresh(entry, self.now)
        if told is not None:
            when, ttl, address = self.stored[name]
            assert str(told.answer[0][0]) == address
            assert 0 < told.answer[0].ttl == ttl - int(self.now - when)
        elif name in self.stored and len(self.stored) <= self.cache._max_entries:
            when, ttl, _ = self.stored[name]
            assert self.now >= when + ttl
        if forget:
            self.cache.forget_variants()

    @invariant()
    def counted(self) -> None:
        cache = getattr(self, "cache", None)
        if cache is not None:
            assert len(cache) <= max(cache._max_entries, 1)
            assert cache.octets == sum(entry.octets for entry in cache._entries.values())
            assert set(cache.variants) == {
                asked for entry in cache._entries.values() for asked in getattr(entry, "queries", ())
            }


class TestAsking(Asking.TestCase):
    settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
