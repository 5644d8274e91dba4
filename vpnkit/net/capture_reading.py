"""Reading a ring into a file that somebody takes: once, or going on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

import trio

import vpnkit
from pcap.classic import Classic
from pcap.pcapng import Pcapng, names_block
from pcap.predicates import TCP, UDP, network, transport
from pcap.ring import Direction
from vpnkit.net.ordinary import ordinary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from pcap.ring import Packet, Ring
    from vpnkit.net.capture_report import AuditReport
    from vpnkit.net.captures import Captures

BATCH: Final = 64  # packets between two pauses
SHARE: Final = 4  # of the time, one part is for a reader
PAUSE_SECONDS: Final = 0.01  # between two pieces for who follows: what came meanwhile goes together
MAX_COMMENTS: Final = 4096  # flows whose comment is remembered by one reader


class Writer(Protocol):
    """A kind of file."""

    content_type: str

    def begin(self) -> bytes: ...
    def lost(self, count: int, /) -> None: ...
    def packets(self, packets: Iterable[Packet], /) -> bytes: ...
    def end(self, accepted: int, dropped: int, /) -> bytes: ...


class Comments:
    """What is said of a packet: the number of its flow, and the name that its other end was looked up by."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._known: dict[tuple[int, bytes], str] = {}

    def __call__(self, packet: Packet) -> str:
        key = flow_key(packet)
        if key is None:
            return ""
        found = self._known.get(key)
        if not found:
            if len(self._known) >= MAX_COMMENTS:
                self._known.clear()
            found = self._known[key] = self._comment(*key)
        return found

    def _comment(self, protocol: int, key: bytes) -> str:
        number = self._captures.flow_number(protocol, key)
        size = (len(key) - 4) // 2
        names = self._captures.names.names(key[size : 2 * size])
        return " ".join([*([f"flow {number}"] if number is not None else []), *names[-1:]])


def flow_key(packet: Packet) -> tuple[int, bytes] | None:
    """Protocol, and addresses and ports with the guest's first; None for what is no flow."""
    data = packet.data
    protocol, at = transport(data)
    if protocol not in (TCP, UDP) or not at or len(data) < at + 4:
        return None
    _, start = network(data)
    size = 4 if data[start] >> 4 == 4 else 16
    start += 12 if size == 4 else 8
    source, destination = data[start : start + size], data[start + size : start + 2 * size]
    if packet.direction == Direction.OUT:
        return protocol, destination + source + data[at + 2 : at + 4] + data[at : at + 2]
    return protocol, source + destination + data[at : at + 4]


def writer_for(captures: Captures, ring: Ring, form: str) -> Writer:
    """A file of `form`, pcapng or pcap, for the packets of `ring`."""
    if form == "pcap":
        return Classic(snaplen=ring.rule.snaplen)
    return Pcapng(
        captures.capture.interface,
        application=f"vpnkit {vpnkit.__version__}",
        snaplen=ring.rule.snaplen,
        filter_text=getattr(ring.rule.when, "language", None) or "",
        comment=_nothing if ring.rule.private else Comments(captures),
    )


def _nothing(packet: Packet) -> str:
    return ""


async def read_ring(
    captures: Captures,
    ring: Ring,
    writer: Writer,
    send: Callable[[bytes], Awaitable[None]],
    line: AuditReport,
    *,
    follow: bool,
    backlog: bool = True,
) -> None:
    """Send what `ring` holds (with `backlog`), and with `follow` what comes, until cancelled.

    `line` is kept up to date.  What leaves the ring before `send` took what was before it is lost, and counted.
    """
    captures.learn_names()
    number = ring.dropped if backlog else ring.seen
    last = ring.seen
    head = writer.begin()
    if isinstance(writer, Pcapng) and not ring.rule.private and (names := list(captures.names)):
        head += names_block(names)
    await _send(send, head, line)
    try:
        while follow or number < last:
            first, packets = ring.read(number, BATCH if follow else min(BATCH, last - number))
            if first > number:
                line.lost += first - number
                writer.lost(first - number)
            number = first + len(packets)
            if packets:
                started = time.perf_counter()
                captures.learn_names()
                data = writer.packets([frame for packet in packets for frame in ordinary(packet)])
                spent = time.perf_counter() - started
                line.packets += len(packets)
                await _send(send, data, line)
                pause = PAUSE_SECONDS if follow and len(packets) < BATCH else 0.0
                await trio.sleep(max(spent * (SHARE - 1), pause))
            elif follow:
                await _next(ring)
        await _send(send, writer.end(ring.seen, ring.dropped), line)
    finally:
        line.ended = True


async def _send(send: Callable[[bytes], Awaitable[None]], data: bytes, line: AuditReport) -> None:
    await send(data)
    line.bytes += len(data)


async def _next(ring: Ring) -> None:
    """Wait for another packet."""
    arrived = trio.Event()
    ring.when_next(arrived.set)
    try:
        await arrived.wait()
    finally:
        ring.forget_waker(arrived.set)
