"""Inputs that broke other stacks, the frame and IP part: slirp, libslirp and QEMU user net (passt-slirp-qemu.md 3.2,
conformance.md 3.2), and what of conformance.md 3.5 is below TCP.  The others are in test_cves_transport.py,
test_cves_services.py and test_cves_lan.py.

Each goes through a whole guest, who is served afterwards as if nothing had been: that is the `victim` fixture's end.

Rows that do not apply, and why:

- CVE-2020-7211, CVE-2021-3595 TFTP: there is none; port 69 is closed, which test_cve_2021_3595_... shows.
- IPv6: most of it is in test_cves_ipv6.py.
- CVE-2026-95508, CVE-2026-4892, CVE-2022-0934 DHCPv6: test_stateful_dhcpv6.py.
- CVE-2026-120831 queues of sessions: there are no priority queues; flows that change between bulk and talk are tested.
- CVE-2017-13711, CVE-2019-15890, CVE-2020-1983 use after free: Python frees nothing in use; their inputs are sent.
- CVE-2021-3748, CVE-2022-26353, CVE-2021-20255, CVE-2021-20257, CVE-2016-5403, CVE-2011-2512, CVE-2023-6693,
  CVE-2024-6505, CVE-2023-3019: devices of QEMU; there is no descriptor ring.  CVE-2021-3416's hairpin is tested.
- CVE-2025-14876: virtio-crypto.
- passt 2024-02-20 inverted port map, 2022-11-16 perror: there is no such map, and no system call filter yet.
- conformance.md 3.3, defaults of peers: no malformed input; control sockets, forwards and policy have their own tests.
- conformance.md 3.4, HTTP proxy, 9P, vhost-user: not there yet.
- conformance.md 3.5: MQTT, SNMP (A), RDNSS (I), IGMP, DHCP client, DNS client (K): we speak none of these to a guest;
  entropy of sequence numbers and ports (C, L): no malformed input.
"""

from __future__ import annotations

import itertools
import struct

import pytest

from tests.fuzz import frames
from tests.fuzz.frames import ACK, GATEWAY, GUEST, HOST, MAC, REMOTE, SERVER_MAC, ether, ipv4
from tests.fuzz.victim import cpu_limit

ADDRESSED = struct.pack("!6s6s", SERVER_MAC, MAC)


async def test_cve_2007_5729_ethernet_frame_shorter_than_its_header(victim):
    for length in range(14):
        assert victim.raw((ADDRESSED + b"\x08\x00")[:length]) == []
    assert victim.grew() == {"malformed": 14}


async def test_smoltcp_empty_frame(victim):
    assert victim.raw(b"") == []
    assert victim.raw(ADDRESSED + b"\x08\x00") == []
    assert victim.grew() == {"malformed": 2}


async def test_cve_2020_29130_arp_truncated_every_length(victim):
    whole = frames.arp()
    for length in range(14, len(whole)):
        assert victim.raw(whole[:length]) == []
    assert victim.grew() == {"malformed": 28}


async def test_cve_2020_29130_arp_for_other_hardware_or_protocol(victim):
    strange = [{"hlen": 0}, {"hlen": 255}, {"plen": 0}, {"plen": 255}, {"htype": 6}, {"ptype": 0x86DD}]
    strange += [{"op": op} for op in (0, 3, 4, 8, 9, 65535)]
    for fields in strange:
        assert victim.feed(frames.arp(**fields)) == []
    assert victim.grew() == {"malformed": len(strange)}


async def test_arp_about_anybody_never_takes_our_address(victim):
    """slirp's table of neighbours believed everybody."""
    for op, sender in itertools.product((1, 2), (GATEWAY, HOST, "0.0.0.0", "255.255.255.255", "192.168.65.255")):
        victim.feed(frames.arp(op=op, sender=sender))
        victim.feed(frames.arp(op=op, sender=sender, target=sender))
    assert victim.grew().keys() == {"spoofed_arp"}
    assert not victim.guest.ours & victim.guest.station.addresses.keys()


