"""What of the guest's IP header the host's sockets say, and what becomes of ICMP errors either way."""

from __future__ import annotations

import errno
import random
import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, UDPerror
from scapy.packet import Raw
from trio.testing import wait_all_tasks_blocked

from tests.vpnkit.net.fake_host import (
    DO,
    DONT,
    GUEST,
    HOSTS_OWN,
    OTHER,
    ROUTER,
    SERVER,
    FakeHost,
    FakeSocket,
    fake_world,
    notes,
    send,
)
from tests.vpnkit.net.scripted_guest import GATEWAY, HOST, checksums_hold, world
from vpnkit.flow import error_queue
from vpnkit.flow.marks import DEFAULT_TTL
from vpnkit.net.output import ERROR_BURST, RateLimit


class TestHeader:
    @pytest.mark.parametrize("usual", [64, 128, 255])
    async def test_the_common_one_costs_one_option_once(self, usual):
        async with fake_world() as (w, host):
            for i in range(3):
                send(w, ttl=usual, payload=b"%d" % i)
                await notes(host, i + 2)
            assert await notes(host, 4) == [("discover", DO), ("send", b"0"), ("send", b"1"), ("send", b"2")]

    async def test_options_change_between_the_datagrams_that_they_are_for(self):
        """Also in one burst: a train does not go with the header of what comes after it."""
        async with fake_world() as (w, host):
            send(w, payload=b"a")
            send(w, payload=b"b")
            send(w, payload=b"c", ttl=30)
            send(w, payload=b"d", ttl=30, flags=0)
            send(w, payload=b"e", ttl=2, flags=0, tos=0xB8)
            send(w, payload=b"f", ttl=2, flags=0, tos=0xBB)
            send(w, payload=b"g", flags=0, tos=3)
            assert await notes(host, 13) == [
                ("discover", DO),
                ("train", [b"a", b"b"]),
                ("ttl", 29),
                ("send", b"c"),
                ("discover", DONT),
                ("send", b"d"),
                ("ttl", 1),
                ("tos", 0xB8),
                ("send", b"e"),
                ("send", b"f"),
                ("ttl", DEFAULT_TTL),
                ("tos", 0),
                ("send", b"g"),
            ]

    async def test_a_host_that_cannot_do_it(self):
        class Poor(FakeSocket):
            def setsockopt(self, *_):
                raise OSError(errno.ENOPROTOOPT, "as the test says")

        async with fake_world() as (w, host):
            host.udp_socket = lambda family=socket.AF_INET, *, gro: host.made.append(Poor()) or host.made[-1]
            send(w, ttl=7, tos=0xB8, payload=b"all the same")
            assert await notes(host, 1) == [("send", b"all the same")]


class TestExpiry:
    @pytest.mark.parametrize("ttl", [0, 1])
    @pytest.mark.parametrize("kind", ["udp", "icmp", "tcp"])
    async def test_it_may_pass_no_router(self, ttl, kind):
        async with fake_world() as (w, host):
            probe = {
                "udp": UDP(sport=5000, dport=33434) / b"probe",
                "icmp": ICMP(id=1, seq=2) / b"probe",
                "tcp": TCP(sport=5000, dport=80, flags="S") / b"probe",
            }[kind]
            w.scripted.ip(IP(src=GUEST, dst=SERVER, ttl=ttl) / probe)
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (GATEWAY, 11, 0)
            assert (error[IPerror].ttl, error[IPerror].dst) == (ttl, SERVER)
            assert bytes(error[Raw]) == b"probe"
            assert checksums_hold(bytes(error))
            assert not w.guest.udp.mappings
            assert not w.guest.icmp.sessions
            assert not w.guest.tcp.flows
            assert not host.made
            assert w.guest.counters["ttl_expired"] == 1

    async def test_also_on_a_mapping_that_is_there(self):
        async with fake_world() as (w, host):
            for ttl in (64, 1, 64):
                send(w, ttl=ttl)
            await w.scripted.frame(ICMP)
            assert await notes(host, 2) == [("discover", DO), ("train", [b"x", b"x"])]

    @pytest.mark.parametrize("ttl", [0, 1])
    async def test_the_alias_is_ours(self, ttl):
        async with fake_world() as (w, host):
            send(w, ttl=ttl, destination=HOST)
            assert await notes(host, 3) == [("ttl", 1), ("discover", DO), ("send", b"x")]

    async def test_nothing_is_told_about_addresses_that_lead_nowhere(self):
        async with fake_world() as (w, host):
            for address in ("224.0.0.1", "127.0.0.1", "192.168.65.99", "255.255.255.255"):
                send(w, ttl=1, destination=address)
            await w.scripted.silence()
            assert not host.made


