"""Linux as a guest: it makes its own IPv6 addresses, finds its router, and takes back what is taken back."""

from __future__ import annotations

import json
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING

import pytest

from tests.interop.guest_tools import GATEWAY_MAC, Lab, wait_for
from tests.interop.link_guests import TAP, WAYS, Instance, LinkGuest, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.program("cc", "rdisc6", "ndisc6", "ping")]

PREFIX = IPv6Network("fd65:7670:6e6b::/64")
GATEWAY6, HOST6 = str(PREFIX[1]), str(PREFIX[2])
SECONDS = 15.0  # for what is looked at every few seconds, and then made and probed by the guest
ROUTER = "fe80::f416:36ff:febc:f9c6"


class Inside:
    """What Linux in the guest says of its network."""

    def __init__(self, guest: LinkGuest) -> None:
        self.guest = guest

    def _ip(self, *words: str) -> list[dict]:
        return json.loads(self.guest.run("ip", "-6", "-json", *words))

    def addresses(self) -> list[dict]:
        """Its global addresses that may be used."""
        told = self._ip("address", "show", "dev", TAP, "scope", "global")
        found = [address for device in told for address in device.get("addr_info", ())]
        return [address for address in found if "local" in address and not address.get("tentative")]

    def address(self) -> str:
        """The one that it made, once it may be used."""
        wait_for(self.addresses, "it has an address")
        return self.addresses()[0]["local"]

    def default_route(self) -> dict | None:
        return next(iter(self._ip("route", "show", "default")), None)

    def has_prefix_route(self) -> bool:
        return any(route["dst"] == str(PREFIX) for route in self._ip("route", "show", "dev", TAP))

    def neighbour(self, address: str) -> dict:
        found = [entry for entry in self._ip("neighbour", "show", "dev", TAP) if entry["dst"] == address]
        return found[0] if found else {}

    def solicit(self, *options: str) -> str:
        """What rdisc6 hears, or the empty string."""
        return self.guest.run("sh", "-c", f"rdisc6 -1 {' '.join(options)} {TAP} || true")


@contextmanager
def attached(lab, program, kind: str, *options: str) -> Iterator[tuple[Instance, Inside]]:
    way = WAYS[kind]
    with serving(lab.host, [way.url.format(d="{d}", n=1)], *options) as instance:
        guest = LinkGuest(program, instance, way)
        try:
            yield instance, Inside(guest)
        finally:
            guest.close()


@pytest.fixture(scope="module", params=["qemu", pytest.param("vmnet", marks=pytest.mark.slow)])
def served(lab, peer_program, request):
    with attached(lab, peer_program, request.param, "--ipv6", "on", "--search", "vm.example") as (instance, inside):
        inside.address()
        yield instance, inside, WAYS[request.param].mtu


@pytest.fixture
def inside(served):
    return served[1]


def test_it_makes_an_address_and_has_a_way_out(inside):
    address = IPv6Address(inside.address())
    assert address in PREFIX
    [told] = inside.addresses()
    assert not told.get("dadfailed")
    assert 0 < told["preferred_life_time"] <= 2700
    assert 0 < told["valid_life_time"] <= 5400
    wait_for(inside.default_route, "it has a default route")
    assert inside.default_route()["gateway"] == ROUTER
    assert inside.default_route()["protocol"] == "ra"
    assert inside.has_prefix_route()


def test_rdisc6_reads_all_of_it(served):
    _, inside, mtu = served
    heard = inside.solicit("-r", "3", "-w", "4000")
    for line in (
        "Stateful address conf.    :          Yes",
        "Stateful other conf.      :          Yes",
        "Router lifetime           :         1800 (0x00000708) seconds",
        f" Prefix                   : {PREFIX}",
        "  Autonomous address conf.:          Yes",
        "  Pref. time              :         2700 (0x00000a8c) seconds",
        f" MTU                      : {mtu:12} bytes (valid)",
        f" Source link-layer address: {GATEWAY_MAC.upper()}",
        f" Recursive DNS server     : {GATEWAY6}",
        " DNS search list          : vm.example",
        f" from {ROUTER}",
    ):
        assert line in heard, heard


