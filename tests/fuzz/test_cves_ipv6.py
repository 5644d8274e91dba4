"""Inputs that broke the IPv6 of other stacks: slirp and libslirp, lwIP, uIP and picoTCP (AMNESIA:33), smoltcp, Linux,
Windows (conformance.md 3.2 and 3.5).  Each goes through a whole guest, who is served afterwards as if nothing had been.

Rows that do not apply, and why:

- CVE-2020-16898 and what else is in router advertisements: we follow none (test_cves_lan.py).
- CVE-2020-13985 and other RPL headers: a routing type like any other that we do not know.
"""

from __future__ import annotations

import itertools
import struct
from ipaddress import IPv6Address

import pytest

from tests.fuzz import frames
from tests.fuzz.frames import MAC, SERVER_MAC, ether
from tests.fuzz.victim import cpu_limit
from vpnkit.errors import WireError
from vpnkit.net.plan import Plan
from vpnkit.proto.reassembly import HIGH_WATER, MAX_RUNS
from vpnkit.proto.reassembly6 import Reassembler6
from vpnkit.wire import icmpv6, ipv6

GUEST = ipv6.link_local(MAC)
GATEWAY = IPv6Address("fd65:7670:6e6b::1").packed
REMOTE = IPv6Address("2001:db8::9").packed
UDP = b"\x0f\xa0\x00\x09" + struct.pack("!HH", 16, 0xBEEF) + bytes(8)


def packet(payload: bytes, following: int, *, dst: bytes = GATEWAY, src: bytes = GUEST, **fields: int) -> bytes:
    return frames.ipv6(payload, following, src=src, dst=dst, **{"hops": 64, **fields})


def message(
    kind: int, body: bytes, *, dst: bytes = GATEWAY, src: bytes = GUEST, code: int = 0, hops: int = 64
) -> bytes:
    made = bytes((kind, code, 0, 0)) + body
    check = ~frames.inet_sum(src + dst + struct.pack("!II", len(made), 58) + made) & 0xFFFF
    return packet(made[:2] + struct.pack("!H", check) + made[4:], 58, dst=dst, src=src, hops=hops)


def fragment(share: bytes, *, start: int = 0, more: bool = False, number: int = 1, following: int = 17) -> bytes:
    return packet(struct.pack("!BBHI", following, 0, start | more, number) + share, 44)


def says(victim, *packets: bytes) -> list[ipv6.Ipv6Packet]:
    """What is answered in IPv6."""
    out = []
    for one in packets:
        to = ipv6.multicast_mac(one[24:40]) if one[24:25] == b"\xff" else SERVER_MAC
        out += victim.raw(ether(one, dst=to, kind=0x86DD))
    return [ipv6.decode(memoryview(frame)[14:]) for frame in out if frame[12:14] == b"\x86\xdd"]


def told(victim, *packets: bytes) -> list[tuple[int, int]]:
    """The ICMPv6 errors that are answered."""
    answers = says(victim, *packets)
    for one in answers:
        icmpv6.check(one)
    return [(one.payload[0], one.payload[1]) for one in answers if one.payload[0] < 128]


async def test_cve_2020_10756_icmpv6_echo_of_every_length(victim):
    """The data comes back as it is, and nothing behind it, whatever the lengths say."""
    for length in (0, 1, 7, 8, 9, 100, 1232, 1233, 1400):
        data = bytes(i % 251 for i in range(length))
        request = message(128, b"\0\1\0\2" + data)
        (answer,) = says(victim, request + b"secret" * 5)
        assert answer.payload[4:] == b"\0\1\0\2" + data
        assert says(victim, request[:-1]) == []
    for length in range(8):
        assert says(victim, message(128, bytes(4))[: 40 + length]) == []
    huge = bytearray(message(128, bytes(12)))
    for length in (0, 1, 7, 8, 15, 17, 0x7FFF, 0xFFFF):
        huge[4:6] = struct.pack("!H", length)
        assert says(victim, bytes(huge)) == []


