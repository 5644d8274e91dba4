from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.net.plan import Plan
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target

PLAN = Plan()
CLOSED_PLAN = Plan(host_loopback=False)
TCP, UDP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP


@pytest.mark.parametrize(
    ("protocol", "destination", "port", "expected"),
    [
        (TCP, "192.168.65.1", 53, Service.DNS),
        (UDP, "192.168.65.1", 53, Service.DNS),
        (UDP, "192.168.65.1", 67, Service.DHCP),
        (TCP, "192.168.65.1", 67, Refuse.CLOSED),
        (TCP, "192.168.65.1", 80, Refuse.CLOSED),
        (TCP, "192.168.65.1", 0, Refuse.CLOSED),
        (ICMP, "192.168.65.1", 0, Service.ECHO),
        (TCP, "192.168.65.2", 80, Host("127.0.0.1", 80)),
        (UDP, "192.168.65.2", 53, Host("127.0.0.1", 53)),
        (ICMP, "192.168.65.2", 0, Service.ECHO),
        (TCP, "192.168.65.2", 0, Refuse.SILENT),
        (TCP, "192.168.65.3", 80, Refuse.SILENT),
        (UDP, "192.168.65.255", 80, Refuse.SILENT),
        (TCP, "127.0.0.1", 80, Refuse.SILENT),
        (ICMP, "127.0.0.53", 0, Refuse.SILENT),
        (TCP, "0.0.0.0", 80, Refuse.SILENT),
        (UDP, "239.255.255.250", 1900, Refuse.SILENT),
        (UDP, "255.255.255.255", 9, Refuse.SILENT),
        (TCP, "169.254.169.254", 80, Refuse.PROHIBITED),
        (TCP, "8.8.8.8", 443, Host("8.8.8.8", 443)),
        (ICMP, "8.8.8.8", 0, Host("8.8.8.8", 0)),
    ],
)
def test_the_table(protocol, destination, port, expected):
    assert target(protocol, IPv4Address(destination).packed, port, PLAN) == expected


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_without_the_alias(protocol):
    assert target(protocol, IPv4Address("192.168.65.2").packed, 80, CLOSED_PLAN) is Refuse.CLOSED


@given(st.sampled_from(Protocol), st.binary(min_size=4, max_size=4), st.integers(0, 65535))
def test_the_hosts_loopback_has_one_door(protocol, destination, port):
    for plan in (PLAN, CLOSED_PLAN):
        aim = target(protocol, destination, port, plan)
        if isinstance(aim, Host) and IPv4Address(aim.address).is_loopback:
            assert plan.host_loopback
            assert IPv4Address(destination) == plan.host
        if isinstance(aim, Host):
            assert not IPv4Address(aim.address).is_multicast
            assert not IPv4Address(aim.address).is_link_local
            assert IPv4Address(aim.address) not in plan.subnet
