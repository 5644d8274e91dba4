"""A guest that does what a test says: his ARP, UDP, ICMP and TCP, over the far end of an in-memory link.

His TCP is our own core in the other role, so the frames are checked by scapy where it matters (`Frames.checked`).
"""

from __future__ import annotations

import random
import socket
import struct
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, _ICMPv6
from scapy.layers.l2 import ARP, Ether

from tapdev.link import LinkCapabilities, LinkClosed
from tapdev.memory import MemoryLink, memory_link_pair
from vpnkit.net.guest import Guest
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import Plan, guest_mac
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.state import State
from vpnkit.services.dhcp import DhcpService
from vpnkit.wire.tcp import RST, FrameTemplate, FrameTemplate6, decode, decode_sack, decode_syn_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MAC = guest_mac(1)
IP_ADDRESS = bytes([192, 168, 65, 3])
GATEWAY = "192.168.65.1"
HOST = "192.168.65.2"
IP6 = "fd65:7670:6e6b::33"
GATEWAY6 = "fd65:7670:6e6b::1"
HOST6 = "fd65:7670:6e6b::2"
ROUTER6 = "fe80::f416:36ff:febc:f9c6"
OFFLOADS = LinkCapabilities(mtu=1500, checksum=True, tso4=True, tso6=True, uso=True)
PLAIN = LinkCapabilities(mtu=1500)
PATIENCE = 5.0  # seconds of real time, for what takes milliseconds


def octets(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return bytes(map(int, address.split(".")))


class Client:
    """A TCP connection of the guest."""

    def __init__(self, guest: ScriptedGuest, address: str, port: int, ours: int) -> None:
        self.guest = guest
        self.iss = guest.rng.randrange(2**32)
        mss = 1440 if ":" in address else 1460
        self.connection = TcpConnection.active(self.iss, Offer(mss, mss), trio.current_time())
        source, destination = (octets(IP6) if ":" in address else IP_ADDRESS), octets(address)
        self.key = destination + source + struct.pack("!HH", port, ours)  # as frames to us have it
        make = FrameTemplate6 if ":" in address else FrameTemplate
        self.template = make(MAC, MAC, source, destination, struct.pack("!HH", ours, port))
        self.template.buffer[0:6] = guest.plan.server_mac
        self.got = bytearray()
        self.reading = True
        self.changed = trio.lowlevel.ParkingLot()
        self.reset_sequence: int | None = None
        self.segments: list[tuple[int, int]] = []  # flags and payload length of what came

    def take(self) -> None:
        connection = self.connection
        if not connection._heard:
            return
        receiver = connection.receiver
        for data in receiver.inbox:
            self.got += data
            if not self.reading:
                receiver.buffered += len(data)
        receiver.inbox.clear()

    def flush(self) -> None:
        """Send what may leave."""
        connection = self.connection
        now = trio.current_time()
        while (segment := connection.next_segment()) is not None:
            acknowledgement, window = connection.acknowledgement_fields(segment.flags)
            if segment.options:
                frame = bytes(
                    self.template.with_options(
                        segment.sequence, acknowledgement, segment.flags, window, segment.options
                    )
                )
            else:
                frame = bytes(
                    self.template.complete_header(
                        segment.sequence, acknowledgement, segment.flags, window, segment.payload
                    )
                ) + bytes(segment.payload)
            if not self.guest.link.send((frame,)):
                return
            connection.sent(segment, now)
        if connection.is_open and connection.state is not State.TIME_WAIT:
            connection.sender.needs_timer(now)

    def segment(self, frame: bytes) -> None:
        if frame[14] >> 4 == 6:
            start, end = 54, 54 + struct.unpack_from("!H", frame, 18)[0]
        else:
            start, end = 34, 14 + struct.unpack_from("!H", frame, 16)[0]
        segment = decode(memoryview(frame)[start:end])
        self.segments.append((segment.flags, len(segment.payload)))
        connection = self.connection
        if segment.flags & RST:
            self.reset_sequence = segment.sequence
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
                memoryview(bytearray(segment.payload)),
                trio.current_time(),
                decode_sack(segment.options),
            )
        self.take()
        self.flush()
        self.changed.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await self.changed.park()

    async def send(self, data: bytes) -> None:
        """Write as fast as the other end takes it."""
        for start in range(0, len(data), 65536):
            await self.until(lambda: self.connection.sender.queued < 300_000 or self.connection.is_closed)
            self.connection.write(data[start : start + 65536])
            self.flush()

    def finish(self) -> None:
        self.connection.finish()
        self.flush()

    def abort(self) -> None:
        self.connection.abort("the test says so")
        self.flush()

    def read(self, octets_: int) -> None:
        """Consume what a sleeping reader had left."""
        self.connection.consumed(octets_)
        self.flush()

    async def receive(self, count: int) -> bytes:
        await self.until(lambda: len(self.got) >= count)
        return bytes(self.got)

    async def finished(self) -> bytes:
        """Everything until the other end's FIN."""
        await self.until(lambda: self.connection.receiver.finished or bool(self.connection.aborted))
        assert not self.connection.aborted, self.connection.aborted
        return bytes(self.got)

    async def closed(self) -> State:
        await self.until(lambda: self.connection.is_closed)
        return self.connection.state


