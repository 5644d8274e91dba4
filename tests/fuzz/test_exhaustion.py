"""Every table that one guest can fill, filled by one guest (conformance.md 3.1 G2, bars B8 to B14): it stays within its
bound, a counter says that it was full, and what he does honestly besides goes on working: the `victim` fixture's end,
and a connection that was there before."""

from __future__ import annotations

import gc
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.fuzz import frames
from tests.fuzz.frames import ACK, GATEWAY, REMOTE, dns, dns_query, ether, ipv4
from tests.fuzz.victim import cpu_limit
from vpnkit.net import icmp, tcp, udp
from vpnkit.net.udp_mapping import MAX_PEERS
from vpnkit.proto.deadlines import SWEEP_AT
from vpnkit.proto.dns import MAX_IN_FLIGHT
from vpnkit.proto.tcp.receiver import CAPACITY
from vpnkit.services.dns import MAX_SOCKETS
from vpnkit.services.dns_stream import MAX_STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.victim import Peer, Victim


# What the tables may hold, and the garbage that waits for the collector: its last generation is looked at only when a
# quarter as much is new, so how much that is depends on all that the process holds.
ATTACK_OCTETS = 16 << 20


@contextmanager
def memory_limit(octets: int) -> Iterator[None]:
    """The process grows by at most so much, where that can be seen."""
    gc.collect()
    before = resident()
    yield
    gc.collect()
    assert resident() - before < octets


def resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def faithful(victim: Victim) -> Peer:
    """A connection from before the attack, which must outlive it."""
    peer = victim.connect()
    host = victim.far[-1]
    yield peer
    peer.say(b"through it all")
    assert host.recv(100) == b"through it all"
    host.send(b"both ways")
    assert peer.hears(9) == b"both ways"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def many(count: int) -> object:
    """The everyday number, and under `slow` the real one."""
    return pytest.mark.parametrize(
        "count", [count, pytest.param(65536, marks=(pytest.mark.slow, pytest.mark.timeout(900)))]
    )


# TCP


@many(2000)
async def test_syn_flood_to_black_holes(victim, faithful, count):
    """B10: held SYNs; the oldest makes place, 64 for one destination; and a connection elsewhere opens meanwhile."""
    with memory_limit(ATTACK_OCTETS):
        for i in range(count):
            dst = bytes((10, 0, i >> 6 & 255, i & 63))
            victim.feed(frames.tcp(sport=1024 + i % 60000, dport=8082, dst=dst))
            assert len(victim.guest.tcp._held) <= tcp.MAX_HELD
        grown = victim.grew()
        assert grown["tcp_held_evicted"] == count - tcp.MAX_HELD
    for i in range(200):
        victim.feed(frames.tcp(sport=1024 + i, dport=8086))
    assert victim.grew()["tcp_held_limit"] == 200 - tcp.MAX_HELD_PER_DESTINATION
    assert len(victim.guest.tcp._held_to) <= tcp.MAX_HELD
    assert victim.connect().hears() == b""


async def test_connections_beyond_the_limit_are_reset(victim, faithful, monkeypatch):
    """B9: an answer at once, never silence; and there is place again when some end."""
    monkeypatch.setattr(tcp, "MAX_FLOWS", 200)
    out = victim.feed(*(frames.tcp(sport=1024 + i) for i in range(1000)))
    resets = [frame for frame in out if frame[47] & frames.RST]
    assert len(resets) == victim.grew()["tcp_limit"] == 1000 - 199
    victim.feed(*(frames.tcp(sport=1024 + i, seq=1001, flags=frames.RST) for i in range(1000)))
    assert len(victim.guest.tcp.flows) == 1


async def test_no_more_host_sockets(victim, faithful):
    """B9: the instance's limit is reached: a reset, ICMP 3/13 or another mapping's place."""
    victim.feed(frames.udp(b"x", sport=5000), frames.ping(dst=REMOTE))
    victim.guest.admit = lambda: False
    before = descriptors()
    for i in range(300):
        (answer,) = [frame for frame in victim.feed(frames.tcp(sport=1024 + i)) if frame[23] == 6]
        assert answer[47] & frames.RST
        victim.feed(frames.udp(b"x", sport=6000 + i))
    assert len(victim.guest.udp.mappings) <= 1
    assert descriptors() <= before + 1
    victim.guest.admit = lambda: True


async def test_connections_that_never_answer_the_syn_ack(victim, faithful):
    """Half open ones give up by themselves, and are asked a few times only."""
    out = victim.feed(*(frames.tcp(sport=1024 + i) for i in range(500)))
    for _ in range(200):
        out += victim.passes(1.0)
    assert len(victim.guest.tcp.flows) == 1
    assert len([frame for frame in out if frame[23] == 6]) <= 500 * 9


