"""ARP packets in a good frame, several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim


SEEDS = [frames.arp_packet() * 2, frames.arp_packet(op=2, sender=frames.GATEWAY), frames.arp_packet(sender="0.0.0.0")]


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        packet = octets.rest() if octets.left < 28 else octets.take(28)
        victim.raw(frames.ether(packet, dst=frames.BROADCAST, kind=0x0806))


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