class TestSyn:
    """What a traceroute by TCP sends; only its own kind of SYN costs options."""

    class Host(FakeHost):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def tcp_socket(self, family: int = socket.AF_INET) -> FakeSocket:
            return self.udp_socket(gro=False)

        def start_connect(self, made: FakeSocket, _address: tuple[str, int]) -> int:
            made.notes.append(("connect",))
            return self.number

    async def asked(self, w, number: int, **header) -> FakeSocket:
        w.guest.host = host = self.Host(number)
        w.scripted.ip(IP(src=GUEST, dst=SERVER, **header) / TCP(sport=5000, dport=80, flags="S", seq=9))
        await wait_all_tasks_blocked(0.005)
        return host.made[0]

    @pytest.mark.parametrize("ttl", [64, 128, 255])
    async def test_an_ordinary_one_costs_nothing(self, ttl):
        async with world() as w:
            made = await self.asked(w, errno.ECONNREFUSED, ttl=ttl)
            assert made.notes[:1] == [("connect",)]
            assert {note[0] for note in made.notes} == {"connect", "linger"}

    async def test_before_and_after(self):
        async with world() as w:
            made = await self.asked(w, errno.EINPROGRESS, ttl=5, tos=0xBB)
            assert made.notes == [("ttl", 4), ("recverr", 1), ("tos", 0xB8), ("connect",)]
            (flow,) = w.guest.tcp.flows.values()
            w.guest.tcp._host_answered(flow, 0)
            assert made.notes[4:6] == [("ttl", DEFAULT_TTL), ("recverr", 0)]

    async def test_where_it_expired(self):
        async with world() as w:
            made = await self.asked(w, errno.EINPROGRESS, ttl=5)
            made.fails(errno.EHOSTUNREACH, 2, 11, 0, destination=(SERVER, 80))
            (flow,) = w.guest.tcp.flows.values()
            w.guest.tcp._host_answered(flow, errno.EHOSTUNREACH)
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (ROUTER, 11, 0)
            assert (error[IPerror].dst, error[IPerror].ttl) == (SERVER, 5)
            assert (error[TCPerror].sport, error[TCPerror].seq) == (5000, 9)
            w.guest.settle()
            assert not w.guest.tcp.flows

    async def test_unreachable_without_such_an_error(self):
        async with world() as w:
            await self.asked(w, errno.EHOSTUNREACH, ttl=5)
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (GATEWAY, 3, 1)


class TestTooLarge:
    async def test_the_hosts_own_link_rfc4787_req13(self):
        async with fake_world() as (w, host):
            send(w, payload=b"small")
            await notes(host, 2)
            made = host.made[0]
            made.failures.append(errno.EMSGSIZE)
            made.fails(errno.EMSGSIZE, 1, 0, 0, 1400, offender="0.0.0.0")
            send(w, payload=b"L" * 1401)
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (GATEWAY, 3, 4)
            assert error[ICMP].nexthopmtu == 1400
            quoted = error[IPerror]
            assert (quoted.src, quoted.dst, quoted.len, quoted.flags) == (GUEST, SERVER, 1429, "DF")
            assert (quoted[UDPerror].sport, quoted[UDPerror].dport, quoted[UDPerror].len) == (5000, 53, 1409)
            assert len(w.guest.udp.mappings) == 1
            await notes(host, 2)

    async def test_the_error_of_an_earlier_one_does_not_cost_this_one(self):
        async with fake_world() as (w, host):
            send(w, payload=b"before")
            await notes(host, 2)
            made = host.made[0]
            made.failures.append(errno.EMSGSIZE)
            made.fails(errno.EMSGSIZE, 2, 3, 4, 1300, data=b"before")
            send(w, payload=b"after")
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].nexthopmtu) == (ROUTER, 1300)
            assert await notes(host, 3) == [("discover", DO), ("send", b"before"), ("send", b"after")]

    @pytest.mark.parametrize(("flags", "info"), [("DF", 67), ("DF", 0), (0, 1300)])
    async def test_what_cannot_be_true_is_not_told(self, flags, info):
        async with fake_world() as (w, host):
            send(w, flags=flags)
            await notes(host, 2)
            host.made[0].fails(errno.EMSGSIZE, 2, 3, 4, info)
            (mapping,) = w.guest.udp.mappings.values()
            mapping._read_errors()
            await w.scripted.silence()


