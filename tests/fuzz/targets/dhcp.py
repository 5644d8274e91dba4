"""DHCP messages of one client: kind, address and identifier, and a free area of options; several in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim


MESSAGES = [frames.dhcp_message((53, bytes((kind,))), (50, bytes((192, 168, 65, 3)))) for kind in (1, 3, 4, 7, 8)]
SEEDS = [bytes((0, len(message) - 240)) + message[240:] for message in MESSAGES]
SEEDS += [SEEDS[0] + SEEDS[1] + SEEDS[2], bytes((1, 9)) + b"\x35\1\1\x34\1\3\x3d\1a", bytes((2, 4)) + b"\x35\1\1\x39"]


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        how = octets.byte()
        message = bytearray(frames.dhcp_message(end=octets.block()))
        if how & 1:
            message[44:236] = octets.block().ljust(192, b"\xff")[:192]  # options in sname and file
        if how & 2:
            message[:44] = octets.block().ljust(44, b"\0")[:44]
            message[28:34] = frames.MAC if how & 4 else message[28:34]
        if how & 8:
            victim.passes((how >> 4) * 100.0)
        victim.feed(frames.dhcp(bytes(message)))


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
