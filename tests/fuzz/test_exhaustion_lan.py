"""What one guest can fill of what all share: addresses, MAC addresses, leases, queues between guests, and the socket
at which they come.  An honest guest who was there keeps what he has; one who comes afterwards is served too."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from tapdev.sources.connections import MAX_PENDING
from tapdev.switch import QUEUE_FRAMES, QUEUE_OCTETS
from tests.fuzz import frames
from tests.fuzz.frames import BROADCAST, GATEWAY, dhcp_message, ether, packed
from tests.fuzz.test_exhaustion import enough_descriptors, memory_limit
from tests.fuzz.village import QUEUE
from tests.tapdev.source_host import EchoHost, little, running, short_directory
from tests.tapdev.test_vmnet import INIT, JOIN, VIF

__all__ = ["enough_descriptors"]

DISCOVER, REQUEST, DECLINE, RELEASE = (bytes((kind,)) for kind in (1, 3, 4, 7))


@pytest.fixture
async def anna(village):
    """Honest; her address came by DHCP."""
    made = village.come(speaks=False)
    assert made.lease()
    yield made
    assert village.lan.holder(packed(made.ip)).station is made.guest.station
    assert made.is_served()


@pytest.fixture
async def mallory(village, anna):
    return village.come()


def newcomer_is_served(village) -> None:
    """Somebody new gets an address by DHCP, and uses it."""
    berta = village.come(speaks=False)
    berta.mac = b"\x52\x54\x00\xff\xff\xff"
    assert berta.lease(), "no address is left"
    assert berta.is_served()


def mac(number: int) -> bytes:
    return b"\x06" + number.to_bytes(5, "big")


async def test_mac_flood(village, anna, mallory):
    """A switch that forgets everybody when its table is full shows everything to everybody."""
    with memory_limit(2 << 20):
        for i in range(20_000):
            mallory.says(ether(bytes(46), src=mac(i), dst=anna.mac, kind=0x88B5))
            if i % 1000 == 0:
                anna.hears()
    village.settle()
    assert mallory.guest.station.port.counters["forgotten_macs"] > 19_000
    anna.hears()
    berta = village.come()
    berta.says(berta.datagram_to(anna, b"for anna alone"))
    assert any(frame.endswith(b"for anna alone") for frame in anna.hears())
    assert not any(b"for anna alone" in frame for frame in mallory.hears())


async def test_arp_flood_claims_few_addresses(village, anna, mallory):
    with memory_limit(2 << 20):
        for i in range(5000):
            sender = bytes((192, 168, 65, i % 256))
            mallory.says(
                mallory.ether(frames.arp_packet(sender=sender, sender_mac=mallory.mac), dst=BROADCAST, kind=0x0806)
            )
        village.settle()
    newcomer_is_served(village)


async def test_nd_flood_claims_few_addresses(village, anna, mallory):
    """CVE-2013-... of many routers: a table of neighbours with 2^64 places; here each guest has 64 addresses."""
    with memory_limit(2 << 20):
        for i in range(10_000):
            src = b"\xfe\x80" + bytes(6) + i.to_bytes(8, "big")
            mallory.says(mallory.ether(frames.ipv6(bytes(8), 59, src=src, dst=anna.ip6), dst=anna.mac, kind=0x86DD))
        village.settle()
    assert len(village.lan._owners) <= 64 + 2


@pytest.mark.parametrize("count", [1500, pytest.param(65536, marks=(pytest.mark.slow, pytest.mark.timeout(900)))])
async def test_dhcp_starvation_by_discover(village, anna, mallory, count):
    """dhcpig: a new client with each message."""
    with memory_limit(4 << 20):
        for i in range(count):
            message = dhcp_message((53, DISCOVER), mac=mac(i), xid=i)
            mallory.says(frames.dhcp(message, source_mac=mac(i)))
            if i % 100 == 0:
                mallory.hears()
    mallory.hears()
    assert village.server.statistics().bindings <= 253
    newcomer_is_served(village)


@pytest.mark.parametrize("count", [600, pytest.param(65536, marks=(pytest.mark.slow, pytest.mark.timeout(900)))])
async def test_dhcp_starvation_by_decline(village, anna, mallory, count):
    """Each address is taken, and said to be somebody else's."""
    for i in range(count):
        mallory.mac = mac(i)
        offer = mallory.dhcp((53, DISCOVER))
        if offer is not None:
            ip = offer[16:20]
            mallory.dhcp((53, REQUEST), (50, ip), (54, packed(GATEWAY)))
            mallory.dhcp((53, DECLINE), (50, ip), (54, packed(GATEWAY)))
    newcomer_is_served(village)


