"""Neighbour discovery with one guest, whose packets are handed to `Neighbours` as the intake does."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

import pytest
import trio
import trio.testing
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
)

from tapdev.link import LinkCapabilities
from tests.conformance.wire import MAC, SERVER, Wire
from vpnkit.errors import WireError
from vpnkit.net.lan import MAX_ADDRESSES, MAX_ASKED, RESOLVE_SECONDS, RESOLVE_TRIES
from vpnkit.net.plan import Plan
from vpnkit.wire import ipv6

OTHER_MAC = "52:54:00:00:00:99"
LINK_LOCAL = "fe80::50:ff:fe00:1"
OURS = "fe80::f416:36ff:febc:f9c6"
PREFIX = "fd65:7670:6e6b::"
GATEWAY, HOST, GUEST = (f"{PREFIX}{n}" for n in (1, 2, 77))
EVERYBODY, ROUTERS = "ff02::1", "ff02::2"


class Host:
    """A host whose routes the test changes."""

    def __init__(self, *, ipv6: bool = True) -> None:
        self.ipv6 = ipv6

    def has_ipv6(self) -> bool:
        return self.ipv6


@pytest.fixture
async def make(nursery):
    made = []

    def guest(ipv6: str = "on", **options: object) -> Wire:
        made.append(Wire(nursery, ipv6=ipv6, **options))
        return made[-1]

    yield guest
    for wire in made:
        wire.close()


@pytest.fixture
async def wire(make):
    """A guest whose router is past its first advertisements."""
    wire = make()
    wire.pass_time(60)
    return wire


def packed(address: str) -> bytes:
    return IPv6Address(address).packed


def group(address: str) -> str:
    """Whom to ask for `address`."""
    return str(IPv6Address(ipv6.solicited_node(packed(address))))


def say(wire: Wire, message, *, source: str = LINK_LOCAL, destination: str = OURS, mac: str = MAC, **ip):
    """The guest says `message`; what comes at once."""
    packet = IPv6(src=source, dst=destination, hlim=ip.pop("hlim", 255), **ip) / message
    wire.guest.neighbours.message(
        ipv6.decode(memoryview(bytes(packet))), bytes.fromhex(mac.replace(":", "")), wire.time
    )
    return wire.work()


def ask(target: str, mac: str = MAC):
    return ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=mac)


def tell(target: str, mac: str = MAC, *, solicited: int = 0, override: int = 1):
    return ICMPv6ND_NA(tgt=target, R=0, S=solicited, O=override) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def holder(wire: Wire, address: str) -> str | None:
    found = wire.guest.station.lan.holder(packed(address))
    return None if found is None else found.mac.hex(":")


def advertised(frames) -> list[IPv6]:
    return [frame[IPv6] for frame in frames if ICMPv6ND_RA in frame]


# What is advertised


async def test_what_a_router_says(make):
    wire = make(plan=Plan(domain="vm.example", search=("a.example", "vm.example")))
    [frame, *_] = wire.pass_time(1)
    assert (frame.src, frame.dst) == (SERVER, "33:33:00:00:00:01")
    ip, said = frame[IPv6], frame[ICMPv6ND_RA]
    assert (ip.src, ip.dst, ip.hlim) == (OURS, EVERYBODY, 255)
    assert (said.routerlifetime, said.M, said.O, said.chlim, said.prf) == (1800, 1, 1, 64, 0)
    prefix = frame[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == (PREFIX, 64, 1, 1)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (5400, 2700)
    assert frame[ICMPv6NDOptMTU].mtu == 1500
    assert frame[ICMPv6NDOptSrcLLAddr].lladdr == SERVER
    assert (frame[ICMPv6NDOptRDNSS].dns, frame[ICMPv6NDOptRDNSS].lifetime) == ([GATEWAY], 1800)
    names = [name for name in frame[ICMPv6NDOptDNSSL].searchlist if name != "."]
    assert names == ["vm.example.", "a.example."]


async def test_three_soon_and_then_every_few_minutes(make):
    wire = make()
    assert len(advertised(wire.pass_time(50))) == 3
    assert 3 <= len(advertised(wire.pass_time(1800))) <= 9
    assert all(said.dst == EVERYBODY for said in advertised(wire.pass_time(1800)))


@pytest.mark.parametrize("mtu", [1280, 9000, 65520])
async def test_the_mtu_is_that_of_the_link(make, mtu):
    wire = make(capabilities=LinkCapabilities(mtu=mtu))
    [frame, *_] = wire.pass_time(1)
    assert frame[ICMPv6NDOptMTU].mtu == mtu


@pytest.mark.parametrize(
    "options",
    [
        {"ipv6": "off"},
        {"plan": Plan(prefix6=None)},
        {"plan": Plan(mtu=1279)},
        {"capabilities": LinkCapabilities(mtu=1279)},
        {"ipv6": "auto", "host": Host(ipv6=False)},
    ],
    ids=["off", "no prefix", "small mtu", "small mtu of the link", "the host has none"],
)
async def test_nothing_is_said_where_there_is_no_ipv6(make, options):
    wire = make(**options)
    assert not say(wire, ICMPv6ND_RS(), destination=ROUTERS)
    assert not wire.pass_time(1000)


async def test_a_lan_without_a_way_out(make):
    [frame, *_] = make(ipv6="local").pass_time(1)
    assert frame[ICMPv6ND_RA].routerlifetime == 0
    assert frame[ICMPv6NDOptPrefixInfo].preferredlifetime
    assert frame[ICMPv6NDOptRDNSS].lifetime


async def test_another_prefix(make):
    [frame, *_] = make(plan=Plan(prefix6=IPv6Network("2001:db8:1::/64"))).pass_time(1)
    assert frame[ICMPv6NDOptPrefixInfo].prefix == "2001:db8:1::"
    assert frame[ICMPv6NDOptRDNSS].dns == ["2001:db8:1::1"]


async def test_what_comes_and_goes_with_the_hosts_network(make):
    host = Host(ipv6=False)
    wire = make(ipv6="auto", host=host)
    assert not wire.pass_time(100)

    host.ipv6 = True
    wire.guest.ipv6.check()
    assert [said[ICMPv6ND_RA].routerlifetime for said in advertised(wire.pass_time(50))] == [1800] * 3

    host.ipv6 = False
    wire.guest.ipv6.check()
    taken_back = advertised(wire.pass_time(5000))
    assert len(taken_back) == 3
    for said in taken_back:
        assert said[ICMPv6ND_RA].routerlifetime == 0
        assert (said[ICMPv6NDOptPrefixInfo].preferredlifetime, said[ICMPv6NDOptPrefixInfo].validlifetime) == (0, 5400)
        assert said[ICMPv6NDOptRDNSS].lifetime == 0

    assert not say(wire, ICMPv6ND_RS(), destination=ROUTERS)
    [again] = advertised(wire.pass_time(1))  # who slept through it
    assert (again.dst, again[ICMPv6ND_RA].routerlifetime) == (LINK_LOCAL, 0)


async def test_a_guest_that_is_gone_hears_nothing_any_more(make):
    host = Host(ipv6=False)
    wire = make(ipv6="auto", host=host)
    wire.close()
    assert not wire.guest.ipv6._listeners


# Who asks for a router


async def test_who_asks_is_answered_alone(wire):
    assert not say(wire, ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC), destination=ROUTERS)
    [frame] = wire.pass_time(0.5)
    assert (frame.dst, frame[IPv6].dst, frame[IPv6].src) == (MAC, LINK_LOCAL, OURS)
    assert frame[ICMPv6ND_RA].routerlifetime == 1800
    assert holder(wire, LINK_LOCAL) == MAC


async def test_who_has_no_address_yet_is_answered_with_everybody(wire):
    say(wire, ICMPv6ND_RS(), source="::", destination=ROUTERS)
    [frame] = wire.pass_time(0.5)
    assert (frame.dst, frame[IPv6].dst) == ("33:33:00:00:00:01", EVERYBODY)


async def test_who_asks_all_the_time_is_not_answered_all_the_time(wire):
    for _ in range(1000):
        say(wire, ICMPv6ND_RS(), source="::", destination=ROUTERS)
        wire.pass_time(0.01)
    heard = [frame for frame in wire.heard if frame[12:14] == b"\x86\xdd"]
    assert len(heard) <= 3 + 4  # the first ones, and one each 3 s


# Who asks for us


@pytest.mark.parametrize("target", [GATEWAY, HOST, OURS])
@pytest.mark.parametrize("multicast", [True, False])
async def test_our_addresses_are_answered(wire, target, multicast):
    [frame] = say(wire, ask(target), destination=group(target) if multicast else target)
    ip, said = frame[IPv6], frame[ICMPv6ND_NA]
    assert (frame.src, frame.dst) == (SERVER, MAC)
    assert (ip.src, ip.dst, ip.hlim) == (target, LINK_LOCAL, 255)
    assert (said.tgt, said.R, said.S, said.O) == (target, 1, 1, 1)
    assert frame[ICMPv6NDOptDstLLAddr].lladdr == SERVER
    assert holder(wire, LINK_LOCAL) == MAC


@pytest.mark.parametrize("target", [GATEWAY, HOST, OURS])
async def test_our_addresses_are_defended(wire, target):
    [frame] = say(wire, ICMPv6ND_NS(tgt=target), source="::", destination=group(target))
    assert (frame.dst, frame[IPv6].dst) == ("33:33:00:00:00:01", EVERYBODY)
    assert (frame[ICMPv6ND_NA].tgt, frame[ICMPv6ND_NA].S, frame[ICMPv6ND_NA].O) == (target, 0, 1)


@pytest.mark.parametrize("target", [GUEST, LINK_LOCAL, f"{PREFIX}", "2001:db8::1", "::1"])
async def test_no_other_address_is_answered(wire, target):
    assert not say(wire, ask(target), destination=group(target))
    assert not say(wire, ICMPv6ND_NS(tgt=target), source="::", destination=group(target))


async def test_an_alias_that_is_disabled_is_nobody(make):
    wire = make(plan=Plan(host_loopback=False))
    assert not say(wire, ask(HOST), destination=group(HOST))
    say(wire, tell(HOST), destination=EVERYBODY, source=LINK_LOCAL)
    assert holder(wire, HOST) is None


async def test_a_probe_gives_nobody_the_address(wire):
    say(wire, ICMPv6ND_NS(tgt=GUEST), source="::", destination=group(GUEST))
    assert holder(wire, GUEST) is None
    assert not wire.counters["spoofed_nd"]


# Who has which address


async def test_an_address_is_his_when_he_says_so(wire):
    assert not say(wire, tell(GUEST), source=GUEST, destination=EVERYBODY)
    assert holder(wire, GUEST) == MAC
    say(wire, ask(GATEWAY), source=f"{PREFIX}88")
    assert holder(wire, f"{PREFIX}88") == MAC


async def test_he_has_another_mac_now(wire):
    """RFC 4861 section 7.2.5: only with the override flag."""
    wire.guest.station.is_source(bytes.fromhex(OTHER_MAC.replace(":", "")))
    say(wire, tell(GUEST), source=GUEST, destination=EVERYBODY)
    say(wire, tell(GUEST, OTHER_MAC, override=0), source=GUEST, destination=EVERYBODY, mac=OTHER_MAC)
    assert holder(wire, GUEST) == MAC
    say(wire, tell(GUEST, OTHER_MAC), source=GUEST, destination=EVERYBODY, mac=OTHER_MAC)
    assert holder(wire, GUEST) == OTHER_MAC
    assert not wire.counters["spoofed_nd"]


@pytest.mark.parametrize("target", [GATEWAY, HOST, OURS, PREFIX])
async def test_he_does_not_have_ours(wire, target):
    assert not say(wire, tell(target), source=LINK_LOCAL, destination=EVERYBODY)
    assert not say(wire, tell(target), source=LINK_LOCAL, destination=OURS)
    assert wire.counters["spoofed_nd"] + wire.counters["bad_source"] == 2
    assert holder(wire, target) is None
    [reply] = say(wire, ask(GATEWAY))
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == SERVER


async def test_he_does_not_speak_as_us(wire):
    assert not say(wire, ask(HOST), source=GATEWAY)
    assert not say(wire, ICMPv6ND_RS(), source=OURS, destination=ROUTERS)
    assert wire.counters["spoofed_nd"] == 2
    assert not wire.pass_time(1)


@pytest.mark.parametrize("message", [ask(GATEWAY, OTHER_MAC), tell(GUEST, OTHER_MAC)], ids=["NS", "NA"])
async def test_the_mac_that_he_tells_is_his_own(wire, message):
    assert not say(wire, message, source=GUEST)
    assert wire.counters["spoofed_nd"] == 1
    assert holder(wire, GUEST) is None


@pytest.mark.parametrize("source", ["2001:db8::5", "::1", "::ffff:1.2.3.4"])
async def test_an_address_that_no_guest_has(wire, source):
    assert not say(wire, ask(GATEWAY), source=source)
    assert wire.counters["bad_source"] == 1
    assert holder(wire, source) is None


async def test_a_flood_of_addresses_fills_nothing(wire):
    for number in range(1000):
        say(wire, ask(GATEWAY), source=f"{PREFIX}1:{number:x}")
    assert len(wire.guest.station.addresses) == MAX_ADDRESSES
    assert holder(wire, f"{PREFIX}1:{999:x}") == MAC


# What is not for a router, or not neighbour discovery


@pytest.mark.parametrize(
    "message", [ICMPv6ND_RA() / ICMPv6NDOptPrefixInfo(prefix="2001:db8::"), ICMPv6ND_Redirect()], ids=["RA", "redirect"]
)
async def test_a_guest_is_no_router(wire, message):
    assert not say(wire, message, destination=EVERYBODY)
    assert wire.counters["rogue_router"] == 1
    assert not wire.pass_time(1)


@pytest.mark.parametrize("hlim", [0, 1, 64, 254])
async def test_what_a_router_passed_on(wire, hlim):
    assert not say(wire, ask(GATEWAY), hlim=hlim)
    assert wire.counters["nd_hop_limit"] == 1
    assert holder(wire, LINK_LOCAL) is None


async def test_what_is_in_a_fragment(wire):
    """RFC 6980; one fragment that is the whole packet, as others do not reach us before they are whole."""
    packet = IPv6(src=LINK_LOCAL, dst=OURS, hlim=255) / IPv6ExtHdrFragment(m=0, offset=0) / ask(GATEWAY)
    wire.guest.neighbours.message(ipv6.decode(memoryview(bytes(packet))), bytes.fromhex("025000000001"), wire.time)
    assert not wire.work()
    assert wire.counters["nd_fragment"] == 1
    assert holder(wire, LINK_LOCAL) is None


async def test_what_is_malformed(wire):
    with pytest.raises(WireError):
        say(wire, ICMPv6ND_NS(tgt=EVERYBODY))
    assert holder(wire, LINK_LOCAL) is None


# Who is asked


@pytest.mark.requirement("RFC4861 7.2.2")
async def test_a_guest_that_has_not_spoken_yet_is_asked(wire, nursery):
    found = []

    async def resolve():
        found.append(await wire.guest.station.lan.resolve(packed(GUEST)))

    nursery.start_soon(resolve)
    await trio.testing.wait_all_tasks_blocked()
    [frame] = wire.work()
    assert (frame.src, frame.dst) == (SERVER, "33:33:ff:00:00:77")
    assert (frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == (OURS, group(GUEST), 255)
    assert (frame[ICMPv6ND_NS].tgt, frame[ICMPv6NDOptSrcLLAddr].lladdr) == (GUEST, SERVER)
    say(wire, tell(GUEST, solicited=1), source=GUEST)
    await trio.testing.wait_all_tasks_blocked()
    assert found[0].mac.hex(":") == MAC


@pytest.mark.requirement("RFC4861 7.2.2")
async def test_many_callers_ask_no_more_often(wire, autojump_clock):
    started = trio.current_time()
    async with trio.open_nursery() as callers:
        for _ in range(100):
            callers.start_soon(wire.guest.station.lan.resolve, packed(GUEST))
            await trio.sleep(0.01)
    assert len(wire.work()) <= (trio.current_time() - started) / (0.9 * RESOLVE_SECONDS) + 1


@pytest.mark.requirement("RFC4861 7.2.2")
async def test_addresses_that_are_asked_for_do_not_pile_up(wire, autojump_clock):
    for number in range(MAX_ASKED + 10):
        wire.guest.station.lan._ask(packed(f"{PREFIX}1:{number:x}"))
    assert len(wire.guest.station.lan._asked) == MAX_ASKED


@pytest.mark.requirement("RFC4861 7.2.2")
async def test_a_question_is_not_repeated_without_end(wire, autojump_clock):
    assert await wire.guest.station.lan.resolve(packed(GUEST)) is None
    assert [frame[ICMPv6ND_NS].tgt for frame in wire.work()] == [GUEST] * RESOLVE_TRIES
