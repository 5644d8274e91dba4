"""Datagrams between links of different MTUs: cut, or refused with the MTU, and never silently lost."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPerror, defragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    UDPerror,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tapdev.link import LinkCapabilities
from tests.vpnkit.net.neighbours import GATEWAY, SERVER, lan
from vpnkit.net.too_large import cut_or_refuse

PAYLOAD = random.Random(3).randbytes(20_000)


async def two(world):
    big = await world.come(capabilities=LinkCapabilities(mtu=65520))
    small = await world.come(capabilities=LinkCapabilities(mtu=1500))
    for one in (big, small):
        one.speak()
        await world.settled(one)
        one.forget()
    return big, small


async def test_without_df_it_is_cut():
    async with lan(0) as world:
        big, small = await two(world)
        big.send(big.ether(small.mac) / IP(src=big.ip, dst=small.ip, id=7) / UDP(sport=1, dport=2) / Raw(PAYLOAD))
        frames = []
        while sum(len(frame[IP].payload) for frame in frames) < 20_008:
            frames.append(await small.hears(lambda frame: IP in frame))
        assert max(len(frame) for frame in frames) <= 1514
        [whole] = defragment([frame[IP] for frame in frames])
        assert bytes(whole[UDP].payload) == PAYLOAD
        sent = whole[UDP].chksum
        del whole[UDP].chksum
        assert IP(bytes(whole))[UDP].chksum == sent
        for frame in frames:
            checksum = frame[IP].chksum
            del frame[IP].chksum
            assert Ether(bytes(frame))[IP].chksum == checksum
        assert not small.guest.station.lost()


async def test_with_df_its_sender_is_told_the_mtu():
    async with lan(0) as world:
        big, small = await two(world)
        datagram = IP(src=big.ip, dst=small.ip, flags="DF", id=9) / UDP(sport=1, dport=2) / Raw(PAYLOAD)
        big.send(big.ether(small.mac) / datagram)
        told = await big.hears(lambda frame: ICMP in frame)
        assert (told.src, told[IP].src, told[IP].dst) == (SERVER, GATEWAY, big.ip)
        assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1500)
        assert (told[IPerror].dst, told[IPerror].id) == (small.ip, 9)
        await world.settled(small)
        assert not small.heard


async def test_a_multicast_with_df_is_lost_and_nobody_is_told():
    async with lan(0) as world:
        big, small = await two(world)
        big.send(big.ether("01:00:5e:00:00:fb") / IP(src=big.ip, dst="224.0.0.251", flags="DF") / UDP() / Raw(PAYLOAD))
        await world.settled(big, small)
        assert not big.heard
        assert not small.heard


async def test_ipv6_is_never_cut_and_its_sender_is_told_the_mtu():
    async with lan(0) as world:
        big, small = await two(world)
        packet = IPv6(src=big.ip6, dst=small.ip6) / UDP(sport=1, dport=2) / Raw(PAYLOAD)
        big.send(big.ether(small.mac) / packet)
        told = await big.hears(lambda frame: ICMPv6PacketTooBig in frame)
        assert (told.src, told[IPv6].dst, told[IPv6].hlim) == (SERVER, big.ip6, 64)
        assert (told[ICMPv6PacketTooBig].code, told[ICMPv6PacketTooBig].mtu) == (0, 1500)
        assert (told[IPerror6].src, told[IPerror6].dst, told[UDPerror].dport) == (big.ip6, small.ip6, 2)
        assert len(told[IPv6]) == 1280
        sent = told[ICMPv6PacketTooBig].cksum
        del told[ICMPv6PacketTooBig].cksum
        assert Ether(bytes(told))[ICMPv6PacketTooBig].cksum == sent
        await world.settled(small)
        assert not small.heard
        assert not small.guest.station.lost()


async def test_ipv6_to_a_multicast_address_is_told_too():
    async with lan(0) as world:
        big, _ = await two(world)
        packet = IPv6(src=big.ip6, dst="ff02::fb") / UDP(sport=5353, dport=5353) / Raw(PAYLOAD)
        big.send(big.ether("33:33:00:00:00:fb") / packet)
        told = await big.hears(lambda frame: ICMPv6PacketTooBig in frame)
        assert (told[IPerror6].dst, told[ICMPv6PacketTooBig].mtu) == ("ff02::fb", 1500)


def refused(packet: IPv6) -> list[tuple[bytes, int]] | None:
    """What `cut_or_refuse` tells, or None when the frame is nothing for it."""
    told: list[tuple[bytes, int]] = []
    frame = memoryview(bytes(Ether() / packet))
    handled = cut_or_refuse(frame, 1500, pytest.fail, lambda quoted, mtu: told.append((quoted, mtu)))
    return told if handled else None


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(src="fd65::3") / ICMPv6EchoRequest(data=PAYLOAD),
        IPv6(src="fd65::3") / IPv6ExtHdrHopByHop() / UDP() / Raw(PAYLOAD),
        IPv6(src="fd65::3") / IPv6ExtHdrFragment(offset=100, m=1, nh=58) / Raw(bytes(2000)),  # a type of 0 inside
        IPv6(src="fd65::3", nh=59) / Raw(PAYLOAD),
    ],
)
def test_any_ipv6_is_refused_with_its_start(packet):
    assert refused(packet) == [(bytes(packet)[:1232], 1500)]


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(src="fd65::3") / ICMPv6DestUnreach() / Raw(PAYLOAD),
        IPv6(src="fd65::3") / IPv6ExtHdrHopByHop() / ICMPv6PacketTooBig() / Raw(PAYLOAD),
        IPv6(src="::") / UDP() / Raw(PAYLOAD),
        IPv6(src="ff02::1") / UDP() / Raw(PAYLOAD),
    ],
)
def test_nothing_is_said_about_ipv6_errors_or_to_nobody(packet):
    assert refused(packet) == []


def test_ipv6_of_wrong_lengths_is_left_alone():
    assert refused(IPv6(plen=30_000) / Raw(PAYLOAD)) is None
    assert refused(IPv6(version=4) / Raw(PAYLOAD)) is None


@pytest.mark.parametrize("length", range(12, 54, 5))
def test_the_start_of_ipv6_is_left_alone(length):
    frame = bytes(Ether() / IPv6(src="fd65::3") / UDP() / Raw(bytes(40)))[:length]
    assert not cut_or_refuse(memoryview(frame), 1500, pytest.fail, pytest.fail)


async def test_what_is_no_ip_is_counted():
    async with lan(0) as world:
        big, small = await two(world)
        big.send(bytes(big.ether(small.mac))[:12] + b"\x88\xb5" + PAYLOAD)
        await world.settled(big, small)
        assert not small.heard
        assert small.guest.station.lost() == {"switch_unfit": 1}


@pytest.mark.parametrize("more", [True, False])
def test_a_fragment_is_cut_again(more):
    """Its place in the datagram stays, and only the last piece is the last."""
    flags = "MF" if more else 0
    share = PAYLOAD[8000:16000]
    fragment = Ether() / IP(src="192.168.65.3", dst="192.168.65.4", id=5, frag=1000, flags=flags, proto=17) / Raw(share)
    made: list[IP] = []

    def deliver(parts) -> None:
        made.append(IP(b"".join(parts)[14:]))

    assert cut_or_refuse(memoryview(bytes(fragment)), 1500, deliver, lambda *_: pytest.fail("refused"))
    assert b"".join(bytes(one.payload) for one in made) == share
    assert [one.frag * 8 for one in made] == [8000 + 1480 * i for i in range(6)]
    assert [bool(one.flags.MF) for one in made] == [True] * 5 + [more]
    for one in made:
        wanted = one.chksum
        del one.chksum
        assert IP(bytes(one)).chksum == wanted


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_garbage_is_left_alone(length):
    frame = bytes(Ether() / IP() / UDP() / Raw(bytes(40)))[:length]
    assert not cut_or_refuse(memoryview(frame), 1500, pytest.fail, pytest.fail)
