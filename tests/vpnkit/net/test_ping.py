"""Echo to other hosts, a NAT by identifier (RFC 5508), with either kind of host socket."""

from __future__ import annotations

import errno
import random

import pytest
from scapy.layers.inet import ICMP, IP, ICMPerror, IPerror
from scapy.layers.l2 import Ether
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
    fake_world,
)
from tests.vpnkit.net.scripted_guest import GATEWAY, MAC
from vpnkit.flow import error_queue
from vpnkit.net import icmp as net_icmp
from vpnkit.net import ping
from vpnkit.net.plan import SERVER_MAC
from vpnkit.wire import icmp


def echo(w, *, destination=SERVER, identifier=77, sequence=1, payload=b"ping", **header) -> None:
    w.scripted.ip(IP(src=GUEST, dst=destination, **header) / ICMP(id=identifier, seq=sequence) / payload)


def wire_echo(identifier: int, sequence: int, payload: bytes, kind: int = 0) -> bytes:
    return icmp.encode(kind, 0, identifier, sequence, payload)


IP_HEADER = bytes([0x45]) + bytes(19)


@pytest.mark.parametrize("raw", [False, True], ids=["ping socket", "raw socket"])
class TestPing:
    async def sent(self, host, count: int) -> list[tuple]:
        await wait_all_tasks_blocked(0.005)
        found = [note[1:] for note in host.made[0].notes if note[0] == "send"]
        assert len(found) == count, found
        return found

    def answered(self, host, data: bytes, address: str) -> None:
        host.made[0].replies.append((IP_HEADER + data if host.raw else data, (address, 0)))

    async def test_one_socket_for_all_hosts_rfc5508_req1a(self, raw):
        async with fake_world(raw=raw) as (w, host):
            echo(w, destination=SERVER, sequence=1)
            echo(w, destination=OTHER, sequence=2)
            (one, to_one), (other, to_other) = await self.sent(host, 2)
            assert (to_one, to_other) == ((SERVER, 0), (OTHER, 0))
            assert len(host.made) == len(w.guest.icmp.sessions) == 1
            assert one[4:6] == other[4:6]
            for data, address in ((other, OTHER), (one, SERVER), (one, "7.7.7.7")):
                self.answered(host, b"\0" + data[1:], address)
            (session,) = w.guest.icmp.sessions.values()
            session.receive(0.0)
            for sequence, address in ((2, OTHER), (1, SERVER)):
                reply = await w.scripted.frame(ICMP)
                assert (reply[IP].src, reply[ICMP].type, reply[ICMP].id) == (address, 0, 77)
                assert (reply[ICMP].seq, bytes(reply[Raw])) == (sequence, b"ping")
            await w.scripted.silence()
            assert w.guest.counters["icmp_filtered"] == 1

    async def test_many_replies_at_once_are_all_read(self, raw, monkeypatch):
        """More than the turn of one wake-up reads: the poller's edge is behind us then."""
        monkeypatch.setattr(ping, "RECEIVE_BUDGET", 8)
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            ((request, _),) = await self.sent(host, 1)
            for i in range(50):
                self.answered(host, wire_echo(int.from_bytes(request[4:6], "big"), i, b"%d" % i), SERVER)
            (session,) = w.guest.icmp.sessions.values()
            w.guest.touch_datagrams(session)
            w.scripted.send(Ether(src=MAC, dst=SERVER_MAC) / IP(src=GUEST, dst=GATEWAY) / ICMP(id=1))  # wakes us
            got = [(await w.scripted.frame(ICMP))[ICMP] for _ in range(51)]
            assert [reply.seq for reply in got if reply.id == 77] == list(range(50))

    async def test_header(self, raw):
        async with fake_world(raw=raw) as (w, host):
            echo(w, flags="DF")
            echo(w, flags=0, ttl=3, tos=0x20)
            await self.sent(host, 2)
            assert [note[:2] for note in host.made[0].notes if note[0] != "send"] == [
                ("discover", DO),
                ("ttl", 2),
                ("tos", 0x20),
                ("discover", DONT),
            ]

    @pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 13), (3, 4), (11, 0), (11, 1)])
    async def test_an_error_quotes_what_the_guest_sent_rfc5508_req4(self, raw, kind, code):
        async with fake_world(raw=raw) as (w, host):
            payload = random.Random(1).randbytes(101)
            echo(w, identifier=0xABCD, sequence=9, payload=payload, flags="DF", ttl=5)
            ((request, _),) = await self.sent(host, 1)
            (session,) = w.guest.icmp.sessions.values()
            idle_since = session.active_at = session.active_at - 10
            host.made[0].fails(errno.EHOSTUNREACH, 2, kind, code, 1280, destination=(SERVER, 0), data=request)
            session._read_errors()
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (ROUTER, kind, code)
            assert (error[IPerror].src, error[IPerror].dst, error[IPerror].ttl) == (GUEST, SERVER, 5)
            quoted = bytes(error[ICMPerror])
            assert quoted == bytes(ICMP(id=0xABCD, seq=9) / payload)
            assert session.active_at == idle_since  # REQ-6
            assert len(w.guest.icmp.sessions) == 1

    @pytest.mark.parametrize("data", [b"", bytes(7), wire_echo(1, 1, b"", 0), wire_echo(1, 1, b"", 13)])
    async def test_errors_about_something_else(self, raw, data):
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            await self.sent(host, 1)
            made = host.made[0]
            made.fails(errno.EHOSTUNREACH, 2, 3, 1, destination=(SERVER, 0), data=data)
            made.fails(errno.EHOSTUNREACH, 2, 3, 1, destination=(OTHER, 0), data=wire_echo(0, 1, b"", 8))
            made.fails(errno.EPROTO, 2, 12, 0, destination=(SERVER, 0), data=wire_echo(0, 1, b"", 8))
            next(iter(w.guest.icmp.sessions.values()))._read_errors()
            await w.scripted.silence()

    async def test_too_large(self, raw):
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            await self.sent(host, 1)
            host.made[0].failures.append(errno.EMSGSIZE)
            host.made[0].fails(errno.EMSGSIZE, 1, 0, 0, 1400, offender="0.0.0.0")
            echo(w, payload=bytes(1450), flags="DF", sequence=8)
            error = await w.scripted.frame(ICMP)
            assert (error[IP].src, error[ICMP].code, error[ICMP].nexthopmtu) == (GATEWAY, 4, 1400)
            assert (error[ICMPerror].id, error[ICMPerror].seq) == (77, 8)

    async def test_the_error_of_an_earlier_one_does_not_cost_this_one(self, raw):
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            ((request, _),) = await self.sent(host, 1)
            host.made[0].failures.append(errno.EHOSTUNREACH)
            host.made[0].fails(errno.EHOSTUNREACH, 2, 11, 0, destination=(SERVER, 0), data=request)
            echo(w, sequence=2)
            assert len(await self.sent(host, 2)) == 2
            assert (await w.scripted.frame(ICMP))[ICMP].type == 11

    @pytest.mark.parametrize(("number", "code"), [(errno.ENETUNREACH, 0), (errno.EHOSTUNREACH, 1)])
    async def test_what_a_failed_send_looks_like(self, raw, number, code):
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            await self.sent(host, 1)
            host.made[0].failures.extend([number, number])
            echo(w)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, code)

    async def test_the_longest_idle_makes_place(self, raw, monkeypatch):
        monkeypatch.setattr(net_icmp, "MAX_SESSIONS", 3)
        async with fake_world(raw=raw) as (w, _):
            for identifier in (1, 2, 3, 1, 4):
                echo(w, identifier=identifier)
            await wait_all_tasks_blocked(0.005)
            assert [session.identifier for session in w.guest.icmp.sessions.values()] == [3, 1, 4]
            assert w.guest.counters["icmp_evicted"] == 1

    async def test_no_place_at_all_rfc5508_req8(self, raw):
        async with fake_world(raw=raw) as (w, _):
            w.guest.admit = lambda: False
            echo(w)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, 13)

    async def test_idle_ones_expire_rfc5508_req2(self, raw):
        async with fake_world(raw=raw) as (w, host):
            echo(w)
            await self.sent(host, 1)
            (session,) = w.guest.icmp.sessions.values()
            assert session.next_deadline() == session.active_at + 60
            session.on_deadline(session.next_deadline())
            assert not w.guest.icmp.sessions
            assert w.guest.counters["icmp_expired"] == 1

    async def test_peers_are_bounded(self, raw, monkeypatch):
        monkeypatch.setattr(ping, "MAX_PEERS", 2)
        async with fake_world(raw=raw) as (w, host):
            for address in (SERVER, OTHER, SERVER, "7.7.7.7"):
                echo(w, destination=address)
            await self.sent(host, 4)
            (session,) = w.guest.icmp.sessions.values()
            assert list(session._peers) == [SERVER, "7.7.7.7"]


async def test_where_there_is_no_error_queue_raw_sockets_hear_errors(monkeypatch):
    """macOS."""
    monkeypatch.setattr(error_queue, "LINUX", False)
    async with fake_world(raw=True) as (w, host):
        echo(w, identifier=5, sequence=6, ttl=2)
        await wait_all_tasks_blocked(0.005)
        request = next(note[1] for note in host.made[0].notes if note[0] == "send")
        (session,) = w.guest.icmp.sessions.values()
        quoted = bytes(IP(src=HOSTS_OWN, dst=SERVER) / request)
        quoted = quoted[:9] + b"\x01" + quoted[10:]
        for inner in (b"", quoted[:19], quoted):
            host.made[0].replies.append((IP_HEADER + icmp.encode_error(11, 0, inner), (ROUTER, 0)))
        session.receive(0.0)
        error = await w.scripted.frame(ICMP)
        assert (error[IP].src, error[ICMP].type) == (ROUTER, 11)
        assert (error[IPerror].src, error[ICMPerror].id, error[ICMPerror].seq) == (GUEST, 5, 6)
        await w.scripted.silence()