async def test_cve_2021_3593_udpv6_shorter_than_its_header(victim):
    for dst, length in itertools.product((GATEWAY, REMOTE, GATEWAY[:15] + b"\2"), range(8)):
        assert says(victim, packet(UDP[:length], 17, dst=dst)) == []
    for length in (0, 1, 7, 17, 0xFFFF):
        assert says(victim, packet(UDP[:4] + struct.pack("!H", length) + UDP[6:], 17)) == []
    assert len(victim.host.heard) == 0


async def test_slirp_ndp_of_every_length(victim):
    """ndp_input of libslirp asserted on lengths that the packet had to have."""
    whole = [
        message(133, bytes(4) + b"\1\1" + MAC, dst=ipv6.ALL_ROUTERS, hops=255),
        message(135, bytes(4) + GATEWAY + b"\1\1" + MAC, dst=ipv6.solicited_node(GATEWAY), hops=255),
        message(136, b"\x60\0\0\0" + GUEST + b"\2\1" + MAC, hops=255),
        message(137, bytes(4) + GATEWAY + REMOTE, dst=ipv6.ALL_NODES, hops=255),
    ]
    for one in whole:
        for length in range(40, len(one)):
            cut = bytearray(one[:length])
            says(victim, bytes(cut))
            cut[4:6] = struct.pack("!H", length - 40)
            says(
                victim,
                message(cut[40], bytes(cut[44:]), dst=bytes(cut[24:40]), hops=255) if length > 44 else bytes(cut),
            )
    assert victim.guest.counters["malformed"] > 100


@pytest.mark.parametrize("length", [0, 1, 2, 31, 32, 254, 255])
async def test_cve_2020_13984_extension_headers_of_every_length(victim, length):
    """uIP's loop went on at an offset in 8 bits; picoTCP (CVE-2020-17441 to 17445) read what the length said."""
    for kind, room in itertools.product((0, 43, 60), (1, 2, 32)):
        says(victim, packet(bytes((17, length)) + bytes(room * 8 - 2) + UDP, kind))
        says(victim, packet(bytes((kind, length)) + bytes(room * 8 - 2), kind))
    assert victim.guest.counters["internal_error"] == 0


async def test_cve_2020_13986_chains_without_end(victim):
    """Each header that says that another one follows costs no more than the bound."""
    with cpu_limit(2.0):
        for kind in (0, 43, 44, 60):
            chain = (bytes((kind, 0)) + bytes(6)) * 170
            assert told(victim, packet(chain, kind)) in ([], [(4, 1)])
            assert told(victim, packet((bytes((60, 0)) + bytes(6)) * 170, kind)) in ([], [(4, 0)])


async def test_cve_2020_13987_options_without_progress(victim):
    """An option of no length, and one whose length wraps in 8 or 16 bits."""
    for kind, option in itertools.product((0, 60), range(256)):
        for length in (0, 4, 5, 0xFE, 0xFF):
            says(victim, packet(bytes((17, 0, option, length)) + bytes(4) + UDP, kind, dst=REMOTE))
    assert victim.guest.counters["internal_error"] == 0


async def test_cve_2007_2242_routing_header_type_0(victim):
    """It is not followed: the sender is told, and the next stop on its list hears nothing."""
    header = bytes((17, 2, 0, 1, 0, 0, 0, 0)) + REMOTE
    assert told(victim, packet(header + UDP, 43)) == [(4, 0)]
    assert len(victim.host.heard) == 0


async def test_cve_2024_38063_options_of_packets_that_come_together(victim):
    """The sender is told of each by itself; a jumbo payload is an option that we do not know."""
    jumbo = bytes((17, 0, 0xC2, 4)) + struct.pack("!I", 0x10000)
    bad = bytes((17, 0, 0x81, 0)) + bytes(4)
    assert told(victim, packet(jumbo + UDP, 0), packet(bad + UDP, 60)) == [(4, 2), (4, 2)]
    assert told(victim, packet(jumbo + UDP, 0, length=0)) == []
    parts = [fragment(bad + bytes(8), more=True, following=60), fragment(bytes(8), start=16, following=60)]
    assert told(victim, *parts) == [(4, 2)]


