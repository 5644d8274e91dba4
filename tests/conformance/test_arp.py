"""The link and ARP: RFC 826, RFC 894, RFC 5227, and RFC 1122 section 2."""

from __future__ import annotations

import pytest
import trio.testing
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1Q, Ether
from scapy.packet import Raw

from tests.conformance.wire import BROADCAST, GATEWAY, GUEST, HOST, MAC, SERVER, arp, datagram, ping, syn
from vpnkit.net import lan

OTHER_MAC = "52:54:00:00:00:99"


async def test_rfc1122_2_3_1_trailers_are_neither_taken_nor_sent(wire):
    """Trailers have the Ethertypes 0x1001 to 0x100f."""
    packet = bytes(ping(GATEWAY))
    for ethertype in range(0x1000, 0x1010):
        assert not wire.send(Ether(src=MAC, dst=SERVER, type=ethertype) / packet)
    assert wire.counters["ethertype_ignored"] == 16
    wire.send(ping(GATEWAY), arp(GATEWAY))
    assert {Ether(frame).type for frame in wire.heard} == {0x0800, 0x0806}


async def test_rfc1122_2_3_2_1_a_stale_address_is_replaced_by_what_the_guest_says(wire):
    """The guest's interface got another MAC address and says so."""
    [before] = wire.send(ping(GATEWAY))
    assert before.dst == MAC
    wire.send(arp(GATEWAY, source=OTHER_MAC))
    with wire.server("127.0.0.1") as server:
        wire.send(Ether(src=OTHER_MAC, dst=SERVER) / datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        server.sendto(b"!", peer)
        [after] = wire.until(IP)
    assert after.dst == OTHER_MAC


async def test_rfc1122_2_3_2_1_a_question_is_not_repeated_without_end(wire, autojump_clock):
    """Nobody has the address: three questions, then it is said to be nobody's."""
    assert await wire.guest.station.lan.resolve(bytes([192, 168, 65, 77])) is None
    assert [frame[ARP].pdst for frame in wire.work()] == ["192.168.65.77"] * lan.RESOLVE_TRIES


async def test_rfc1122_2_3_2_1_many_callers_ask_no_more_often(wire, autojump_clock):
    """Clients of a forward whose guest is not there, one every 10 ms."""
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(wire.guest.station.lan.resolve, bytes([192, 168, 65, 77]))
            await trio.sleep(0.01)
    assert len(wire.work()) <= (trio.current_time() - started) / (0.9 * lan.RESOLVE_SECONDS) + 1


async def test_rfc1122_2_3_2_2_a_caller_waits_until_the_guest_answers(wire, nursery):
    """A forward to a guest that has not spoken yet: who called is kept, not dropped."""
    found = []

    async def call():
        found.append(await wire.guest.station.lan.resolve(bytes([192, 168, 65, 9])))

    nursery.start_soon(call)
    await trio.testing.wait_all_tasks_blocked()
    [question] = wire.work()
    assert (question[ARP].pdst, question.dst) == ("192.168.65.9", BROADCAST)
    wire.send(arp(GATEWAY, sender="192.168.65.9", op=2))
    await trio.testing.wait_all_tasks_blocked()
    assert found[0].mac == bytes.fromhex(MAC.replace(":", ""))


async def test_rfc1122_2_3_3_frames_are_those_of_rfc_894(wire):
    [frame] = wire.send(ping(GATEWAY))
    assert bytes(frame)[:14] == bytes.fromhex(MAC.replace(":", "") + SERVER.replace(":", "")) + b"\x08\x00"


@pytest.mark.parametrize("destination", [SERVER, BROADCAST])
async def test_rfc1122_2_3_3_snap_llc_and_snap_are_dropped_and_counted(wire, destination):
    """RFC 1042 is a SHOULD; what is behind a second header is what filters did not look at (CVE-2021-27853)."""
    inner = bytes(ping(GATEWAY))
    snap = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / inner
    assert not wire.send(Ether(src=MAC, dst=destination, type=len(bytes(snap))) / snap)
    assert wire.counters["ethertype_ignored"] == 1


@pytest.mark.parametrize("tags", [[0], [5], [0, 0]])
async def test_rfc1122_2_3_3_snap_vlan_tags_are_dropped_and_counted(wire, tags):
    frame = Ether(src=MAC, dst=SERVER)
    for tag in tags:
        frame /= Dot1Q(vlan=tag)
    assert not wire.send(frame / ping(GATEWAY))
    assert wire.counters["ethertype_ignored"] == 1


@pytest.mark.parametrize("group", [BROADCAST, "01:00:5e:00:00:01"])
@pytest.mark.parametrize(
    "packet",
    [
        syn(99, GATEWAY),
        syn(53, GATEWAY),
        datagram(b"?", 99, GATEWAY),
        ping(GATEWAY),
        IP(src=GUEST, dst=GATEWAY, proto=132) / b"what is this?",
    ],
    ids=["syn to a closed port", "syn to a service", "udp", "ping", "unknown protocol"],
)
async def test_rfc1122_2_4_unicast_ip_in_a_group_frame_is_not_answered(wire, group, packet):
    assert not wire.send(Ether(src=MAC, dst=group) / packet)
    assert wire.counters["broadcast_ignored"] == 1
    assert not wire.guest.tcp.flows


@pytest.mark.parametrize("address", [GATEWAY, HOST])
async def test_rfc826_1_our_addresses_are_answered(wire, address):
    [frame] = wire.send(arp(address))
    reply = frame[ARP]
    assert (frame.src, frame.dst) == (SERVER, MAC)
    assert (reply.op, reply.hwsrc, reply.psrc, reply.hwdst, reply.pdst) == (2, SERVER, address, MAC, GUEST)
    assert (reply.hwtype, reply.ptype, reply.hwlen, reply.plen) == (1, 0x0800, 6, 4)


@pytest.mark.parametrize("address", [GUEST, "192.168.65.77", "192.168.65.0", "192.168.65.255", "9.9.9.9", "0.0.0.0"])
async def test_rfc826_1_no_other_address_is_answered(wire, address):
    assert not wire.send(arp(address))


@pytest.mark.parametrize("op", [0, 2, 3, 4, 8, 9, 65535])
async def test_rfc826_1_only_requests_are_answered(wire, op):
    assert not wire.send(arp(GATEWAY, op=op))


@pytest.mark.parametrize(
    "wrong", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 5}, {"hwlen": 255}, {"plen": 16}, {"plen": 0}], ids=str
)
async def test_rfc826_1_other_hardware_and_protocols_are_ignored(wire, wrong):
    raw = bytearray(bytes(arp(GATEWAY)))
    for field, value in wrong.items():
        start, width = {"hwtype": (14, 2), "ptype": (16, 2), "hwlen": (18, 1), "plen": (19, 1)}[field]
        raw[start : start + width] = value.to_bytes(width, "big")
    assert not wire.send(bytes(raw))
    assert wire.counters["malformed"] == 1