@dataclass
class ScriptedGuest:
    link: MemoryLink
    plan: Plan
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    clients: dict[bytes, Client] = field(default_factory=dict)
    frames: deque[bytes] = field(default_factory=deque)  # what was not TCP of a client
    log: deque[bytes] = field(default_factory=lambda: deque(maxlen=2000))
    deaf: bool = False  # takes no frames off the link

    def __post_init__(self) -> None:
        self._changed = trio.lowlevel.ParkingLot()
        self._port = 40_000

    async def run(self) -> None:
        while True:
            if self.deaf:
                await trio.sleep(0.005)
                continue
            with trio.move_on_after(0.02):
                await self.link.wait_readable()
            try:
                self.drain()
            except LinkClosed:
                return
            now = trio.current_time()
            for client in list(self.clients.values()):
                if client.connection.next_deadline() <= now:
                    client.connection.on_deadline(now)
                client.flush()
                client.changed.unpark_all()

    def drain(self) -> None:
        while (frame := self.link.receive()) is not None:
            data = bytes(frame)
            self.log.append(data)
            client = None
            if data[12:14] == b"\x08\x00" and data[23] == 6:
                client = self.clients.get(data[26:38])
            elif data[12:14] == b"\x86\xdd" and data[20] == 6:
                client = self.clients.get(data[22:58])
            if client is not None:
                client.segment(data)
            else:
                self.frames.append(data)
                self._changed.unpark_all()
        self.link.release()

    def send(self, packet: Ether | bytes) -> None:
        assert self.link.send((bytes(packet),))

    def ip(self, packet: IP | IPv6, mac: bytes | None = None) -> None:
        self.send(Ether(src=MAC, dst=mac or self.plan.server_mac) / packet)

    async def frame(self, *layers: type, timeout: float = PATIENCE) -> Ether:
        """The next frame that is not TCP of a client and has all of `layers`."""
        with trio.fail_after(timeout):
            while True:
                while self.frames:
                    read = Ether(self.frames.popleft())
                    if all(layer in read for layer in layers):
                        return read
                await self._changed.park()

    async def silence(self, seconds: float = 0.05) -> None:
        """Nothing comes."""
        await trio.sleep(seconds)
        assert not self.frames, [Ether(frame).summary() for frame in self.frames]

    def call(self, port: int, address: str = HOST, source_port: int | None = None) -> Client:
        """Begin to connect."""
        if source_port is None:
            self._port += 1
            source_port = self._port
        client = Client(self, address, port, source_port)
        self.clients[client.key] = client
        client.flush()
        return client

    async def connect(self, port: int, address: str = HOST) -> Client:
        client = self.call(port, address)
        await client.until(lambda: client.connection.is_open or client.connection.is_closed)
        if client.connection.aborted:
            raise ConnectionRefusedError(client.connection.aborted)
        return client

    def datagram(self, payload: bytes, port: int, address: str = HOST, source_port: int = 5000) -> None:
        ip = IPv6(src=IP6, dst=address) if ":" in address else IP(src="192.168.65.3", dst=address)
        self.ip(ip / UDP(sport=source_port, dport=port) / payload)

    async def answer(self, timeout: float = PATIENCE) -> tuple[str, int, int, bytes]:
        """Source, source port, destination port and payload of the next datagram."""
        read = await self.frame(UDP, timeout=timeout)
        source = read[IPv6].src if IPv6 in read else read[IP].src
        return source, read[UDP].sport, read[UDP].dport, bytes(read[UDP].payload)


