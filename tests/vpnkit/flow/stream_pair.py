"""Two GuestStreams that are each other's guest, with a task between them for a wire."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from tapdev.link import LinkCapabilities, LinkStatistics
from vpnkit.flow.stream import HIGH_WATER, GuestStream, StreamFlow
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.receiver import CAPACITY
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import FrameTemplate, SynOptions, decode, decode_sack, decode_syn_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.flow.tcp_flow import TcpFlow

OFFER = Offer(1460, 1460)
ADDRESSES = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))


class WireEnd:
    """What a flow needs of its guest, and of his link."""

    checksum_offload = False
    link_is_full = False

    def __init__(self, name: str, wire: Wire) -> None:
        self.name = name
        self.wire = wire
        self.link = self
        self.capabilities = LinkCapabilities(mtu=1500)
        self.statistics = LinkStatistics()
        self.sent: deque[bytes] = deque()
        self.touched: list[TcpFlow] = []
        self.forgotten = False
        self.counts: list[str] = []

    def send(self, parts: Sequence[bytes], *_offload: int) -> bool:
        self.sent.append(b"".join(parts))
        self.wire.changed.unpark_all()
        return True

    def now(self) -> float:
        return trio.current_time()

    def touch(self, flow: TcpFlow) -> None:
        if not flow.touched:
            flow.touched = True
            self.touched.append(flow)
            self.wire.changed.unpark_all()

    def settle(self) -> None:
        touched, self.touched = self.touched, []
        for flow in touched:
            flow.touched = False
            flow.settle(self.now())

    def settle_now(self, flow: TcpFlow) -> None:
        self.touch(flow)
        self.settle()

    def update_deadline(self, flow: TcpFlow) -> None:
        self.wire.changed.unpark_all()

    def link_full(self, flow: TcpFlow) -> None:
        raise AssertionError("this link is never full")

    def forget(self, flow: TcpFlow) -> None:
        self.forgotten = True
        flow.release()

    def count(self, what: str) -> None:
        self.counts.append(what)


class Wire:
    def __init__(self) -> None:
        self.changed = trio.lowlevel.ParkingLot()
        self.ends = (WireEnd("a", self), WireEnd("b", self))
        now = trio.current_time()
        active = TcpConnection.active(1, OFFER, now)
        passive = TcpConnection.passive(2**32 - 2, OFFER, 1, SynOptions(1460, 7), 65535)
        passive.accept(now)
        self.flows: list[StreamFlow] = []
        for end, connection, index in ((self.ends[0], active, 0), (self.ends[1], passive, 1)):
            template = FrameTemplate(bytes(6), bytes(6), ADDRESSES[index], ADDRESSES[1 - index], b"\0\1\0\2")
            self.flows.append(StreamFlow(end, index, bytes(12), connection, template))
        for end, flow in zip(self.ends, self.flows, strict=True):
            end.touch(flow)
        self.streams = tuple(GuestStream(flow) for flow in self.flows)

    def carry(self) -> None:
        """Deliver until nothing moves."""
        while any(end.sent or end.touched for end in self.ends):
            for index in (0, 1):
                sent, self.ends[index].sent = self.ends[index].sent, deque()
                other = self.flows[1 - index]
                for frame in sent:
                    self.arrive(other, frame)
                if sent:
                    self.ends[1 - index].touch(other)
                self.ends[1 - index].settle()
                self.ends[index].settle()

    @staticmethod
    def arrive(flow: StreamFlow, frame: bytes) -> None:
        segment = decode(memoryview(frame)[34:])
        connection = flow.connection
        if connection.state is State.SYN_SENT:
            connection.receive_syn_sent(
                segment.sequence,
                segment.acknowledgement,
                segment.flags,
                segment.window,
                decode_syn_options(segment.options),
            )
        else:
            connection.receive(
                segment.sequence,
                segment.acknowledgement,
                segment.flags,
                segment.window,
                segment.payload,
                trio.current_time(),
                decode_sack(segment.options),
            )

    async def run(self) -> None:
        while True:
            self.carry()
            now = trio.current_time()
            deadline = min(flow.connection.next_deadline() for flow in self.flows)
            if deadline <= now:
                for end, flow in zip(self.ends, self.flows, strict=True):
                    if flow.connection.next_deadline() <= now:
                        flow.on_deadline(now)
                        end.settle()
                continue
            with trio.CancelScope(deadline=deadline if deadline != NEVER else float("inf")):
                await self.changed.park()


async def stream_pair() -> tuple[GuestStream, GuestStream]:
    """Open, with nothing on the way."""
    wire = Wire()
    trio.lowlevel.spawn_system_task(wire.run)
    a, b = wire.streams
    await a.wait_open()
    await b.wait_open()
    return a, b


async def clogged_stream_pair() -> tuple[GuestStream, GuestStream]:
    """Neither can send before the other one reads."""
    a, b = await stream_pair()
    async with trio.open_nursery() as nursery:
        for stream in (a, b):
            nursery.start_soon(stream.send_all, bytes(2 * (CAPACITY + HIGH_WATER)))
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    return a, b