async def test_rfc826_1_a_packet_that_is_cut_is_ignored(wire):
    whole = bytes(arp(GATEWAY))
    for length in range(14, len(whole)):
        assert not wire.send(whole[:length])
    assert wire.counters["malformed"] == len(whole) - 14


async def test_rfc826_1_padding_to_60_octets_is_no_matter(wire):
    [frame] = wire.send(bytes(arp(GATEWAY)) + bytes(18))
    assert frame[ARP].psrc == GATEWAY
    assert Raw not in frame


async def test_rfc826_2_the_sender_of_a_request_for_us_is_learned(wire):
    """His address from then on: nobody has to ask him."""
    new = bytes([192, 168, 65, 9])
    wire.send(arp(GATEWAY, sender="192.168.65.9"))
    assert wire.guest.station.lan.holder(new).mac == bytes.fromhex(MAC.replace(":", ""))


async def test_rfc5227_2_1_1_a_probe_for_the_guests_own_address_is_not_answered(wire):
    """Section 2.1.1: an answer would be a conflict, and he would give the address up (`arping -D`, Windows)."""
    assert not wire.send(arp(GUEST, sender="0.0.0.0"))


async def test_rfc5227_2_1_1_an_announcement_of_the_guests_own_address_is_not_answered(wire):
    assert not wire.send(arp(GUEST), arp(GUEST, op=2))
    assert not wire.counters["spoofed_arp"]


@pytest.mark.parametrize("address", [GATEWAY, HOST])
async def test_rfc5227_2_4_a_probe_for_an_address_of_ours_is_a_conflict(wire, address):
    [frame] = wire.send(arp(address, sender="0.0.0.0"))
    assert (frame[ARP].op, frame[ARP].psrc, frame[ARP].hwsrc, frame[ARP].pdst) == (2, address, SERVER, "0.0.0.0")


@pytest.mark.parametrize("address", [GATEWAY, HOST])
async def test_rfc5227_2_4_who_announces_an_address_of_ours_is_told_otherwise_and_counted(wire, address):
    """Section 2.4: our address is defended, and nothing changes for anybody."""
    [frame] = wire.send(arp(address, sender=address))
    assert (frame[ARP].op, frame[ARP].psrc, frame[ARP].hwsrc) == (2, address, SERVER)
    assert wire.counters["spoofed_arp"] == 1
    assert wire.guest.station.lan.holder(bytes(map(int, address.split(".")))) is None
    [reply] = wire.send(ping(GATEWAY))
    assert reply[ICMP].type == 0


async def test_rfc5227_2_4_a_reply_that_claims_an_address_of_ours_is_ignored_and_counted(wire):
    assert not wire.send(arp(GUEST, sender=GATEWAY, op=2))
    assert wire.counters["spoofed_arp"] == 1


async def test_rfc5227_2_4_who_speaks_from_an_address_of_ours_is_ignored_and_counted(wire):
    assert not wire.send(IP(src=GATEWAY, dst=HOST) / TCP(dport=99, flags="S"))
    assert wire.counters["bad_source"] == 1
