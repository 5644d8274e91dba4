"""An address that a silent guest has is not offered to another."""

from __future__ import annotations

import pytest
import trio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP

from tests.vpnkit.net.neighbours import GATEWAY, lan
from vpnkit.net import offers

DISCOVER = (
    IP(src="0.0.0.0", dst="255.255.255.255")
    / UDP(sport=68, dport=67)
    / BOOTP(chaddr=bytes.fromhex("025000000001"))
    / DHCP(options=[("message-type", "discover"), "end"])
)


def holds(neighbour, address: str):
    """A task that answers for `address` as a kernel does that has it, and says nothing else."""

    async def answer():
        while True:
            frame = await neighbour.hears(lambda frame: ARP in frame and frame[ARP].pdst == address)
            if frame[ARP].op == 1:
                told = ARP(op=2, hwsrc=neighbour.mac, psrc=address, hwdst=frame[ARP].hwsrc, pdst=frame[ARP].psrc)
                neighbour.send(neighbour.ether(frame[ARP].hwsrc) / told)

    return answer


@pytest.mark.requirement("RFC2131 3.1-2")
async def test_the_address_of_a_silent_guest_is_not_offered():
    async with lan(1) as world, trio.open_nursery() as nursery:
        client, silent = [*world.neighbours, await world.come()]
        nursery.start_soon(holds(silent, "192.168.65.3"))
        offer = await client.dhcp("discover")
        assert offer is not None
        assert offer["yiaddr"] == "192.168.65.4"
        assert world.counter(client, "dhcp_conflict") == 1
        assert world.network.dhcp.declined() == 1
        assert silent.guest.ip == bytes((192, 168, 65, 3))  # known from now on
        nursery.cancel_scope.cancel()


async def test_an_address_that_nobody_has_is_offered_after_a_moment():
    async with lan(1) as world:
        client, _ = [*world.neighbours, await world.come()]
        offer = await client.dhcp("discover")
        assert offer is not None
        assert offer["yiaddr"] == "192.168.65.3"
        assert world.counter(client, "dhcp_conflict") == 0


async def test_a_client_that_answers_for_his_own_offer_gets_it():
    async with lan(1) as world:
        client, _ = [*world.neighbours, await world.come()]
        client.send(client.ether("ff:ff:ff:ff:ff:ff") / ARP(hwsrc=client.mac, psrc="192.168.65.3", pdst=GATEWAY))
        await world.settled(client)
        offer = await client.dhcp("discover", options=[("requested_addr", "192.168.65.3")])
        assert offer is not None
        assert offer["yiaddr"] == "192.168.65.3"


async def test_where_everybody_is_known_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(offers, "PROBE_SECONDS", 1000.0)
    async with lan(1) as world:
        [first] = world.neighbours
        assert await first.lease() == "192.168.65.3"  # no other guest
        second = await world.come()
        assert await second.lease() == "192.168.65.4"  # the other has an address
        assert (await first.dhcp("discover"))["yiaddr"] == "192.168.65.3"


async def test_a_crowd_that_starts_at_once_is_not_asked(monkeypatch):
    """Or a thousand guests would be asked a million times."""
    monkeypatch.setattr(offers, "PROBE_SECONDS", 1000.0)
    monkeypatch.setattr(offers, "MAX_SILENT", 1)
    async with lan(1) as world:
        client, *_ = [*world.neighbours, await world.come(), await world.come()]
        assert (await client.dhcp("discover"))["yiaddr"] == "192.168.65.3"


@pytest.mark.parametrize("most", [0, 1])
async def test_offers_that_wait_are_bounded(monkeypatch, most):
    monkeypatch.setattr(offers, "PROBE_SECONDS", 1000.0)
    monkeypatch.setattr(offers, "MAX_WAITING", most)
    async with lan(1) as world:
        client, _ = [*world.neighbours, await world.come()]
        told = [await client.dhcp("discover", chaddr=f"02:00:00:00:01:0{n}") for n in range(2)]
        assert [offer is None for offer in told] == [n < most for n in range(2)]


async def test_one_that_has_every_address_does_not_keep_anybody_out():
    async with lan(1) as world, trio.open_nursery() as nursery:
        client, greedy = [*world.neighbours, await world.come()]
        for number in range(3, 40):
            nursery.start_soon(holds(greedy, f"192.168.65.{number}"))
        offer = await client.dhcp("discover")
        assert offer is not None
        assert world.counter(client, "dhcp_conflict") <= offers.MAX_TRIES
        nursery.cancel_scope.cancel()


async def test_a_client_that_leaves_meanwhile():
    async with lan(1) as world:
        client, _ = [*world.neighbours, await world.come()]
        client.send(client.ether("ff:ff:ff:ff:ff:ff") / DISCOVER)
        await world.until(lambda: client.guest.gateway._offers._waiting == 1)
        await world.go(client)
        world.neighbours.remove(client)
        await trio.sleep(2 * offers.PROBE_SECONDS)
        assert client.guest.gateway._offers._waiting == 0
