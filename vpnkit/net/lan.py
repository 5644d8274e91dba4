"""Who is who on the LAN: which guest has which MAC and IP addresses, and what one guest may say to another.

First come, first served: an address that nobody has belongs to the guest that uses it first, until he leaves.  What
DHCP gave is claimed for him when it is given, and again when he comes back, before he has spoken.  Nobody else may use
it meanwhile, and nobody may ever use ours.  So a forged frame changes nothing for anybody; a counter says that it was
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tapdev.switch import Switch
from vpnkit.net.source_filter import objection
from vpnkit.net.too_large import cut_or_refuse
from vpnkit.wire import arp, ethernet, ipv6, ndp
from vpnkit.wire.offload import adapt

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tapdev.link import Link
    from tapdev.switch import Port
    from vpnkit.net.plan import Plan
    from vpnkit.proto.dhcp import DhcpServer

MAX_ADDRESSES: Final = 64  # of one guest, IPv4 and IPv6; the longest known but the first makes place
RESOLVE_TRIES: Final = 3
MAX_ASKED: Final = 256  # addresses that nobody has; the first is forgotten, and may be asked for sooner
RESOLVE_SECONDS: Final = 0.3  # for an answer to each; nobody is asked more often, however many want to know


class Holder(NamedTuple):
    """Who has an address."""

    station: Station
    mac: bytes


class Lan:
    """One virtual LAN and the stations on it."""

    def __init__(self, plan: Plan, dhcp: DhcpServer, *, isolate: bool = False) -> None:
        self.plan = plan
        self.isolated = isolate
        self.switch = Switch(adapt, isolate=isolate, unfit=self._too_large)
        self.switch.reserve(plan.server_mac)
        self.stations: list[Station] = []
        self._dhcp = dhcp
        dhcp.is_taken = self._is_taken
        dhcp.is_used = lambda ip: ip in self._owners
        dhcp.on_released = self._released
        self.remembered: Callable[[bytes], list[bytes]] = lambda mac: []  # what DHCPv6 gave to that MAC address
        self._owners: dict[bytes, Station] = {}  # IPv4 and IPv6 addresses, 4 and 16 octets
        self._changed = trio.lowlevel.ParkingLot()  # somebody waits for an address to get an owner
        self._asked: dict[bytes, float] = {}  # addresses of forwards that nobody has -> when we asked last
        self.ours = plan.ours() | {ipv6.link_local(plan.server_mac)}
        if plan.host is not None:  # also when it is disabled
            self.ours.add(plan.host.packed)
        self._prefix6 = None if plan.prefix6 is None else plan.prefix6.network_address.packed[:8]
        if plan.prefix6 is not None:  # all routers' anycast address (RFC 4291 section 2.6.1), and likewise
            self.ours |= {plan.prefix6[0].packed, plan.prefix6[2].packed}
        self._subnet = int(plan.subnet.network_address)
        self._host_mask = ~int(plan.subnet.netmask) & 0xFFFFFFFF

    def attach(
        self, link: Link, *, identity: Hashable = None, on_pending: Callable[[], None] = lambda: None
    ) -> Station:
        """A guest comes.  Stations of one `identity` (a VMN3T UUID) are one guest with several connections: they
        share their addresses, and what is sent to these goes where they were used last."""
        station = Station(self, link, identity, on_pending)
        self.stations.append(station)
        return station

    def holder(self, ip: bytes) -> Holder | None:
        """Who has `ip` (4 or 16 octets) now."""
        station = self._owners.get(ip)
        return None if station is None else Holder(station, station.addresses[ip])

    async def resolve(self, ip: bytes) -> Holder | None:
        """Who has `ip` (4 or 16 octets); guests are asked, by ARP or a neighbour solicitation, while nobody is known
        to.  None: nobody answers."""
        for _ in range(RESOLVE_TRIES):
            found = await self.probe(ip, RESOLVE_SECONDS)
            if found is not None:
                return found
        return None

    async def probe(self, ip: bytes, seconds: float) -> Holder | None:
        """Who has `ip`; when nobody is known to, guests are asked once, and have that long to answer."""
        if ip not in self._owners:
            self._ask(ip)
            with trio.move_on_after(seconds):
                while ip not in self._owners:
                    await self._changed.park()
        return self.holder(ip)

    def _ask(self, ip: bytes) -> None:
        """No flood, RFC 1122 section 2.3.2.1."""
        now = trio.current_time()
        if now - self._asked.get(ip, -RESOLVE_SECONDS) > 0.9 * RESOLVE_SECONDS:  # a sleep may end a little early
            if len(self._asked) >= MAX_ASKED:
                del self._asked[next(iter(self._asked))]
            self._asked[ip] = now
            for station in self.stations:
                station.ask(ip)

    def is_station_address(self, ip: bytes) -> bool:
        """Whether who speaks to us may have `ip` at all: a host address of the subnet or of the IPv6 prefix, or a
        link-local IPv6 address, and not one of ours."""
        if ip in self.ours:
            return False
        if len(ip) == 4:
            number = int.from_bytes(ip, "big")
            return (number ^ self._subnet) & ~self._host_mask == 0 and 0 < number & self._host_mask < self._host_mask
        return ip[:8] == self._prefix6 or (ip[0] == 0xFE and ip[1] & 0xC0 == 0x80)

    def _may_belong(self, ip: bytes) -> bool:
        """The same for who speaks to a neighbour: guests may have an IPv6 network of their own."""
        if len(ip) == 4:
            return self.is_station_address(ip)
        return ip not in self.ours and ip[0] != 0xFF and any(ip[:10])  # not multicast; not ::, ::1 and v4-mapped

    def claim(self, station: Station, ip: bytes, mac: bytes) -> bool:
        """Let `station` have `ip`.  False: it is somebody else's, or nobody may have it."""
        owner = self._owners.get(ip)
        if owner is not None and owner is not station:
            if owner.identity is None or owner.identity != station.identity:
                return False
            del owner.addresses[ip]
        elif not self._may_belong(ip) or (len(ip) == 4 and not self._dhcp.may_use(ip, mac)):
            return False
        addresses = station.addresses
        if ip not in addresses and len(addresses) >= MAX_ADDRESSES:
            self.release(station, next(old for old in addresses if old != station.ip))
        addresses[ip] = mac
        self._owners[ip] = station
        self._asked.pop(ip, None)
        if station.ip is None and len(ip) == 4:
            station.ip = ip
        if self._changed:
            self._changed.unpark_all()
        return True

    def release(self, station: Station, ip: bytes) -> None:
        """`station` has `ip` no longer."""
        if station.addresses.pop(ip, None) is not None:
            del self._owners[ip]

    def welcome(self, station: Station, mac: bytes) -> None:
        """`mac` speaks for the first time: what DHCP gave him before is his, before he says so."""
        ip = self._dhcp.address_of(mac)
        if ip is not None:
            self.claim(station, ip, mac)
        for address in self.remembered(mac):
            self.claim(station, address, mac)

    def _too_large(self, source: Port, to: Port, frame: memoryview) -> bool:
        sender = next((station for station in self.stations if station.port is source), None)
        mtu = to.link.capabilities.mtu
        if sender is None or len(frame) <= mtu + ethernet.HEADER.size:
            return False
        return cut_or_refuse(frame, mtu, to.deliver, sender.refuse)

    def _is_taken(self, ip: bytes, mac: bytes) -> bool:
        """For DHCP: whether a guest that is here uses `ip`, and is not the one that has `mac`."""
        owner = self._owners.get(ip)
        return owner is not None and owner.addresses[ip] != mac

    def _released(self, ip: bytes) -> None:
        """For DHCP: the guest that had `ip` gave it back."""
        owner = self._owners.get(ip)
        if owner is not None:
            owner.released(ip)


