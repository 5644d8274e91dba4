"""What the original got wrong about names, one test for each [BUG] of vpnkit.md, and what its own tests check.

2.7 hosts, 4.1 the search list, 4.2 the forwarder, 9.1 and 9.2 its tests.  Those of servers that race are in
tests/vpnkit/proto/test_dns_racing.py, of TCP multiplexing in test_dns_tls.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
import trio.testing

from tests.vpnkit.services.dns_lan import answer_bytes, honest, lan, query_bytes, silent, told
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.services.hosts import Hosts
from vpnkit.wire import dns as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.03)


def says(*records: str, authority: str = "", rcode: int = 0) -> Callable[[bytes], list[bytes]]:
    """A server that answers everything with these records."""

    def behave(query: bytes) -> list[bytes]:
        message = dns.message.from_wire(query)
        response = dns.message.make_response(message, recursion_available=True)
        response.set_rcode(dns.rcode.Rcode(rcode))
        for text in records:
            name, ttl, rdtype, rdata = text.split(" ", 3)
            response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", rdtype, rdata))
        if authority:
            name, ttl, rdtype, rdata = authority.split(" ", 3)
            response.authority.append(dns.rrset.from_text(name, int(ttl), "IN", rdtype, rdata))
        return [response.to_wire(max_size=65535)]

    return behave


SOA = "example. 300 SOA ns.example. admin.example. 1 2 3 4 300"


async def test_bug_hosts_names_have_case(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """2.7: `Foo` in the file and `foo` in the query do not match; a final dot never does."""
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 Foo bar.\n")
    async with lan(hosts=Hosts((str(path),), trio.current_time)) as net:
        for name in ("foo", "FOO", "bar", "BAR."):
            assert told(await net.ask(query_bytes(name))) == "NOERROR 10.0.0.1"


async def test_bug_names_have_case(clock: trio.testing.MockClock) -> None:
    """4.2: `Host.Internal` misses the builtins; zones and cache keys too."""

    def routing(servers: list[Server]) -> Callable[[], Routes]:
        routes = Routes(servers[:1], {wire.encode_name("Corp.Example"): servers[1:]})
        return lambda: routes

    async with lan(honest(), honest("10.0.0.2"), routing=routing) as net:
        assert told(await net.ask(query_bytes("GATEWAY.Internal"))) == "NOERROR 192.168.65.1"
        assert told(await net.ask(query_bytes("a.CORP.example"))) == "NOERROR 10.0.0.2"
        assert told(await net.ask(query_bytes("A.corp.EXAMPLE"))) == "NOERROR 10.0.0.2"
        assert len(net.upstreams[1].udp) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_bug_answers_larger_than_4096_octets(clock: trio.testing.MockClock, stream: bool) -> None:
    """4.2: the query gets no answer."""
    async with lan(honest(count=1000)) as net:
        raw = query_bytes(use_edns=0, payload=65000)
        reply = await (net.ask_stream(raw) if stream else net.ask(raw))
        assert len(reply) > 16000
        assert not reply[2] & 2


async def test_bug_aaaa_is_always_empty(clock: trio.testing.MockClock) -> None:
    """4.2, host resolver: see also test_dns_host.py."""
    async with lan(says("example.com. 60 AAAA 2001:db8::1")) as net:
        assert told(await net.ask(query_bytes(rdtype="AAAA"))) == "NOERROR 2001:db8::1"


async def test_bug_addresses_come_three_times_and_in_reverse(clock: trio.testing.MockClock) -> None:
    """4.2, host resolver: the order of a server is kept; test_dns_host.py says it of the operating system."""
    async with lan(says("example.com. 60 A 10.0.0.3", "example.com. 60 A 10.0.0.1")) as net:
        for _ in range(2):
            assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.3 10.0.0.1"


async def test_bug_cached_answers_have_the_original_ttl(clock: trio.testing.MockClock) -> None:
    """4.2."""
    async with lan(honest()) as net:
        await net.ask(query_bytes())
        await trio.sleep(30)
        assert dns.message.from_wire(await net.ask(query_bytes())).answer[0].ttl in (29, 30)


async def test_bug_a_slower_reply_overwrites_a_faster_one(clock: trio.testing.MockClock) -> None:
    """4.2, #298: the cache keeps what the client was told."""
    async with lan(silent, honest("10.0.0.2"), racing=True) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.2"
        slow = net.upstreams[0]
        await slow.sock.sendto(answer_bytes(slow.udp[0], "10.6.6.6"), ("127.0.0.1", slow.ports[0]))
        await trio.sleep(0.1)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.2"