class TestErrorsOfTheNetwork:
    @pytest.mark.parametrize(
        ("kind", "code"), [(3, code) for code in (0, 1, 2, 3, 9, 10, 13)] + [(11, 0), (11, 1), (3, 4)]
    )
    async def test_the_kind_and_who_said_it_stay_rfc4787_req12(self, kind, code):
        async with fake_world() as (w, host):
            send(w, payload=b"question")
            await notes(host, 2)
            (mapping,) = w.guest.udp.mappings.values()
            idle_since = mapping.active_at = mapping.active_at - 100
            host.made[0].fails(errno.EHOSTUNREACH, 2, kind, code, 1000, data=b"question")
            mapping._read_errors()
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (ROUTER, kind, code)
            assert (error[IPerror].src, error[IPerror].dst) == (GUEST, SERVER)
            assert (error[UDPerror].sport, error[UDPerror].dport) == (5000, 53)
            assert bytes(error[Raw]) == b"question"
            assert checksums_hold(bytes(error))
            assert mapping.is_open
            assert mapping.active_at == idle_since  # RFC 5508 REQ-6

    @pytest.mark.parametrize("offender", [HOSTS_OWN, "192.168.65.77", "127.0.0.1", "0.0.0.0", "224.0.0.1"])
    async def test_addresses_that_the_guest_must_not_see(self, offender):
        async with fake_world() as (w, host):
            send(w)
            await notes(host, 2)
            host.made[0].fails(errno.EHOSTUNREACH, 2, 3, 1, offender=offender)
            next(iter(w.guest.udp.mappings.values()))._read_errors()
            assert (await w.scripted.frame(ICMP))[IP].src == GATEWAY

    async def test_the_hosts_loopback_is_the_alias(self):
        async with fake_world() as (w, host):
            send(w, destination=HOST)
            await notes(host, 2)
            host.made[0].fails(errno.ECONNREFUSED, 2, 3, 3, offender="127.0.0.1", destination=("127.0.0.1", 53))
            next(iter(w.guest.udp.mappings.values()))._read_errors()
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[IPerror].dst) == (HOST, HOST)

    @pytest.mark.parametrize(
        ("kind", "destination"), [(4, SERVER), (5, SERVER), (12, SERVER), (3, OTHER)], ids=["4", "5", "12", "stranger"]
    )
    async def test_others_are_ignored(self, kind, destination):
        async with fake_world() as (w, host):
            send(w)
            await notes(host, 2)
            host.made[0].fails(errno.EPROTO, 2, kind, 0, destination=(destination, 53))
            next(iter(w.guest.udp.mappings.values()))._read_errors()
            await w.scripted.silence()
            assert w.guest.counters["udp_icmp_ignored"] == 1

    def test_a_socket_without_such_a_queue(self):
        one, other = socket.socketpair()
        one.setblocking(False)
        with one:
            assert error_queue.take(one) == []
            other.close()
            assert error_queue.take(one) == []

    @pytest.mark.parametrize("value", [b"", bytes(15), bytes(16), bytes(20)])
    async def test_short_values_of_the_kernel(self, value):
        made = FakeSocket()
        made.errors.append((b"", [(socket.IPPROTO_IP, error_queue.IP_RECVERR, value)], 0, None))
        with made:
            assert [error.offender for error in error_queue.take(made)] == ([b""] if len(value) >= 16 else [])


# The guest's own errors


class TestErrorsOfTheGuest:
    def quoted(self, **change) -> IP:
        fields = {"src": SERVER, "dst": GUEST, "sport": 53, "dport": 5000, **change}
        ip = IP(src=fields["src"], dst=fields["dst"])
        return ip / UDP(sport=fields["sport"], dport=fields["dport"]) / b"answer"

    @pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)])
    async def test_they_end_no_mapping_and_refresh_none_rfc4787_req12(self, kind, code):
        async with fake_world() as (w, host):
            send(w)
            await notes(host, 2)
            (mapping,) = w.guest.udp.mappings.values()
            idle_since = mapping.active_at = mapping.active_at - 100
            w.scripted.ip(IP(src=GUEST, dst=GATEWAY) / ICMP(type=kind, code=code) / self.quoted())
            await w.scripted.silence()
            assert w.guest.counters["udp_guest_error"] == 1
            assert mapping.is_open
            assert mapping.active_at == idle_since
            await notes(host, 2)  # and the host hears nothing of it

    @pytest.mark.parametrize("change", [{"src": OTHER}, {"dport": 5001}, {"dst": "192.168.65.4"}])
    async def test_quotes_of_what_was_never_sent(self, change):
        async with fake_world() as (w, host):
            send(w)
            await notes(host, 2)
            w.scripted.ip(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / self.quoted(**change))
            await w.scripted.silence()
            assert w.guest.counters["icmp_error_unmatched"] == 1

    async def test_a_quote_with_a_bad_header_rfc5508_req3(self):
        async with fake_world() as (w, _):
            good = bytes(self.quoted())
            for bad in (
                good[:27],
                b"\x65" + good[1:],
                b"\x44" + good[1:],
                b"\x4f" + good[1:],
                good[:8] + b"\0" + good[9:],
            ):
                w.scripted.ip(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / bad)
            await w.scripted.silence()
            assert w.guest.counters["malformed"] == 5


# The rate of errors


class TestRate:
    def spent(self, seed: int, attempts: int) -> int:
        limit = RateLimit(1000, ERROR_BURST, random.Random(seed))
        limit.allows(100.0)
        return sum(limit.allows(100.0) for _ in range(attempts))

    def test_how_many_of_a_burst_are_sent_cannot_be_counted_on(self):
        """SAD DNS, CVE-2020-25705."""
        spent = [self.spent(seed, 1000) for seed in range(100)]
        assert len(set(spent)) > 10
        assert 0.8 * ERROR_BURST < sum(spent) / len(spent) < 1.2 * ERROR_BURST

    def test_over_time_it_is_the_rate(self):
        limit = RateLimit(1000, ERROR_BURST, random.Random(1))
        sent = sum(limit.allows(i / 10_000) for i in range(100_000))
        assert 9_500 < sent < 10_500
