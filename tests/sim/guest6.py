"""The guest's IPv6: he makes his addresses, asks for routers, neighbours and DHCPv6, and answers who asks for him."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tests.sim.packets import ICMPV6, TCP, UDP, Bad, Packet, address, udp_datagram
from tests.sim.packets6 import (
    ALL_DHCP_SERVERS,
    ALL_NODES,
    ALL_ROUTERS,
    ECHO_REPLY,
    ECHO_REQUEST,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    PACKET_TOO_BIG,
    PREFIX,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    SOURCE_MAC,
    TARGET_MAC,
    UNSPECIFIED,
    group_mac,
    icmp6_message,
    ip6_frame,
    options,
    own_address,
    solicited,
)

if TYPE_CHECKING:
    from tests.sim.guest import SimGuest

PREFIX6: Final = address("fd65:7670:6e6b::")
GATEWAY6: Final = address("fd65:7670:6e6b::1")
HOST_ALIAS6: Final = address("fd65:7670:6e6b::2")
LISTENERS: Final = address("ff02::16")
SOLICIT, ADVERTISE, REQUEST, REPLY = 1, 2, 3, 7  # of DHCPv6
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, ELAPSED = 1, 2, 3, 5, 8
LEAST_MTU: Final = 1280


class Guest6:
    def __init__(self, stack: SimGuest) -> None:
        self.stack = stack
        self.mac = stack.mac
        self.link_local = own_address(address("fe80::"), stack.mac)
        self.address = own_address(PREFIX6, stack.mac)
        self.mine = {self.link_local, self.address}
        self.router_until = 0.0  # of the clock
        self.neighbours: dict[bytes, bytes] = {}
        self.last_data = b""  # a packet with data of TCP
        self._identification = 0
        self._asked_dhcp = b""  # the transaction

    # What he asks

    def begin(self) -> None:
        """The link is up: what was told before is of another one."""
        self.router_until = 0.0
        self.neighbours.clear()
        for own in (self.link_local, self.address):
            self._solicit(UNSPECIFIED, own)
        report = icmp6_message(self.link_local, LISTENERS, 143, 0, struct.pack("!HHBBH", 0, 1, 4, 0, 0) + LISTENERS)
        self._to_group(self.link_local, LISTENERS, 0, bytes((ICMPV6, 0, 5, 2, 0, 0, 1, 0)) + report, hop_limit=1)
        self.ask()

    def ask(self) -> None:
        """For a router, and who the gateway is."""
        own = bytes((SOURCE_MAC, 1)) + self.mac
        message = icmp6_message(self.link_local, ALL_ROUTERS, ROUTER_SOLICITATION, 0, bytes(4) + own)
        self._to_group(self.link_local, ALL_ROUTERS, ICMPV6, message)
        self._solicit(self.address, GATEWAY6)

    def _solicit(self, source: bytes, target: bytes) -> None:
        own = b"" if source == UNSPECIFIED else bytes((SOURCE_MAC, 1)) + self.mac
        group = solicited(target)
        message = icmp6_message(source, group, NEIGHBOUR_SOLICITATION, 0, bytes(4) + target + own)
        self._to_group(source, group, ICMPV6, message)

    def _to_group(self, source: bytes, group: bytes, protocol: int, data: bytes, *, hop_limit: int = 255) -> None:
        self._transmit(ip6_frame(group_mac(group), self.mac, source, group, protocol, data, hop_limit=hop_limit))

    def _transmit(self, frame: bytes) -> None:
        if self.stack.wire is not None and not self.stack.paused:
            self.stack.wire.transmit(frame)

    def next_identification(self) -> int:
        self._identification += 1
        return self._identification

    # DHCPv6

    def solicit_address(self) -> None:
        self._asked_dhcp = self.stack.rng.randbytes(3)
        self._dhcp_message(SOLICIT, b"", b"")

    def _dhcp_message(self, kind: int, server: bytes, offered: bytes) -> None:
        def option(code: int, data: bytes) -> bytes:
            return struct.pack("!HH", code, len(data)) + data

        wanted = option(IA_ADDRESS, offered + bytes(8)) if offered else b""
        message = bytes((kind,)) + self._asked_dhcp + option(CLIENT_ID, b"\0\3\0\1" + self.mac)
        message += option(IA_NA, bytes(12) + wanted) + option(ELAPSED, bytes(2))
        if server:
            message += option(SERVER_ID, server)
        datagram = udp_datagram(self.link_local, ALL_DHCP_SERVERS, 546, 547, message)
        self._to_group(self.link_local, ALL_DHCP_SERVERS, UDP, datagram)

    def dhcp(self, message: bytes) -> None:
        """What came to port 546."""
        if message[1:4] != self._asked_dhcp:
            return
        found = {}
        rest = message[4:]
        while rest:
            code, length = struct.unpack_from("!HH", rest)
            found[code], rest = rest[4 : 4 + length], rest[4 + length :]
        world = self.stack.world
        given = found[IA_NA][16:32]
        world.expect(found[CLIENT_ID][4:] == self.mac, "DHCPv6", "an answer to another client")
        world.expect(given[:8] == PREFIX6[:8], "DHCPv6", f"gave {given.hex()}")
        world.expect(given not in (PREFIX6, GATEWAY6, HOST_ALIAS6), "DHCPv6", f"gave an address of ours, {given.hex()}")
        if message[0] == ADVERTISE:
            self._dhcp_message(REQUEST, found[SERVER_ID], given)
        elif message[0] == REPLY:
            self.stack.faults.counts["dhcpv6"] += 1
            self.mine.add(given)
            self.stack.ping("fd65:7670:6e6b::1", 100, source=given)

    # What he hears

    def icmp(self, packet: Packet) -> None:
        kind, world = packet.kind, self.stack.world
        try:
            if kind == ROUTER_ADVERTISEMENT:
                self._advertised(packet)
            elif kind == NEIGHBOUR_SOLICITATION:
                self._asked(packet)
            elif kind == NEIGHBOUR_ADVERTISEMENT:
                target = packet.payload[4:20]
                world.expect(target not in self.mine, "I11", "somebody else has the guest's address")
                self.stack.faults.counts["neighbour"] += 1
                self.neighbours[target] = options(packet.payload[20:])[TARGET_MAC]
            elif kind == ECHO_REPLY:
                self.stack.echoed(packet)
            elif kind < ECHO_REQUEST:
                self._error(packet)
        except Bad as bad:
            world.expect(False, "I5", str(bad))

    def _advertised(self, packet: Packet) -> None:
        lifetime = int.from_bytes(packet.payload[2:4], "big")
        world = self.stack.world
        world.expect(options(packet.payload[12:]).get(PREFIX, b"")[14:30] == PREFIX6, "I11", "another prefix")
        self.stack.faults.counts["router" if lifetime else "no_router"] += 1
        self.router_until = self.stack.now() + lifetime

    def _asked(self, packet: Packet) -> None:
        target = packet.payload[4:20]
        if target not in self.mine:
            return
        self.stack.faults.counts["asked"] += 1
        to = packet.source if packet.source != UNSPECIFIED else ALL_NODES
        told = b"\x60\0\0\0" + target + bytes((TARGET_MAC, 1)) + self.mac
        message = icmp6_message(target, to, NEIGHBOUR_ADVERTISEMENT, 0, told)
        self._transmit(ip6_frame(packet.source_mac, self.mac, target, to, ICMPV6, message, hop_limit=255))

    def _error(self, packet: Packet) -> None:
        quoted = packet.payload[4:]
        source, destination = quoted[8:24], quoted[24:40]
        stack = self.stack
        stack.faults.counts["icmp6"] += 1
        if stack.faults.corrupt == 0 or quoted[6] == TCP:
            stack.world.expect(source in self.mine, "I10 icmp6", "an error about somebody else's packet")
        if quoted[6] == TCP and packet.kind in (1, 4):
            ports: tuple[int, int] = struct.unpack_from("!HH", quoted, 40)
            stack.refused((source, ports[0], destination, ports[1]), packet)

    # What he says about paths

    def too_big(self) -> None:
        """A link behind this guest does not take what the network sends."""
        if self.last_data:
            packet = self.last_data
            self.stack.faults.counts["too_big"] += 1
            mtu = self.stack.rng.randrange(LEAST_MTU, 1500)
            rest = struct.pack("!I", mtu) + packet[: LEAST_MTU - 48]
            source, destination = packet[24:40], packet[8:24]
            message = icmp6_message(source, destination, PACKET_TOO_BIG, 0, rest)
            self.stack.ip(source, destination, ICMPV6, message)
