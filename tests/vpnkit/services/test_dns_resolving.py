"""The cache at work, servers that come, go, are slow and lie, and what is known here besides."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rrset
import pytest
import trio
import trio.testing

from tests.vpnkit.services.dns_lan import GUEST, Lan, answer_bytes, closed_port, honest, lan, query_bytes, silent, told
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.proto.dns_zones import Zone, ZoneRecord
from vpnkit.services.hosts import Hosts
from vpnkit.services.resolvconf import ResolvConf
from vpnkit.wire import dns as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happened for a moment, which must be longer than a busy machine needs for an answer."""
    return trio.testing.MockClock(autojump_threshold=0.03)


async def test_asked_once_answered_often(clock: trio.testing.MockClock) -> None:
    """9.2 Caching: an answer after the server is gone; one query.  And its TTL counts down."""
    async with lan(honest("10.0.0.5")) as net:
        first = await net.ask(query_bytes(id=1))
        net.upstreams[0].behave = silent
        await trio.sleep(20)
        again = await net.ask(query_bytes("EXAMPLE.com", id=2))
        assert told(first) == told(again) == "NOERROR 10.0.0.5"
        assert dns.message.from_wire(again).answer[0].ttl in (39, 40)
        for ident in range(3, 10):  # the second time without being looked at
            reply = await net.ask(query_bytes(id=ident))
            assert dns.message.from_wire(reply).answer[0].ttl in (39, 40)
        assert len(net.upstreams[0].udp) == 1
        assert net.service.statistics().cached == 8
        await trio.sleep(41)
        net.upstreams[0].behave = honest("10.0.0.6")
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.6"


async def test_tcp_and_udp_share_what_is_known(clock: trio.testing.MockClock) -> None:
    async with lan(honest(count=100)) as net:
        whole = await net.ask_stream(query_bytes())
        assert len(whole) > 1600
        cut = await net.ask(query_bytes())
        assert cut[2] & 2
        assert len(cut) <= 512
        assert whole == await net.ask_stream(query_bytes())
        assert (len(net.upstreams[0].tcp), len(net.upstreams[0].udp)) == (1, 0)


