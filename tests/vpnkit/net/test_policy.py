from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

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
        (UDP, "192.168.65.1", 123, Service.NTP),
        (TCP, "192.168.65.1", 123, Refuse.CLOSED),
        (UDP, "fd65:7670:6e6b::1", 123, Service.NTP),
        (UDP, "192.168.65.2", 123, Host("127.0.0.1", 123)),
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
        (TCP, "fd65:7670:6e6b::1", 53, Service.DNS),
        (UDP, "fd65:7670:6e6b::1", 53, Service.DNS),
        (UDP, "fd65:7670:6e6b::1", 547, Service.DHCPV6),
        (UDP, "fe80::f416:16ff:fe36:bcf9", 53, Refuse.PROHIBITED),
        (UDP, "fe80::f416:36ff:febc:f9c6", 53, Service.DNS),
        (ICMP, "fe80::f416:36ff:febc:f9c6", 0, Service.ECHO),
        (TCP, "fd65:7670:6e6b::1", 547, Refuse.CLOSED),
        (TCP, "fd65:7670:6e6b::1", 80, Refuse.CLOSED),
        (ICMP, "fd65:7670:6e6b::1", 0, Service.ECHO),
        (TCP, "fd65:7670:6e6b::2", 80, Host("::1", 80)),
        (UDP, "fd65:7670:6e6b::2", 53, Host("::1", 53)),
        (ICMP, "fd65:7670:6e6b::2", 0, Service.ECHO),
        (TCP, "fd65:7670:6e6b::2", 0, Refuse.SILENT),
        (TCP, "fd65:7670:6e6b::3", 80, Refuse.SILENT),
        (TCP, "::1", 80, Refuse.SILENT),
        (TCP, "::", 80, Refuse.SILENT),
        (TCP, "::ffff:127.0.0.1", 80, Refuse.SILENT),
        (TCP, "::127.0.0.1", 80, Refuse.SILENT),
        (UDP, "ff02::fb", 5353, Refuse.SILENT),
        (TCP, "64:ff9b::8.8.8.8", 80, Refuse.SILENT),
        (TCP, "fe80::1", 80, Refuse.PROHIBITED),
        (TCP, "fec0::1", 80, Refuse.PROHIBITED),
        (TCP, "fd00:ec2::254", 80, Refuse.PROHIBITED),
        (TCP, "2001:db8::1", 443, Host("2001:db8::1", 443)),
        (ICMP, "fd00::1", 0, Host("fd00::1", 0)),
    ],
)
def test_the_table(protocol, destination, port, expected):
    assert target(protocol, ip_address(destination).packed, port, PLAN) == expected


@pytest.mark.parametrize(
    ("protocol", "destination", "port", "expected"),
    [
        (TCP, "64:ff9b::8.8.8.8", 80, Host("8.8.8.8", 80)),
        (ICMP, "64:ff9b::8.8.8.8", 0, Host("8.8.8.8", 0)),
        (TCP, "64:ff9b::192.168.65.2", 80, Host("127.0.0.1", 80)),
        (TCP, "64:ff9b::192.168.65.1", 53, Refuse.SILENT),
        (TCP, "64:ff9b::127.0.0.1", 80, Refuse.SILENT),
        (TCP, "64:ff9b::169.254.169.254", 80, Refuse.PROHIBITED),
        (TCP, "64:ff9b:1::8.8.8.8", 80, Host("64:ff9b:1::808:808", 80)),
    ],
)
def test_the_nat64_prefix(protocol, destination, port, expected):
    assert target(protocol, IPv6Address(destination).packed, port, PLAN, nat64=True) == expected


def test_without_ipv6_nothing_of_it_is_anywhere():
    plan = Plan(prefix6=None)
    for destination in ("2001:db8::1", "fd65:7670:6e6b::1", "fe80::f416:36ff:febc:f9c6"):
        assert target(TCP, IPv6Address(destination).packed, 53, plan) is Refuse.SILENT


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_without_the_alias(protocol):
    assert target(protocol, IPv4Address("192.168.65.2").packed, 80, CLOSED_PLAN) is Refuse.CLOSED
    assert target(protocol, IPv6Address("fd65:7670:6e6b::2").packed, 80, CLOSED_PLAN) is Refuse.CLOSED


PREFIXES = (bytes(16), IPv6Address("::ffff:0:0").packed, IPv6Address("64:ff9b::").packed, PLAN.prefix6[0].packed)


@given(
    st.sampled_from(Protocol),
    st.binary(min_size=16, max_size=16)
    | st.builds(lambda head, tail: head[:12] + tail, st.sampled_from(PREFIXES), st.binary(min_size=4, max_size=4)),
    st.integers(0, 65535),
    st.booleans(),
)
def test_the_hosts_loopback_has_one_door_by_ipv6_too(protocol, destination, port, nat64):
    for plan in (PLAN, CLOSED_PLAN):
        aim = target(protocol, destination, port, plan, nat64=nat64)
        if isinstance(aim, Host):
            address = ip_address(aim.address)
            assert not address.is_multicast
            assert not address.is_link_local
            if address.is_loopback:
                assert plan.host_loopback
                assert destination in (plan.host6.packed, b"\0\x64\xff\x9b" + bytes(8) + plan.host.packed)
            assert address not in plan.prefix6
            assert getattr(address, "ipv4_mapped", None) is None


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