@pytest.mark.parametrize("kind", [0x88F8, 0x88CC, 0x8808, 0x8847, 0x8863, 0x9000, 0x0000, 0x05DC, 0xFFFF])
async def test_cve_2020_29129_ncsi_and_other_ethertypes_every_length(victim, kind):
    for length in range(65):
        assert victim.feed(ether(b"\xff" * length, kind=kind)) == []
    assert victim.grew() == {"ethertype_ignored": 65}


async def test_cve_2021_27853_tags_hide_nothing(victim):
    inner = struct.pack("!H", 0x0800) + ipv4(b"", 99)
    for kind, depth in itertools.product((0x8100, 0x88A8, 0x9100), (1, 2, 7)):
        tag = (b"\0\0" + struct.pack("!H", kind)) * (depth - 1) + b"\0\0"
        assert victim.feed(ether(tag + inner, kind=kind)) == []
        assert victim.feed(ether(tag, kind=kind)) == []
    llc = b"\xaa\xaa\x03\0\0\0" + inner
    assert victim.feed(ether(llc, kind=len(llc))) == []
    assert victim.grew() == {"ethertype_ignored": 19}


async def test_cve_2021_3416_frame_to_himself_and_hairpin(victim):
    own = ether(ipv4(b"x" * 8, 17, dst=GUEST), dst=MAC)
    hairpin = ether(ipv4(b"x" * 8, 17, dst=GUEST))
    from_us = ether(ipv4(b"x" * 8, 17, src=GATEWAY, dst=GATEWAY))
    as_us = ether(ipv4(b"x" * 8, 17), src=SERVER_MAC)
    for frame in (own, hairpin, from_us, as_us):
        assert victim.feed(frame) == []
    grown = victim.grew()
    assert grown.pop("spoofed_mac") == 1
    assert sum(grown.values()) == 3


# IPv4 header


@pytest.mark.parametrize("protocol", [0, 1, 6, 17, 132])
async def test_ripple20_ip_length_matrix(victim, protocol):
    """Total length against frame length against header length, all wrong ways."""
    body = bytes(60)
    wrong = 0
    for total in (0, 1, 19, 20, 21, 27, 28, 40, 79, 81, 100, 1500, 65535):
        for ihl in (0, 1, 4, 6, 10, 15):
            victim.feed(ether(ipv4(body, protocol, total=total, ihl=ihl)))
            wrong += 1
    assert sum(victim.grew().values()) <= wrong


@pytest.mark.parametrize("ihl", range(5))
async def test_cve_2018_16601_ihl_smaller_or_larger_than_the_packet(victim, ihl):
    """Also smoltcp's `IHL < 20`."""
    assert victim.feed(ether(ipv4(bytes(8), 17, ihl=ihl))) == []
    assert victim.feed(ether(ipv4(b"", 17, ihl=ihl + 6))) == []
    assert victim.grew() == {"malformed": 2}


async def test_ip_version_is_not_believed(victim):
    for version in (0, 5, 6, 15):
        assert victim.feed(ether(ipv4(bytes(8), 17, version=version))) == []
    assert victim.grew() == {"malformed": 4}


@pytest.mark.parametrize("kind", [0, 1, 7, 68, 130, 131, 136, 137, 148, 255])
async def test_cve_2019_12256_ip_options(victim, kind):
    """URGENT/11 among others: every length of every option, at every place."""
    for place, length in itertools.product(range(4), range(256)):
        options = (b"\x01" * place + bytes((kind, length))).ljust(40, b"\x07")
        victim.feed(ether(ipv4(bytes(8), 17, options=options)))
    assert victim.grew().keys() <= {"malformed", "udp_port_zero", "udp_bad_destination"}