async def test_all_guests_share_what_is_known(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net, lan() as other:
        await net.ask(query_bytes())
        other.service.resolver = net.service.resolver
        other.service._cache = net.service._cache
        assert told(await other.ask(query_bytes())) == "NOERROR 10.0.0.1"


async def test_popular_names_never_wait(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net:
        await net.ask(query_bytes())
        for _ in range(40):
            await trio.sleep(5)
            begin = trio.current_time()
            assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
            assert trio.current_time() - begin < 0.005
        await trio.sleep(1)
        statistics = net.service.statistics()
        print(statistics)
        assert statistics.prefetched >= 3
        assert statistics.forwarded == 1 + statistics.prefetched  # nobody but the first waited for one


async def test_stale_is_better_than_nothing(clock: trio.testing.MockClock) -> None:
    """RFC 8767: after 1.8 s, then at once while it stays so, and fresh as soon as somebody answers."""
    async with lan(honest("10.0.0.5")) as net:
        await net.ask(query_bytes())
        net.upstreams[0].behave = silent
        await trio.sleep(100)
        begin = trio.current_time()
        reply = dns.message.from_wire(await net.ask(query_bytes()))
        assert (str(reply.answer[0][0]), reply.answer[0].ttl) == ("10.0.0.5", 30)
        assert 1.7 < trio.current_time() - begin < 2.0
        await trio.sleep(5)
        begin = trio.current_time()
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.5"
        assert trio.current_time() - begin < 0.1
        asked = len(net.upstreams[0].udp)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.5"
        assert len(net.upstreams[0].udp) == asked  # not again for 30 s
        net.upstreams[0].behave = honest("10.0.0.6")
        await trio.sleep(31)
        answers = [told(await net.ask(query_bytes())) for _ in range(2)]
        await trio.sleep(0.1)
        answers.append(told(await net.ask(query_bytes())))
        assert answers[-1] == "NOERROR 10.0.0.6"
        assert net.service.statistics().stale >= 3


@pytest.mark.parametrize("rcode", [2, 5])
async def test_stale_is_better_than_a_failure(clock: trio.testing.MockClock, rcode: int) -> None:
    async with lan(honest("10.0.0.5")) as net:
        await net.ask(query_bytes())
        net.upstreams[0].behave = honest(rcode=rcode)
        await trio.sleep(100)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.5"


async def test_what_is_too_old_is_not_told(clock: trio.testing.MockClock) -> None:
    async with lan(honest("10.0.0.5")) as net:
        await net.ask(query_bytes())
        net.upstreams[0].behave = silent
        await trio.sleep(2 * 86400)
        assert told(await net.ask(query_bytes())) == "SERVFAIL"


async def times(net: Lan, count: int, address: str = "10.0.0.1") -> list[float]:
    """How long each of so many new questions takes; all must be answered rightly."""
    found = []
    for number in range(count):
        begin = trio.current_time()
        assert told(await net.ask(query_bytes(f"n{number}.{begin}.example"))) == f"NOERROR {address}"
        found.append(trio.current_time() - begin)
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_server_costs_one_timeout(clock: trio.testing.MockClock, stream: bool) -> None:
    async with lan(silent, honest()) as net:
        if stream:
            begin = trio.current_time()
            for number in range(20):
                assert told(await net.ask_stream(query_bytes(f"n{number}.example"))) == "NOERROR 10.0.0.1"
            assert trio.current_time() - begin < 2
        else:
            assert sum(await times(net, 20)) < 1.5


async def test_a_dead_server_that_comes_back_is_asked_first_again(clock: trio.testing.MockClock) -> None:
    async with lan(silent, honest()) as net:
        await times(net, 5)
        net.upstreams[0].behave = honest()
        await trio.sleep(60)
        await times(net, 3)
        before = len(net.upstreams[1].udp)
        await times(net, 10)
        assert len(net.upstreams[1].udp) == before


async def test_a_flapping_server_never_makes_a_name_wrong(clock: trio.testing.MockClock) -> None:
    async with lan(honest(), honest()) as net:
        flapping = net.upstreams[0]
        spent = []
        for turn in range(10):
            flapping.behave = silent if turn % 2 else honest()
            spent += await times(net, 10)
            await trio.sleep(7)
        assert max(spent) < 1.2
        assert sum(took > 0.3 for took in spent) <= 10  # one for each time it went


async def test_a_slow_server_is_not_waited_for_alone(clock: trio.testing.MockClock) -> None:
    async with lan(silent, honest()) as net:
        slow = net.upstreams[0]

        def later(query: bytes) -> list[bytes]:
            async def answer(port: int) -> None:
                await trio.sleep(0.8)
                await slow.sock.sendto(answer_bytes(query), ("127.0.0.1", port))

            net.nursery.start_soon(answer, slow.ports[-1])
            return []

        slow.behave = later
        spent = await times(net, 10)
        assert spent[0] > 0.7
        assert sum(spent[1:]) < 1.0
        assert net.service.statistics().raced >= 8


def lies(query: bytes) -> list[bytes]:
    truth = answer_bytes(query, "10.6.6.6")
    other = answer_bytes(query_bytes("other.example", id=int.from_bytes(query[:2], "big")), "10.6.6.6")
    return [bytes((truth[0] ^ 1,)) + truth[1:], other, truth[:-4], truth[:12]]


async def test_a_lying_server_never_makes_a_name_wrong(clock: trio.testing.MockClock) -> None:
    """Wrong ids, questions and cut messages; the last two are no lies but unreadable, and passed on at most."""
    async with lan(lambda query: lies(query)[:2], honest()) as net:
        assert sum(await times(net, 10)) < 2.5
        assert net.service.statistics().mismatched >= 2
        assert len(net.service.resolver.cache) == 10


async def test_unreadable_answers_are_not_kept(clock: trio.testing.MockClock) -> None:
    async with lan(lambda query: [lies(query)[2]]) as net:
        await net.ask(query_bytes())
        assert net.service.resolver.cache.find(wire.decode_query(query_bytes())) is None


async def test_answers_to_questions_from_before_a_change_are_not_kept(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net:
        net.send(query_bytes())
        await trio.sleep(0.1)
        upstream = net.upstreams[0]
        net.service.resolver.names_changed(flush=True)
        await upstream.sock.sendto(answer_bytes(upstream.udp[0]), ("127.0.0.1", upstream.ports[0]))
        await trio.sleep(0.1)
        assert told(net.replies[0]) == "NOERROR 10.0.0.1"  # who asked then is told
        assert len(net.service.resolver.cache) == 0


async def test_resolv_conf_replaced_by_rename(
    clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes effect within a second, forgets what the old ones said, and loses no query in flight."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    servers: dict[str, Server] = {}

    def routing(made: list[Server]) -> Callable[[], Routes]:
        servers.update(zip(("127.0.0.1", "127.0.0.2"), made, strict=True))
        conf = ResolvConf(str(path), clock=trio.current_time)
        known: dict[tuple[str, ...], Routes] = {}

        def now() -> Routes:
            key = tuple(server.address for server in conf.servers())
            return known.setdefault(key, Routes([servers[address] for address in key]))

        return now

    async with lan(honest("10.0.0.1"), honest("10.0.0.2"), routing=routing) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        net.upstreams[0].behave = silent
        net.send(query_bytes("in-flight.example"))
        await trio.sleep(0.05)
        replacement = tmp_path / "new"
        replacement.write_text("nameserver 127.0.0.2\n")
        os.replace(replacement, path)
        await trio.sleep(1.0)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.2"
        old = net.upstreams[0]
        await old.sock.sendto(answer_bytes(old.udp[-1], "10.0.0.3"), ("127.0.0.1", old.ports[-1]))
        await trio.sleep(0.1)
        assert [told(reply) for reply in net.replies] == ["NOERROR 10.0.0.3"]


async def test_zones_of_servers(clock: trio.testing.MockClock) -> None:
    """9.2 Zone config respected: only the server of the zone is asked."""

    def routing(made: list[Server]) -> Callable[[], Routes]:
        routes = Routes(made[:1], {wire.encode_name("corp.example"): made[1:]})
        return lambda: routes

    async with lan(honest("10.0.0.1"), honest("10.0.0.2"), routing=routing) as net:
        assert told(await net.ask(query_bytes("www.CORP.example"))) == "NOERROR 10.0.0.2"
        assert told(await net.ask(query_bytes("www.example"))) == "NOERROR 10.0.0.1"
        assert [len(upstream.udp) for upstream in net.upstreams] == [1, 1]


async def test_zones_of_records_change_at_run_time(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net:
        zones = net.service.resolver.zones
        for _ in range(3):
            assert told(await net.ask(query_bytes("app.testing"))) == "NOERROR 10.0.0.1"
        zones.add(Zone("testing", (ZoneRecord("app", "10.2.2.2"),)))
        assert told(await net.ask(query_bytes("app.testing"))) == "NOERROR 10.2.2.2"
        assert told(await net.ask(query_bytes("other.testing"))) == "NXDOMAIN"
        zones.remove("testing")
        assert told(await net.ask(query_bytes("app.testing"))) == "NOERROR 10.0.0.1"


async def test_hosts_files(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """9.1 _etc_hosts, _etc_hosts_priority: found when it is added, ours beat it, and one answer."""
    path = tmp_path / "hosts"
    hosts = Hosts((str(path),), trio.current_time)
    async with lan(honest("10.9.9.9"), hosts=hosts) as net:
        assert told(await net.ask(query_bytes("db.example"))) == "NOERROR 10.9.9.9"
        path.write_text("10.3.3.3 DB.example gateway.internal\nfd00::3 db.example\n10.4.4.4 four.example # comment\n")
        await trio.sleep(1.1)
        assert told(await net.ask(query_bytes("db.example"))) == "NOERROR 10.3.3.3"
        assert told(await net.ask(query_bytes("Db.Example", "AAAA"))) == "NOERROR fd00::3"
        assert told(await net.ask(query_bytes("four.example", "AAAA"))) == "NOERROR"
        assert told(await net.ask(query_bytes("gateway.internal"))) == "NOERROR 192.168.65.1"
        assert told(await net.ask(query_bytes("3.3.3.10.in-addr.arpa", "PTR"))) == "NOERROR db.example."
        asked = len(net.upstreams[0].udp)
        net.send(query_bytes("db.example", "MX"))
        await trio.sleep(0.1)
        assert len(net.upstreams[0].udp) == asked + 1


async def test_aaaa_made_of_a(clock: trio.testing.MockClock) -> None:
    def behave(query: bytes) -> list[bytes]:
        message = dns.message.from_wire(query)
        response = dns.message.make_response(message, recursion_available=True)
        name, rdtype = message.question[0].name, message.question[0].rdtype
        if rdtype.name == "A":
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.33"))
        elif rdtype.name == "PTR":
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "PTR", "host.example."))
        elif name.to_text().startswith("six"):
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "AAAA", "2001:db8::6"))
        return [response.to_wire()]

    prefix = bytes.fromhex("0064ff9b0000000000000000")
    async with lan(behave, nat64=prefix) as net:
        assert told(await net.ask(query_bytes("four.example", "AAAA"))) == "NOERROR 64:ff9b::c000:221"
        assert told(await net.ask(query_bytes("four.example", "AAAA"))) == "NOERROR 64:ff9b::c000:221"
        assert told(await net.ask_stream(query_bytes("four.example", "AAAA"))) == "NOERROR 64:ff9b::c000:221"
        assert told(await net.ask(query_bytes("six.example", "AAAA"))) == "NOERROR 2001:db8::6"
        assert told(await net.ask(query_bytes("four.example"))) == "NOERROR 192.0.2.33"
        checking = query_bytes("four.example", "AAAA", use_edns=0, want_dnssec=True, flags=dns.flags.RD | dns.flags.CD)
        assert told(await net.ask(checking)) == "NOERROR"
        assert told(await net.ask(query_bytes("gateway.internal", "AAAA"))) == "NOERROR 64:ff9b::c0a8:4101"
        mapped = "1.2.2.0.0.0.0.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.b.9.f.f.4.6.0.0.ip6.arpa"
        assert told(await net.ask(query_bytes(mapped, "PTR"))) == "NOERROR 33.2.0.192.in-addr.arpa. host.example."


async def test_aaaa_of_our_names_are_left_alone(clock: trio.testing.MockClock) -> None:
    async with lan(nat64=bytes(12)) as net:
        net.service.resolver.names.add("both.internal", bytes((10, 0, 0, 1)), bytes(15) + b"\7")
        assert told(await net.ask(query_bytes("both.internal", "AAAA"))) == "NOERROR ::7"


async def test_the_query_log(clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with lan(honest(), log_queries=True) as net:
        with caplog.at_level(logging.INFO, "vpnkit.dns.queries"):
            await net.ask(query_bytes("Www.example", "HTTPS"))
            await net.ask(query_bytes("gateway.internal"))
            await net.ask(query_bytes("\\010evil\\\\\\000.example", "TYPE65280"))
        lines = [record.getMessage() for record in caplog.records]
        assert lines[0].startswith("192.168.65.3 Www.example. HTTPS NOERROR 1 answers ")
        assert lines[1].startswith("192.168.65.3 gateway.internal. A NOERROR 1 answers 0.0 ms")
        assert lines[2].startswith("192.168.65.3 \\010evil\\092\\000.example. TYPE65280 NOERROR")


async def test_a_guest_with_an_ipv6_address(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net:
        address = bytes.fromhex("fd6576706e6b00000000000000000003")
        net.service.query(query_bytes("vm.internal", "AAAA"), address, net.replies.append)
        net.service.query(query_bytes("vm.internal"), address, net.replies.append)
        assert [told(reply) for reply in net.replies] == ["NOERROR fd65:7670:6e6b::3", "NOERROR"]


async def test_questions_that_differ_in_options_only_are_bounded(clock: trio.testing.MockClock) -> None:
    """CVE-2020-25686: many outstanding questions about one name make guessing an id easy."""
    async with lan(silent) as net:
        for number in range(50):
            option = dns.edns.GenericOption(10, number.to_bytes(8, "big"))
            net.send(query_bytes(id=number, use_edns=0, options=[option]))
        assert net.service.statistics().in_flight == 8
        assert net.service.statistics().crowded == 42


async def test_the_hot_path_obeys_what_is_answered_here(clock: trio.testing.MockClock) -> None:
    """A name that a server answered is ours from the moment in which it is added."""
    async with lan(honest()) as net:
        for _ in range(3):
            await net.ask(query_bytes("new.internal"))
        net.service.resolver.names.add("new.internal", GUEST)
        net.service.resolver.names_changed()
        assert told(await net.ask(query_bytes("new.internal"))) == "NOERROR 192.168.65.3"


async def test_closed_ports_make_a_stale_answer_quick(clock: trio.testing.MockClock) -> None:
    async with lan(honest("10.0.0.5"), closed_port()) as net:
        await net.ask(query_bytes())
        await trio.sleep(100)
        net.upstreams[0].behave = honest(rcode=2)
        begin = trio.current_time()
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.5"
        assert trio.current_time() - begin < 0.5