async def test_bug_udp_answers_are_not_verified(clock: trio.testing.MockClock) -> None:
    """4.2; 9.2 Bad server responses are ignored."""

    def lie(query: bytes) -> list[bytes]:
        truth = answer_bytes(query, "10.6.6.6")
        other = answer_bytes(query_bytes("other.example", id=int.from_bytes(query[:2], "big")), "10.6.6.6")
        return [bytes((truth[0] ^ 1,)) + truth[1:], other]

    async with lan(lie) as net:
        assert told(await net.ask(query_bytes())) == "SERVFAIL"
        assert len(net.service.resolver.cache) == 0


@pytest.mark.parametrize(("rcode", "word"), [(2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED")])
async def test_bug_failures_become_noerror(clock: trio.testing.MockClock, rcode: int, word: str) -> None:
    """4.2: on UDP, without the SOA."""
    async with lan(says(authority=SOA, rcode=rcode)) as net:
        for _ in range(2):
            reply = await net.ask(query_bytes("missing.example"))
            assert told(reply) == word
            assert dns.message.from_wire(reply).authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    "record",
    [
        'NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:a@b!" .',
        "SSHFP 4 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m",
        "CERT PGP 0 0 AQIDBA==",
        "DNAME other.example.",
        "NSEC3 1 0 0 - 2T7B4G4VSA5SMI47K61MV5BV1A22BOJR A",
        "SPF v=spf1",
        "HTTPS 1 . alpn=h2",
        "SVCB 1 mail.example.",
        'CAA 0 issue "ca.example"',
        "TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "TYPE65280 \\# 3 010203",
    ],
)
async def test_bug_types_that_the_codec_does_not_know(clock: trio.testing.MockClock, record: str) -> None:
    """4.2: no reply, or one with a wrong type number; also when it is in the authority section."""
    rdtype, rdata = record.split(" ", 1)
    async with lan(says(f"example.com. 60 {rdtype} {rdata}", authority=f"example. 60 {rdtype} {rdata}")) as net:
        for _ in range(2):
            reply = dns.message.from_wire(await net.ask(query_bytes(rdtype=rdtype)))
            assert reply.answer[0].rdtype == reply.authority[0].rdtype == dns.rdatatype.from_text(rdtype)
            assert reply.answer[0].to_text().startswith("example.com. ")


async def test_bug_the_opt_record_is_dropped_and_the_buffer_ignored(clock: trio.testing.MockClock) -> None:
    """4.2: EDNS0."""
    async with lan(honest(count=100)) as net:
        for _ in range(2):
            reply = await net.ask(query_bytes(use_edns=0, payload=4096))
            assert len(reply) > 1600
            assert dns.message.from_wire(reply).edns == 0


async def test_bug_all_fail_and_nobody_says_so(clock: trio.testing.MockClock) -> None:
    """4.2: no response at all to the client."""
    async with lan(silent, racing=True) as net:
        assert told(await net.ask(query_bytes())) == "SERVFAIL"
        assert trio.current_time() < 5


async def test_bug_types_other_than_addresses_do_not_exist(clock: trio.testing.MockClock) -> None:
    """4.2, #509: NXDOMAIN for MX, SRV, PTR breaks musl; ours have no such records, and exist."""
    async with lan(says(authority=SOA)) as net:
        for name in ("gateway.internal", "vm.internal", "exists.example"):
            assert told(await net.ask(query_bytes(name, "MX"))) == "NOERROR"


async def test_bug_aaaa_of_our_names_is_nxdomain(clock: trio.testing.MockClock) -> None:
    """3.6, PR #344: and no server is waited for."""
    async with lan(silent) as net:
        assert told(await net.ask(query_bytes("gateway.internal", "AAAA"))) == "NOERROR"
        assert net.upstreams[0].udp == []


async def test_bug_several_questions_are_dropped_silently(clock: trio.testing.MockClock) -> None:
    """4.2: they are FORMERR."""
    async with lan() as net:
        raw = query_bytes()
        net.send(raw[:4] + b"\0\2" + raw[6:] + raw[12:])
        assert told(net.replies[0]) == "FORMERR"


# 9.1


async def test_lookup(clock: trio.testing.MockClock) -> None:
    async with lan(honest("142.250.0.1"), racing=True) as net:
        assert told(await net.ask(query_bytes("www.google.com"))) == "NOERROR 142.250.0.1"


async def test_builtins(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        net.service.resolver.names.add("experimental.host.name.localhost", bytes((192, 168, 65, 2)))
        assert told(await net.ask(query_bytes("experimental.host.name.localhost"))) == "NOERROR 192.168.65.2"


async def test_etc_hosts_priority(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """A builtin beats the hosts file, with one answer."""
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 gateway.internal\n")
    async with lan(hosts=Hosts((str(path),), trio.current_time)) as net:
        assert told(await net.ask(query_bytes("gateway.internal"))) == "NOERROR 192.168.65.1"


async def test_noerror_empty_response(clock: trio.testing.MockClock) -> None:
    async with lan(says(authority=SOA)) as net:
        assert told(await net.ask(query_bytes("a-only.example", "AAAA"))) == "NOERROR"


async def test_nxdomain_response(clock: trio.testing.MockClock) -> None:
    async with lan(says(authority=SOA, rcode=3), racing=True) as net:
        assert told(await net.ask(query_bytes("missing.example"))) == "NXDOMAIN"


@pytest.mark.parametrize("racing", [False, True])
async def test_big_udp_responses_are_truncated(clock: trio.testing.MockClock, racing: bool) -> None:
    """64 A records: as many as fit 512 octets with this name, which are 29 with the original's encoder."""
    async with lan(honest(count=64), racing=racing) as net:
        reply = dns.message.from_wire(await net.ask(query_bytes("very.big.name.example")))
        assert reply.flags & dns.flags.TC
        assert sum(len(rrset) for rrset in reply.answer) == 29


# 9.2


async def test_udp_non_persistent(clock: trio.testing.MockClock) -> None:
    """Many questions at once: ids are restored, and no socket is left."""
    async with lan(honest()) as net:
        for ident in range(300):
            net.send(query_bytes(f"n{ident}.example", id=ident))
        await trio.sleep(3)  # the clock jumps when all is quiet
        names = {dns.message.from_wire(data).question[0].name.to_text(): data[:2] for data in net.replies}
        assert names == {f"n{ident}.example.": ident.to_bytes(2, "big") for ident in range(300)}
        assert net.service.statistics().sockets == 0


async def test_local_names_resolve_ok(clock: trio.testing.MockClock) -> None:
    async with lan(silent, racing=True) as net:
        assert told(await net.ask(query_bytes("vm.internal"))) == "NOERROR 192.168.65.3"
        assert net.upstreams[0].udp == []


async def test_server_order(clock: trio.testing.MockClock) -> None:
    """The answer of the lower order wins, and both are asked once."""
    async with lan(honest("10.0.0.66"), honest("10.0.0.1"), racing=True, orders=(1, 0)) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        await trio.sleep(0.1)
        assert [len(upstream.udp) for upstream in net.upstreams] == [1, 1]


async def test_tolerate_bad_server(clock: trio.testing.MockClock) -> None:
    """A slow good one and a fast NXDOMAIN."""
    async with lan(honest(rcode=3), silent, racing=True) as net:
        slow = net.upstreams[1]

        async def later() -> None:
            await trio.sleep(0.5)
            await slow.sock.sendto(answer_bytes(slow.udp[0], "10.0.0.9"), ("127.0.0.1", slow.ports[0]))

        net.nursery.start_soon(later)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.9"


async def test_tolerate_broken_server(clock: trio.testing.MockClock) -> None:
    """A dead server delays one negative answer, no more."""
    async with lan(says(authority=SOA, rcode=3), silent, racing=True) as net:
        spent = []
        for number in range(6):
            begin = trio.current_time()
            assert told(await net.ask(query_bytes(f"n{number}.example"))) == "NXDOMAIN"
            spent.append(trio.current_time() - begin)
        assert spent[0] < 5
        assert sum(spent[2:]) < 1