async def test_cve_2021_24086_fragments_in_fragments_and_64k_of_headers(victim):
    """A packet that is reassembled has a chain as short as any other."""
    nested = struct.pack("!BBHI", 17, 0, 1, 2) + bytes(16)
    assert says(victim, fragment(nested, more=True, following=44), fragment(bytes(8), start=24, following=44)) == []
    assert says(victim, fragment(struct.pack("!BBHI", 17, 0, 0, 2) + UDP, following=44)) == []
    header = (bytes((60, 255)) + b"\1\xff" + bytes(255) + bytes(2048 - 259)) * 32
    shares = [header[at : at + 1400] for at in range(0, len(header) - 1400, 1400)]
    with cpu_limit(2.0):
        pieces = [
            fragment(share, start=1400 * i, more=i + 1 < len(shares), number=5, following=60)
            for i, share in enumerate(shares)
        ]
        assert told(victim, *pieces[::-1]) in ([], [(4, 3)])


async def test_cve_2018_11806_fragments_that_sum_to_more_than_64k(victim):
    for start, length in ((65528, 8), (65528, 1000), (65000, 1000)):
        assert told(victim, fragment(bytes(length), start=start)) == [(4, 0)]
    shares = [fragment(bytes(1400), start=at, more=True) for at in range(0, 64400, 1400)]
    assert told(victim, *shares, fragment(bytes(1135), start=64400 + 8, more=False)) in ([], [(4, 0)])


