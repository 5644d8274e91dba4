"""What `tcp` does, by IPv6: segments of one connection relative to where it is, errors about them, their fragments."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.fuzz import frames, frames6
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
    bytes((0, 0, 4)) + b"\2\4\0\1" + bytes((3, 60)),
    *(bytes((3, 40, 5, kind, code, 0, 0, 5, 0)) + bytes((4, 2)) for kind, code in ((1, 4), (2, 0), (3, 0), (4, 1))),
    bytes((3, 40, 5, 2, 0, 0, 0, 0, 0, 5, 2, 0, 127, 255, 255, 255, 4, 3)),
    bytes((6, 8, 1, 0, 0, 0, 0, 24, 20)) + b"in two pieces of one" + bytes((0,)),
    bytes((6, 64, 1, 0, 0, 0, 0, 16, 0, 0)) + bytes((7, 0, 6, 0, 0, 4)) + b"hops",
]
MOMENTS = (0.001, 0.05, 0.3, 1.0, 3.0, 61.0)
LAST_HEADERS = (0, 43, 44, 59, 60, 99)


def one(victim: Victim, octets: Octets) -> None:
    """Records: 0 SYN (port, options), 1 segment, 2 the host ends, 3 the host says so much, 4 time passes, 5 an error
    about a segment of ours, 6 the next segment comes in fragments, 7 the same behind an extension header."""
    sport, dport = 20_000, 8080
    victim.feed(frames6.tcp(sport=sport, dport=dport))
    cut = extension = 0
    while octets:
        what = octets.byte() % 8
        key = frames6.GUEST + frames6.REMOTE + struct.pack("!HH", sport, dport)
        flow = victim.guest.tcp.flows.get(key)
        heard = flow is not None and flow.connection._heard
        if what == 0:
            dport = 8080 + octets.byte() % 4
            options = octets.block()[:40]
            victim.feed(frames6.tcp(sport=sport, dport=dport, options=options + b"\0" * (-len(options) % 4)))
        elif what == 1:
            sequence, answer, flags, window = octets.number(), octets.number(), octets.byte(), octets.byte() * 257
            payload, options = octets.block(), octets.block()[:40]
            if heard:
                sequence += flow.connection.receiver.nxt  # type: ignore[union-attr]
                answer += flow.connection.sender.top  # type: ignore[union-attr]
            options += b"\0" * (-len(options) % 4)
            fields = {"seq": sequence, "ack": answer, "flags": flags, "window": window, "options": options}
            segment = frames.tcp_segment(
                payload,
                sport=sport,
                dport=dport,
                urgent=len(payload),
                src=frames6.GUEST,
                dst=frames6.REMOTE,
                **fields,
            )
            victim.feed(*pieces(segment, cut, extension))
            cut = extension = 0
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
        elif what == 5:
            kind, code = octets.byte(), octets.byte()
            parameter, sequence = octets.take(4), octets.number()
            if heard:
                sequence += flow.connection.sender.una  # type: ignore[union-attr]
            ours = frames.tcp_segment(
                sport=dport, dport=sport, seq=sequence, flags=frames.ACK, src=frames6.REMOTE, dst=frames6.GUEST
            )
            quoted = frames.ipv6(ours, frames6.TCP, src=frames6.REMOTE, dst=frames6.GUEST)
            victim.feed(frames6.icmp(kind & 127, code, parameter + quoted, dst=frames6.REMOTE))
        elif what == 6:
            cut = octets.byte() & ~7
        elif what == 7:
            extension = 1 + octets.byte()
    flow = next(iter(victim.guest.tcp.flows.values()), None)
    while flow is not None:
        flow.connection.abort("the next input begins anew", reset=False)
        victim.guest.tcp.forget(flow, victim.guest.now())
        flow = next(iter(victim.guest.tcp.flows.values()), None)
    victim.guest.tcp._time_wait.clear()
    victim.feed()


def pieces(segment: bytes, cut: int, extension: int) -> list[bytes]:
    """`segment` as one frame, in two fragments, or behind a header that may be right."""
    if 0 < cut < len(segment):
        return frames6.fragments(segment, [0, cut], protocol=frames6.TCP)
    following = frames6.TCP
    if extension:
        following = LAST_HEADERS[extension % len(LAST_HEADERS)]
        segment = bytes((frames6.TCP, 0, extension & 0xF0, 4)) + bytes(4) + segment
    return [frames6.ether(frames.ipv6(segment, following, src=frames6.GUEST, dst=frames6.REMOTE, hops=64))]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return on_a_victim(nursery, clock, one, ipv6="on")