def test_ndisc6_finds_us(inside):
    for target in (GATEWAY6, HOST6, ROUTER):
        assert GATEWAY_MAC.upper() in inside.guest.run("ndisc6", "-1", "-w", "3000", target, TAP)


def test_the_gateway_is_reachable(inside):
    inside.guest.run("ping", "-6", "-c", "2", "-W", "3", GATEWAY6)
    found = inside.neighbour(GATEWAY6)
    assert found["lladdr"] == GATEWAY_MAC
    assert found["state"] == ["REACHABLE"]
    assert "router" in found


@pytest.mark.parametrize("address", [GATEWAY6, pytest.param(HOST6, marks=pytest.mark.slow)])
def test_our_addresses_cannot_be_taken(inside, address):
    def duplicate() -> bool:
        told = json.loads(inside.guest.run("ip", "-6", "-json", "address", "show", "dev", TAP))
        found = [entry for device in told for entry in device.get("addr_info", ())]
        return any(entry.get("local") == address and entry.get("dadfailed") for entry in found)

    inside.guest.run("ip", "-6", "address", "add", f"{address}/64", "dev", TAP)
    try:
        wait_for(duplicate, "the kernel sees that it is a duplicate")
    finally:
        inside.guest.run("ip", "-6", "address", "del", f"{address}/64", "dev", TAP)


def test_a_neighbours_address_cannot_be_taken(lab, peer_program):
    way = WAYS["qemu"]
    with serving(lab.host, [way.url], "--ipv6", "on") as instance:
        guests = [LinkGuest(peer_program, instance, way) for _ in range(2)]
        try:
            first, second = map(Inside, guests)
            mine, other = first.address(), second.address()
            assert mine != other
            guests[1].run("ping", "-6", "-c", "1", "-W", "3", mine)
            assert second.neighbour(mine)["lladdr"] == guests[0].mac
            guests[1].run("ip", "-6", "address", "add", f"{mine}/64", "dev", TAP)
            wait_for(lambda: "dadfailed" in guests[1].run("ip", "-6", "address", "show", "dev", TAP), "a duplicate")
            guests[0].run("ping", "-6", "-c", "1", "-W", "3", GATEWAY6)
        finally:
            for guest in guests:
                guest.close()


@pytest.mark.parametrize(
    "options", [("--ipv6", "off"), ("--ipv6-prefix", "none"), ("--ipv6", "auto")], ids=["off", "no prefix", "auto"]
)
def test_nothing_is_advertised(lab, peer_program, options):
    """In auto, as this host has no IPv6."""
    with attached(lab, peer_program, "qemu", *options) as (_, inside):
        assert "from" not in inside.solicit("-r", "1", "-w", "1000")
        assert not inside.addresses()
        assert inside.default_route() is None


def test_a_lan_without_a_way_out(lab, peer_program):
    with attached(lab, peer_program, "qemu", "--ipv6", "local") as (_, inside):
        assert IPv6Address(inside.address()) in PREFIX
        inside.guest.run("ping", "-6", "-c", "1", "-W", "3", GATEWAY6)
        assert inside.default_route() is None


@pytest.mark.slow
def test_it_comes_and_goes_with_the_hosts_own(peer_program):
    lab = Lab()
    try:
        with attached(lab, peer_program, "qemu") as (_, inside):
            assert not inside.addresses()
            lab.host.run("ip", "address", "add", "2001:db8::1/64", "dev", "uplink", "nodad")
            lab.host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
            wait_for(inside.addresses, "it has an address", SECONDS)
            assert IPv6Address(inside.address()) in PREFIX
            wait_for(inside.default_route, "it has a default route")

            lab.host.run("ip", "-6", "route", "del", "default")
            wait_for(lambda: inside.default_route() is None, "it has none any more", SECONDS)
            assert all(address.get("deprecated") for address in inside.addresses())
            inside.guest.run("ping", "-6", "-c", "1", "-W", "3", GATEWAY6)  # what began goes on
    finally:
        lab.close()