async def test_cve_2018_5391_fragmentsmack(victim):
    """Fragments with holes between them, and first fragments of packets that never end."""
    reassembler = victim.guest.intake._reassembler6
    shapes = [
        *(fragment(bytes(8), start=8 * (i * 2 % 8000 + 1), more=True, number=i // MAX_RUNS) for i in range(3000)),
        *(fragment(bytes(8), more=True, number=70_000 + i) for i in range(3000)),
    ]
    with cpu_limit(3.0):
        for one in shapes:
            victim.raw(ether(one, kind=0x86DD))
            assert reassembler.octets <= HIGH_WATER
    victim.passes(61.0)
    victim.passes(61.0)
    assert len(reassembler) == 0


async def test_teardrop_of_ipv6_drops_the_whole(victim):
    """RFC 5722: what overlaps is not put together in any way, nor is what comes later."""
    for second in ((8, 16), (8, 8), (0, 8), (0, 24)):
        start, length = second
        number = 100 + start + length
        parts = [
            fragment(UDP[:16], more=True, number=number),
            fragment(b"\xff" * length, start=start, more=True, number=number),
            fragment(b"end", start=16, number=number),
        ]
        assert says(victim, *parts) == []
    assert len(victim.host.heard) == 0


async def test_cve_2020_22283_errors_about_odd_packets(victim):
    """lwIP quoted more than there was.  What is quoted is what came, and no more than 1232 octets of it."""
    for length in (0, 1, 7, 8, 1191, 1192, 1193, 1400):
        odd = packet(bytes(i % 256 for i in range(length)), 99)
        (answer,) = says(victim, odd + b"padding")
        assert answer.payload[8:] == odd[:1232]
        assert (answer.payload[0], answer.payload[1], bytes(answer.payload[4:8])) == (4, 1, b"\0\0\0\6")
        victim.passes(1.0)


async def test_no_error_about_an_error_nor_to_nobody_or_a_group(victim):
    bad = bytes((58, 0, 0x81, 0)) + bytes(4)
    for kind in (1, 2, 3, 4, 100, 127, 137):
        assert told(victim, message(kind, bytes(44))) == []
        assert told(victim, packet(bad + bytes((kind,)) + bytes(47), 60)) == []
    for src in (bytes(16), ipv6.ALL_NODES, bytes(15) + b"\1", REMOTE):
        assert told(victim, packet(UDP, 99, src=src), packet(bad + UDP, 60, src=src)) == []
    for dst in (ipv6.ALL_NODES, ipv6.ALL_ROUTERS, ipv6.solicited_node(GATEWAY)):
        assert told(victim, packet(UDP, 99, dst=dst), packet(UDP, 17, dst=dst)) == []
    later = fragment(bytes(8), start=8, following=99)
    assert told(victim, later) == []
    assert victim.raw(ether(packet(bad + UDP, 60), dst=b"\x33\x33\0\0\0\1", kind=0x86DD)) == []
    assert victim.raw(ether(packet(UDP, 99), dst=frames.BROADCAST, kind=0x86DD)) == []


async def test_no_time_exceeded_about_an_error_or_a_group(victim):
    for src, dst, following, first in (
        (GUEST, GATEWAY, 58, bytes((1, 4)) + bytes(54)),
        (GUEST, GATEWAY, 60, bytes((58, 0)) + bytes(6) + bytes((137, 0)) + bytes(46)),
        (GUEST, ipv6.ALL_NODES, 17, UDP),
    ):
        header = struct.pack("!BBHI", following, 0, 1, 9)
        assert says(victim, packet(header + first, 44, src=src, dst=dst)) == []
    assert len(victim.guest.intake._reassembler6) > 0
    assert victim.passes(61.0) == []
    assert says(victim, fragment(UDP, more=True)) == []
    (answer,) = [ipv6.decode(memoryview(frame)[14:]) for frame in victim.passes(61.0)]
    assert tuple(answer.payload[:2]) == (3, 1)


async def test_errors_of_the_guest_with_quotes_that_lie(victim):
    ours = Plan().link_local
    for kind, dst in itertools.product((1, 2, 3, 4), (GATEWAY, ours)):
        quote = packet(UDP, 17, src=dst, dst=GUEST)
        for length in (0, 1, 39, 40, 47, 48, len(quote)):
            assert says(victim, message(kind, bytes(4) + quote[:length], dst=dst)) == []
        for place, value in itertools.product((0, 4, 5, 6), (0, 1, 44, 60, 255)):
            lying = bytearray(quote)
            lying[place] = value
            assert says(victim, message(kind, bytes(4) + bytes(lying), dst=dst)) == []


@pytest.mark.parametrize("length", range(54, 102, 3))
async def test_smoltcp_any_frame_cut_anywhere(victim, length):
    chain = bytes((60, 0)) + bytes(6) + bytes((43, 0)) + bytes(6) + bytes((44, 0)) + bytes(6)
    whole = ether(packet(chain + struct.pack("!BBHI", 17, 0, 0, 1) + UDP, 0), kind=0x86DD)
    assert len(whole) == 102
    assert victim.raw(whole[:length]) == []
    for end in range(40, length - 14):
        with pytest.raises(WireError):
            ipv6.decode(memoryview(whole[14 : 14 + end]))


def test_reassembly_alone_takes_anything_that_decodes():
    """The state machine that CVE-2020-1983 and CVE-2019-15890 broke, with every order of five fragments."""
    pieces = [(0, 8, True), (8, 8, True), (16, 4, False), (8, 16, True), (0, 0, True)]
    for order in itertools.permutations(range(5)):
        counted: list[str] = []
        core = Reassembler6(counted.append, lambda first: None)
        wholes = []
        for i in order:
            start, length, more = pieces[i]
            one = ipv6.decode(
                memoryview(fragment(UDP[:16][start:][:length].ljust(length), start=start, more=more, following=99))
            )
            wholes.append(core.add(one, 0.0))
        made = [whole for whole in wholes if whole is not None]
        assert all(whole.payload == UDP[:16] + b"    " for whole in made)
        assert "fragment_overlap" in counted or "fragment_inconsistent" in counted or made
        core.on_deadline(61.0)
        assert (len(core), core.octets) == (0, 0)