async def test_time_wait_is_bounded(victim, faithful, monkeypatch):
    monkeypatch.setattr(tcp, "MAX_TIME_WAIT", 50)
    for _ in range(200):
        peer = victim.connect()
        victim.far[-1].shutdown(1)
        victim.feed()
        peer.say(ack=peer.ack + 1, flags=ACK | frames.FIN)
    assert 40 <= len(victim.guest.tcp._time_wait) <= 50


@many(1500)
async def test_connections_made_and_reset(victim, faithful, count):
    """Nothing of a connection stays: no flow, no deadline, no descriptor, no memory."""
    before = descriptors()
    with memory_limit(6 << 20):
        for _ in range(count):
            victim.connect(port=7000).say(b"x", flags=frames.RST)
    assert len(victim.guest.deadlines.queue) <= 2 * SWEEP_AT
    assert descriptors() <= before + 260, "those that the test has not closed yet"


async def test_a_host_that_never_reads(victim, faithful):
    """B12: what waits for it is no more than its window, and the guest is told that it is closed."""
    peer = victim.connect()
    chunk = bytes(1400)
    with memory_limit(ATTACK_OCTETS):
        for _ in range(5000):
            peer.say(chunk)
        flow = next(flow for flow in victim.guest.tcp.flows.values() if flow.connection.receiver.buffered)
        assert flow.connection.receiver.buffered <= CAPACITY + (1 << 17)
    peer.say(flags=frames.RST, seq=flow.connection.receiver.nxt)


async def test_a_guest_that_never_acknowledges(victim, faithful):
    """B12: the other way round; what was read from the host is bounded, the rest stays in the host's kernel."""
    with memory_limit(24 << 20):
        for _ in range(20):
            peer = victim.connect()
            peer.say(window=65535)
            far = victim.far[-1]
            for _ in range(50):
                try:
                    far.send(bytes(1 << 17))
                except BlockingIOError:
                    pass
                victim.feed()
    for flow in victim.guest.tcp.flows.values():
        sender = flow.connection.sender
        assert (sender.end - sender.una) & 0xFFFFFFFF <= 2 << 20


async def test_data_with_holes_is_bounded(victim, faithful):
    """SegmentSmack: early data of many connections; ranges and octets of each are bounded."""
    with memory_limit(12 << 20):
        peers = [victim.connect() for _ in range(8)]
        for peer in peers:
            victim.feed(*(peer.segment(bytes(1400), seq=peer.seq + 1 + 1401 * i) for i in range(1000)))
            victim.feed(*(peer.segment(b"x", seq=peer.seq + 1 + 7 * i) for i in range(1000)))
    for flow in victim.guest.tcp.flows.values():
        assert flow.connection.receiver.assembler.octets <= CAPACITY
    for peer in peers:
        peer.say(flags=frames.RST)


# UDP


@many(1500)
async def test_udp_flood_from_every_port(victim, faithful, count):
    """The longest idle mapping makes place (vpnkit #406: 4864 descriptors of UDP flows)."""
    before = descriptors()
    with memory_limit(12 << 20):
        for i in range(count):
            victim.feed(frames.udp(b"x", sport=1 + i % 65535))
    assert len(victim.guest.udp.mappings) == udp.MAX_MAPPINGS
    assert len(victim.guest.udp.routes) <= udp.MAX_MAPPINGS
    assert victim.grew()["udp_evicted"] >= count - udp.MAX_MAPPINGS - 1
    assert descriptors() <= before + udp.MAX_MAPPINGS
    assert len(victim.guest.deadlines.queue) <= 2 * (udp.MAX_MAPPINGS + SWEEP_AT)
    victim.passes(301.0)
    victim.passes(1.0)
    assert not victim.guest.udp.mappings


@many(2000)
async def test_udp_flood_to_every_address(victim, faithful, count):
    with memory_limit(4 << 20):
        for i in range(count):
            victim.feed(frames.udp(b"x", dst=bytes((10, 1, i >> 8 & 255, i & 255)), dport=1 + i % 65535))
    (mapping,) = victim.guest.udp.mappings.values()
    assert len(mapping.routes) <= MAX_PEERS
    assert len(mapping._peers) <= MAX_PEERS
    assert len(victim.guest.udp.routes) <= MAX_PEERS


async def test_errors_are_not_an_amplifier(victim, faithful):
    """B14: closed ports and unknown protocols, as fast as they come; a burst gets about 50 (the limit rolls dice)."""
    flood = [frames.udp(b"x", dst=GATEWAY, dport=9 + i) for i in range(3000)]
    flood += [ether(ipv4(b"x" * 8, 99)) for _ in range(3000)]
    assert 40 <= len(errors(victim.feed(*flood))) <= 60
    assert victim.grew()["icmp_rate_limited"] >= 5900
    victim.passes(1.0)
    assert 40 <= len(errors(victim.feed(*flood))) <= 60


def errors(out: list[bytes]) -> list[bytes]:
    return [frame for frame in out if frame[23] == 1 and frame[34] == 3]


# ICMP