async def test_cve_2020_17441_ipv6_headers_that_lie(victim):
    """picoTCP, uIP: payload length and extension headers that reach outside."""
    us, him = b"\xfe\x80" + bytes(13) + b"\1", b"\xfe\x80" + bytes(13) + b"\2"
    for following, length in itertools.product((0, 6, 17, 43, 44, 58, 59, 60, 255), (0, 1, 8, 40, 65535)):
        for body in (b"", bytes(7), bytes([following, 255]) + bytes(30), bytes([following, 0]) + bytes(6)):
            packet = frames.ipv6(body, following, src=him, dst=us, length=length)
            for cut in (len(packet), 41, 40, 39, 1):
                answers = victim.feed(ether(packet[:cut], kind=0x86DD))
                assert [answer[54] for answer in answers] in ([], [1], [4]), "an error or nothing"
                assert victim.feed(ether(packet[:cut], kind=0x0800)) == []
    assert victim.grew().keys() <= {"malformed", "bad_source", "spoofed_ip", "bad_destination", "icmp_rate_limited"}


async def test_cve_2020_10756_icmpv6_echo_with_a_length_that_lies(victim):
    us = b"\xfe\x80" + bytes(13) + b"\1"
    for length in (0, 4, 8, 9, 1000, 65535):
        message = bytes((128, 0, 0, 0, 0, 1, 0, 1))
        assert victim.feed(ether(frames.ipv6(message, 58, src=us, dst=us, length=length), kind=0x86DD)) == []


# Sources and destinations


BAD_SOURCES = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]


@pytest.mark.parametrize("source", [*BAD_SOURCES, "192.168.65.255", "192.168.65.0", GATEWAY, HOST, "10.0.0.1"])
async def test_cve_2014_3640_source_zero_and_others_that_nobody_has(victim, source):
    """libslirp: UDP from 0.0.0.0 port 0; smoltcp: SYN from the unspecified address; passt: loopback from the tap."""
    for dst in (REMOTE, GATEWAY, HOST):
        for sport in (0, 1, 68):
            assert victim.feed(frames.udp(b"x", src=source, dst=dst, sport=sport, dport=9)) == []
            assert victim.feed(frames.tcp(src=source, dst=dst, sport=sport)) == []
            assert victim.feed(frames.tcp(src=source, dst=dst, sport=sport, flags=ACK)) == []
        assert victim.feed(frames.ping(src=source, dst=dst)) == []
    assert victim.grew() == {"bad_source": 30}
    assert not victim.host.heard


LOOPBACKS = [
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.255",
    "0.0.0.0",
    "0.0.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "240.0.0.1",
]


@pytest.mark.parametrize("address", LOOPBACKS)
async def test_passt_2024_02_29_loopback_destination_from_the_guest(victim, address):
    """Our MAC address, an address that must never be dialled (G3)."""
    assert victim.feed(frames.udp(b"x", dst=address)) == []
    assert victim.feed(frames.tcp(dst=address)) == []
    assert victim.feed(frames.ping(dst=address)) == []
    assert not victim.host.heard
    assert not victim.far
    assert not victim.guest.tcp.flows
    assert sum(victim.grew().values()) == 3


@pytest.mark.parametrize("dst", [REMOTE, HOST, GATEWAY, "255.255.255.255"])
async def test_passt_2024_08_14_port_zero_all_protocols(victim, dst):
    for sport, dport in ((0, 0), (0, 80), (80, 0), (0, 53), (53, 0)):
        victim.feed(frames.udp(b"x", dst=dst, sport=sport, dport=dport))
        for flags in (frames.SYN, frames.SYN | ACK, ACK, frames.FIN, frames.RST, 0, 255):
            victim.feed(frames.tcp(dst=dst, sport=sport, dport=dport, flags=flags))
    assert not victim.guest.tcp.flows
    assert not [key for key in victim.guest.udp.mappings if key[4:6] == b"\0\0"]


# Fragments: what comes out, if anything, is what went in


def parts_of(datagram: bytes, cuts: list[int], **fields: object) -> list[bytes]:
    return frames.fragments(datagram, cuts, **fields)


def the_host_got_only(victim, *wholes: bytes) -> None:
    assert set(victim.host.heard) <= set(wholes), "a datagram that nobody sent"
    victim.host.heard.clear()


