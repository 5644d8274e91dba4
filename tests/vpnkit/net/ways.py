"""A guest who answers calls by our own core over a link in memory, and the ways in to him."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

import trio
import trio.testing
from scapy.layers.inet import TCP

from portfwd.spec import parse
from tests.vpnkit.net.scripted_guest import (
    HOST6,
    MAC,
    PLAIN,
    Client,
    ScriptedGuest,
    World,
    checksums_hold,
    world,
)
from vpnkit.net.ways_in import WaysIn
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.wire.tcp import FrameTemplate, FrameTemplate6, decode, decode_syn_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from portfwd.forward import Forward
    from vpnkit.net.plan import Plan

GUEST = "192.168.65.3"
PATIENCE = 5.0


class Answer(Client):
    """A connection that was called: the guest answers a SYN."""

    def __init__(self, guest: ScriptedGuest, syn: bytes) -> None:
        self.guest = guest
        six = syn[14] >> 4 == 6
        start = 54 if six else 34
        self.key = syn[22:58] if six else syn[26:38]
        size = 16 if six else 4
        self.caller, called, ports = self.key[:size], self.key[size:-4], self.key[-4:]
        segment = decode(memoryview(syn)[start:])
        mss = 1440 if six else 1460
        self.connection = TcpConnection.passive(
            guest.rng.randrange(2**32),
            Offer(mss, mss),
            segment.sequence,
            decode_syn_options(segment.options, 536),
            segment.window,
        )
        make = FrameTemplate6 if six else FrameTemplate
        self.template = make(MAC, MAC, called, self.caller, ports[2:] + ports[:2])
        self.template.buffer[0:6] = guest.plan.server_mac
        self.caller_port = struct.unpack("!H", ports[:2])[0]
        self.got = bytearray()
        self.reading = True
        self.changed = trio.lowlevel.ParkingLot()
        self.reset_sequence = None
        self.segments: list[tuple[int, int]] = []
        guest.clients[self.key] = self
        self.connection.accept(trio.current_time())
        self.flush()


@dataclass
class Ways:
    inner: World
    ways_in: WaysIn
    nursery: trio.Nursery

    @property
    def scripted(self) -> ScriptedGuest:
        return self.inner.scripted

    async def expose(self, text: str) -> Forward:
        [forward] = await self.ways_in.forwards.expose_all(parse(text), self.nursery)
        return forward

    async def answer(self) -> Answer:
        """Answer the next SYN."""
        syn = await self.scripted.frame(TCP)
        assert checksums_hold(bytes(syn))
        there = Answer(self.scripted, bytes(syn))
        await there.until(lambda: there.connection.is_open)
        return there

    def speak6(self) -> None:
        """The guest has an IPv6 address from now on."""
        self.scripted.datagram(b"", 9, HOST6, 9)


@asynccontextmanager
async def ways(
    plan: Plan | None = None, capabilities: object = PLAIN, *, limit: int = 1000, allowed: Sequence[str] = ()
) -> AsyncIterator[Ways]:
    async with world(plan, capabilities) as inner:
        lan = inner.guest.station.lan
        made = WaysIn(
            inner.guest.plan,
            lan,
            [inner.guest],
            lambda: len(inner.guest.poller) + made.unpolled < limit,
            allowed=[ip_network(text) for text in allowed],
        )
        async with trio.open_nursery() as nursery:
            yield Ways(inner, made, nursery)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert made.unpolled == 0
        assert not inner.guest.calls._waiting
        assert not inner.guest.udp.inbound


async def dial(forward: Forward, source: str = "127.0.0.1") -> trio.SocketStream:
    address = forward.addresses[0]
    made = trio.socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        await made.bind((source, 0))
        await made.connect(address)
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


async def read_all(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(PATIENCE):
        return b"".join([chunk async for chunk in stream])
