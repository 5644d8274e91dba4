"""Servers that race, as those of the original's --dns file do (vpnkit.md 4.2, 9.2)."""

from __future__ import annotations

import random

import dns.message
import dns.rcode
import dns.rrset
import pytest

from vpnkit.proto import dns as rules
from vpnkit.proto.dns import Forwarder, Lookup
from vpnkit.proto.dns_upstreams import Choice, Server
from vpnkit.wire import dns as wire


def query_bytes(name: str = "www.example") -> bytes:
    return dns.message.make_query(name, "A", id=7).to_wire()


def answer(lookup: Lookup, address: str = "", rcode: int = 0) -> bytes:
    made = dns.message.make_response(dns.message.from_wire(lookup.message))
    made.set_rcode(dns.rcode.Rcode(rcode))
    if address:
        made.answer.append(dns.rrset.from_text("www.example.", 60, "IN", "A", address))
    return made.to_wire()


class Race:
    def __init__(self, *servers: Server, awaited: int | None = None) -> None:
        self.forwarder = Forwarder(random.Random(1))
        self.told: list[str] = []
        choice = Choice(servers, len(servers), len(servers) if awaited is None else awaited, True, False)
        raw = query_bytes()
        lookup = self.forwarder.ask(wire.decode_query(raw), raw, choice, self.tell, 0.0)
        assert lookup is not None
        self.lookup = lookup

    def tell(self, data: bytes) -> None:
        message = dns.message.from_wire(data)
        self.told.append(" ".join([message.rcode().name, *(str(item) for rrset in message.answer for item in rrset)]))

    def advance(self, now: float, *, silent: bool = True) -> list[int]:
        chosen = self.forwarder.advance(self.lookup, now, silent=silent)
        if not chosen:
            for reply, data in self.forwarder.finish(self.lookup, None):
                reply(data)
        return chosen

    def hears(self, server: int, address: str = "", rcode: int = 0) -> str:
        verdict = self.lookup.judge(server, answer(self.lookup, address, rcode))
        if verdict == rules.FINAL:
            for reply, data in self.forwarder.finish(self.lookup, self.lookup.best):
                reply(data)
        return verdict


ONE, TWO = Server("10.0.0.1"), Server("10.0.0.2")
LATER = Server("10.0.0.3", order=1)


def test_all_are_asked_at_once() -> None:
    race = Race(ONE, TWO, LATER)
    assert race.advance(0.0, silent=False) == [0, 1, 2]
    assert race.forwarder.counters.raced == 2
    assert race.hears(1, "10.9.9.9") == rules.FINAL
    assert race.told == ["NOERROR 10.9.9.9"]


@pytest.mark.parametrize("rcode", [0, 2, 3, 5])
def test_tolerate_bad_server(rcode: int) -> None:
    """9.2: a slow good server beats a fast bad one."""
    race = Race(ONE, TWO)
    race.advance(0.0, silent=False)
    assert race.hears(0, rcode=rcode) == rules.HELD
    assert race.hears(1, "10.9.9.9") == rules.FINAL
    assert race.told == ["NOERROR 10.9.9.9"]


def test_server_order() -> None:
    """9.2: the answer of the lower order wins, both are asked."""
    race = Race(ONE, LATER)
    assert race.advance(0.0, silent=False) == [0, 1]
    assert race.hears(1, "10.0.0.66") == rules.HELD
    assert race.hears(0, "10.9.9.9") == rules.FINAL
    assert race.told == ["NOERROR 10.9.9.9"]


def test_a_lower_order_that_fails_leaves_the_later_answer() -> None:
    race = Race(ONE, LATER)
    race.advance(0.0, silent=False)
    race.hears(1, "10.9.9.9")
    assert race.hears(0, rcode=3) == rules.FINAL
    assert race.told == ["NOERROR 10.9.9.9"]


def test_the_best_failure_is_told() -> None:
    """NXDOMAIN rather than SERVFAIL, whichever came first."""
    race = Race(ONE, TWO)
    race.advance(0.0, silent=False)
    assert race.hears(0, rcode=2) == rules.HELD
    assert race.hears(1, rcode=3) == rules.FINAL
    assert race.told == ["NXDOMAIN"]


def test_tolerate_broken_server() -> None:
    """9.2: a server that is known to be silent is asked, but a negative answer does not wait for it."""
    race = Race(ONE, TWO, awaited=1)
    assert race.advance(0.0, silent=False) == [0, 1]
    assert race.hears(0, rcode=3) == rules.FINAL
    assert race.told == ["NXDOMAIN"]


def test_per_server_timeouts() -> None:
    """9.2: with a timeout of nothing, a server sees one query and is not waited for."""
    race = Race(Server("10.0.0.1", timeout=0.0))
    assert race.advance(0.0, silent=False) == [0]
    assert race.forwarder.overdue(race.forwarder.next_deadline()) == [race.lookup]
    assert race.advance(0.01) == []
    assert race.told == ["SERVFAIL"]


def test_silent_servers_are_asked_again_each_second_and_given_up_in_time() -> None:
    race = Race(ONE, TWO)
    asked = [(0.0, race.advance(0.0, silent=False))]
    now = 0.0
    while True:
        now = race.forwarder.next_deadline()
        assert race.forwarder.overdue(now) == [race.lookup]
        chosen = race.advance(now)
        if not chosen:
            break
        asked.append((now, chosen))
    assert asked == [(0.0, [0, 1]), (1.0, [0, 1]), (2.0, [0, 1]), (3.0, [0, 1])]
    assert now < 5
    assert race.told == ["SERVFAIL"]


def test_what_was_heard_is_told_when_the_others_stay_silent() -> None:
    race = Race(ONE, TWO)
    race.advance(0.0, silent=False)
    race.hears(0, rcode=3)
    for now in (1.0, 2.0, 3.0):
        assert race.advance(now) == [1]
    assert race.advance(4.0) == []
    assert race.told == ["NXDOMAIN"]


def test_wrong_answers_are_not_heard() -> None:
    race = Race(ONE, TWO)
    race.advance(0.0, silent=False)
    assert race.lookup.judge(0, answer(race.lookup, "10.6.6.6")[:-1] + b"\1" and b"") == rules.WRONG
    lie = bytearray(answer(race.lookup, "10.6.6.6"))
    lie[0] ^= 1
    assert race.lookup.judge(0, bytes(lie)) == rules.WRONG
    assert race.told == []