async def test_cve_2018_11806_fragments_that_sum_to_more_than_64k(victim):
    """Offset and length beyond 65535, alone and as the end of a datagram."""
    datagram = frames.udp_datagram(bytes(3000))
    for offset in (8183, 8189, 8190, 8191):
        for more in (0, frames.MF):
            tail = ether(ipv4(bytes(1480), 17, ident=offset, flags_offset=offset | more))
            victim.feed(*parts_of(datagram, [0, 1480], ident=offset)[:1], tail)
    the_host_got_only(victim)


async def test_cve_2019_14378_first_fragment_larger_than_the_rest(victim):
    datagram = frames.udp_datagram(bytes(range(256)) * 240)
    victim.feed(*parts_of(datagram, [0, 61440]))
    the_host_got_only(victim, datagram[8:])


async def test_cve_2019_15890_fragments_that_cover_earlier_ones(victim):
    """The host may get what some of the pieces make when put side by side, never one laid over another."""
    good, evil = frames.udp_datagram(b"good" * 500), frames.udp_datagram(b"evil" * 500)
    for ident, (cut, start, end) in enumerate(itertools.product((800, 808, 1200), (0, 8, 800), (808, 1600, 2008))):
        if start >= end:
            continue
        first, last = parts_of(good, [0, cut], ident=ident)
        more = frames.MF if end < 2008 else 0
        cover = ether(ipv4(evil[start:end], 17, ident=ident, flags_offset=start >> 3 | more))
        pieces = {0: {cut: [good[:cut]]}, cut: {2008: [good[cut:]]}}
        pieces.setdefault(start, {}).setdefault(end, []).append(evil[start:end])
        permitted = {whole[8:] for whole in tilings(pieces, 0)}
        for order in ((first, cover, last), (cover, first, last), (last, cover, first), (cover, last, first)):
            victim.feed(*order)
            the_host_got_only(victim, *permitted)
            victim.passes(61)


def tilings(pieces: dict[int, dict[int, list[bytes]]], at: int) -> list[bytes]:
    """Every way to lay the pieces side by side from `at` to 2008."""
    if at == 2008:
        return [b""]
    return [
        data + rest for end, several in pieces.get(at, {}).items() for data in several for rest in tilings(pieces, end)
    ]


async def test_cve_2020_1983_many_growing_fragments(victim):
    datagram = frames.udp_datagram(bytes(65000))
    for ident in range(20):
        pieces = parts_of(datagram, list(range(0, 64000, 1480)), ident=ident)
        victim.feed(*reversed(pieces))
    the_host_got_only(victim, datagram[8:])


async def test_frag_zero_length_and_zero_progress(victim):
    """CVE-2020-16092; a last fragment without data, a middle one that is no multiple of eight."""
    for ident, flags_offset in enumerate((0x2000, 0x2001, 1, 0x3FFF, 0x1FFF, 0xE000, 0xA000)):
        for size in (0, 1, 7, 8, 9):
            victim.feed(ether(ipv4(bytes(size), 17, ident=ident, flags_offset=flags_offset)))
            victim.feed(ether(ipv4(bytes(size), 6, ident=ident, flags_offset=flags_offset)))
            victim.feed(ether(ipv4(bytes(size), 1, ident=ident, flags_offset=flags_offset)))
    the_host_got_only(victim)


async def test_cve_2018_5391_fragmentsmack(victim):
    """Ten thousand fragments of datagrams that never become whole, and of one that has a thousand holes."""
    tiny = [ether(ipv4(bytes(8), 17, ident=i & 0xFFFF, flags_offset=0x2000 | 1 + i % 8000)) for i in range(5000)]
    holes = [ether(ipv4(bytes(8), 17, ident=1, flags_offset=0x2000 | 2 * i)) for i in range(4000)]
    with cpu_limit(2.0):
        victim.feed(*tiny, *holes)
    the_host_got_only(victim)
    victim.passes(61)


async def test_ripple20_tunnels_are_not_opened(victim):
    inner = ipv4(frames.udp_datagram(b"inside"), 17)
    for protocol in (4, 41, 47, 50, 51, 94, 137):
        (answer,) = victim.feed(ether(ipv4(inner, protocol)))
        assert answer[34:36] == b"\x03\x02", "protocol unreachable"
    assert not victim.host.heard
