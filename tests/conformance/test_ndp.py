"""Neighbour discovery by frames: RFC 4861, 4862, 6980 and 8106, as far as a router has to do with them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
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
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    fragment6,
)
from scapy.layers.l2 import Ether

from tests.conformance.wire import MAC, SERVER
from tests.vpnkit.net.neighbours import lan
from tests.vpnkit.net.test_neighbours import (
    EVERYBODY,
    GATEWAY,
    GUEST,
    HOST,
    LINK_LOCAL,
    OURS,
    PREFIX,
    ROUTERS,
    advertised,
    ask,
    group,
    holder,
    packed,
    tell,
)
from vpnkit.net.plan import Plan
from vpnkit.proto import ndp
from vpnkit.wire import ipv6


@pytest.fixture
async def wire(make_wire):
    """A guest whose router is past its first advertisements."""
    wire = make_wire(ipv6="on", plan=Plan(domain="vm.example"))
    wire.pass_time(60)
    return wire


def ether(destination: str) -> Ether:
    address = packed(destination)
    to = ipv6.multicast_mac(address).hex(":") if address[0] == 0xFF else SERVER
    return Ether(src=MAC, dst=to)


def frame(message, source: str = LINK_LOCAL, destination: str = OURS, **fields) -> Ether:
    return ether(destination) / IPv6(src=source, dst=destination, hlim=fields.pop("hlim", 255), **fields) / message


def changed(made: Ether, offset: int, value: int, *, cut: int = 0) -> bytes:
    """The frame with another octet in its ICMPv6 message, or shorter by `cut`, and a right checksum."""
    raw = bytearray(bytes(made))
    raw[54 + offset] = value
    message = raw[54 : len(raw) - cut]
    message[2:4] = bytes(2)
    ip = IPv6(bytes(raw[14:54]))
    ip.plen = len(message)
    total = ipv6.pseudo_sum(packed(ip.src), packed(ip.dst), 58, len(message))
    check = 65535 - (total + int.from_bytes(message + bytes(len(message) % 2), "big")) % 65535
    message[2:4] = check.to_bytes(2, "big")
    return bytes(raw[:14]) + bytes(ip)[:40] + bytes(message)


def dropped(wire, raw) -> None:
    """It leads to nothing: no answer, no advertisement, no address."""
    before = dict(wire.guest.station.addresses)
    assert not wire.send(raw)
    assert not wire.pass_time(1)
    assert wire.guest.station.addresses == before


SOLICIT = frame(ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC), destination=ROUTERS)
ASK = frame(ask(GATEWAY), destination=group(GATEWAY))
TELL = frame(tell(GUEST, solicited=1), source=GUEST)


def test_the_helper_changes_nothing_else():
    assert changed(ASK, 0, 135) == bytes(ASK)


# Section 6.1 and 6.2: routers


async def test_rfc4861_6_1_1_a_good_solicitation_is_answered(wire):
    assert not wire.send(SOLICIT)
    [answer] = wire.pass_time(0.5)
    assert ICMPv6ND_RA in answer


@pytest.mark.parametrize("hlim", [0, 1, 64, 254])
async def test_rfc4861_6_1_1_hop_limit(wire, hlim):
    dropped(wire, frame(ICMPv6ND_RS(), destination=ROUTERS, hlim=hlim))
    assert wire.counters["nd_hop_limit"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        frame(ICMPv6ND_RS(cksum=1), destination=ROUTERS),
        changed(SOLICIT, 1, 1),
        changed(frame(ICMPv6ND_RS(), destination=ROUTERS), 0, 133, cut=1),
        changed(frame(ICMPv6ND_RS(), destination=ROUTERS), 0, 133, cut=4),
        changed(SOLICIT, 9, 0),
        changed(SOLICIT, 9, 2),
        frame(ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC), source="::", destination=ROUTERS),
    ],
    ids=["checksum", "code", "7 octets", "4 octets", "empty option", "option too long", "link-layer address of nobody"],
)
async def test_rfc4861_6_1_1_what_is_discarded(wire, raw):
    dropped(wire, raw)
    assert wire.counters["malformed"] == 1


async def test_rfc4861_6_1_1_reserved_fields_and_unknown_options_are_ignored(wire):
    options = ICMPv6NDOptUnknown(type=77, len=2, data=b"x" * 14) / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    wire.send(frame(ICMPv6ND_RS(res=0xFFFFFFFF) / options, destination=ROUTERS))
    assert len(advertised(wire.pass_time(0.5))) == 1


async def test_rfc4861_6_1_2_a_guests_advertisement_changes_nothing(wire):
    """CVE-2020-13401: a container that says it is the router."""
    said = ICMPv6ND_RA(routerlifetime=9000) / ICMPv6NDOptPrefixInfo(prefix="2001:db8::") / ICMPv6NDOptMTU(mtu=1280)
    for destination in (EVERYBODY, OURS):
        dropped(wire, frame(said, destination=destination))
    dropped(wire, frame(said, source=OURS, destination=EVERYBODY))
    assert wire.counters["rogue_router"] == 3
    wire.send(SOLICIT)
    [answer] = wire.pass_time(0.5)
    assert answer[ICMPv6NDOptPrefixInfo].prefix == PREFIX
    assert answer[ICMPv6NDOptMTU].mtu == 1500


@pytest.mark.parametrize("header", [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt])
@pytest.mark.parametrize("message", [ICMPv6ND_RA(), ICMPv6ND_Redirect()], ids=["RA", "redirect"])
@pytest.mark.requirement("RFC4861 6.1.2", "RFC4861 8.1")
async def test_a_guest_that_says_it_is_the_router_behind_extension_headers(wire, header, message):
    dropped(wire, frame(header(options=[PadN(optdata=b"1234")]) / message, destination=EVERYBODY))
    assert wire.counters["rogue_router"] == 1


@pytest.mark.parametrize("message", [ICMPv6ND_RA(), ICMPv6ND_Redirect()], ids=["RA", "redirect"])
@pytest.mark.parametrize("hidden", [None, IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment])
@pytest.mark.requirement("RFC4861 6.1.2", "RFC4861 8.1")
async def test_a_guest_that_says_it_is_the_router_reaches_no_neighbour(message, hidden):
    """RFC 6105 and RFC 7113: also behind extension headers."""
    async with lan() as world:
        a, b = world.neighbours
        options = {"options": [PadN(optdata=b"1234")]} if hidden not in (None, IPv6ExtHdrFragment) else {}
        packet = IPv6(src=a.ip6, dst=EVERYBODY, hlim=255)
        packet = packet / message if hidden is None else packet / hidden(**options) / message
        a.send(a.ether("33:33:00:00:00:01") / packet)
        await world.settled(a, b)
        assert not b.heard
        assert world.counter(a, "rogue_router") == 1


async def test_rfc4861_6_2_1_intervals_and_lifetimes(make_wire):
    [said] = advertised(make_wire(ipv6="on").pass_time(0.5))
    assert ndp.MAX_RTR_ADV_INTERVAL <= said.routerlifetime <= 9000
    assert 4 <= ndp.MAX_RTR_ADV_INTERVAL <= 1800
    assert 3 <= ndp.MIN_RTR_ADV_INTERVAL <= 0.75 * ndp.MAX_RTR_ADV_INTERVAL
    assert said[ICMPv6NDOptPrefixInfo].preferredlifetime <= said[ICMPv6NDOptPrefixInfo].validlifetime


async def test_rfc4861_6_2_3_what_is_advertised(make_wire):
    [made] = make_wire(ipv6="on").pass_time(0.5)
    assert (made.src, made.dst) == (SERVER, "33:33:00:00:00:01")
    assert (made[IPv6].src, made[IPv6].dst, made[IPv6].hlim) == (OURS, EVERYBODY, 255)
    assert made[ICMPv6NDOptSrcLLAddr].lladdr == SERVER
    assert made[ICMPv6NDOptMTU].mtu == 1500
    prefix = made[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == (PREFIX, 64, 1, 1)


async def test_rfc4861_6_2_4_unsolicited_advertisements(make_wire):
    wire = make_wire(ipv6="on")
    times = []
    for _ in range(4000):
        times += [wire.time] * len(advertised(wire.pass_time(1)))
    first, rest = times[:3], times[3:]
    assert first[0] <= 1001.5
    assert all(1 <= b - a <= 17 for a, b in pairwise(first))
    pauses = [b - a for a, b in pairwise(rest)]
    assert all(ndp.MIN_RTR_ADV_INTERVAL - 1 <= pause <= ndp.MAX_RTR_ADV_INTERVAL + 1 for pause in pauses)
    assert len(set(pauses)) > 3


async def test_rfc4861_6_2_5_who_ceases_to_be_a_router_says_so(make_wire):
    class Host:
        ipv6 = True

        def has_ipv6(self) -> bool:
            return self.ipv6

    wire = make_wire(ipv6="auto", host=Host())
    wire.pass_time(100)
    wire.internet.ipv6 = False
    wire.guest.ipv6.check()
    said = advertised(wire.pass_time(100))
    assert [one.routerlifetime for one in said] == [0, 0, 0]
    assert {one[ICMPv6NDOptPrefixInfo].preferredlifetime for one in said} == {0}
    assert {one[ICMPv6NDOptRDNSS].lifetime for one in said} == {0}


async def test_rfc4861_6_2_6_who_asks_is_answered_within_half_a_second(wire):
    delays = set()
    for _ in range(20):
        assert not wire.send(SOLICIT)
        asked = wire.time
        while not advertised(wire.pass_time(0.01)):
            assert wire.time <= asked + 0.51
        delays.add(round(wire.time - asked, 2))
    assert len(delays) > 5


async def test_rfc4861_6_2_6_not_more_than_one_to_all_in_three_seconds(wire):
    times = []
    for _ in range(600):
        wire.send(frame(ICMPv6ND_RS(), source="::", destination=ROUTERS))
        times += [wire.time] * len(advertised(wire.pass_time(0.05)))
    assert len(times) > 5
    assert all(b - a >= ndp.MIN_DELAY_BETWEEN_RAS - 0.05 for a, b in pairwise(times))


async def test_rfc4861_6_2_6_who_asks_all_the_time_does_not_get_more(wire):
    for _ in range(500):
        wire.send(SOLICIT)
    assert len(advertised(wire.pass_time(1))) == 1


# Section 7: neighbours


@pytest.mark.parametrize("target", [GATEWAY, HOST, OURS])
@pytest.mark.parametrize("to_group", [True, False])
async def test_rfc4861_7_2_4_our_addresses_are_answered(wire, target, to_group):
    [answer] = wire.send(frame(ask(target), destination=group(target) if to_group else target))
    said = answer[ICMPv6ND_NA]
    assert (answer.src, answer.dst) == (SERVER, MAC)
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (target, LINK_LOCAL, 255)
    assert (said.tgt, said.R, said.S, said.O) == (target, 1, 1, 1)
    assert said[ICMPv6NDOptDstLLAddr].lladdr == SERVER


@pytest.mark.parametrize("raw", [ASK, TELL], ids=["NS", "NA"])
@pytest.mark.parametrize("hlim", [0, 1, 64, 254])
@pytest.mark.requirement("RFC4861 7.1.1", "RFC4861 7.1.2")
async def test_hop_limit_of_neighbours(wire, raw, hlim):
    made = raw.copy()
    made[IPv6].hlim = hlim
    dropped(wire, bytes(made))
    assert wire.counters["nd_hop_limit"] == 1


@pytest.mark.parametrize("raw", [ASK, TELL], ids=["NS", "NA"])
@pytest.mark.parametrize(
    ("offset", "value", "cut"),
    [(1, 1, 0), (8, 0xFF, 0), (25, 0, 0), (25, 2, 0), (0, None, 9), (0, None, 28), (0, None, 1)],
    ids=["code", "multicast", "empty option", "option too long", "23 octets", "4 octets", "option cut"],
)
@pytest.mark.requirement("RFC4861 7.1.1", "RFC4861 7.1.2")
async def test_what_is_discarded_of_neighbours(wire, raw, offset, value, cut):
    dropped(wire, changed(raw, offset, bytes(raw)[54] if value is None else value, cut=cut))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("message", [ICMPv6ND_NS(tgt=GATEWAY, cksum=1), ICMPv6ND_NA(tgt=GUEST, cksum=1)])
@pytest.mark.requirement("RFC4861 7.1.1", "RFC4861 7.1.2")
async def test_checksum_of_neighbours(wire, message):
    """Also on a link that cannot corrupt: nothing is lost by it, and nobody offloads these."""
    dropped(wire, frame(message))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        frame(ICMPv6ND_NS(tgt=GATEWAY), source="::", destination=GATEWAY),
        frame(ICMPv6ND_NS(tgt=GATEWAY), source="::", destination=EVERYBODY),
        frame(ask(GATEWAY), source="::", destination=group(GATEWAY)),
    ],
    ids=["to one", "to all", "with a link-layer address"],
)
async def test_rfc4861_7_1_1_from_nobody(wire, raw):
    dropped(wire, raw)
    assert wire.counters["malformed"] == 1


async def test_rfc4861_7_1_2_solicited_for_everybody(wire):
    dropped(wire, frame(tell(GUEST, solicited=1), source=GUEST, destination=EVERYBODY))
    assert wire.counters["malformed"] == 1


@pytest.mark.parametrize("target", [GUEST, LINK_LOCAL, f"{PREFIX}3", "2001:db8::1", "::1", "fe80::1"])
async def test_rfc4861_7_2_3_no_other_address_is_answered(wire, target):
    assert not wire.send(frame(ask(target), destination=group(target)))


async def test_rfc4861_7_2_3_who_asks_is_learnt(wire):
    wire.send(frame(ask(GATEWAY), source=GUEST))
    assert holder(wire, GUEST) == MAC


@pytest.mark.parametrize("source", [GATEWAY, HOST, OURS, "2001:db8::5", "::1", EVERYBODY])
async def test_rfc4861_7_2_3_who_cannot_have_the_address_is_not(wire, source):
    assert not wire.send(frame(ask(GATEWAY), source=source))
    assert holder(wire, source) is None


async def test_rfc4861_7_2_3_a_flood_from_everywhere_is_bounded(wire):
    for number in range(300):
        wire.send(frame(ask(GATEWAY), source=f"{PREFIX}{number + 256:x}:0:0:1"))
    assert len(wire.guest.station.addresses) == 64


async def test_rfc4861_7_2_5_without_the_override_flag_nothing_is_replaced(wire):
    other = "52:54:00:00:00:99"

    def says(override: int) -> Ether:
        made = frame(tell(GUEST, other, override=override), source=GUEST, destination=EVERYBODY)
        made.src = other
        return made

    wire.send(TELL)
    wire.send(says(0))
    assert holder(wire, GUEST) == MAC
    wire.send(says(1))
    assert holder(wire, GUEST) == other


@pytest.mark.parametrize("solicited", [0, 1])
async def test_rfc4861_7_2_5_who_claims_our_address_is_counted(wire, solicited):
    for target in (GATEWAY, HOST, OURS):
        dropped(wire, frame(tell(target, solicited=solicited)))
    assert wire.counters["spoofed_nd"] == 3
    assert [holder(wire, target) for target in (GATEWAY, HOST, OURS)] == [None] * 3


async def test_rfc4861_8_1_redirects_are_ignored(wire):
    for destination in (OURS, EVERYBODY):
        dropped(wire, frame(ICMPv6ND_Redirect(tgt=LINK_LOCAL, dst="2001:db8::1"), destination=destination))
    assert wire.counters["rogue_router"] == 2


async def test_rfc4861_8_1_none_are_sent(wire):
    """To a neighbour by way of us, where a router might send one."""
    wire.send(frame(ICMPv6EchoRequest(), source=GUEST, destination=f"{PREFIX}99"))
    wire.pass_time(10)
    assert not [raw for raw in wire.heard if raw[12:14] == b"\x86\xdd" and raw[20] == 58 and raw[54] == 137]


# RFC 4862


@pytest.mark.parametrize("target", [GUEST, LINK_LOCAL])
async def test_rfc4862_5_4_a_probe_of_a_guest_is_not_answered_and_gives_it_nothing(wire, target):
    dropped(wire, frame(ICMPv6ND_NS(tgt=target), source="::", destination=group(target)))
    assert not sum(wire.counters[name] for name in ("spoofed_nd", "malformed", "bad_source"))


@pytest.mark.parametrize("target", [GATEWAY, HOST, OURS])
async def test_rfc4862_5_4_our_addresses_are_defended(wire, target):
    [answer] = wire.send(frame(ICMPv6ND_NS(tgt=target), source="::", destination=group(target)))
    assert (answer.dst, answer[IPv6].dst) == ("33:33:00:00:00:01", EVERYBODY)
    assert (answer[ICMPv6ND_NA].tgt, answer[ICMPv6ND_NA].S, answer[ICMPv6ND_NA].O) == (target, 0, 1)


async def test_rfc4862_5_4_a_probe_for_a_neighbours_address_reaches_him():
    """And it is he who answers."""
    async with lan() as world:
        a, b = world.neighbours
        b.send(b.ether("33:33:00:00:00:01") / IPv6(src=b.ip6, dst=EVERYBODY, hlim=255) / tell(b.ip6, b.mac))
        await world.settled(b)
        to = ipv6.multicast_mac(ipv6.solicited_node(packed(b.ip6))).hex(":")
        probe = IPv6(src="::", dst=group(b.ip6), hlim=255) / ICMPv6ND_NS(tgt=b.ip6)
        a.send(a.ether(to) / probe)
        assert (await b.hears(lambda f: ICMPv6ND_NS in f))[ICMPv6ND_NS].tgt == b.ip6
        await world.settled(a)
        assert world.network.lan.holder(packed(b.ip6)).mac.hex(":") == b.mac
        answer = IPv6(src=b.ip6, dst=EVERYBODY, hlim=255) / tell(b.ip6, b.mac)
        b.send(b.ether("33:33:00:00:00:01") / answer)
        assert (await a.hears(lambda f: ICMPv6ND_NA in f))[ICMPv6ND_NA].tgt == b.ip6


# RFC 6980


@pytest.mark.parametrize("message", [ICMPv6ND_RS(), ask(GATEWAY), tell(GUEST), ICMPv6ND_RA()])
async def test_rfc6980_5_a_fragment_that_is_the_whole_packet(wire, message):
    made = ether(OURS) / IPv6(src=LINK_LOCAL, dst=OURS, hlim=255) / IPv6ExtHdrFragment(m=0, offset=0) / message
    dropped(wire, made)
    assert wire.counters["nd_fragment"] == 1


@pytest.mark.parametrize("message", [ICMPv6ND_RS(), ask(GATEWAY), tell(GUEST)])
async def test_rfc6980_5_a_packet_in_several_fragments(wire, message):
    filler = ICMPv6NDOptUnknown(type=77, len=200, data=bytes(1598))
    whole = IPv6(src=GUEST, dst=OURS, hlim=255) / IPv6ExtHdrFragment(id=7) / message / filler
    pieces = fragment6(whole, 1280)
    assert len(pieces) > 1
    for piece in pieces:
        assert not wire.send(ether(OURS) / piece)
    assert not wire.pass_time(1)
    assert wire.counters["nd_fragment"] == 1


# RFC 8106


async def test_rfc8106_5_1_the_name_server_and_the_search_domains(make_wire):
    wire = make_wire(ipv6="on", plan=Plan(domain="vm.example", search=("corp.example",)))
    [said] = advertised(wire.pass_time(0.5))
    servers, domains = said[ICMPv6NDOptRDNSS], said[ICMPv6NDOptDNSSL]
    assert servers.dns == [GATEWAY]
    assert [name for name in domains.searchlist if name != "."] == ["vm.example.", "corp.example."]
    assert servers.lifetime == domains.lifetime == 3 * ndp.MAX_RTR_ADV_INTERVAL
