"""UDP headers and what is behind them, to the host, to the gateway and elsewhere; metadata of super-frames too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim


DESTINATIONS = (frames.REMOTE, frames.GATEWAY, frames.HOST, "192.168.65.255", "224.0.0.1", "127.0.0.1")
SEEDS = [bytes((which, 0, len(wire))) + wire for which in range(3) for wire in [frames.udp_datagram(b"x" * 12)]]
SEEDS += [bytes((0, 5, 28)) + frames.udp_datagram(b"x" * 20) + SEEDS[0]]


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        dst = DESTINATIONS[octets.byte() % len(DESTINATIONS)]
        gso = octets.byte()
        datagram = octets.block()
        if len(datagram) >= 8 and datagram[6:8] != b"\0\0":
            datagram = datagram[:6] + b"\0\0" + datagram[8:]
            check = frames.transport_sum(datagram, 17, frames.GUEST, dst) or 0xFFFF
            datagram = datagram[:6] + check.to_bytes(2, "big") + datagram[8:]
        victim.raw(frames.ether(frames.ipv4(datagram, 17, dst=dst)), gso & 7, gso >> 3)
    victim.feed()


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
