"""Whole frames from a first octet on that says whom they are for; several, each with its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim

DESTINATIONS = (frames.SERVER_MAC, frames.BROADCAST, b"\x33\x33\0\0\0\1", frames.MAC, bytes(6), b"\2\0\0\0\0\1")
SEEDS = [
    bytes((0, len(frame) - 12)) + frame[12:] + bytes((1, len(frame) - 12)) + frame[12:]
    for frame in (frames.arp(), frames.udp(b"x"), frames.tcp(), frames.ping(), frames.ether(bytes(46), kind=0x88CC))
]


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        destination = DESTINATIONS[octets.byte() % len(DESTINATIONS)]
        victim.raw(destination + frames.MAC + octets.block())


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
