"""Which addresses a VMN3T client has: vpnkit.md 1.1 and 3.1, and the texts of a refusal."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from tapdev.vmnet import Refused
from tests.vpnkit.net.neighbours import lan
from vpnkit.net import identities
from vpnkit.net.identities import Identities
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import Plan
from vpnkit.proto.dhcp import DhcpServer

ONE = UUID("d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5")


def ip(last: int) -> bytes:
    return bytes([192, 168, 65, last])


@pytest.fixture
def registry():
    return Identities(DhcpServer(dhcp_config(Plan())), lambda mac: False)


def test_the_first_client_has_the_first_addresses(registry):
    made = registry.register(ONE, None, 0.0)
    assert made.mac.hex(":") == "02:50:00:00:00:01"
    assert made.ip == ip(3)
    second = registry.register(uuid4(), None, 0.0)
    assert (second.mac.hex(":"), second.ip) == ("02:50:00:00:00:02", ip(4))


def test_a_uuid_keeps_its_addresses(registry):
    first = registry.register(ONE, None, 0.0)
    registry.register(uuid4(), None, 0.0)
    assert registry.register(ONE, None, 1e9) == first
    assert registry.register(ONE, first.ip, 0.0) == first


def test_a_preferred_address(registry):
    assert registry.register(ONE, ip(250), 0.0).ip == ip(250)
    with pytest.raises(Refused, match=r"^Preferred IP address 192.168.65.250 already used\.$"):
        registry.register(uuid4(), ip(250), 0.0)
    with pytest.raises(Refused, match=r"^Preferred IP address out of range\.$"):
        registry.register(uuid4(), bytes([10, 0, 0, 1]), 0.0)
    with pytest.raises(Refused, match=r"^Preferred IP address out of range\.$"):
        registry.register(uuid4(), ip(1), 0.0)  # the gateway's
    with pytest.raises(Refused, match=r"^UUID already assigned to a different IP than the IP requested by the client$"):
        registry.register(ONE, ip(9), 0.0)


def test_a_refused_client_costs_a_mac_address(registry):
    with pytest.raises(Refused):
        registry.register(ONE, ip(1), 0.0)
    assert registry.register(ONE, None, 0.0).mac.hex(":") == "02:50:00:00:00:02"


def test_clients_without_uuid_are_all_different(registry):
    made = [registry.register(None, None, 0.0) for _ in range(3)]
    assert len({one.mac for one in made}) == len({one.ip for one in made}) == 3


def test_there_are_no_more_addresses_than_there_are():
    from ipaddress import IPv4Network

    registry = Identities(DhcpServer(dhcp_config(Plan(subnet=IPv4Network("10.0.0.0/29")))), lambda mac: False)
    for _ in range(4):
        registry.register(uuid4(), None, 0.0)
    with pytest.raises(Refused, match=r"^No IP addresses available\.$"):
        registry.register(uuid4(), None, 0.0)


def test_the_oldest_absent_client_makes_place(monkeypatch):
    monkeypatch.setattr(identities, "MAX_IDENTITIES", 3)
    here = set()
    registry = Identities(DhcpServer(dhcp_config(Plan())), lambda mac: mac in here)
    first, second, _ = (registry.register(uuid4(), None, 0.0) for _ in range(3))
    here.add(first.mac)
    fourth = registry.register(uuid4(), None, 0.0)
    assert fourth.ip == ip(6)
    here.add(fourth.mac)
    assert registry.register(uuid4(), second.ip, 0.0).ip == second.ip, "its address is free again"


async def test_two_connections_of_one_uuid_are_one_guest():
    """RootlessKit keeps the connection by which it asked for its address, and sends frames through another."""
    async with lan(0) as world:
        registration = world.network.register(ONE, None)
        idle = await world.come(registration=registration)
        other = await world.come()
        other.speak()
        await world.settled(other)
        busy = await world.come(registration=world.network.register(ONE, None))
        for one in (idle, busy):
            one.mac, one.ip = registration.mac.hex(":"), "192.168.65.3"
        holder = world.network.lan.holder(registration.ip)
        assert holder.station is busy.guest.station
        busy.speak()
        await world.settled(busy)
        assert not busy.guest.counters["spoofed_mac"]
        assert not busy.guest.counters["spoofed_arp"]
        idle.speak()
        await world.settled(idle)
        assert world.network.lan.holder(registration.ip).station is idle.guest.station, "where it was used last"
        assert world.network.lan.switch.owner(registration.mac) is idle.guest.station.port
        await world.go(idle)
        busy.speak()
        await world.settled(busy)
        assert world.network.lan.holder(registration.ip).station is busy.guest.station