class Station:
    """One guest's place on the LAN."""

    def __init__(self, lan: Lan, link: Link, identity: Hashable, on_pending: Callable[[], None]) -> None:
        self.lan = lan
        self.link = link
        self.identity = identity
        self.port = lan.switch.attach(link, on_pending=on_pending, identity=identity)
        self.addresses: dict[bytes, bytes] = {}  # IP -> the MAC that uses it
        self.mac: bytes | None = None  # the first that spoke
        self.ip: bytes | None = None  # the IPv4 address by which he is known: the first, or what DHCP gave last
        # Tells the guest that a datagram of his, whose start it is given, is larger than an MTU.
        self.refuse: Callable[[bytes, int], None] = lambda quoted, mtu: None

    # Who speaks

    def is_source(self, mac: bytes) -> bool:
        """Whether this guest may speak as `mac`; the address is his from then on."""
        if not self.lan.switch.learn(self.port, mac):
            return False
        if self.mac not in self.port.macs:  # he has not spoken yet, or his first address was forgotten for this one
            self.mac = mac
            self.lan.welcome(self, mac)
        return True

    def owns(self, ip: bytes, mac: bytes) -> bool:
        """Whether this guest may speak as `ip`; the address is his from then on."""
        return self.addresses.get(ip) == mac or self.lan.claim(self, ip, mac)

    def given(self, ip: bytes, mac: bytes) -> None:
        """DHCP gave `ip` to this guest."""
        if self.lan.claim(self, ip, mac):
            self.ip = ip

    def released(self, ip: bytes) -> None:
        """The guest gave `ip` back."""
        self.lan.release(self, ip)
        if self.ip == ip:
            self.ip = next((other for other in self.addresses if len(other) == 4), None)

    # What one guest says to another

    @property
    def has_neighbours(self) -> bool:
        """Whether a broadcast has somebody to go to."""
        return len(self.lan.stations) > 1 and not self.lan.isolated

    def forward(self, frame: memoryview, source_mac: bytes, ethertype: int) -> str:
        """Take a frame to its destination on the LAN.  Returns what to count when it is dropped, else nothing."""
        if self.lan.isolated:
            return "isolated"
        link = self.link
        return objection(self, frame, source_mac, ethertype) or (
            ""
            if self.lan.switch.forward(self.port, frame, link.gso_type, link.gso_size, link.checksum_partial)
            else "foreign_mac"
        )

    def lost(self) -> dict[str, int]:
        """Frames of neighbours that this guest did not get: he took them too slowly, or they were too large."""
        counters = self.port.counters
        return {f"switch_{what}": counters[what] for what in ("queue_full", "unfit") if counters[what]}

    def ask(self, ip: bytes) -> None:
        """Ask this guest whether he has `ip`: RFC 826, or RFC 4861 section 7.2.2."""
        plan = self.lan.plan
        if len(ip) == 16:
            group = ipv6.solicited_node(ip)
            message = ndp.NeighborSolicitation(ip, plan.server_mac).encode(plan.link_local, group)
            header = ethernet.HEADER.pack(ipv6.multicast_mac(group), plan.server_mac, ethernet.ETHERTYPE_IPV6)
            packet = ipv6.encode_header(plan.link_local, group, ipv6.ICMPV6, len(message), ttl=ndp.HOP_LIMIT)
            self.port.deliver((header, packet, message))
            return
        question = arp.ArpPacket(arp.REQUEST, plan.server_mac, plan.gateway_ip.packed, bytes(6), ip)
        header = ethernet.HEADER.pack(ethernet.BROADCAST, plan.server_mac, ethernet.ETHERTYPE_ARP)
        self.port.deliver((header + question.encode(),))

    def leave(self) -> None:
        """The guest is gone, and what he had is free.  Idempotent."""
        if self in self.lan.stations:
            self.lan.stations.remove(self)
            for ip in list(self.addresses):
                self.lan.release(self, ip)
            self.lan.switch.detach(self.port)
