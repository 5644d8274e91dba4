"""Guests on one LAN of a real `Network`, each the far end of a memory link; they say and hear plain frames."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from tapdev.link import LinkCapabilities
from tapdev.memory import memory_link_pair
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import SERVER_MAC, Plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tapdev.memory import MemoryLink
    from tapdev.vmnet import Registration
    from vpnkit.net.guest import Guest

GATEWAY = "192.168.65.1"
BROADCAST = "ff:ff:ff:ff:ff:ff"
SERVER = SERVER_MAC.hex(":")
PATIENCE = 5.0  # seconds of real time, for what takes milliseconds


class Neighbour:
    """One guest, seen from inside."""

    def __init__(self, link: MemoryLink, number: int) -> None:
        self.link = link
        self.number = number
        self.mac = f"52:54:00:00:00:{number:02x}"
        self.ip = f"192.168.65.{100 + number}"
        self.ip6 = f"fe80::5054:ff:fe00:{number:x}"
        self.heard: list[bytes] = []
        self.guest: Guest | None = None

    def send(self, *frames: Ether | bytes) -> None:
        for frame in frames:
            assert self.link.send((bytes(frame),))

    def ether(self, destination: str, source: str | None = None) -> Ether:
        return Ether(dst=destination, src=source or self.mac)

    def speak(self) -> None:
        """The first thing that a guest with a fixed address says."""
        self.send(self.ether(BROADCAST) / ARP(op=1, hwsrc=self.mac, psrc=self.ip, pdst=GATEWAY))

    def drain(self) -> None:
        while (frame := self.link.receive()) is not None:
            self.heard.append(bytes(frame))
        self.link.release()

    def forget(self) -> None:
        self.drain()
        self.heard.clear()

    async def hears(self, matches: Callable[[Ether], bool]) -> Ether:
        """The next frame that `matches`; what came before it is forgotten."""
        with trio.fail_after(PATIENCE):
            while True:
                self.drain()
                while self.heard:
                    frame = Ether(self.heard.pop(0))
                    if matches(frame):
                        return frame
                await self.link.wait_readable()

    async def dhcp(self, kind: str, **fields: object) -> DHCP | None:
        """Say one DHCP message; returns the answer's options as a dictionary, with yiaddr, or None."""
        options = [("message-type", kind), *fields.pop("options", []), "end"]
        mac = str(fields.pop("chaddr", self.mac))
        request = (
            self.ether(BROADCAST)
            / IP(src="0.0.0.0", dst="255.255.255.255")
            / UDP(sport=68, dport=67)
            / BOOTP(chaddr=bytes.fromhex(mac.replace(":", "")), xid=self.number, **fields)
            / DHCP(options=options)
        )
        self.send(request)
        with trio.move_on_after(0.5):  # an offer may wait for a guest that is silent
            answer = await self.hears(lambda frame: DHCP in frame)
            found = dict(option for option in answer[DHCP].options if isinstance(option, tuple))
            return {**found, "yiaddr": answer[BOOTP].yiaddr}
        return None

    async def lease(self, **options: object) -> str:
        """Get an address."""
        offer = await self.dhcp("discover", **options)
        requested = [("requested_addr", offer["yiaddr"]), ("server_id", GATEWAY), *options.pop("options", [])]
        acknowledged = await self.dhcp("request", options=requested, **options)
        assert acknowledged["message-type"] == 5
        self.ip = acknowledged["yiaddr"]
        return self.ip


class World:
    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self.network = network
        self.nursery = nursery
        self.neighbours: list[Neighbour] = []

    async def come(
        self, *, capabilities: LinkCapabilities | None = None, registration: Registration | None = None
    ) -> Neighbour:
        """One more guest."""
        ours, theirs = memory_link_pair(capabilities=capabilities or LinkCapabilities(mtu=1500), queue_frames=2048)
        neighbour = Neighbour(theirs, len(self.neighbours) + 1)
        before = set(self.network.guests)
        self.nursery.start_soon(self.network.join, ours, f"memory:{neighbour.number}", registration)
        await self.until(lambda: set(self.network.guests) != before)
        [neighbour.guest] = set(self.network.guests) - before
        self.neighbours.append(neighbour)
        return neighbour

    async def go(self, neighbour: Neighbour) -> None:
        neighbour.link.close()
        await self.until(lambda: neighbour.guest not in self.network.guests)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():  # noqa: ASYNC110 (what it asks about has no event)
                await trio.sleep(0.001)

    async def settled(self, *neighbours: Neighbour) -> None:
        """Everything that these guests said was looked at: the gateway has answered a question that came last."""
        for neighbour in neighbours:
            probe = ARP(op=1, hwsrc=neighbour.mac, psrc="0.0.0.0", pdst=GATEWAY)
            neighbour.send(neighbour.ether(BROADCAST) / probe)
            with trio.fail_after(PATIENCE):
                while True:
                    neighbour.drain()
                    answers = [f for f in neighbour.heard if Ether(f).src == SERVER and ARP in Ether(f)]
                    if answers:
                        break
                    await neighbour.link.wait_readable()
            neighbour.heard[:] = [f for f in neighbour.heard if f not in answers]

    def counter(self, neighbour: Neighbour, name: str) -> int:
        return neighbour.guest.counters[name]


@asynccontextmanager
async def lan(guests: int = 2, *, plan: Plan | None = None, **options: object) -> AsyncIterator[World]:
    """A network with that many guests, who have spoken; at the end nobody's anything may be left."""
    options = {"ipv6": "off", **options}  # whatever this machine has
    network = Network(plan or Plan(), NetworkOptions(dns=[("127.0.0.1", 9)], rng=random.Random(1), **options))
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        made = World(network, nursery)
        for _ in range(guests):
            neighbour = await made.come()
            neighbour.speak()
            await made.settled(neighbour)
        for neighbour in made.neighbours:
            neighbour.forget()
        yield made
        for neighbour in made.neighbours:
            neighbour.link.close()
        await made.until(lambda: not network.guests)
        assert not network.lan.stations
        assert not network.lan._owners
        nursery.cancel_scope.cancel()