@many(1500)
async def test_ping_flood_with_every_identifier(victim, faithful, count):
    before = descriptors()
    with memory_limit(4 << 20):
        for i in range(count):
            victim.feed(frames.ping(ident=i & 0xFFFF, dst=REMOTE))
    assert len(victim.guest.icmp.sessions) == icmp.MAX_SESSIONS
    assert victim.grew()["icmp_evicted"] == count - icmp.MAX_SESSIONS
    assert descriptors() <= before + icmp.MAX_SESSIONS
    victim.passes(61.0)
    assert not victim.guest.icmp.sessions


# Fragments


@pytest.mark.parametrize("count", [5000, pytest.param(100_000, marks=(pytest.mark.slow, pytest.mark.timeout(900)))])
async def test_fragments_that_never_become_whole(victim, faithful, count):
    """B13: at most 4 MiB, and little time; after the timer nothing is left."""
    with memory_limit(7 << 20), cpu_limit(3.0 + count / 10_000):
        for i in range(count):
            victim.feed(ether(ipv4(bytes(1480), 17, ident=i & 0xFFFF, flags_offset=frames.MF | (i >> 16) * 185)))
    with memory_limit(1 << 20):
        victim.passes(31.0)
        victim.passes(31.0)


async def test_fragments_of_one_datagram_with_many_holes(victim, faithful):
    with memory_limit(2 << 20), cpu_limit(3.0):
        for ident in range(5):
            holes = [ether(ipv4(bytes(8), 17, ident=ident, flags_offset=frames.MF | 2 * i)) for i in range(4000)]
            victim.feed(*holes)


# DNS


@many(2000)
async def test_dns_questions_without_an_end(victim, faithful, count):
    """B9: names that nobody answers; local names are answered all the same, and all is gone after the patience."""
    before = descriptors()
    with memory_limit(ATTACK_OCTETS):
        for i in range(count):
            victim.feed(dns(dns_query(f"n{i}.example", ident=i & 0xFFFF), sport=1024 + i % 60000))
    statistics = victim.guest.gateway.dns.statistics()
    assert statistics.in_flight == MAX_IN_FLIGHT
    assert statistics.sockets <= MAX_SOCKETS
    assert statistics.overflowed == count - MAX_IN_FLIGHT
    assert descriptors() <= before + MAX_SOCKETS
    assert any(f.endswith(frames.packed(frames.HOST)) for f in victim.feed(dns(dns_query())))
    for _ in range(10):
        victim.passes(1.0)
    assert victim.guest.gateway.dns.statistics().in_flight == 0
    assert descriptors() == before


async def test_dns_connections_without_an_end(victim, faithful):
    """Over TCP: so many, and one more is closed; a question by UDP is answered all the while."""
    for i in range(MAX_STREAMS + 50):
        port = 1024 + i
        out = victim.feed(frames.tcp(dst=GATEWAY, dport=53, sport=port))
        ack = int.from_bytes(next(f for f in out if f[23] == 6)[38:42], "big") + 1
        victim.feed(frames.tcp(b"\0", dst=GATEWAY, dport=53, sport=port, seq=1001, ack=ack, flags=ACK))
    await trio.testing.wait_all_tasks_blocked()
    statistics = victim.guest.gateway.dns.statistics()
    assert statistics.streams == MAX_STREAMS
    assert statistics.refused_streams == 50
    assert any(f.endswith(frames.packed(frames.HOST)) for f in victim.feed(dns(dns_query())))


# What all connections of a guest may take together


async def test_hosts_that_never_read_share_a_limit(victim, faithful):
    """B8: what waits for slow hosts is bounded for all connections together, too: 64 MiB."""
    for i in range(300):
        peer = victim.connect(port=30_000 + i, options=b"\1\3\3\7")
        for _ in range(10):
            peer.say(bytes(48_000))
    waiting = sum(
        flow.connection.receiver.buffered + flow.connection.receiver.assembler.octets
        for flow in victim.guest.tcp.flows.values()
    )
    for flow in list(victim.guest.tcp.flows.values()):
        if flow.key[8:10] >= (30_000).to_bytes(2, "big"):
            victim.guest.tcp.forget(flow, victim.guest.now())
    assert waiting <= 64 << 20


async def test_a_super_frame_is_not_ten_thousand_datagrams(victim, faithful):
    """G1, one frame and its time: with a `gso_size` of 1 it would be a system call for each octet."""
    for data, size in ((bytes(65_000), 1), (bytes(65_000), 12), (bytes(1000), 1)):
        victim.host.sent = 0
        with cpu_limit(0.1):
            victim.raw(frames.udp(data), 5, size)
            victim.raw(frames.udp(data), 5, size)
        assert victim.host.sent <= 2048
        queries = victim.guest.gateway.dns.statistics().udp_queries
        victim.raw(frames.udp(data, dst=GATEWAY, dport=53), 5, size)
        assert victim.guest.gateway.dns.statistics().udp_queries - queries <= 1024