def checksums_hold(frame: bytes) -> bool:
    """Whether scapy would give `frame` the checksums that it has."""
    read, again = Ether(frame), Ether(frame)
    if IPv6 in read:
        return _checksums_hold6(read, again)
    if IP not in read:
        return True
    for layer in (IP, TCP, UDP, ICMP):
        if layer in again:
            del again[layer].chksum
            if layer is ICMP:
                break
    wanted = Ether(bytes(again))
    return all(
        read[layer].chksum % 0xFFFF == wanted[layer].chksum % 0xFFFF
        for layer in (IP, TCP, UDP, ICMP)
        if layer in read and layer in wanted and not (layer in (TCP, UDP) and ICMP in read)
    )


def _checksums_hold6(read: Ether, again: Ether) -> bool:
    layer = next((each for each in (TCP, UDP) if each in read and _ICMPv6 not in read), None)
    if layer is None:
        layer = next((each.__class__ for each in again.iterpayloads() if isinstance(each, _ICMPv6)), None)
    if layer is None:
        return True
    name = "chksum" if layer in (TCP, UDP) else "cksum"
    wanted = getattr(read[layer], name)
    delattr(again[layer], name)
    return getattr(Ether(bytes(again))[layer], name) % 0xFFFF == wanted % 0xFFFF


def arp(target: str, source: str = "192.168.65.3") -> Ether:
    return Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=MAC, psrc=source, pdst=target)


@dataclass
class World:
    """A guest of ours, and the one at the other end of his link."""

    guest: Guest
    scripted: ScriptedGuest
    nursery: trio.Nursery


@asynccontextmanager
async def world(
    plan: Plan | None = None,
    capabilities: LinkCapabilities = PLAIN,
    *,
    queue_frames: int = 256,
    verify_checksums: bool = False,
    udp_filtering: str = "address",
    nat64: bool = False,
) -> AsyncIterator[World]:
    """Both run until the block ends; then the link closes, and nothing of the guest's may be left."""
    plan = plan or Plan()
    ours, theirs = memory_link_pair(capabilities=capabilities, queue_frames=queue_frames)
    dhcp = DhcpService(DhcpServer(dhcp_config(plan)))
    async with trio.open_nursery() as nursery:
        guest = Guest(
            ours,
            plan,
            dhcp,
            random.Random(1),
            nursery,
            ip=IP_ADDRESS,
            mac=MAC,
            verify_checksums=verify_checksums,
            udp_filtering=udp_filtering,
            nat64=nat64,
        )
        scripted = ScriptedGuest(theirs, plan)
        ended = trio.Event()

        async def serve() -> None:
            await guest.run()
            ended.set()

        nursery.start_soon(serve)
        nursery.start_soon(scripted.run)
        try:
            yield World(guest, scripted, nursery)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                theirs.close()
                await ended.wait()
            nursery.cancel_scope.cancel()
    assert ended.is_set(), "the guest did not end with his link"
    assert not guest.tcp.flows
    assert not guest.udp.mappings
    assert not guest.icmp.sessions
    assert not len(guest.poller)
