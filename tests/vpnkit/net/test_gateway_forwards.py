"""Ports of the gateway that lead elsewhere: where the policy sends them, and under which address answers come back."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.vpnkit.net.scripted_guest import GATEWAY, HOST, octets, world
from tests.vpnkit.net.test_guest_udp import heard, server
from vpnkit.net import udp_mapping
from vpnkit.net.plan import Plan
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target

if TYPE_CHECKING:
    import pytest


def test_where_they_lead() -> None:
    plan = Plan(gateway_forwards={("tcp", 53): ("10.0.0.1", 5353), ("udp", 7): ("127.0.0.1", 1007)})
    gateway = octets(GATEWAY)
    assert target(Protocol.TCP, gateway, 53, plan) == Host("10.0.0.1", 5353)
    assert target(Protocol.UDP, gateway, 53, plan) is Service.DNS
    assert target(Protocol.UDP, gateway, 7, plan) == Host("127.0.0.1", 1007)
    assert target(Protocol.TCP, gateway, 7, plan) is Refuse.CLOSED
    assert target(Protocol.UDP, octets(HOST), 7, plan) == Host("127.0.0.1", 7)
    plan.gateway_forwards.clear()
    assert target(Protocol.TCP, gateway, 53, plan) is Service.DNS


async def test_answers_come_from_the_port_that_was_called() -> None:
    one, other = server(), server()
    forwards = {("udp", 7): ("127.0.0.1", one[1]), ("udp", 53): ("127.0.0.1", one[1])}
    with one[0] as first, other[0] as second:
        async with world(Plan(gateway_forwards=forwards)) as w:
            w.scripted.datagram(b"to the gateway", 7, GATEWAY)
            data, peer = await heard(first)
            assert data == b"to the gateway"
            first.sendto(b"from the gateway", peer)
            assert await w.scripted.answer() == (GATEWAY, 7, 5000, b"from the gateway")
            # the host alias is 127.0.0.1, too, and the mapping is the same
            w.scripted.datagram(b"to the alias", other[1], HOST)
            assert (await heard(second))[1] == peer
            second.sendto(b"from the alias", peer)
            assert await w.scripted.answer() == (HOST, other[1], 5000, b"from the alias")
            first.sendto(b"again", peer)
            assert await w.scripted.answer() == (GATEWAY, 7, 5000, b"again")
            # before the gateway's own services
            w.scripted.datagram(b"no DNS", 53, GATEWAY)
            assert (await heard(first))[0] == b"no DNS"


async def test_a_gateways_port_lets_no_stranger_in() -> None:
    made, port = server()
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made, stranger:
        async with world(Plan(gateway_forwards={("udp", 7): ("127.0.0.1", port)})) as w:
            w.scripted.datagram(b"1", 7, GATEWAY)
            _, peer = await heard(made)
            stranger.sendto(b"I was not called", peer)
            made.sendto(b"2", peer)
            assert (await w.scripted.answer())[3] == b"2"
            assert w.guest.counters["udp_filtered"] == 1


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_mapping, "MAX_PEERS", 4)
    servers = [server() for _ in range(6)]
    forwards = {("udp", 1000 + i): ("127.0.0.1", port) for i, (_, port) in enumerate(servers)}
    async with world(Plan(gateway_forwards=forwards)) as w:
        for i, (made, _) in enumerate(servers):
            w.scripted.datagram(b"x", 1000 + i, GATEWAY)
            await heard(made)
            made.close()
        [mapping] = w.guest.udp.mappings.values()
        assert len(mapping._ports) == 4
