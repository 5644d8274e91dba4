"""Datagrams between links of different MTUs: cut, or refused with the MTU, and never silently lost."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPerror, defragment
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


async def test_what_is_not_ipv4_is_counted():
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