async def test_dhcp_starvation_by_identifier(village, anna, mallory):
    """One MAC address, a new option 61 with each message."""
    for i in range(1000):
        mallory.says(
            frames.dhcp(dhcp_message((53, DISCOVER), (61, b"x%d" % i), mac=mallory.mac), source_mac=mallory.mac)
        )
    mallory.hears()
    newcomer_is_served(village)


@pytest.mark.parametrize("whole", [False, True])
async def test_dhcp_starvation_by_leases(village, anna, mallory, whole):
    """The whole pool leased to clients that one guest made up; with `whole` he asks for what is left by number, too."""
    for i in range(600):
        mallory.mac = mac(i)
        offer = mallory.dhcp((53, DISCOVER))
        if offer is not None:
            mallory.dhcp((53, REQUEST), (50, offer[16:20]), (54, packed(GATEWAY)))
        if whole:
            mallory.dhcp((53, REQUEST), (50, bytes((192, 168, 65, i % 256))))
    newcomer_is_served(village)


async def test_a_neighbour_who_does_not_listen(village, anna, mallory):
    """Frames for a guest whose link is full wait in a bounded queue, and hold nobody up."""
    payload = bytes(1400)
    with memory_limit(16 << 20):
        for _ in range(QUEUE + 3000):
            mallory.says(mallory.datagram_to(anna, payload))
        village.settle()
    port = anna.guest.station.port
    assert port.queued_frames <= QUEUE_FRAMES
    assert port.queued_octets <= QUEUE_OCTETS
    assert port.counters["queue_full"] > 0
    assert mallory.is_served()
    anna.hears()
    anna.hears()


async def test_broadcast_storm(village, anna, mallory):
    for _ in range(3000):
        mallory.says(
            mallory.ether(
                frames.arp_packet("192.168.65.99", sender=mallory.ip, sender_mac=mallory.mac),
                dst=BROADCAST,
                kind=0x0806,
            )
        )
    heard = anna.hears()
    assert 0 < len(heard) <= 3000


async def test_many_handshakes_that_go_no_further():
    """On a VMN3T socket: silent, half a word, HTTP without an end, nonsense; a good client joins at once."""
    before = len(os.listdir("/proc/self/fd"))
    words = [
        b"",
        b"V",
        INIT[:20],
        INIT,
        INIT + JOIN[:10],
        b"GET /connect HTTP/1.1\r\n",
        b"GET /" + b"x" * 9000,
        bytes(50),
    ]
    open_ones: list[socket.socket] = []
    host = EchoHost()
    try:
        with short_directory() as directory:
            path = directory / "v"
            async with running(f"vmnet:{path}", host):
                for i in range(400):
                    made = socket.socket(socket.AF_UNIX)
                    made.connect(str(path))
                    made.setblocking(False)
                    made.sendall(words[i % len(words)])
                    open_ones.append(made)
                    if i % 20 == 0:
                        await trio.testing.wait_all_tasks_blocked(0.001)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(os.listdir("/proc/self/fd")) - before - len(open_ones) <= MAX_PENDING + 30
                client = await little(path)
                await client.stream.send_all(INIT + JOIN)
                assert await client.exactly(len(INIT + VIF)) == INIT + VIF
                await client.echo()
                await client.aclose()
    finally:
        for made in open_ones:
            made.close()
