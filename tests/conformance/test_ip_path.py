"""What the IP header of the guest's datagrams says on the way to the host: TTL, DF, DSCP, and what routers answer."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP

from tests.conformance.wire import (
    GATEWAY,
    GUEST,
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    Internet,
    datagram,
    errors,
    far,
    ping,
    syn,
)

IP_RECVTOS = 13  # linux/in.h
IP_RECVTTL = 12


@pytest.mark.parametrize(
    "packet",
    [datagram(b"?", 33434, far(9), ttl=1), ping(far(9), ttl=1), syn(80, far(9), ttl=1)],
    ids=["udp", "icmp", "tcp"],
)
async def test_rfc1812_5_3_1_ttl_1_to_a_foreign_host_ends_at_the_gateway(wire, packet):
    """The first hop of a traceroute, whichever way it is done."""
    [frame] = wire.send(packet)
    assert errors([frame]) == [(11, 0)]
    assert (frame[IP].src, frame[IP].dst) == (GATEWAY, GUEST)
    assert bytes(frame[ICMP].payload)[:28] == bytes(packet)[:28]
    assert not wire.internet.opened


async def test_rfc1812_5_3_1_ttl_2_goes_on_to_the_host_with_one_less(wire):
    with wire.server("127.0.0.9") as server:
        server.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        for ttl, expected in ((2, 1), (5, 4), (30, 29)):
            wire.send(datagram(b"?", server.getsockname()[1], far(9), ttl=ttl))
            _, [(_, _, value)], _, _ = server.recvmsg(100, 100)
            assert int.from_bytes(value, "little") == expected


async def test_rfc6864_4_1_df_is_never_cleared_on_the_way_to_the_host(wire):
    """A datagram that may not be fragmented is refused by the host when it does not fit, and goes with DF else."""
    with wire.server("127.0.0.9") as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"?", port, far(9), flags="DF"))
        server.recvfrom(100)
        [mapping] = wire.internet.opened
        assert mapping.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_DO
        wire.send(datagram(b"?", port, far(9)))
        server.recvfrom(100)
        assert mapping.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_DONT


async def test_rfc4787_req_13_what_is_too_big_and_has_df_gets_fragmentation_needed(make_wire):
    """With the MTU of the way that the host found (RFC 1191), for what did not leave."""
    wire = make_wire(host=Internet(mtu=1400))
    with wire.server("127.0.0.9") as server:
        port = server.getsockname()[1]
        big = datagram(bytes(1373), port, far(9), flags="DF")
        [frame] = wire.send(big)
        assert errors([frame]) == [(3, 4)]
        assert frame[ICMP].nexthopmtu == 1400
        assert bytes(frame)[42:46] == bytes(big)[:4]
        assert bytes(frame)[48:50] == b"\x40\x00"  # DF, in the quote
        assert bytes(frame)[54:68] == bytes(big)[12:26]  # addresses, ports and length
        assert not wire.send(datagram(bytes(1372), port, far(9), flags="DF"))
        assert len(server.recvfrom(2000)[0]) == 1372


async def test_rfc4787_req_13_a_ping_that_is_too_big_gets_it_too(make_wire):
    wire = make_wire(host=Internet(mtu=1400))
    [frame] = wire.send(ping(far(9), bytes(1400), flags="DF"))
    assert errors([frame]) == [(3, 4)]
    assert frame[ICMP].nexthopmtu == 1400


async def test_rfc4787_req_13_a_router_that_says_so_is_passed_on(wire):
    with wire.server("127.0.0.9") as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"first", port, far(9), flags="DF"))
        [host] = wire.internet.opened
        wire.network_says(host, 90, 3, 4, (far(9), port), b"first", info=1280)
        [frame] = wire.work()
    assert errors([frame]) == [(3, 4)]
    assert (frame[ICMP].nexthopmtu, frame[IP].src) == (1280, "198.51.100.7")


@pytest.mark.parametrize("mtu", [0, 1, 67])
async def test_rfc4787_req_13_an_mtu_that_cannot_be_is_not_believed(wire, mtu):
    with wire.server("127.0.0.9") as server:
        port = server.getsockname()[1]
        wire.send(datagram(b"first", port, far(9), flags="DF"))
        [host] = wire.internet.opened
        wire.network_says(host, 90, 3, 4, (far(9), port), b"first", info=mtu)
        assert not wire.work()


async def test_rfc4787_req_13a_what_is_too_big_without_df_is_fragmented_by_the_host(make_wire):
    wire = make_wire(host=Internet(mtu=1400))
    with wire.server("127.0.0.9") as server:
        assert not wire.send(datagram(bytes(1450), server.getsockname()[1], far(9)))
        assert len(server.recvfrom(2000)[0]) == 1450
