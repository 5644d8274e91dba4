"""ICMP messages with their checksum put right: echo, errors with quotes, everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import frames
from tests.fuzz.targets.common import Octets, on_a_victim

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

    from tests.fuzz.victim import Victim


DESTINATIONS = (frames.GATEWAY, frames.REMOTE, frames.HOST, frames.GUEST)
QUOTE = frames.ipv4(
    frames.tcp_segment(sport=8080, dport=20001, src=frames.REMOTE, dst=frames.GUEST),
    6,
    src=frames.REMOTE,
    dst=frames.GUEST,
)
SEEDS = [
    bytes((0, 12)) + frames.icmp_message(8, 0, b"\0\1\0\1", b"ping"),
    bytes((1, 12)) + frames.icmp_message(8, 0, b"\0\1\0\1", b"ping"),
    bytes((0, 8 + len(QUOTE))) + frames.icmp_message(3, 3, bytes(4), QUOTE),
    bytes((0, 8 + len(QUOTE))) + frames.icmp_message(3, 4, b"\0\0\2\0", QUOTE),
    bytes((0, 8 + len(QUOTE))) + frames.icmp_message(11, 0, bytes(4), QUOTE),
]


def one(victim: Victim, octets: Octets) -> None:
    while octets:
        dst = DESTINATIONS[octets.byte() % len(DESTINATIONS)]
        message = octets.block()
        if len(message) >= 4:
            message = message[:2] + b"\0\0" + message[4:]
            message = message[:2] + (~frames.inet_sum(message) & 0xFFFF).to_bytes(2, "big") + message[4:]
        victim.raw(frames.ether(frames.ipv4(message, 1, dst=dst)))
    victim.feed()


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
