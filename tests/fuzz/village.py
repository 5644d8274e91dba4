"""Several guests on one LAN without tasks: some honest, some not.  Everything happens when `settle` is called."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tapdev.link import LinkCapabilities
from tapdev.memory import memory_link_pair
from tests.fuzz import frames
from tests.fuzz.victim import RecordingHost
from vpnkit.net.guest import Guest
from vpnkit.net.lan import MAX_ADDRESSES, Lan
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import Plan
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.proto.dhcp_bindings import MAX_BINDINGS, MAX_DECLINED
from vpnkit.services.dhcp import DhcpService

if TYPE_CHECKING:
    import trio
    from trio.testing import MockClock

PLAIN = LinkCapabilities(mtu=1500)
MACS_PER_PORT = 16
QUEUE = 4096


class Villager:
    """One guest and the far end of his link."""

    def __init__(self, village: Village, number: int, capabilities: LinkCapabilities) -> None:
        ours, self.link = memory_link_pair(capabilities=capabilities, queue_frames=QUEUE)
        self.village = village
        self.number = number
        self.mac = bytes((0x52, 0x54, 0, 0, 0, number))
        self.ip = f"192.168.65.{100 + number}"
        self.ip6 = b"\xfe\x80" + bytes(6) + bytes((0x50, 0x54, 0, 0xFF, 0xFE, 0, 0, number))
        self.guest = Guest(
            ours,
            village.plan,
            village.dhcp,
            random.Random(number),
            village.nursery,
            number=number,
            lan=village.lan,
        )
        self.guest.host = village.host  # type: ignore[assignment]

    def says(self, *said: bytes) -> None:
        for frame in said:
            if len(frame) >= 14 and not self.link.send((frame,)):
                self.village.settle()
                self.link.send((frame,))

    def hears(self) -> list[bytes]:
        """Everything that there is for him, what waited for his link included."""
        heard: list[bytes] = []
        more = True
        while more:
            self.village.settle()
            more = self.guest.station.port.pending
            while (frame := self.link.receive()) is not None:
                heard.append(bytes(frame))
            self.link.release()
        return heard

    # What honest ones say

    def ether(self, payload: bytes, *, dst: bytes = frames.SERVER_MAC, kind: int = 0x0800) -> bytes:
        return frames.ether(payload, dst=dst, src=self.mac, kind=kind)

    def speak(self) -> None:
        self.says(
            frames.ether(
                frames.arp_packet(sender=self.ip, sender_mac=self.mac), dst=frames.BROADCAST, src=self.mac, kind=0x0806
            )
        )

    def datagram_to(self, other: Villager, payload: bytes) -> bytes:
        datagram = frames.udp_datagram(payload, src=self.ip, dst=other.ip)
        return self.ether(frames.ipv4(datagram, 17, src=self.ip, dst=other.ip), dst=other.mac)

    def ping(self, payload: bytes) -> bytes:
        message = frames.icmp_message(8, 0, b"\0\1\0\1", payload)
        return self.ether(frames.ipv4(message, 1, src=self.ip, dst=frames.GATEWAY))

    def is_served(self) -> bool:
        """Whether the gateway answers him."""
        self.hears()
        word = b"served? %d" % self.number
        self.says(self.ping(word))
        return any(frame[42:] == word for frame in self.hears() if frame[:6] == self.mac)

    def dhcp(self, *options: tuple[int, bytes], **fields: object) -> bytes | None:
        """Say one DHCP message; returns the answer's octets behind UDP, or None."""
        self.hears()
        message = frames.dhcp_message(*options, **{"mac": self.mac, **fields})
        self.says(frames.dhcp(message, source_mac=self.mac))
        answers = [frame for frame in self.hears() if frame[12:14] == b"\x08\x00" and frame[34:38] == b"\0\x43\0\x44"]
        return answers[-1][42:] if answers else None

    def lease(self) -> str | None:
        """Get an address by DHCP, as an honest client does; None when there is none."""
        offer = self.dhcp((53, b"\1"))
        if offer is None:
            return None
        ip = offer[16:20]
        answer = self.dhcp((53, b"\3"), (50, ip), (54, frames.packed(frames.GATEWAY)))
        if answer is None or b"\x35\x01\x05" not in answer:
            return None
        self.ip = ".".join(map(str, ip))
        return self.ip


class Village:
    def __init__(self, nursery: trio.Nursery, clock: MockClock, plan: Plan | None = None) -> None:
        self.nursery = nursery
        self.clock = clock
        self.plan = plan or Plan()
        self.server = DhcpServer(dhcp_config(self.plan))
        self.dhcp = DhcpService(self.server)
        self.lan = Lan(self.plan, self.server)
        self.host = RecordingHost()
        self.people: list[Villager] = []
        self._numbers = 0

    def come(self, capabilities: LinkCapabilities = PLAIN, *, speaks: bool = True) -> Villager:
        self._numbers += 1
        villager = Villager(self, self._numbers, capabilities)
        self.people.append(villager)
        if speaks:
            villager.speak()
            villager.hears()
        return villager

    def go(self, villager: Villager) -> None:
        self.people.remove(villager)
        villager.guest.close()
        villager.link.close()

    def settle(self) -> None:
        """Until nobody has anything to say or to pass on."""
        for _ in range(1000):
            busy = 0
            for villager in self.people:
                busy += villager.guest.burst() + villager.guest.turn()
                villager.guest.station.port.flush()
            if not busy:
                return
        raise AssertionError("the village never sleeps")

    def passes(self, seconds: float) -> None:
        self.clock.jump(seconds)
        for villager in self.people:
            now = villager.guest.now()
            queue = villager.guest.deadlines.queue
            for timed in queue.due(now):
                timed.on_deadline(now)
                queue.update(timed)
            villager.guest.settle()
        self.settle()

    def check(self) -> None:
        """Nobody's anything grew beyond its bound, and every address has one owner who knows it."""
        lan = self.lan
        for villager in self.people:
            station = villager.guest.station
            assert villager.guest.counters["internal_error"] == 0
            assert len(station.addresses) <= MAX_ADDRESSES
            assert len(station.port.macs) <= MACS_PER_PORT
            assert station.ip is None or station.ip in station.addresses
            for ip in station.addresses:
                assert lan._owners[ip] is station
                assert ip not in lan.ours
            for mac in station.port.macs:
                assert lan.switch.owner(mac) is station.port
        assert sum(len(villager.guest.station.addresses) for villager in self.people) == len(lan._owners)
        assert sum(len(villager.guest.station.port.macs) for villager in self.people) == len(lan.switch._owners)
        statistics = self.server.statistics()
        assert statistics.bindings <= MAX_BINDINGS
        assert statistics.declined <= MAX_DECLINED

    def close(self) -> None:
        for villager in list(self.people):
            self.go(villager)
        assert not self.lan._owners
        assert not self.lan.switch._owners
        self.host.close()
