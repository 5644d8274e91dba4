from __future__ import annotations

import random
from ipaddress import ip_address

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto import dns as rules
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.dns import Forwarder, LocalNames, Lookup
from vpnkit.wire import dns as wire

GUEST = bytes((192, 168, 65, 3))
GATEWAY = bytes((192, 168, 65, 1))
GATEWAY_6 = ip_address("fd65:7670:6e6b::1").packed
SERVERS = [("192.0.2.1", 53), ("192.0.2.2", 53)]


def query_bytes(name: str = "example.com", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()  # type: ignore[arg-type]


def answer_bytes(query: bytes, rcode: int = 0, count: int = 1) -> bytes:
    theirs = dns.message.from_wire(query)
    response = dns.message.make_response(theirs, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for number in range(count):
        response.answer.append(dns.rrset.from_text(theirs.question[0].name, 60, "IN", "A", f"10.0.0.{number}"))
    return response.to_wire(max_size=65535)


# Names


@pytest.fixture
def names() -> LocalNames:
    made = LocalNames([(bytes((192, 168, 65, 0)), 24), (ip_address("fd65:7670:6e6b::").packed, 64)])
    made.add("gateway.internal", GATEWAY, GATEWAY_6)
    made.add("Gateway.Docker.Internal.", GATEWAY)
    made.add("host.internal", bytes((192, 168, 65, 2)))
    made.add_asker("vm.internal")
    return made


def ask(names: LocalNames, name: str, rdtype: str = "A", client: bytes = GUEST, **options: object) -> str | None:
    raw = query_bytes(name, rdtype, **options)
    reply = names.answer(wire.decode_query(raw), client)
    if reply is None:
        return None
    answer = dns.message.from_wire(reply)
    assert dns.message.from_wire(raw).is_response(answer)
    assert answer.question[0].name.to_text().rstrip(".") == name.rstrip(".")
    return " ".join([answer.rcode().name if hasattr(answer.rcode(), "name") else str(answer.rcode())] + [
        str(item) for rrset in answer.answer for item in rrset
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("gateway.internal", "A", "NOERROR 192.168.65.1"),
        ("gateway.internal", "AAAA", "NOERROR fd65:7670:6e6b::1"),
        ("gateway.internal", "ANY", "NOERROR 192.168.65.1 fd65:7670:6e6b::1"),
        ("GateWay.docker.INTERNAL", "A", "NOERROR 192.168.65.1"),
        ("gateway.docker.internal", "AAAA", "NOERROR"),
        ("gateway.docker.internal", "HTTPS", "NOERROR"),
        ("vm.internal", "A", "NOERROR 192.168.65.3"),
        ("vm.internal", "AAAA", "NOERROR"),
        ("x.vm.internal", "A", None),
        ("example.com", "A", None),
        (".", "NS", None),
        ("localhost", "A", "NOERROR 127.0.0.1"),
        ("a.LOCALHOST", "AAAA", "NOERROR ::1"),
        ("localhost", "MX", "NOERROR"),
        ("notlocalhost", "A", None),
        ("localhost.example.com", "A", None),
        ("1.65.168.192.in-addr.arpa", "PTR", "NOERROR gateway.internal."),
        ("2.65.168.192.in-addr.arpa", "PTR", "NOERROR host.internal."),
        ("3.65.168.192.in-addr.arpa", "PTR", "NOERROR vm.internal."),
        ("4.65.168.192.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("1.65.168.192.in-addr.arpa", "A", "NOERROR"),
        ("1.66.168.192.in-addr.arpa", "PTR", None),
        ("65.168.192.in-addr.arpa", "SOA", None),
        ("1.0.0.127.in-addr.arpa", "PTR", "NOERROR localhost."),
        (ip_address("fd65:7670:6e6b::1").reverse_pointer, "PTR", "NOERROR gateway.internal."),
        (ip_address("fd65:7670:6e6b::9").reverse_pointer, "PTR", "NXDOMAIN"),
        (ip_address("2001:db8::1").reverse_pointer, "PTR", None),
    ],
)
def test_answers(names: LocalNames, name: str, rdtype: str, expected: str | None) -> None:
    assert ask(names, name, rdtype) == expected


def test_the_asker_is_whoever_asks(names: LocalNames) -> None:
    assert ask(names, "vm.internal", client=bytes((192, 168, 65, 9))) == "NOERROR 192.168.65.9"
    assert ask(names, "vm.internal", "AAAA", client=GATEWAY_6) == "NOERROR fd65:7670:6e6b::1"


def test_other_classes_are_not_ours(names: LocalNames) -> None:
    assert ask(names, "gateway.internal", rdclass="CH") is None
    assert ask(names, "1.65.168.192.in-addr.arpa", "PTR", rdclass="CH") is None


def test_edns_versions(names: LocalNames) -> None:
    assert ask(names, "gateway.internal", use_edns=0) == "NOERROR 192.168.65.1"
    assert ask(names, "gateway.internal", use_edns=1) == "BADVERS"


def test_names_come_and_go(names: LocalNames) -> None:
    names.add("db.internal", GUEST)
    names.add("db.internal", GUEST, GATEWAY)
    assert ask(names, "db.internal") == "NOERROR 192.168.65.3 192.168.65.1"
    assert ask(names, "3.65.168.192.in-addr.arpa", "PTR") == "NOERROR db.internal."
    names.remove("DB.internal")
    names.remove("unknown")
    assert ask(names, "db.internal") is None
    assert ask(names, "3.65.168.192.in-addr.arpa", "PTR") == "NOERROR vm.internal."
    assert ask(names, "1.65.168.192.in-addr.arpa", "PTR") == "NOERROR gateway.internal."
    with pytest.raises(ValueError, match="not a domain name"):
        names.add("a..b", GUEST)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_reverse_names_round_trip(address: bytes) -> None:
    assert rules.reverse_address(wire.reverse_name(address)) == address


@pytest.mark.parametrize(
    "name",
    [
        "256.1.1.1.in-addr.arpa",
        "1.1.1.in-addr.arpa",
        "1.1.1.1.1.in-addr.arpa",
        "a.1.1.1.in-addr.arpa",
        "0001.1.1.1.in-addr.arpa",
        "-1.1.1.1.in-addr.arpa",
        "1_1.1.1.1.in-addr.arpa",
        "in-addr.arpa",
        "ip6.arpa",
        "g" + ".0" * 31 + ".ip6.arpa",
        "10" + ".0" * 31 + ".ip6.arpa",
        "arpa",
    ],
)
def test_not_reverse_names(name: str) -> None:
    assert rules.reverse_address(wire.encode_name(name)) is None


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"]))
def test_any_name(base: bytes, suffix: bytes) -> None:
    rules.reverse_address(base + suffix)


# Forwarding


class World:
    """A forwarder and the replies it had delivered."""

    def __init__(self) -> None:
        self.forwarder = Forwarder(random.Random(1))
        self.replies: list[bytes] = []

    def begin(self, raw: bytes, servers: list[tuple[str, int]] = SERVERS, now: float = 0.0) -> Lookup | None:
        return self.forwarder.ask(wire.decode_query(raw), raw, servers, self.replies.append, now)

    def started(self, raw: bytes, servers: list[tuple[str, int]] = SERVERS, now: float = 0.0) -> Lookup:
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
    assert world.forwarder.next_server(lookup, 0.0) == 0
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
    asked = [(0.0, world.forwarder.next_server(lookup, 0.0))]
    while True:
        now = world.forwarder.next_deadline()
        assert world.forwarder.overdue(now - 0.001) == []
        assert world.forwarder.overdue(now) == [lookup]
        server = world.forwarder.next_server(lookup, now, silent=True)
        if server is None:
            break
        asked.append((now, server))
    assert asked == [(0.0, 0), (1.0, 1), (2.0, 0), (3.0, 1)]
    assert now < 5
    world.finish(lookup, None)
    theirs = dns.message.from_wire(world.replies[0])
    assert (theirs.id, theirs.rcode(), theirs.question[0].name.to_text()) == (5, 2, "example.com.")


def test_dead_servers_are_skipped(world: World) -> None:
    lookup = world.started(query_bytes(), [("a", 1), ("b", 2), ("c", 3)])
    assert world.forwarder.next_server(lookup, 0.0) == 0
    lookup.failed.add(0)
    assert world.forwarder.next_server(lookup, 0.1) == 1
    assert world.forwarder.next_deadline() == 1.1
    assert world.forwarder.next_server(lookup, 1.1, silent=True) == 2
    lookup.failed.add(2)
    assert world.forwarder.next_server(lookup, 1.2) == 1
    lookup.failed.add(1)
    assert world.forwarder.next_server(lookup, 1.3) is None


@pytest.mark.parametrize("rcode", [wire.SERVFAIL, wire.REFUSED])
def test_unwilling_server(world: World, rcode: int) -> None:
    lookup = world.started(query_bytes())
    world.forwarder.next_server(lookup, 0.0)
    assert lookup.judge(0, answer_bytes(lookup.message, rcode, 0)) == rules.UNWILLING
    assert world.forwarder.next_server(lookup, 0.1) == 1
    assert world.forwarder.next_server(lookup, 1.1, silent=True) is None
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
                if world.forwarder.next_server(lookup, now, silent=True) is None:
                    finish(lookup)
            assert world.forwarder.next_deadline() > now
        now = then

    begun = 0
    for what, number, wait in events:
        run_until(now + wait)
        if what == "begin":
            begun += 1
            lookup = world.started(query_bytes(f"n{begun}.example"), [("x", 1)] * servers, now)
            assert world.forwarder.next_server(lookup, now) == 0
            lookups.append(lookup)
        elif lookups and what == "fail":
            lookup = lookups[number % len(lookups)]
            lookup.failed.add(lookup.at)
            if world.forwarder.next_server(lookup, now) is None:
                finish(lookup)
        elif lookups and what == "answer":
            finish(lookups[number % len(lookups)])
    run_until(now + 5)
    assert not lookups
    assert len(world.replies) == begun
