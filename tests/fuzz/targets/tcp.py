"""Segments of one connection, relative to where it is, with time and the host between them (conformance.md B2)."""

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
    bytes((1, 0, 0, 0, 0, 16, 255, 4)) + b"data" + bytes((0,)),
    bytes((1, 0, 0, 0, 0, 17, 255, 0, 0)) + bytes((2, 0)) + bytes((1, 0, 1, 0, 1, 16, 255, 0, 0)),
    bytes((3, 5)) + bytes((1, 0, 0, 0, 100, 16, 0, 0, 12)) + b"\1\1\5\x0a\0\0\0\0\0\0\0\0" + bytes((4, 3)),
    bytes((1, 1, 0, 0, 0, 16, 255, 4)) + b"late" + bytes((0,)) + bytes((1, 0, 0, 0, 0, 4, 0, 0, 0)),
    bytes((0, 2, 12)) + b"\2\4\5\xb4\4\2\1\1\1\3\3\7",
]
MOMENTS = (0.001, 0.05, 0.3, 1.0, 3.0, 61.0)


def one(victim: Victim, octets: Octets) -> None:
    """Records: 0 SYN (port, options), 1 segment, 2 the host ends, 3 the host says so much, 4 time passes."""
    sport, dport = 20_000, 8080
    victim.feed(frames.tcp(sport=sport, dport=dport))
    while octets:
        what = octets.byte() % 5
        key = (
            frames.packed(frames.GUEST)
            + frames.packed(frames.REMOTE)
            + sport.to_bytes(2, "big")
            + dport.to_bytes(2, "big")
        )
        flow = victim.guest.tcp.flows.get(key)
        heard = flow is not None and flow.connection._heard
        if what == 0:
            dport = 8080 + octets.byte() % 4
            options = octets.block()[:40]
            victim.feed(frames.tcp(sport=sport, dport=dport, options=options + b"\0" * (-len(options) % 4)))
        elif what == 1:
            sequence, answer, flags, window = octets.number(), octets.number(), octets.byte(), octets.byte() * 257
            payload, options = octets.block(), octets.block()[:40]
            if heard:
                sequence += flow.connection.receiver.nxt  # type: ignore[union-attr]
                answer += flow.connection.sender.top  # type: ignore[union-attr]
            options += b"\0" * (-len(options) % 4)
            fields = {"seq": sequence, "ack": answer, "flags": flags, "window": window, "options": options}
            victim.feed(frames.tcp(payload, sport=sport, dport=dport, urgent=len(payload), **fields))
        elif what in (2, 3) and victim.far and victim.far[-1].fileno() >= 0:
            size = octets.byte()
            try:
                if what == 3:
                    victim.far[-1].send(bytes(size * 97))
                elif size & 1:
                    victim.far[-1].close()
                else:
                    victim.far[-1].shutdown(1)
            except OSError:
                pass
            victim.feed()
        elif what == 4:
            victim.passes(MOMENTS[octets.byte() % len(MOMENTS)])
    flow = next(iter(victim.guest.tcp.flows.values()), None)
    while flow is not None:
        flow.connection.abort("the next input begins anew", reset=False)
        victim.guest.tcp.forget(flow, victim.guest.now())
        flow = next(iter(victim.guest.tcp.flows.values()), None)
    victim.guest.tcp._time_wait.clear()
    victim.feed()


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one)
