"""ICMPv6 messages with their checksum put right: echo, errors with quotes, neighbour discovery, everything else."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim
from tests.fuzz.targets.ipv6 import DESTINATIONS, GATEWAY, GUEST, is_error, look_at
from vpnkit.errors import WireError
from vpnkit.net.plan import Plan
from vpnkit.wire import icmpv6, ipv6

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim

ROUTER = Plan().link_local
TO = (*DESTINATIONS, ROUTER, ipv6.ALL_ROUTERS, ipv6.solicited_node(GATEWAY), ipv6.solicited_node(ROUTER))
GLOBAL = IPv6Address("fd65:7670:6e6b::50").packed
FROM = (GUEST, GLOBAL, ipv6.UNSPECIFIED, GUEST)
REMOTE = DESTINATIONS[1]
OUR_TCP = frames.ipv6(frames.tcp_segment(sport=8080, dport=20001), 6, src=REMOTE, dst=GLOBAL)
OUR_UDP = frames.ipv6(frames.udp_datagram(b"x", sport=53, dport=4000), 17, src=GATEWAY, dst=GUEST)
LINK_LAYER = b"\1\1" + frames.MAC


def record(to: int, kind: int, body: bytes, *, code: int = 0, source: int = 0, hops: int = 0) -> bytes:
    message = bytes((kind, code, 0, 0)) + body
    return bytes((to | source << 3 | hops << 5, len(message))) + message


SEEDS = [
    *(record(to, 128, b"\0\1\0\1ping") for to in range(len(TO))),
    record(0, 128, b"\0\1\0\1" + bytes(200), source=1),
    record(1, 129, b"\0\1\0\1ping"),
    *(record(0, kind, b"\0\0\5\0" + quote) for kind in (1, 2, 3, 4) for quote in (OUR_TCP, OUR_UDP, bytes(40), b"")),
    record(5, 133, bytes(4) + LINK_LAYER, hops=1),
    record(5, 133, bytes(4), source=2, hops=1),
    record(2, 134, bytes(12) + LINK_LAYER, hops=1),
    record(6, 135, bytes(4) + GATEWAY + LINK_LAYER, hops=1),
    record(7, 135, bytes(4) + ROUTER + LINK_LAYER, hops=1),
    record(6, 135, bytes(4) + GATEWAY, source=2, hops=1),
    record(4, 136, b"\x60\0\0\0" + GLOBAL + b"\2\1" + frames.MAC, source=1, hops=1),
    record(2, 136, b"\x20\0\0\0" + GATEWAY + b"\2\1" + frames.MAC, hops=1),
    record(2, 137, bytes(4) + GATEWAY + REMOTE, hops=1),
    record(2, 143, b"\0\0\0\1\4\0\0\0" + ipv6.ALL_NODES, source=2),
    record(2, 130, bytes(20)) + record(2, 131, bytes(20)),
]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)


def one(victim: Victim, octets: Octets) -> None:
    """Records: the destination, the source and the hop limit in one octet; a message."""
    while octets:
        how = octets.byte()
        message = octets.block()
        source, destination = FROM[how >> 3 & 3], TO[how & 7]
        if len(message) >= 4:
            pseudo = source + destination + struct.pack("!II", len(message), 58)
            total = frames.inet_sum(pseudo + message[:2] + b"\0\0" + message[4:])
            message = message[:2] + (~total & 0xFFFF).to_bytes(2, "big") + message[4:]
        packet = frames.ipv6(message, 58, src=source, dst=destination, hops=255 if how & 32 else 64)
        decoders(packet)
        to = ipv6.multicast_mac(destination) if destination[0] == 0xFF else frames.SERVER_MAC
        answers = [look_at(frame) for frame in victim.raw(frames.ether(packet, dst=to, kind=0x86DD))]
        check(message, source, [answer for answer in answers if answer is not None])
    victim.feed()


def check(message: bytes, source: bytes, answers: list[ipv6.Ipv6Packet]) -> None:
    """What an answer may be.  Router advertisements and questions of ours may come at any time."""
    kinds = [answer.payload[0] for answer in answers if answer.protocol == 58 and not answer.is_fragment]
    assert 137 not in kinds, "we redirect nobody"
    errors = kinds.count(1) + kinds.count(2) + kinds.count(3) + kinds.count(4)
    assert errors <= 1
    assert errors == 0 or (len(message) > 0 and 128 <= message[0] != 137), "an error about an error"
    assert source != ipv6.UNSPECIFIED or not errors
    for answer in answers:
        if answer.protocol == 58 and answer.payload[0] == 129:
            assert message[0] == 128
            assert (answer.destination, answer.payload[4:]) == (source, message[4:]), (
                "an echo is as long as its request"
            )
        elif answer.destination == GUEST:
            is_error(answer)


def decoders(data: bytes) -> None:
    """Only the errors that they name are raised."""
    packet = ipv6.decode(memoryview(data))
    for decode in (
        lambda: icmpv6.check(packet),
        lambda: icmpv6.decode_echo(packet.payload),
        lambda: ipv6.decode_quote(packet.payload[8:]),
    ):
        try:
            decode()
        except WireError:
            pass
