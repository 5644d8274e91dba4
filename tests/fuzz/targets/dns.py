"""DNS messages to the gateway, and answers of its server, which may be about what was asked or not."""

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
    bytes((0, len(message))) + message
    for message in (
        frames.dns_query(),
        frames.dns_query("a.example", counts=(1, 0, 0, 1), rest=b"\0\0\x29\x04\xd0\0\0\0\0\0\0"),
        frames.dns_query("3.65.168.192.in-addr.arpa", qtype=12),
        frames.dns_query("b.example", flags=0x0110),
    )
]
SEEDS += [SEEDS[1] + b"\1\x1b" + frames.dns_query("a.example")[2:] + bytes(3), SEEDS[3] + b"\2\4\0\0\0\0" + b"\3\1"]


def one(victim: Victim, octets: Octets) -> None:
    """Records: 0 a query, 1 an answer with the right id and bits, 2 any answer, 3 time."""
    server = victim.upstream
    asker = None
    question = b""
    while octets:
        what = octets.byte() & 3
        data = octets.block()
        if what == 0:
            victim.feed(frames.dns(data))
        elif what == 3:
            victim.passes(1.1 if data else 0.1)
        while True:
            try:
                question, asker = server.recvfrom(4096)
            except BlockingIOError:
                break
        if asker is not None and what in (1, 2):
            if what == 1 and len(question) >= 12:
                flags = bytes((0x81, data[0] & 15 if data else 0))
                data = question[:2] + flags + question[4:] + data[1:]
            try:
                server.sendto(data, asker)
            except OSError:
                pass
            victim.feed()


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
