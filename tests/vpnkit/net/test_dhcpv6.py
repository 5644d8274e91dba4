"""DHCPv6 frame by frame: who answers, whom, and whose the address is then."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Release,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6

from tests.vpnkit.net.neighbours import SERVER, lan
from vpnkit.net.reporting import NetworkReporter
from vpnkit.wire.ipv6 import link_local

SERVERS = "ff02::1:2"
SERVERS_MAC = "33:33:00:01:00:02"
GATEWAY6 = "fd65:7670:6e6b::1"
ROUTER = str(IPv6Address(link_local(bytes.fromhex(SERVER.replace(":", "")))))
DUID = DHCP6OptClientId(duid=DUID_LL(lladdr="02:50:00:00:00:01"))
OURS = DHCP6OptServerId(duid=DUID_LL(lladdr=SERVER))


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def own(neighbour) -> str:
    return str(IPv6Address(link_local(octets(neighbour.mac))))


def says(neighbour, message, *, to: str = SERVERS, mac: str = SERVERS_MAC, port: int = 546) -> None:
    frame = neighbour.ether(mac) / IPv6(src=own(neighbour), dst=to, hlim=1) / UDP(sport=port, dport=547) / message
    neighbour.send(frame)


async def hears(neighbour, kind):
    frame = await neighbour.hears(lambda frame: kind in frame)
    assert (frame.src, frame.dst) == (SERVER, neighbour.mac)
    assert (frame[IPv6].src, frame[IPv6].dst) == (ROUTER, own(neighbour))
    assert (frame[UDP].sport, frame[UDP].dport) == (547, 546)
    check = frame[UDP].chksum
    del frame[UDP].chksum
    assert type(frame)(bytes(frame))[UDP].chksum == check
    return frame[kind]


async def obtain(neighbour, duid=DUID) -> str:
    says(neighbour, DHCP6_Solicit(trid=1) / duid / DHCP6OptRapidCommit() / DHCP6OptIA_NA(iaid=1))
    reply = await hears(neighbour, DHCP6_Reply)
    return str(reply[DHCP6OptIA_NA].ianaopts[0].addr)


@pytest.mark.requirement("RFC8415 7.2")
async def test_what_is_given_is_the_guests_on_the_lan():
    async with lan(1, ipv6="on") as world:
        [guest] = world.neighbours
        says(guest, DHCP6_Solicit(trid=1) / DUID / DHCP6OptIA_NA(iaid=1))
        offer = await hears(guest, DHCP6_Advertise)
        address = offer[DHCP6OptIA_NA].ianaopts[0].addr
        packed = IPv6Address(address).packed
        assert world.network.lan.holder(packed) is None
        wish = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr=address)])
        says(guest, DHCP6_Request(trid=2) / DUID / OURS / wish)
        await hears(guest, DHCP6_Reply)
        holder = world.network.lan.holder(packed)
        assert holder is not None
        assert (holder.station, holder.mac) == (guest.guest.station, octets(guest.mac))
        leases = {lease.ip: lease for lease in NetworkReporter(world.network).leases()}
        assert (leases[address].mac, leases[address].state) == (guest.mac, "bound")
        says(guest, DHCP6_Release(trid=3) / DUID / OURS / wish)
        await hears(guest, DHCP6_Reply)
        assert world.network.lan.holder(packed) is None


async def test_it_is_his_again_when_he_comes_back_before_he_says_so():
    async with lan(1, ipv6="on") as world:
        [guest] = world.neighbours
        packed = IPv6Address(await obtain(guest)).packed
        await world.go(guest)
        world.neighbours.remove(guest)
        assert world.network.lan.holder(packed) is None
        again = await world.come()
        assert again.mac == guest.mac
        again.speak()
        await world.settled(again)
        assert world.network.lan.holder(packed) is not None


async def test_an_address_that_another_guest_has_is_not_given():
    async with lan(2, ipv6="on") as world:
        first, second = world.neighbours
        address = await obtain(first)
        await world.go(first)
        station = second.guest.station
        assert station.owns(IPv6Address(address).packed, octets(second.mac))
        first = await world.come()  # it has another MAC address now, and the same DUID
        assert await obtain(first) != address


async def test_two_guests_of_one_disk_image_have_two_addresses():
    async with lan(2, ipv6="on") as world:
        first, second = world.neighbours
        assert await obtain(first) != await obtain(second)


@pytest.mark.requirement("RFC8415 7.2")
async def test_unicast_is_refused_and_the_port_of_the_client_is_546():
    async with lan(1, ipv6="on") as world:
        [guest] = world.neighbours
        says(guest, DHCP6_Request(trid=2) / DUID / OURS / DHCP6OptIA_NA(iaid=1), to=GATEWAY6, mac=SERVER, port=1000)
        reply = await hears(guest, DHCP6_Reply)
        assert reply[DHCP6OptStatusCode].statuscode == 5  # UseMulticast
        assert DHCP6OptIA_NA not in reply


@pytest.mark.parametrize("offer", ["off", "auto"])
async def test_where_ipv6_is_not_offered_nobody_answers(offer, monkeypatch):
    async with lan(1, ipv6=offer) as world:
        [guest] = world.neighbours
        monkeypatch.setattr(world.network.ipv6, "_world", False)
        says(guest, DHCP6_Solicit(trid=1) / DUID / DHCP6OptIA_NA(iaid=1))
        await world.until(lambda: world.counter(guest, "dhcpv6_ignored") == 1)
        await world.settled(guest)
        assert not any(DHCP6_Advertise in IPv6(frame[14:]) for frame in guest.heard if frame[12:14] == b"\x86\xdd")


async def test_local_is_offered():
    async with lan(1, ipv6="local") as world:
        [guest] = world.neighbours
        assert (await obtain(guest)).startswith("fd65:7670:6e6b::1:")
