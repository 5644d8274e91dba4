"""Guests of one LAN: what they may say to each other, and what they may not."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Raw

from tapdev.link import LinkCapabilities
from tests.vpnkit.net.neighbours import BROADCAST, GATEWAY, SERVER, lan
from vpnkit.net.lan import MAX_ADDRESSES
from vpnkit.wire.ipv6 import link_local

OURS6 = "fe80::f416:36ff:febc:f9c6"


def test_the_link_local_address_of_a_mac():
    assert link_local(bytes.fromhex("f61636bcf9c6")).hex() == "fe80000000000000f41636fffebcf9c6"


async def test_unicast_reaches_its_owner_and_nobody_else():
    async with lan(3) as world:
        a, b, c = world.neighbours
        frame = a.ether(b.mac) / IP(src=a.ip, dst=b.ip) / UDP(sport=1, dport=2) / Raw(b"hello")
        a.send(frame)
        assert bytes(await b.hears(lambda f: Raw in f)) == bytes(frame)
        await world.settled(a, c)
        assert not a.heard
        assert not c.heard


@pytest.mark.parametrize("size", [1500, 1499, 60])
async def test_full_size_frames_cross(size):
    async with lan() as world:
        a, b = world.neighbours
        frame = bytes(a.ether(b.mac) / IP(src=a.ip, dst=b.ip, len=size))
        frame += bytes(14 + size - len(frame))
        a.send(frame)
        assert bytes(await b.hears(lambda f: f.src == a.mac)) == frame


async def test_broadcast_and_multicast_reach_everybody_else():
    async with lan(3) as world:
        a, b, c = world.neighbours
        mdns = a.ether("01:00:5e:00:00:fb") / IP(src=a.ip, dst="224.0.0.251") / UDP(sport=5353, dport=5353) / Raw(b"q")
        who_has = a.ether(BROADCAST) / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=b.ip)
        a.send(mdns, who_has)
        for other in (b, c):
            assert bytes(await other.hears(lambda f: UDP in f)) == bytes(mdns)
            assert (await other.hears(lambda f: ARP in f))[ARP].pdst == b.ip
        await world.settled(a)
        assert not a.heard


async def test_what_only_the_gateway_answers_is_not_shown_to_others():
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether(BROADCAST) / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=GATEWAY))
        assert (await a.hears(lambda f: ARP in f))[ARP].hwsrc == SERVER
        assert (await a.dhcp("discover"))["message-type"] == 2
        await world.settled(b)
        assert not b.heard


async def test_a_frame_for_nobody_is_counted():
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether("52:54:00:99:99:99") / IP(src=a.ip, dst=b.ip))
        await world.settled(a, b)
        assert world.counter(a, "foreign_mac") == 1
        assert not b.heard


async def test_isolated_guests_do_not_hear_each_other():
    async with lan(isolate=True) as world:
        a, b = world.neighbours
        a.send(
            a.ether(b.mac) / IP(src=a.ip, dst=b.ip) / UDP(),
            a.ether(BROADCAST) / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=b.ip),
        )
        await world.settled(a, b)
        assert not b.heard
        assert world.counter(a, "isolated") == 1


# A guest may not speak as another one


async def test_a_forged_mac_changes_nothing_for_its_owner():
    async with lan(3) as world:
        a, b, c = world.neighbours
        b.send(b.ether(c.mac, source=a.mac) / IP(src=b.ip, dst=c.ip) / UDP())
        b.send(b.ether(BROADCAST, source=a.mac) / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=GATEWAY))
        await world.settled(b, c)
        assert not c.heard
        assert world.counter(b, "spoofed_mac") == 2
        frame = c.ether(a.mac) / IP(src=c.ip, dst=a.ip) / UDP() / Raw(b"to a")
        c.send(frame)
        assert bytes(await a.hears(lambda f: Raw in f)) == bytes(frame)
        assert not b.heard


@pytest.mark.parametrize("mac", [SERVER, "00:00:00:00:00:00", "01:00:5e:00:00:01", BROADCAST])
async def test_nobody_has_such_a_mac(mac):
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether(b.mac, source=mac) / IP(src=a.ip, dst=b.ip) / UDP())
        a.send(a.ether(BROADCAST, source=mac) / ARP(op=1, hwsrc=mac, psrc=a.ip, pdst=GATEWAY))
        await world.settled(a, b)
        assert not b.heard
        assert world.counter(a, "spoofed_mac") == 2


async def test_a_forged_ip_goes_nowhere():
    async with lan() as world:
        a, b = world.neighbours
        b.send(b.ether(a.mac) / IP(src=a.ip, dst=a.ip) / UDP())  # to a neighbour
        b.send(b.ether(SERVER) / IP(src=a.ip, dst=GATEWAY) / ICMP())  # to us
        b.send(b.ether(SERVER) / IP(src=a.ip, dst="192.168.65.2") / TCP(dport=1, flags="S"))
        await world.settled(a, b)
        assert not a.heard
        assert not b.heard
        assert world.counter(b, "spoofed_ip") == 3
        b.send(b.ether(a.mac) / IP(src=GATEWAY, dst=a.ip) / UDP(sport=53))
        await world.settled(a, b)
        assert not a.heard
        assert world.counter(b, "spoofed_ip") == 4


@pytest.mark.parametrize("operation", [1, 2])
async def test_a_forged_arp_is_not_passed_on(operation):
    async with lan(3) as world:
        a, b, c = world.neighbours
        for owner in (a.ip, GATEWAY, "192.168.65.2"):
            b.send(b.ether(BROADCAST) / ARP(op=operation, hwsrc=b.mac, psrc=owner, pdst=c.ip))
            b.send(b.ether(c.mac) / ARP(op=operation, hwsrc=b.mac, psrc=owner, hwdst=c.mac, pdst=c.ip))
        b.send(b.ether(c.mac) / ARP(op=operation, hwsrc=a.mac, psrc=b.ip, hwdst=c.mac, pdst=c.ip))  # another's MAC
        await world.settled(b, c)
        assert not c.heard
        assert world.counter(b, "spoofed_arp") == 7


async def test_our_address_is_defended():
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether(BROADCAST) / ARP(op=1, hwsrc=a.mac, psrc=GATEWAY, pdst=GATEWAY))  # gratuitous
        answer = await a.hears(lambda f: ARP in f)
        assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, SERVER, GATEWAY)
        await world.settled(b)
        assert not b.heard
        assert world.counter(a, "spoofed_arp") == 1


async def test_a_probe_for_an_address_passes():
    async with lan() as world:
        a, b = world.neighbours
        b.send(b.ether(BROADCAST) / ARP(op=1, hwsrc=b.mac, psrc="0.0.0.0", pdst=a.ip))
        assert (await a.hears(lambda f: ARP in f))[ARP].psrc == "0.0.0.0"


async def test_ipv6_passes_between_neighbours():
    async with lan() as world:
        a, b = world.neighbours
        solicited = a.ether("33:33:ff:00:00:02") / IPv6(src=a.ip6, dst="ff02::1:ff00:2")
        a.send(solicited / ICMPv6ND_NS(tgt=b.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=a.mac))
        assert (await b.hears(lambda f: ICMPv6ND_NS in f))[ICMPv6ND_NS].tgt == b.ip6
        advertised = b.ether(a.mac) / IPv6(src=b.ip6, dst=a.ip6) / ICMPv6ND_NA(tgt=b.ip6)
        b.send(advertised / ICMPv6NDOptDstLLAddr(lladdr=b.mac))
        assert (await a.hears(lambda f: ICMPv6ND_NA in f))[ICMPv6ND_NA].tgt == b.ip6
        probe = b.ether("33:33:ff:00:00:09") / IPv6(src="::", dst="ff02::1:ff00:9") / ICMPv6ND_NS(tgt="fe80::9")
        b.send(probe)
        assert ICMPv6ND_NS in await a.hears(lambda f: IPv6 in f)


async def test_forged_neighbour_discovery_is_not_passed_on():
    async with lan(3) as world:
        a, b, c = world.neighbours
        a.send(a.ether("33:33:00:00:00:01") / IPv6(src=a.ip6, dst="ff02::1") / ICMPv6ND_NA(tgt=a.ip6))
        await c.hears(lambda f: ICMPv6ND_NA in f)
        b.forget()
        to_c = b.ether(c.mac)
        forged = [
            to_c / IPv6(src=b.ip6, dst=c.ip6) / ICMPv6ND_NA(tgt=a.ip6) / ICMPv6NDOptDstLLAddr(lladdr=b.mac),
            to_c / IPv6(src=b.ip6, dst=c.ip6) / ICMPv6ND_NA(tgt=OURS6) / ICMPv6NDOptDstLLAddr(lladdr=b.mac),
            to_c / IPv6(src=b.ip6, dst=c.ip6) / ICMPv6ND_NA(tgt=b.ip6) / ICMPv6NDOptDstLLAddr(lladdr=a.mac),
            to_c / IPv6(src=a.ip6, dst=c.ip6) / ICMPv6ND_NS(tgt=c.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=b.mac),
            to_c / IPv6(src=b.ip6, dst=c.ip6) / ICMPv6ND_NS(tgt=c.ip6) / ICMPv6NDOptSrcLLAddr(lladdr=a.mac),
            to_c / IPv6(src=b.ip6, dst=c.ip6) / IPv6ExtHdrHopByHop() / ICMPv6ND_NA(tgt=a.ip6),
        ]
        b.send(*forged)
        await world.settled(b)
        assert world.counter(b, "spoofed_nd") == len(forged)
        b.send(to_c / IPv6(src=a.ip6, dst=c.ip6) / UDP(sport=1, dport=2))
        b.send(b.ether("33:33:00:00:00:01") / IPv6(src=b.ip6, dst="ff02::1") / ICMPv6ND_RA())
        b.send(to_c / IPv6(src=b.ip6, dst=c.ip6) / ICMPv6ND_Redirect())
        b.send(to_c / IPv6(src=b.ip6, dst=c.ip6) / UDP(sport=547, dport=546))
        await world.settled(b, c)
        assert world.counter(b, "spoofed_ip") == 1
        assert world.counter(b, "rogue_router") == 2
        assert world.counter(b, "rogue_dhcp") == 1
        assert not c.heard


@pytest.mark.parametrize("to_all", [True, False])
async def test_what_only_a_dhcpv6_server_answers_reaches_no_neighbour(to_all):
    async with lan() as world:
        a, b = world.neighbours
        ether = a.ether("33:33:00:01:00:02") if to_all else a.ether(b.mac)
        solicit = UDP(sport=546, dport=547) / bytes((1, 0, 0, 1))
        a.send(ether / IPv6(src=a.ip6, dst="ff02::1:2" if to_all else b.ip6) / solicit)
        a.send(a.ether(b.mac) / IPv6(src=a.ip6, dst=b.ip6) / UDP(sport=546, dport=548))
        assert (await b.hears(lambda f: IPv6 in f))[UDP].dport == 548
        assert world.counter(a, "dhcp_to_guest") == (not to_all)


async def test_a_guest_is_no_dhcp_server():
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether(b.mac) / IP(src=a.ip, dst=b.ip) / UDP(sport=67, dport=68))
        a.send(a.ether(BROADCAST) / IP(src=a.ip, dst="255.255.255.255") / UDP(sport=67, dport=68))
        await world.settled(a, b)
        assert not b.heard
        assert world.counter(a, "rogue_dhcp") == 2


async def test_a_vlan_tag_hides_nothing():
    async with lan() as world:
        a, b = world.neighbours
        a.send(a.ether(b.mac) / Dot1Q(vlan=0) / IP(src=b.ip, dst=b.ip) / UDP())
        await world.settled(a, b)
        assert not b.heard
        assert world.counter(a, "vlan_dropped") == 1


async def test_a_guest_has_few_addresses():
    async with lan() as world:
        a, b = world.neighbours
        for number in range(MAX_ADDRESSES + 20):
            a.send(a.ether(b.mac) / IP(src=f"192.168.65.{120 + number}", dst=b.ip) / UDP() / Raw(bytes([number])))
        await world.settled(a)
        assert len(a.guest.station.addresses) == MAX_ADDRESSES
        assert bytes([192, 168, 65, 101]) in a.guest.station.addresses, "the first is kept"
        b.send(b.ether(a.mac) / IP(src="192.168.65.120", dst=a.ip) / UDP() / Raw(b"mine now"))
        assert (await a.hears(lambda f: Raw in f)).load == b"mine now"


# Coming and going


async def test_what_a_guest_had_is_free_when_he_is_gone():
    async with lan(3) as world:
        a, b, c = world.neighbours
        await world.go(a)
        b.send(b.ether(c.mac, source=a.mac) / IP(src=a.ip, dst=c.ip) / UDP() / Raw(b"now mine"))
        assert (await c.hears(lambda f: Raw in f)).load == b"now mine"


async def test_a_guest_that_returns_has_his_address_at_once():
    async with lan(1) as world:
        [other] = world.neighbours
        a = await world.come()
        ip = await a.lease()
        await world.go(a)
        again = await world.come()
        again.mac = a.mac
        await world.settled(again)  # one frame, without an address in it
        assert again.guest.ip == bytes(map(int, ip.split(".")))
        other.send(other.ether(SERVER) / IP(src=ip, dst=GATEWAY) / ICMP())
        await world.settled(other)
        assert world.counter(other, "spoofed_ip") == 1


async def test_dhcp_gives_every_guest_an_address_of_his_own_and_his_links_mtu():
    async with lan(0) as world:
        big = await world.come(capabilities=LinkCapabilities(mtu=65520))
        small = await world.come(capabilities=LinkCapabilities(mtu=1500))
        assert await big.lease() == "192.168.65.3"
        assert await small.lease() == "192.168.65.4"
        assert (await big.dhcp("discover"))["interface-mtu"] == 65520
        assert (await small.dhcp("discover"))["interface-mtu"] == 1500
        assert world.network.lan.holder(bytes([192, 168, 65, 4])).station is small.guest.station


async def test_dhcp_gives_nobody_an_address_that_somebody_else_uses():
    async with lan(0) as world:
        squatter = await world.come()
        squatter.ip = "192.168.65.3"
        squatter.speak()
        await world.settled(squatter)
        client = await world.come()
        assert await client.lease() == "192.168.65.4"
        refused = await client.dhcp("request", options=[("requested_addr", "192.168.65.3")])
        assert refused["message-type"] == 6


async def test_a_client_identifier_does_not_steal_an_address():
    async with lan(0) as world:
        a, b = await world.come(), await world.come()
        identifier = [("client_id", b"\xff123456")]
        assert await a.lease(options=identifier) == "192.168.65.3"
        assert await b.lease(options=identifier) == "192.168.65.4"
        assert world.network.lan.holder(bytes([192, 168, 65, 3])).station is a.guest.station


async def test_nobody_asks_for_an_address_in_anothers_name():
    async with lan(0) as world:
        a, b = await world.come(), await world.come()
        await a.lease()
        assert await b.dhcp("discover", chaddr=a.mac) is None
        assert world.network._dhcp_service.dropped["not the owner"] == 1


async def test_an_address_that_was_given_back_is_free():
    async with lan(0) as world:
        a, b, c = await world.come(), await world.come(), await world.come()
        ip = await a.lease()
        assert await a.dhcp("release", ciaddr=ip, options=[("server_id", GATEWAY)]) is None
        assert await b.lease() == "192.168.65.4", "it is kept for him as long as there are others"
        assert (await c.dhcp("request", options=[("requested_addr", ip)]))["message-type"] == 5
