"""An IPv4 header, options included, with its checksum put right, and what comes behind; fragments among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim


SEEDS = [
    bytes((len(packet),)) + packet
    for packet in (
        frames.ipv4(frames.udp_datagram(b"x" * 20), 17),
        frames.ipv4(frames.udp_datagram(b"x"), 17, options=b"\x07\x07\x04\0\0\0\0\0"),
        frames.ipv4(bytes(16), 17, flags_offset=0x2000),
        frames.ipv4(bytes(16), 17, flags_offset=2),
        frames.ipv4(bytes(16), 17, flags_offset=1),
        frames.ipv4(bytes(8), 99, dst=frames.GATEWAY),
    )
]
SEEDS.append(SEEDS[2] + SEEDS[3] + SEEDS[4])


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        packet = bytearray(octets.block())
        if len(packet) >= 20:
            length = min(max((packet[0] & 15) * 4, 20), len(packet))
            packet[10:12] = bytes(2)
            packet[10:12] = (~frames.inet_sum(bytes(packet[:length])) & 0xFFFF).to_bytes(2, "big")
        victim.raw(frames.ether(bytes(packet)))


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
