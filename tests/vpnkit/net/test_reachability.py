"""What is offered of IPv6, and that what the host really has is looked at."""

from __future__ import annotations

import random
import sys

import pytest
import trio

from tapdev.memory import memory_link_pair
from vpnkit.flow import host as host_sockets
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import IPV6_OFFERS, Plan
from vpnkit.net.reachability import CHECK_SECONDS, Reachability


class Host:
    def __init__(self, *, ipv6: bool) -> None:
        self.ipv6 = ipv6
        self.asked = 0

    def has_ipv6(self) -> bool:
        self.asked += 1
        return self.ipv6

    resolver_socket = staticmethod(host_sockets.resolver_socket)


@pytest.mark.parametrize(
    ("offer", "host", "offered", "default_router"),
    [
        ("auto", True, True, True),
        ("auto", False, False, False),
        ("on", True, True, True),
        ("on", False, True, True),
        ("local", True, True, False),
        ("local", False, True, False),
        ("off", True, False, False),
        ("off", False, False, False),
    ],
)
def test_what_is_offered(offer, host, offered, default_router):
    assert offer in IPV6_OFFERS
    found = Reachability(Plan(), Host(ipv6=host), offer)
    assert (found.offered, found.default_router) == (offered, default_router)


@pytest.mark.parametrize("plan", [Plan(prefix6=None), Plan(mtu=1279)], ids=["no prefix", "small mtu"])
@pytest.mark.parametrize("offer", list(IPV6_OFFERS))
def test_what_the_plan_has_not_is_not_offered(plan, offer):
    found = Reachability(plan, Host(ipv6=True), offer)
    assert (found.offered, found.default_router) == (False, False)


def test_listeners_hear_of_changes_and_of_nothing_else():
    host = Host(ipv6=False)
    reachability = Reachability(Plan(), host)
    heard = []

    def changed() -> None:
        heard.append(reachability.offered)

    reachability.listen(changed)
    reachability.check()
    for host.ipv6 in (True, True, False):
        reachability.check()
    assert heard == [True, False]
    reachability.forget(changed)
    reachability.forget(changed)
    host.ipv6 = True
    reachability.check()
    assert len(heard) == 2


async def test_the_host_is_asked_only_while_somebody_listens(nursery, autojump_clock):
    host = Host(ipv6=False)
    reachability = Reachability(Plan(), host)
    nursery.start_soon(reachability.watch)
    heard = []

    def changed() -> None:
        heard.append(trio.current_time())

    await trio.sleep(100 * CHECK_SECONDS)
    assert host.asked == 1

    reachability.listen(changed)
    await trio.sleep(10.5 * CHECK_SECONDS)
    assert host.asked == 12
    host.ipv6 = True
    came = trio.current_time()
    await trio.sleep(2 * CHECK_SECONDS)
    assert len(heard) == 1
    assert heard[0] <= came + CHECK_SECONDS

    reachability.forget(changed)
    await trio.sleep(CHECK_SECONDS)
    asked = host.asked
    await trio.sleep(100 * CHECK_SECONDS)
    assert host.asked == asked


@pytest.mark.parametrize("offer", ["on", "local", "off"])
async def test_who_knows_does_not_ask(nursery, autojump_clock, offer):
    host = Host(ipv6=True)
    reachability = Reachability(Plan(), host, offer)
    reachability.listen(lambda: None)
    nursery.start_soon(reachability.watch)
    await trio.sleep(100 * CHECK_SECONDS)
    assert not host.asked


async def test_a_guest_of_a_network_is_told_and_goes(nursery, autojump_clock):
    host = Host(ipv6=True)
    network = Network(Plan(), NetworkOptions(host=host, rng=random.Random(1), dns=[("127.0.0.1", 9)]))
    await nursery.start(network.run)
    ours, theirs = memory_link_pair()
    async with trio.open_nursery() as guests:
        guests.start_soon(network.join, ours, "memory")
        await trio.sleep(1)
        frame = bytes(theirs.receive())
        assert frame[12:14] + frame[54:55] == b"\x86\xdd\x86"  # a router advertisement
        assert network.ipv6._listeners
        theirs.close()
    assert not network.ipv6._listeners


class Probe:
    """A UDP socket of a host with these routes."""

    def __init__(self, source: str | OSError) -> None:
        self.source = source
        self.closed = False

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def connect(self, address: tuple[str, int]) -> None:
        if isinstance(self.source, OSError):
            raise self.source

    def getsockname(self) -> tuple[str, int, int, int]:
        return self.source, 5000, 0, 0


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("2001:db8::7", True),
        ("fd00::7", True),
        ("fe80::7%eth0", False),
        ("::1", False),
        ("::", False),
        (OSError(101, "Network is unreachable"), False),
    ],
    ids=str,
)
def test_a_route_and_an_address_to_go_there_from(monkeypatch, source, has):
    probe = Probe(source)
    monkeypatch.setattr(host_sockets.socket, "socket", lambda family, kind: probe)
    assert host_sockets.has_ipv6() is has
    assert probe.closed


def test_a_kernel_without_ipv6(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(host_sockets.socket, "socket", refuse)
    assert not host_sockets.has_ipv6()


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux")
def test_a_real_route_comes_and_goes():
    from tests.interop.guest_tools import Namespace

    host = Namespace.new()
    try:

        def has_ipv6() -> bool:
            with host.entered():
                return host_sockets.has_ipv6()

        assert not has_ipv6()
        host.run("ip", "link", "add", "uplink", "type", "veth", "peer", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "link", "set", "uplink", "up")
        host.run("ip", "address", "add", "2001:db8::1/64", "dev", "uplink", "nodad")
        assert not has_ipv6()  # a neighbourhood, no world
        host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
        assert has_ipv6()
        host.run("ip", "-6", "route", "del", "default")
        assert not has_ipv6()
    finally:
        host.close()
