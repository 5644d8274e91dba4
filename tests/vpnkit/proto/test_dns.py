from __future__ import annotations

import random

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto import dns as rules
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.dns import Forwarder, Lookup
from vpnkit.proto.dns_upstreams import Server
from vpnkit.wire import dns as wire

SERVERS = [Server("192.0.2.1"), Server("192.0.2.2")]


def query_bytes(name: str = "example.com", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()  # type: ignore[arg-type]


def answer_bytes(query: bytes, rcode: int = 0, count: int = 1) -> bytes:
    theirs = dns.message.from_wire(query)
    response = dns.message.make_response(theirs, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for number in range(count):
        response.answer.append(dns.rrset.from_text(theirs.question[0].name, 60, "IN", "A", f"10.0.0.{number}"))
    return response.to_wire(max_size=65535)


class World:
    """A forwarder and the replies it had delivered."""

    def __init__(self) -> None:
        self.forwarder = Forwarder(random.Random(1))
        self.replies: list[bytes] = []

    def begin(self, raw: bytes, servers: list[Server] = SERVERS, now: float = 0.0) -> Lookup | None:
        return self.forwarder.ask(wire.decode_query(raw), raw, servers, self.replies.append, now)

    def started(self, raw: bytes, servers: list[Server] = SERVERS, now: float = 0.0) -> Lookup:
        lookup = self.begin(raw, servers, now)
        assert lookup is not None
        return lookup

    def finish(self, lookup: Lookup, answer: bytes | None) -> None:
        for reply, data in self.forwarder.finish(lookup, answer):
            reply(data)


@pytest.fixture
def world() -> World:
    return World()


def test_only_the_id_changes(world: World) -> None:
    raw = query_bytes("Example.COM", "TYPE65400", id=77, use_edns=0, want_dnssec=True)
    lookup = world.started(raw)
    assert lookup.message[2:] == raw[2:]
    assert lookup.ident == int.from_bytes(lookup.message[:2], "big")
    assert world.forwarder.advance(lookup, 0.0) == [0]
    answer = answer_bytes(lookup.message)
    assert lookup.judge(0, answer) == rules.FINAL
    world.finish(lookup, answer)
    [told] = world.replies
    assert told == (77).to_bytes(2, "big") + answer[2:]
    assert len(world.forwarder) == 0
    assert world.forwarder.next_deadline() == NEVER


def test_ids_are_the_dices(world: World) -> None:
    idents = {world.started(query_bytes(f"n{number}.example")).ident for number in range(300)}
    assert len(idents) > 295
    assert max(idents) > 60000 > 5000 > min(idents)


def test_silence(world: World) -> None:
    """Both servers in turn each second, and the end before five seconds."""
    lookup = world.started(query_bytes(id=5))
    asked = [(0.0, world.forwarder.advance(lookup, 0.0))]
    while True:
        now = world.forwarder.next_deadline()
        assert world.forwarder.overdue(now - 0.001) == []
        assert world.forwarder.overdue(now) == [lookup]
        server = world.forwarder.advance(lookup, now, silent=True)
        if not server:
            break
        asked.append((now, server))
    assert asked == [(0.0, [0]), (1.0, [1]), (2.0, [0]), (3.0, [1])]
    assert now < 5
    world.finish(lookup, None)
    theirs = dns.message.from_wire(world.replies[0])
    assert (theirs.id, theirs.rcode(), theirs.question[0].name.to_text()) == (5, 2, "example.com.")


def test_dead_servers_are_skipped(world: World) -> None:
    lookup = world.started(query_bytes(), [Server("a"), Server("b"), Server("c")])
    assert world.forwarder.advance(lookup, 0.0) == [0]
    lookup.failed.add(0)
    assert world.forwarder.advance(lookup, 0.1) == [1]
    assert world.forwarder.next_deadline() == 1.1
    assert world.forwarder.advance(lookup, 1.1, silent=True) == [2]
    lookup.failed.add(2)
    assert world.forwarder.advance(lookup, 1.2) == [1]
    lookup.failed.add(1)
    assert world.forwarder.advance(lookup, 1.3) == []


@pytest.mark.parametrize("rcode", [wire.SERVFAIL, wire.REFUSED])
def test_unwilling_server(world: World, rcode: int) -> None:
    lookup = world.started(query_bytes())
    world.forwarder.advance(lookup, 0.0)
    assert lookup.judge(0, answer_bytes(lookup.message, rcode, 0)) == rules.UNWILLING
    assert world.forwarder.advance(lookup, 0.1) == [1]
    assert world.forwarder.advance(lookup, 1.1, silent=True) == []
    world.finish(lookup, None)
    assert dns.message.from_wire(world.replies[0]).rcode() == rcode
    assert world.forwarder.counters.unanswered == 0


@pytest.mark.parametrize("rcode", [wire.NXDOMAIN, wire.NOTIMP, wire.FORMERR, 9])
def test_other_answers_are_final(world: World, rcode: int) -> None:
    lookup = world.started(query_bytes())
    assert lookup.judge(0, answer_bytes(lookup.message, rcode, 0)) == rules.FINAL


def test_wrong_answers_change_nothing(world: World) -> None:
    lookup = world.started(query_bytes())
    good = answer_bytes(lookup.message, wire.SERVFAIL)
    for wrong in (
        b"",
        good[:11],
        good[:2] + b"\1" + good[3:],
        bytes((good[0] ^ 1,)) + good[1:],
        good[:13] + b"X" + good[14:],
    ):
        assert lookup.judge(0, wrong) == rules.WRONG  # fmt: skip
    assert (lookup.best, lookup.failed) == (None, set())


def test_the_same_question_is_asked_once(world: World) -> None:
    lookup = world.started(query_bytes("example.com", id=1))
    assert world.begin(query_bytes("eXample.com", id=2)) is None
    assert world.begin(query_bytes("example.com", id=1)) is None
    assert world.begin(query_bytes("example.com", "AAAA")) is not None
    assert world.begin(query_bytes("example.com", use_edns=0)) is not None
    world.finish(lookup, answer_bytes(lookup.message))
    assert [dns.message.from_wire(data).id for data in world.replies] == [1, 2, 1]
    assert b"eXample" in world.replies[1]
    assert world.forwarder.counters.merged == 2


def test_waiters_are_bounded(world: World) -> None:
    lookup = world.started(query_bytes(id=1))
    for _ in range(30):
        world.begin(query_bytes(id=1))
    world.finish(lookup, None)
    assert len(world.replies) == rules.MAX_WAITERS
    assert world.forwarder.counters.crowded == 31 - rules.MAX_WAITERS
    world.finish(lookup, None)  # once is enough
    assert len(world.replies) == rules.MAX_WAITERS


def test_lookups_are_bounded(world: World) -> None:
    for number in range(rules.MAX_IN_FLIGHT):
        assert not world.forwarder.is_full()
        world.begin(query_bytes(f"n{number}.example"))
    assert world.forwarder.is_full()
    assert len(world.forwarder.abandon()) == rules.MAX_IN_FLIGHT
    assert len(world.forwarder) == 0


@pytest.mark.parametrize(("options", "limit"), [({}, 512), ({"use_edns": 0, "payload": 1232}, 1232)])
def test_answers_are_cut_to_the_clients_buffer(world: World, options: dict[str, int], limit: int) -> None:
    lookup = world.started(query_bytes(**options))
    world.finish(lookup, answer_bytes(lookup.message, count=200))
    assert limit - 16 < len(world.replies[0]) <= limit
    assert world.replies[0][2] & 2
    assert world.forwarder.counters.truncated == 1


@given(
    st.lists(st.tuples(st.sampled_from(["begin", "silence", "fail", "answer"]), st.integers(0, 5), st.floats(0, 2))),
    st.integers(1, 3),
)
def test_every_question_is_answered_within_five_seconds(events: list[tuple[str, int, float]], servers: int) -> None:
    """Whatever servers do, deadlines are in order and later than now, and each lookup ends once and in time."""
    world, now = World(), 0.0
    lookups: list[Lookup] = []

    def finish(lookup: Lookup) -> None:
        assert now - lookup.started < 5
        world.finish(lookup, None)
        lookups.remove(lookup)

    def run_until(then: float) -> None:
        nonlocal now
        while world.forwarder.next_deadline() <= then:
            now = max(now, world.forwarder.next_deadline())
            for lookup in world.forwarder.overdue(now):
                if world.forwarder.advance(lookup, now, silent=True) == []:
                    finish(lookup)
            assert world.forwarder.next_deadline() > now
        now = then

    begun = 0
    for what, number, wait in events:
        run_until(now + wait)
        if what == "begin":
            begun += 1
            lookup = world.started(query_bytes(f"n{begun}.example"), [Server("x", 1)] * servers, now)
            assert world.forwarder.advance(lookup, now) == [0]
            lookups.append(lookup)
        elif lookups and what == "fail":
            lookup = lookups[number % len(lookups)]
            lookup.failed.add(lookup.at)
            if world.forwarder.advance(lookup, now) == []:
                finish(lookup)
        elif lookups and what == "answer":
            finish(lookups[number % len(lookups)])
    run_until(now + 5)
    assert not lookups
    assert len(world.replies) == begun
