"""What RFC 6888 requires of a NAT that strangers share: limits, refusals, and what the log does not say."""

from __future__ import annotations

import logging
import socket

import pytest
from scapy.layers.inet import ICMP, TCP

from tests.conformance.wire import HOST, Internet, Nowhere, closed_port, datagram, errors, far, ping, syn
from vpnkit.net import icmp, tcp, udp
from vpnkit.net.plan import Plan


@pytest.fixture
async def small(monkeypatch, wire):
    """A guest who may have four of everything."""
    monkeypatch.setattr(udp, "MAX_MAPPINGS", 4)
    monkeypatch.setattr(icmp, "MAX_SESSIONS", 4)
    monkeypatch.setattr(tcp, "MAX_FLOWS", 4)
    return wire


async def test_rfc6888_req_4_ports_of_udp_are_limited(small):
    with small.server() as server:
        for source_port in range(5000, 5010):
            small.send(datagram(b"?", server.getsockname()[1], source_port=source_port))
        assert [mapping.port for mapping in small.guest.udp.mappings.values()] == [5006, 5007, 5008, 5009]
        assert small.counters["udp_evicted"] == 6


async def test_rfc6888_req_4_connections_of_tcp_are_limited(small):
    with socket.create_server(("127.0.0.1", 0)) as server:
        flags = [
            small.send(syn(server.getsockname()[1], source_port=source_port))[0][TCP].flags
            for source_port in range(5000, 5010)
        ]
    assert flags == ["SA"] * 4 + ["RA"] * 6
    assert small.counters["tcp_limit"] == 6


async def test_rfc6888_req_4_identifiers_of_icmp_are_limited(small):
    small.send(*(ping(far(2), identifier=identifier) for identifier in range(1, 11)))
    assert [session.identifier for session in small.guest.icmp.sessions.values()] == [7, 8, 9, 10]


async def test_rfc6888_req_4_who_exhausts_one_protocol_has_the_others(small):
    with small.server() as udp_server, socket.create_server(udp_server.getsockname()):
        port = udp_server.getsockname()[1]
        small.send(*(ping(far(2), identifier=identifier) for identifier in range(1, 11)))
        assert small.send(syn(port))[0][TCP].flags == "SA"
        small.send(datagram(b"?", port))
        assert udp_server.recvfrom(100)[0] == b"?"
        assert len(small.guest.icmp.sessions) == 4


async def test_rfc6888_req_5_syns_that_wait_for_one_host_are_limited(wire, monkeypatch):
    monkeypatch.setattr(Internet, "start_connect", staticmethod(lambda made, address: 115))  # EINPROGRESS, for ever
    wire.send(*(syn(80, far(2), source_port=source_port) for source_port in range(5000, 5200)))
    assert len(wire.guest.tcp.flows) == tcp.MAX_HELD_PER_DESTINATION
    assert wire.counters["tcp_held_limit"] == 200 - tcp.MAX_HELD_PER_DESTINATION


async def test_rfc6888_req_5_syns_that_wait_are_limited(wire, monkeypatch):
    monkeypatch.setattr(Internet, "start_connect", staticmethod(lambda made, address: 115))
    monkeypatch.setattr(tcp, "MAX_HELD", 16)
    wire.send(*(syn(80 + i, far(2), source_port=5000 + i) for i in range(50)))
    assert len(wire.guest.tcp.flows) == 16
    assert wire.counters["tcp_held_evicted"] == 34


async def test_rfc6888_req_6_a_network_may_be_refused(wire):
    """The link-local one, where a cloud's metadata service is."""
    address = "169.254.169.254"
    for packet in (syn(80, address), datagram(b"?", 80, address), ping(address)):
        assert errors(wire.send(packet)) == [(3, 13)]
    assert not wire.internet.opened


async def test_rfc6888_req_6_the_host_may_be_refused(make_wire):
    wire = make_wire(plan=Plan(host_loopback=False))
    with wire.server() as server:
        port = server.getsockname()[1]
        assert wire.send(syn(port))[0][TCP].flags == "RA"
        assert errors(wire.send(datagram(b"?", port))) == [(3, 3)]
    assert not wire.internet.opened


async def test_rfc6888_req_11_without_a_mapping_it_is_dropped_told_and_counted(make_wire):
    wire = make_wire(host=Nowhere())
    assert errors(wire.send(datagram(b"?", 99, far(2)))) == [(3, 13)]
    assert errors(wire.send(ping(far(2)))) == [(3, 13)]
    assert wire.send(syn(80, far(2)))[0][TCP].flags == "RA"
    assert wire.counters["udp_socket_failed"] == wire.counters["tcp_connect_exhausted"] == 1


async def test_rfc6888_req_12_no_destination_is_in_the_log(wire, caplog):
    """Whatever the guest does: connects, is refused, is filtered, is answered, sends what is malformed."""
    caplog.set_level(logging.INFO)
    with wire.server("127.0.0.2") as server, socket.create_server(("127.0.0.2", 0)) as listener:
        wire.send(datagram(b"?", server.getsockname()[1], far(2)), ping(far(2)), ping("169.254.169.254"))
        wire.send(syn(listener.getsockname()[1], far(2)), syn(closed_port("127.0.0.2", socket.SOCK_STREAM), far(2)))
        wire.send(datagram(b"?", closed_port("127.0.0.2"), far(2), source_port=5001))
        bad = ping(HOST)
        bad[ICMP].chksum = 1
        wire.send(bad, bytes(20))
        wire.pass_time(400)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
