"""IPv6 packets: extension headers, lengths, fragments of several packets mixed; first the decoders and the reassembler
alone, which must agree with each other, and then the whole guest."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim
from vpnkit.errors import WireError
from vpnkit.proto.reassembly import HIGH_WATER
from vpnkit.proto.reassembly6 import Reassembler6
from vpnkit.wire import ipv6

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim

GUEST = ipv6.link_local(frames.MAC)
GATEWAY = IPv6Address("fd65:7670:6e6b::1").packed
DESTINATIONS = (GATEWAY, IPv6Address("2001:db8::9").packed, ipv6.ALL_NODES, GATEWAY[:15] + b"\2")
UDP = frames.udp_datagram(b"x" * 8, check=1)
CHAIN = bytes((60, 0)) + bytes(6) + bytes((43, 0)) + bytes(6) + bytes((17, 0, 4, 0)) + bytes(4)

PACKET, FRAGMENT, LENGTH, TIME = range(4)


def record(what: int, following: int, body: bytes, where: int = 0) -> bytes:
    return bytes((what | where << 2, following, len(body))) + body


SEEDS = [
    record(PACKET, 17, UDP),
    record(PACKET, 0, CHAIN + UDP),
    record(PACKET, 60, bytes((17, 0, 0x8A, 4)) + bytes(4) + UDP),
    record(PACKET, 0, bytes((17, 0, 0xC2, 4)) + bytes(4) + UDP, 2),
    record(PACKET, 43, bytes((17, 2, 0, 1)) + bytes(20) + UDP, 1),
    record(PACKET, 60, bytes((0, 0)) + bytes(6) + bytes((17, 0)) + bytes(6) + UDP),
    record(PACKET, 44, bytes((17, 0, 0, 0)) + bytes(4) + UDP),
    record(PACKET, 44, bytes((44, 0, 0, 0)) + bytes(4) + bytes((17, 0, 0, 0)) + bytes(4) + UDP),
    record(PACKET, 99, bytes(8)) + record(PACKET, 59, b"") + record(PACKET, 51, bytes(12)),
    record(FRAGMENT, 17, b"\0\1" + UDP) + record(FRAGMENT, 17, b"\0\x10" + b"rest"),
    record(FRAGMENT, 17, b"\0\x10" + b"rest") + record(FRAGMENT, 60, b"\0\1" + bytes((99, 0)) + bytes(14)),
    record(FRAGMENT, 17, b"\0\1" + UDP) + record(FRAGMENT, 17, b"\0\x09" + bytes(16)) + record(TIME, 0, b""),
    record(FRAGMENT, 58, b"\0\1" + bytes((1, 4)) + bytes(54)) + record(TIME, 0, b""),
    record(FRAGMENT, 17, b"\0\1" + UDP, 2) + record(FRAGMENT, 17, b"\0\1" + UDP, 1) + record(TIME, 0, b""),
    record(FRAGMENT, 17, b"\xff\xf8" + bytes(40)) + record(FRAGMENT, 6, b"\0\1" + bytes(8)),
    record(LENGTH, 17, b"\0\x08" + UDP) + record(LENGTH, 60, b"\0\x08" + CHAIN) + record(LENGTH, 17, b"\xff\xff"),
]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)


def one(victim: Victim, octets: Octets) -> None:
    """Records: a packet, a fragment (offset and flags first), a packet of any length (which comes first), time."""
    core = Reassembler6(lambda what: None, lambda first: None)
    while octets:
        what = octets.byte()
        following, body = octets.byte(), octets.block()
        if what & 3 == TIME:
            core.on_deadline(61.0)
            assert (len(core), core.octets) == (0, 0)
            for frame in victim.passes(61.0):
                is_error(look_at(frame))
            continue
        length = len(body)
        if what & 3 == FRAGMENT:
            body = struct.pack("!BB2sI", following, 0, body[:2].ljust(2, b"\0"), what >> 4 & 1) + body[2:]
            following, length = 44, len(body)
        elif what & 3 == LENGTH:
            length, body = int.from_bytes(body[:2], "big"), body[2:]
        packet = frames.ipv6(body, following, src=GUEST, dst=DESTINATIONS[what >> 2 & 3], length=length, hops=64)
        decoders(core, packet)
        told = [frame for frame in victim.raw(frames.ether(packet, kind=0x86DD)) if is_error(look_at(frame))]
        assert len(told) <= 1, "two errors about one packet"
        assert core.octets <= HIGH_WATER
        intake = victim.guest.intake._reassembler6
        assert intake.octets <= HIGH_WATER


def decoders(core: Reassembler6, data: bytes) -> None:
    """What the decoders say of one packet hangs together, and nothing but the errors that they name is raised."""
    told = packet = whole = None
    protocol, at, _, fragmented = ipv6.upper_layer(data)
    try:
        packet = ipv6.decode(memoryview(data))
        if packet.is_fragment:
            whole = core.add(packet, 0.0)
    except ipv6.Ipv6ParameterProblem as error:
        told = error
    except WireError:
        return
    if told is not None:
        assert told.pointer < len(told.quoted) or told.pointer < 65536
        assert not ipv6.is_icmp_error(told.quoted)
        assert told.quoted[24] != 0xFF or told.code == ipv6.UNRECOGNIZED_OPTION
        return
    assert packet is not None
    assert len(packet.header) <= ipv6.HEADER_SIZE + ipv6.MAX_CHAIN
    assert packet.fragmented == fragmented
    if packet.fragment is None or not packet.fragment.offset:
        assert (packet.protocol, len(packet.header)) == (protocol, at)
    else:
        assert protocol == ipv6.LATER_FRAGMENT
    if whole is not None:
        assert not whole.is_fragment
        assert whole.protocol not in ipv6.CHAINED
        assert len(whole.header) + len(whole.payload) <= ipv6.HEADER_SIZE + ipv6.MAX_PAYLOAD
        again = ipv6.decode(memoryview(bytes(whole.header) + bytes(whole.payload)))
        assert (again.payload, again.protocol) == (whole.payload, whole.protocol)


def look_at(frame: bytes) -> ipv6.Ipv6Packet | None:
    """A packet of ours: whole, within the link's MTU, its ICMPv6 checksum right."""
    if frame[12:14] != b"\x86\xdd":
        return None
    packet = ipv6.decode(memoryview(frame)[14:])
    assert len(frame) <= 1514
    assert packet.source[0] != 0xFF
    if packet.protocol == 58 and not packet.is_fragment:
        assert frames.inet_sum(pseudo(packet) + bytes(packet.payload)) == 0xFFFF
    return packet


def pseudo(packet: ipv6.Ipv6Packet) -> bytes:
    return packet.source + packet.destination + struct.pack("!II", len(packet.payload), packet.protocol)


def is_error(packet: ipv6.Ipv6Packet | None) -> bool:
    if packet is None or packet.protocol != 58 or packet.payload[0] >= 128:
        return False
    assert len(packet.header) + len(packet.payload) <= 1280, "an error larger than the least MTU"
    assert packet.destination == GUEST
    quoted = bytes(packet.payload[8:])
    assert quoted[8:24] == GUEST
    assert not ipv6.is_icmp_error(quoted), "an error about an error"
    assert quoted[24] != 0xFF or tuple(packet.payload[:2]) == (4, 2), "an error about a multicast"
    return True
