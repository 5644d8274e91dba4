"""A scripted guest: a small network stack of its own at the far end of the wire, and what its programs do."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tests.sim.datagrams import reply, request
from tests.sim.guest6 import GATEWAY6, Guest6
from tests.sim.guest_dns import DnsConnection
from tests.sim.guest_tcp import GuestTcp
from tests.sim.packets import (
    ACK,
    FIN,
    ICMP,
    ICMPV6,
    RST,
    SYN,
    TCP,
    UDP,
    Bad,
    Packet,
    Reassembly,
    address,
    fragments,
    icmp_message,
    ip_frame,
    tcp_segment,
    udp_datagram,
)
from tests.sim.packets6 import ECHO_REQUEST, FRAGMENT, fragments6, icmp6_message, ip6_frame, parse
from tests.sim.resolver import question, question_of, true_address

if TYPE_CHECKING:
    from tests.sim.history import Side
    from tests.sim.scenario import TcpPlan, UdpPlan
    from tests.sim.wire import Wire
    from tests.sim.world import World

BROADCAST: Final = b"\xff" * 6
GATEWAY: Final = address("192.168.65.1")
HOST_ALIAS: Final = address("192.168.65.2")
DNS_PORTS: Final = 20_000
TCP_DNS_PORTS: Final = 25_000
UDP_PORTS: Final = 6000
TCP_PORTS: Final = 10_000

Key = tuple[bytes, int, bytes, int]


class SimGuest:
    def __init__(self, world: World, mac: bytes, ip: bytes, server_mac: bytes, *, mtu: int) -> None:
        self.world = world
        self.agenda = world.agenda
        self.faults = world.faults
        self.rng = world.rng
        self.mac, self.ip_address, self.server_mac = mac, ip, server_mac
        self.mtu = mtu
        self.wire: Wire | None = None
        self.paused = False
        self.resumes = 0.0
        self.connections: dict[Key, GuestTcp] = {}
        self.listening: dict[int, TcpPlan] = {}
        self.now = world.agenda.now
        self.dns_connections: list[DnsConnection] = []
        self.pings: dict[tuple[int, int], bytes] = {}
        self.queries: dict[int, tuple[int, str]] = {}  # port -> id, name
        self._waiting: list[tuple[bytes, bool, int]] = []
        self._reassembly = Reassembly()
        self._identification = self._asked = self._pinged = 0
        self._offers: bytes | None = None
        self.six = Guest6(self)

    # Frames

    def attach(self, wire: Wire) -> None:
        self.wire = wire
        wire.deliver = self.arrive

    def ip(self, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        if self.wire is None or self.paused:
            return
        if len(source) == 16:
            self._ip6(source, destination, protocol, payload)
            return
        if len(payload) + 20 <= self.mtu:
            self.wire.transmit(ip_frame(self.server_mac, self.mac, source, destination, protocol, payload))
            return
        self.faults.counts["fragment"] += 1
        self._identification = (self._identification + 1) & 0xFFFF
        for share, more in fragments(payload, self.mtu - 20, self._identification):
            self.wire.transmit(ip_frame(self.server_mac, self.mac, source, destination, protocol, share, **more))

    def _ip6(self, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        assert self.wire is not None
        if len(payload) + 40 <= self.mtu:
            self.wire.transmit(ip6_frame(self.server_mac, self.mac, source, destination, protocol, payload))
            return
        self.faults.counts["fragment6"] += 1
        for share in fragments6(payload, protocol, self.mtu - 40, self.six.next_identification()):
            self.wire.transmit(ip6_frame(self.server_mac, self.mac, source, destination, FRAGMENT, share))

    def local_for(self, remote: bytes) -> bytes:
        """The address from which `remote` is called."""
        if len(remote) == 4:
            return self.ip_address
        return self.six.link_local if remote[:2] == b"\xfe\x80" else self.six.address

    def arrive(self, frame: bytes, partial: bool, gso_size: int) -> None:
        if self.paused:
            if len(self._waiting) < 1000:
                self._waiting.append((frame, partial, gso_size))
            return
        try:
            packet = parse(frame, partial=partial, gso_size=gso_size)
        except Bad:
            return  # as any receiver; whether it was our fault the checker knows
        to_group = packet.destination_mac[0] & 1
        if (packet.destination_mac != self.mac and not to_group) or packet.source_mac != self.server_mac:
            return
        if packet.protocol == 0:
            self._arp(packet)
            return
        if len(packet.destination) == 16:
            if packet.destination not in self.six.mine and packet.destination[0] != 0xFF:
                return
        elif packet.destination != self.ip_address and self._offers is None:
            return
        if packet.fragment is not None:
            self.faults.counts["fragment" if len(packet.source) == 4 else "fragment6"] += 1
            try:
                whole = self._reassembly.add(packet)
            except Bad:
                return
            if whole is None:
                return
            packet = whole
        if packet.protocol == TCP:
            if packet.payload and len(packet.source) == 16:
                self.six.last_data = frame[14:]
            self._tcp(packet)
        elif packet.protocol == UDP:
            self._udp(packet)
        elif packet.protocol == ICMP:
            self._icmp(packet)
        elif packet.protocol == ICMPV6:
            self.six.icmp(packet)

    def pause(self, seconds: float) -> None:
        self.paused = True
        self.resumes = self.now() + seconds
        self.agenda.after(seconds, self.resume)

    def resume(self) -> None:
        if not self.paused or self.now() < self.resumes:
            return
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for frame in waiting:
            self.arrive(*frame)
        for connection in list(self.connections.values()):
            connection.pump()

    def reset(self) -> None:
        """The guest starts anew: it knows of no connection."""
        self._waiting.clear()
        self.paused = False
        self.six.begin()
        plans = []
        for connection in list(self.connections.values()):
            connection.side.causes.append("the guest's start")
            if not connection.plan.forward and connection.plan.number and connection.state != "time-wait":
                plans.append((connection.plan, connection.lport))
            connection.close()
        for plan, port in plans:
            if self.rng.random() < 0.5:
                self.agenda.after(self.rng.uniform(0.0, 1.0), self.connect, plan, port)

    # ARP and DHCP

    def _arp(self, packet: Packet) -> None:
        if packet.kind == 1 and packet.destination == self.ip_address and self.wire is not None:
            body = b"\x00\x01\x08\x00\x06\x04\x00\x02" + self.mac + self.ip_address + packet.payload + packet.source
            self.wire.transmit(packet.source_mac + self.mac + b"\x08\x06" + body)

    def say_arp(self) -> None:
        assert self.wire is not None
        body = b"\x00\x01\x08\x00\x06\x04\x00\x01" + self.mac + self.ip_address + bytes(6) + GATEWAY
        self.wire.transmit(BROADCAST + self.mac + b"\x08\x06" + body)

    def discover(self, requested: bytes | None = None) -> None:
        """A DHCPDISCOVER, or the REQUEST of what was offered."""
        self._offers = requested or b""
        kind = 3 if requested else 1
        options = b"\x35\x01" + bytes((kind,))
        if requested:
            options += b"\x32\x04" + requested + b"\x36\x04" + GATEWAY
        head = struct.pack("!BBBBIHH4s4s4s4s", 1, 1, 6, 0, 0x1234, 0, 0x8000, *(bytes(4),) * 4)
        message = head + self.mac + bytes(10 + 64 + 128) + b"\x63\x82\x53\x63" + options + b"\xff"
        datagram = udp_datagram(bytes(4), BROADCAST[:4], 68, 67, message + bytes(60))
        assert self.wire is not None
        self.wire.transmit(ip_frame(BROADCAST, self.mac, bytes(4), BROADCAST[:4], UDP, datagram))

    def _dhcp(self, payload: bytes) -> None:
        if self._offers is None or payload[28:34] != self.mac:
            return
        at = payload.find(b"\x35\x01", 240)
        offered = payload[16:20]
        if payload[at + 2] == 2 and not self._offers:
            self.discover(offered)
        elif payload[at + 2] == 5:
            self.faults.counts["dhcp"] += 1
            self._offers = None
            self.world.expect(offered == self.ip_address, "DHCP", f"gave {offered.hex()}")

    # TCP

    def connect(self, plan: TcpPlan, port: int | None = None) -> None:
        remote = address(plan.address)
        port = port or TCP_PORTS + plan.number
        key = (self.local_for(remote), port, remote, plan.port)
        if key in self.connections:
            return
        side = self.world.history.side(plan, self.now(), guest=True)
        connection = GuestTcp(self, plan, side, *key)
        self.connections[key] = connection
        connection.open()

    def forget(self, connection: GuestTcp) -> None:
        key = (connection.local, connection.lport, connection.remote, connection.rport)
        if self.connections.get(key) is connection:
            del self.connections[key]

    def _tcp(self, packet: Packet) -> None:
        key = (packet.destination, packet.dport, packet.source, packet.sport)
        connection = self.connections.get(key)
        if connection is not None and not (connection.state == "time-wait" and packet.flags & (SYN | ACK) == SYN):
            connection.receive(packet)
            return
        if packet.flags & RST:
            return
        if packet.flags & (SYN | ACK | FIN) == SYN:
            plan = self.listening.get(packet.dport)
            if plan is not None and plan.answer == "ignore" and not self.world.is_calm:
                return
            if plan is not None and plan.answer == "accept":
                side = self.world.history.side(plan, self.now(), guest=True)
                self.connections[key] = GuestTcp(self, plan, side, *key)
                self.connections[key].accept(packet)
                return
            self.faults.counts["forward_refused"] += 1
        if packet.flags & ACK:
            segment = tcp_segment(key[0], key[2], key[1], key[3], packet.ack, 0, RST, 0)
        else:
            length = len(packet.payload) + bool(packet.flags & SYN) + (packet.flags & FIN)
            acknowledgement = (packet.seq + length) % 2**32
            segment = tcp_segment(key[0], key[2], key[1], key[3], 0, acknowledgement, RST | ACK, 0)
        self.ip(key[0], key[2], TCP, segment)

    # UDP, DNS and ICMP

    def send_udp(self, plan: UdpPlan, number: int, size: int) -> None:
        data = request(plan, number, size)
        remote = address(plan.address)
        local = self.local_for(remote)
        self.ip(local, remote, UDP, udp_datagram(local, remote, UDP_PORTS + plan.number, plan.port, data))

    def look_up(self, name: str, *, six: bool = False) -> None:
        port = DNS_PORTS + self._asked % 4000
        self._asked += 1
        ident = self.rng.randrange(65536)
        self.queries[port] = (ident, name)
        gateway = GATEWAY6 if six else GATEWAY
        local = self.local_for(gateway)
        self.ip(local, gateway, UDP, udp_datagram(local, gateway, port, 53, question(ident, name)))

    def look_up_by_tcp(self, name: str, *, six: bool = False) -> None:
        port = TCP_DNS_PORTS + self._asked % 4000
        self._asked += 1
        gateway = GATEWAY6 if six else GATEWAY
        key = (self.local_for(gateway), port, gateway, 53)
        connection = DnsConnection(self, name, *key)
        self.dns_connections.append(connection)
        self.connections[key] = connection
        connection.open()

    def check_answer(self, ident: int, name: str, message: bytes, *, six: bool) -> None:
        """Whether `message` answers the question truly, or says that nobody could.  Who asks by IPv6 need not have
        said yet which IPv4 address he has."""
        expect = self.world.expect
        expect(len(message) >= 12 and message[:2] == struct.pack("!H", ident), "DNS", "another id")
        rcode = message[3] & 15
        expect(bool(message[2] & 0x80) and rcode in (0, 2), "DNS", f"rcode {rcode}")
        expect(question_of(message)[0] == name, "DNS", "another question")
        known = {"gateway.internal": GATEWAY, "host.internal": HOST_ALIAS, "vm.internal": self.ip_address}
        if rcode == 0 and six and name == "vm.internal" and message[6:8] == bytes(2):
            return
        if rcode == 0:
            expect(known.get(name, true_address(name)) in message, "DNS", f"a lie about {name}")
        else:
            expect(name not in known, "DNS", f"no answer about {name}")

    def _udp(self, packet: Packet) -> None:
        world = self.world
        if packet.dport == 68:
            self._dhcp(packet.payload)
        elif packet.dport == 546:
            self.six.dhcp(packet.payload)
        elif packet.sport == 53 and packet.dport in self.queries:
            world.expect(packet.source in (GATEWAY, GATEWAY6), "DNS", "from somewhere else")
            self.faults.counts["dns6"] += packet.source == GATEWAY6
            world.answered.add(packet.dport)
            self.check_answer(*self.queries[packet.dport], packet.payload, six=packet.source == GATEWAY6)
        else:
            plan = world.udp_by_number.get(packet.dport - UDP_PORTS)
            world.expect(plan is not None, "I1 udp", f"to port {packet.dport}")
            if plan is None:
                return
            world.expect(
                packet.source == address(plan.address) and packet.sport == plan.port and plan.behaviour == "answer",
                "I10 udp",
                "an answer of a stranger",
            )
            world.expect(self._is_reply(plan, packet.payload), "I1 udp", f"datagram of flow {plan.number} is wrong")

    @staticmethod
    def _is_reply(plan: UdpPlan, data: bytes) -> bool:
        return any(
            data == reply(plan, request(plan, number, size), again)
            for number, (_, size) in enumerate(plan.sends)
            for again in range(plan.replies)
        )

    def ping(self, target: str, size: int, *, source: bytes = b"") -> None:
        remote = address(target)
        number = self._pinged % 1000
        self._pinged += 1
        head = struct.pack("!HH", 77 + number, number)
        if len(remote) == 16:
            rest = head + bytes(i * 7 & 255 for i in range(size))
            local = source or self.local_for(remote)
            self.ip(local, remote, ICMPV6, icmp6_message(local, remote, ECHO_REQUEST, 0, rest))
        else:
            rest = head + bytes(i * 7 & 255 for i in range(min(size, self.mtu - 28)))
            self.ip(self.ip_address, remote, ICMP, icmp_message(8, 0, rest))
        self.pings[77 + number, number] = remote + rest

    def echoed(self, packet: Packet) -> None:
        key = struct.unpack_from("!HH", packet.payload)
        self.world.expect(
            self.pings.get(key) == packet.source + packet.payload, "I1 icmp", "an echo that is not what was sent"
        )

    def _icmp(self, packet: Packet) -> None:
        if packet.kind == 0:
            self.echoed(packet)
        elif packet.kind == 3:
            self._unreachable(packet)

    def _unreachable(self, packet: Packet) -> None:
        quoted = packet.payload[4:]
        source, destination = quoted[12:16], quoted[16:20]
        self.world.expect(source == self.ip_address, "I10 icmp", "an error about somebody else's packet")
        start = (quoted[0] & 15) * 4
        sport, dport = struct.unpack_from("!HH", quoted, start)
        if quoted[9] == TCP:
            self.refused((source, sport, destination, dport), packet)

    def refused(self, key: Key, error: Packet) -> None:
        """An ICMP error about a connection."""
        connection = self.connections.get(key)
        if connection is not None and connection.state == "syn-sent":
            connection.side.refused = f"ICMP {error.kind}.{error.code}"
            connection.close()


def open_connections(guest: SimGuest) -> list[Side]:
    return [connection.side for connection in guest.connections.values() if connection.state != "time-wait"]
