"""What one guest says to another, IPv6 above all: extension headers, neighbour discovery, what forges and hides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import RENEW_EVERY, Octets, timed
from tests.fuzz.village import Village, Villager

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

ALL_NODES = b"\xff\x02" + bytes(13) + b"\1"
SEEDS = [
    bytes((0, 58, 30)) + bytes((134, 0, 0, 0)) + bytes(26),
    bytes((0, 58, 32)) + bytes((136, 0, 0, 0)) + bytes(20) + b"\2\1\x52\x54\0\0\0\1",
    bytes((0, 0, 24)) + bytes((58, 0)) + bytes(6) + bytes((134, 0, 0, 0)) + bytes(12),
    bytes((0, 44, 24)) + bytes((58, 0, 0, 1, 0, 0, 0, 9)) + bytes((134, 0, 0, 0)) + bytes(12),
    bytes((0, 60, 26)) + bytes((44, 0)) + bytes(6) + bytes((17, 0, 0, 0, 0, 0, 0, 1)) + b"\x02\x23\x02\x22" + bytes(6),
    bytes((1, 0, 28)) + frames.arp_packet(sender=frames.GATEWAY),
    bytes((2, 17, 12)) + frames.udp_datagram(b"data", sport=67),
]


def router_advertisement(packet: bytes) -> bool:
    """Whether a host that follows every header that it knows would find one, in one piece or in its first."""
    following, at = packet[6], 40
    for _ in range(40):
        if following in (0, 43, 60) and len(packet) >= at + 8:
            following, at = packet[at], at + 8 + packet[at + 1] * 8
        elif following == 44 and len(packet) >= at + 8:
            if packet[at + 2] or packet[at + 3] & 0xF8:
                return False
            following, at = packet[at], at + 8
        else:
            break
    return following == 58 and len(packet) > at and packet[at] in (134, 137)


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    count = 0
    village: Village | None = None
    anna: Villager
    mallory: Villager

    def attack(data: bytes) -> None:
        octets = Octets(data)
        while octets:
            what, following, body = octets.byte(), octets.byte(), octets.block()
            src = mallory.ip6 if what < 128 else ALL_NODES[:8] + bytes((what,)) * 8
            dst, to = (anna.ip6, anna.mac) if what & 4 else (ALL_NODES, b"\x33\x33\0\0\0\1")
            if what & 3 == 1:
                frame = frames.ether(body, dst=anna.mac, src=mallory.mac, kind=0x0806)
            elif what & 3 == 2:
                packet = frames.ipv4(body, following, src=mallory.ip, dst=anna.ip)
                frame = frames.ether(packet, dst=anna.mac, src=mallory.mac)
            else:
                frame = frames.ether(
                    frames.ipv6(body, following, src=src, dst=dst), dst=to, src=mallory.mac, kind=0x86DD
                )
            mallory.says(frame)

    def one(data: bytes) -> None:
        nonlocal count, village, anna, mallory
        if village is None or count % RENEW_EVERY == 0:
            if village is not None:
                village.close()
            village = Village(nursery, clock)
            anna, mallory = village.come(), village.come()
        count += 1
        timed(attack)(data)
        for frame in anna.hears():
            assert frame[6:12] in (mallory.mac, frames.SERVER_MAC)
            if frame[12:14] == b"\x86\xdd":
                assert not router_advertisement(frame[14:]), "a router advertisement of a guest"
            elif frame[12:14] == b"\x08\x06" and frame[6:12] == mallory.mac:
                assert frame[22:28] == mallory.mac
                assert frame[28:32] != frames.packed(frames.GATEWAY)
        village.check()
        if count % 200 == 0:
            assert anna.is_served()

    def close() -> None:
        if village is not None:
            village.close()

    one.close = close  # type: ignore[attr-defined]
    return one
