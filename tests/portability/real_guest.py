"""A guest at the far end of a real socket: the scripted one, with addresses of his own."""

from __future__ import annotations

import hashlib
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from tapdev.packet import PacketLink
from tapdev.stream import QEMU, VMNET, stream_link
from tapdev.vmnet import COMMAND, COMMIT, ETHERNET, INIT, MAGIC, TYPE_VIF, VERSION, VIF
from tests.vpnkit.net.scripted_guest import Client, ScriptedGuest, octets
from vpnkit.net.plan import Plan
from vpnkit.wire.tcp import FrameTemplate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tapdev.link import Link

GATEWAY, HOST = "192.168.65.1", "192.168.65.2"
BROADCAST = "ff:ff:ff:ff:ff:ff"
SECONDS = 30.0  # more than anything here takes on a busy machine
MTU = 65520
BULK = 4 << 20


class RealClient(Client):
    def __init__(self, guest: RealGuest, address: str, port: int, ours: int) -> None:
        super().__init__(guest, address, port, ours)
        ip = octets(guest.address)
        self.key = octets(address) + ip + struct.pack("!HH", port, ours)
        self.template = FrameTemplate(guest.mac, guest.mac, ip, octets(address), struct.pack("!HH", ours, port))
        self.template.buffer[0:6] = guest.plan.server_mac

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SECONDS):
            while not condition():
                await self.changed.park()


@dataclass
class RealGuest(ScriptedGuest):
    mac: bytes = b""
    address: str = "0.0.0.0"

    def ether(self, destination: str | bytes) -> Ether:
        return Ether(src=self.mac, dst=destination)

    def datagram(self, payload: bytes, port: int, address: str = HOST, source_port: int = 5000) -> None:
        packet = IP(src=self.address, dst=address) / UDP(sport=source_port, dport=port) / payload
        self.send(self.ether(self.plan.server_mac) / packet)

    def call(self, port: int, address: str = HOST, source_port: int | None = None) -> RealClient:
        if source_port is None:
            self._port += 1
            source_port = self._port
        client = RealClient(self, address, port, source_port)
        self.clients[client.key] = client
        client.flush()
        return client

    # What a guest does, one step each

    async def dhcp(self) -> None:
        """DISCOVER, OFFER, REQUEST, ACK: `address` is what it was given."""
        options = [("message-type", "discover"), "end"]
        offer = await self._bootp(options)
        assert ("message-type", 2) in offer[DHCP].options
        options = [
            ("message-type", "request"),
            ("requested_addr", offer[BOOTP].yiaddr),
            ("server_id", GATEWAY),
            "end",
        ]
        acknowledged = await self._bootp(options)
        assert ("message-type", 5) in acknowledged[DHCP].options
        assert ("router", GATEWAY) in acknowledged[DHCP].options
        self.address = acknowledged[BOOTP].yiaddr

    async def _bootp(self, options: list[object]) -> Ether:
        head = self.ether(BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
        self.send(head / BOOTP(chaddr=self.mac, xid=7, flags=0x8000) / DHCP(options=options))
        return await self.frame(DHCP, timeout=SECONDS)

    async def arp(self) -> None:
        """Who has the gateway's address?"""
        self.send(self.ether(BROADCAST) / ARP(op=1, hwsrc=self.mac, psrc=self.address, pdst=GATEWAY))
        while True:
            answer = await self.frame(ARP, timeout=SECONDS)
            if answer[ARP].op == 2:
                assert (answer[ARP].psrc, answer[ARP].hwsrc) == (GATEWAY, self.plan.server_mac.hex(":"))
                return

    async def resolve(self, name: str) -> str:
        query = DNS(id=99, rd=1, qd=DNSQR(qname=name))
        self.datagram(bytes(query), 53, GATEWAY)
        answer = await self.frame(DNS, timeout=SECONDS)
        assert answer[DNS].id == 99
        return str(answer[DNS].an[0].rdata)

    async def ping(self, address: str) -> None:
        packet = IP(src=self.address, dst=address) / ICMP(type=8, id=321, seq=4) / b"ping payload"
        self.send(self.ether(self.plan.server_mac) / packet)
        answer = await self.frame(ICMP, timeout=SECONDS)
        assert (answer[IP].src, answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (address, 0, 321, 4)
        assert bytes(answer[ICMP].payload) == b"ping payload"

    async def echo(self, port: int, size: int) -> None:
        payload = self.rng.randbytes(size)
        self.datagram(payload, port)
        assert await self.answer(SECONDS) == (HOST, port, 5000, payload)

    async def transfer(self, port: int) -> None:
        """4 MiB there, then an EOF, then its digest and 4 MiB back, which the server sends only after the EOF."""
        client = await self.connect(port)
        sent = self.rng.randbytes(BULK)
        await client.send(sent)
        client.finish()
        got = await client.finished()
        assert got[:32] == hashlib.sha256(sent).digest()
        assert len(got) == 64 + BULK
        assert got[32:64] == hashlib.sha256(got[64:]).digest()


@asynccontextmanager
async def guest_on(link: Link, mac: bytes) -> AsyncIterator[RealGuest]:
    guest = RealGuest(link, Plan(), mac=mac)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run)
        try:
            yield guest
        finally:
            nursery.cancel_scope.cancel()
            link.close()


# The four kinds of link


def qemu(path: Path) -> tuple[Link, bytes]:
    return stream_link(_connected(path), QEMU, mtu=MTU), bytes.fromhex("525400000001")


def vmnet(path: Path) -> tuple[Link, bytes]:
    """The handshake of a VMN3T client (vpnkit.md 1.1)."""
    sock = _connected(path)
    sock.settimeout(SECONDS)
    sock.sendall(INIT.pack(MAGIC, VERSION, COMMIT))
    magic, version, _ = INIT.unpack(_exactly(sock, INIT.size))
    assert (magic, version) == (MAGIC, VERSION)
    sock.sendall(COMMAND.pack(ETHERNET, b"2b1d54bc-5bc7-4b5b-9b0e-2d5a0c5b1f4e", bytes(4)))
    kind, mtu, _, mac = VIF.unpack(_exactly(sock, VIF.size))
    assert kind == TYPE_VIF
    return stream_link(sock, VMNET, mtu=mtu), mac


def datagram(path: Path, ours: Path, hello: bytes = b"") -> tuple[Link, bytes]:
    """QEMU's dgram and, with its `hello`, vfkit: both bind a path of their own."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(ours))
    sock.connect(str(path))
    if hello:
        sock.send(hello)
    return PacketLink(sock, mtu=MTU), bytes.fromhex("5254000000") + (b"\x04" if hello else b"\x02")


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "the handshake broke off"
        data += more
    return data
