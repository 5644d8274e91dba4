"""Our names, with IPv4 and IPv6 addresses, and what else the options say about names."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import dns.message
import pytest

from vpnkit.net.naming import resolver_for
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan
from vpnkit.proto.dns_upstreams import Server
from vpnkit.wire.dns import decode_query, encode_name

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from vpnkit.services.dns_resolver import Resolver

GUEST = IPv4Address("192.168.65.3").packed
GUEST6 = IPv6Address("fd65:7670:6e6b::3").packed


class Offer:
    def __init__(self, offered: bool) -> None:
        self.offered = offered


def ask(resolver: Resolver, name: str, rdtype: str = "A", client: bytes = GUEST) -> str | None:
    reply = resolver.answer(decode_query(dns.message.make_query(name, rdtype).to_wire()), client)
    if reply is None:
        return None
    answer = dns.message.from_wire(reply)
    return " ".join([answer.rcode().name, *(str(item) for rrset in answer.answer for item in rrset)])


def made(plan: Plan | None = None, *, offered: bool = True, **options: Any) -> Resolver:
    given = NetworkOptions(rng=random.Random(1), **options)
    return resolver_for(plan or Plan(), given, Offer(offered))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gateway.internal", "Gateway.Docker.Internal", "gateway.containers.internal"])
def test_the_gateway(name: str) -> None:
    assert ask(made(), name) == "NOERROR 192.168.65.1"
    assert ask(made(), name, "AAAA") == "NOERROR fd65:7670:6e6b::1"


@pytest.mark.parametrize("name", ["host.internal", "host.docker.internal", "host.containers.internal", "my.host"])
def test_the_host(name: str) -> None:
    resolver = made(extra_host_names=["my.host"])
    assert ask(resolver, name) == "NOERROR 192.168.65.2"
    assert ask(resolver, name, "AAAA") == "NOERROR fd65:7670:6e6b::2"
    without = made(Plan(host_loopback=False), extra_host_names=["my.host"])
    assert ask(without, name) == ask(without, name, "AAAA") == "NOERROR"  # the original says 0.0.0.0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.168.65.1", "NOERROR gateway.internal."),
        ("192.168.65.2", "NOERROR host.internal."),
        ("192.168.65.3", "NOERROR vm.internal."),
        ("192.168.65.9", "NXDOMAIN"),
        ("fd65:7670:6e6b::1", "NOERROR gateway.internal."),
        ("fd65:7670:6e6b::2", "NOERROR host.internal."),
        ("fd65:7670:6e6b::9", "NXDOMAIN"),
        ("192.168.66.1", None),
        ("2001:db8::1", None),
    ],
)
def test_reverse(address: str, expected: str | None) -> None:
    assert ask(made(), ip_address(address).reverse_pointer, "PTR") == expected


def test_ipv6_comes_and_goes() -> None:
    """A name that has no IPv6 address now is no error: the guest goes on with the other at once."""
    offer = Offer(False)
    resolver = resolver_for(Plan(), NetworkOptions(rng=random.Random(1)), offer)  # type: ignore[arg-type]
    assert ask(resolver, "gateway.internal", "AAAA") == "NOERROR"
    offer.offered = True
    resolver.look(0.0)
    assert ask(resolver, "gateway.internal", "AAAA") == "NOERROR fd65:7670:6e6b::1"
    assert ask(resolver, "gateway.internal", "ANY") == "NOERROR 192.168.65.1 fd65:7670:6e6b::1"
    offer.offered = False
    resolver.look(1.0)
    assert ask(resolver, "gateway.internal", "AAAA") == "NOERROR"
    assert ask(resolver, "gateway.internal") == "NOERROR 192.168.65.1"
    assert ask(made(Plan(prefix6=None)), "gateway.internal", "AAAA") == "NOERROR"


def test_the_asker_has_all_his_addresses() -> None:
    network = Network(Plan(), NetworkOptions(dns=[("127.0.0.1", 9)], rng=random.Random(1)))

    class Station:
        addresses = {GUEST: b"", bytes.fromhex("fe80" + "00" * 13 + "03"): b"", GUEST6: b""}  # noqa: RUF012

    for address in Station.addresses:
        network.lan._owners[address] = Station  # type: ignore[assignment]
    for client in Station.addresses:
        assert ask(network.dns, "vm.internal", "A", client) == "NOERROR 192.168.65.3"
        assert ask(network.dns, "vm.internal", "AAAA", client) == "NOERROR fd65:7670:6e6b::3"
        assert ask(network.dns, ip_address(GUEST6).reverse_pointer, "PTR", client) == "NOERROR vm.internal."


def test_the_options() -> None:
    zones = {encode_name("corp"): [Server("10.0.0.2")]}
    network = Network(Plan(), NetworkOptions(dns=[("10.0.0.1", 54)], dns_zones=zones, nat64=True, dns_log=True))
    assert network.dns_servers() == (Server("10.0.0.1", 54),)
    assert network.dns.routes().servers(encode_name("a.corp")) == (Server("10.0.0.2"),)
    assert network.dns.nat64 == bytes.fromhex("0064ff9b0000000000000000")
    assert network.dns.log_queries
    assert network.zones is network.dns.zones
    assert Network(Plan()).dns.nat64 is None


def test_bug_the_search_list_of_the_file_reaches_dhcp(tmp_path: Path) -> None:
    """vpnkit.md 4.1 [BUG]: the DNS file's list never does.  What --search says comes first."""
    path = tmp_path / "servers"
    path.write_text("nameserver 10.0.0.1\nsearch a.example b.example\n")
    network = Network(Plan(), NetworkOptions(dns=[path]))
    assert network.dhcp.config.search == ("a.example", "b.example")
    path.write_text("nameserver 10.0.0.1\nsearch c.example\n")
    network.dns.look(0.0)
    assert network.dhcp.config.search == ("a.example", "b.example")  # a look at the file each second is enough
    said = Network(Plan(search=("mine.example",)), NetworkOptions(dns=[path]))
    assert said.dhcp.config.search == ("mine.example",)


async def test_the_resolver_runs_with_the_network(nursery: trio.Nursery) -> None:
    network = Network(Plan(), NetworkOptions(dns=[("127.0.0.1", 9)]))
    assert network.dns.nursery is None
    await nursery.start(network.run)
    assert network.dns.nursery is not None
