"""The guest's UDP: endpoint-independent mappings (RFC 4787), one host socket for each address and port of the guest.

Filtering is address-dependent: only hosts that the guest spoke to may answer, from any of their ports.  Where it is
"endpoint"-independent anybody may, as peer-to-peer programs behind a NAT need it from one of the two sides.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.net.udp_mapping import LINUX, MAX_SUPER_FRAME, Route, UdpMapping
from vpnkit.wire import icmp, ipv4, udp
from vpnkit.wire.checksum import ones_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.net.guest import Guest
    from vpnkit.net.policy import Target
    from vpnkit.wire.checksum import Buffer
    from vpnkit.wire.ipv4 import Ipv4Packet

MAX_MAPPINGS: Final = 1024  # of one guest; the longest idle one makes place
REFRESH_SECONDS: Final = 1.0  # how exactly "longest idle" is known

GSO_UDP: Final = 5


class UdpTable:
    """Every UDP mapping of one guest, the longest idle first."""

    def __init__(self, guest: Guest, *, filtering: str = "address") -> None:
        self.guest = guest
        self._open_to_all = filtering == "endpoint"
        self.mappings: OrderedDict[bytes, UdpMapping] = OrderedDict()
        # source and destination address and port, 12 octets, as a frame has them -> where that goes
        self.routes: dict[bytes, Route] = {}
        self.unfinished: list[UdpMapping] = []  # those that hold a train until the end of the burst
        self.gro = LINUX and guest.link.capabilities.uso

    def datagram(self, packet: Ipv4Packet, source_mac: bytes, now: float) -> None:
        """One datagram of the guest, or a train of them.  Raises WireError."""
        guest = self.guest
        source_port, destination_port, _, payload = udp.decode(packet.payload)
        gso_size = guest.link.gso_size if guest.link.gso_type else 0
        ports = bytes(packet.payload[:4])
        route = self.routes.get(packet.source + packet.destination + ports)
        if route is None:
            aim = target(Protocol.UDP, packet.destination, destination_port, guest.plan)
            if not isinstance(aim, Host):
                self._not_host(aim, packet, source_port, destination_port, payload, source_mac, gso_size)
                return
            if source_port == 0:
                guest.count("udp_port_zero")
                return
            if guest.out.expired(packet):
                return
            key = packet.source + ports[:2]
            mapping = self.mappings.get(key) or self._open(key, packet, source_port, source_mac)
            if mapping is None:
                return
            route = mapping.add_route(packet.destination + ports[2:], (aim.address, aim.port))
            self.routes[packet.source + packet.destination + ports] = route
        elif guest.out.expired(packet):
            return
        route.mapping.mark(packet)
        self.forward(route, payload, gso_size, now)

    def forward(self, route: Route, payload: memoryview, gso_size: int, now: float) -> None:
        """A datagram for `route`; its view is held until the end of the burst when it waits for more."""
        mapping = route.mapping
        if now - mapping.active_at > REFRESH_SECONDS:
            self.refresh(mapping, now)
        if mapping.send(route, payload, gso_size):
            self.guest.link.hold()

    def is_known(self, address: bytes, port: bytes, peer: bytes) -> bool:
        """Whether `port` of the guest's `address` has spoken to `peer`, so that there may be an answer of his."""
        mapping = self.mappings.get(address + port)
        return mapping is not None and mapping.knows(peer)

    def stranger(self, address: str) -> bytes | None:
        """What the guest calls a host that he never spoke to; None when it may not send to him."""
        if not self._open_to_all:
            return None
        plan = self.guest.plan
        if address.startswith("127."):
            return plan.host_ip.packed if plan.host_ip is not None else None
        return None if IPv4Address(address) in plan.subnet else IPv4Address(address).packed

    def refresh(self, mapping: UdpMapping, now: float) -> None:
        """`mapping` is in use, so it is not the longest idle one."""
        if now - mapping.active_at > REFRESH_SECONDS and mapping.is_open:
            mapping.active_at = now
            self.mappings.move_to_end(mapping.address + mapping.port.to_bytes(2, "big"))

    def flush(self) -> None:
        """End of a burst: every train leaves."""
        unfinished, self.unfinished = self.unfinished, []
        for mapping in unfinished:
            mapping.flush()

    def drop_route(self, route: Route) -> None:
        mapping = route.mapping
        destination = route.destination
        key = mapping.address + destination[:4] + mapping.port.to_bytes(2, "big") + destination[4:]
        self.routes.pop(key, None)

    def _not_host(
        self,
        aim: Target,
        packet: Ipv4Packet,
        source_port: int,
        destination_port: int,
        payload: memoryview,
        source_mac: bytes,
        gso_size: int,
    ) -> None:
        guest = self.guest
        if aim is Service.DNS and source_port:
            size = gso_size or max(len(payload), 1)
            for start in range(0, min(len(payload), size * MAX_SUPER_FRAME), size):
                guest.gateway.dns_query(packet.source, source_port, source_mac, payload[start : start + size])
        elif aim is Service.DHCP:
            guest.gateway.dhcp(packet.source, source_mac, payload)
        elif aim is Refuse.CLOSED:
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE)
        elif aim is Refuse.PROHIBITED:
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
        else:
            guest.count("udp_bad_destination")

    def _open(self, key: bytes, packet: Ipv4Packet, port: int, mac: bytes) -> UdpMapping | None:
        guest = self.guest
        if len(self.mappings) >= MAX_MAPPINGS or not guest.admit():
            if not self.mappings:
                guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
                return None
            guest.count("udp_evicted")
            self.remove(next(iter(self.mappings.values())))
        try:
            made = guest.host.udp_socket(gro=self.gro)
        except OSError:
            guest.count("udp_socket_failed")
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)  # RFC 5508 REQ-8
            return None
        mapping = UdpMapping(self, guest.next_number(), packet.source, port, mac, made)
        self.mappings[key] = mapping
        guest.poller.register(made.fileno(), mapping)
        guest.update_deadline(mapping)
        return mapping

    def remove(self, mapping: UdpMapping) -> None:
        if mapping.is_open:
            self.mappings.pop(mapping.address + mapping.port.to_bytes(2, "big"), None)
            for route in mapping.routes:
                self.drop_route(route)
            mapping.close()

    def emit(self, source: bytes, source_port: int, mapping: UdpMapping, train: Sequence[bytes], size: int) -> None:
        """To the guest: datagrams of `size` octets, the last may be shorter; one buffer may hold several of them."""
        several = len(train) > 1 or len(train[0]) > size
        address, port, mac = mapping.address, mapping.port, mapping.mac
        able = self.guest.link.capabilities
        if several and able.uso and ipv4.HEADER.size + udp.HEADER.size + size <= able.mtu:
            self.send(source, source_port, address, port, mac, train, size)
            return
        for data in train:
            for start in range(0, max(len(data), 1), max(size, 1)):
                self.send(source, source_port, address, port, mac, (data[start : start + size],))

    def send(
        self,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        mac: bytes,
        parts: Sequence[Buffer],
        size: int = 0,
    ) -> bool:
        """A datagram of `parts` to the guest, in fragments when the link's MTU asks for it; with `size` a super-frame
        of datagrams of that size.  False when the link is full, and what waits for it is much: it is lost then."""
        guest = self.guest
        deliver = guest.station.port.deliver
        length = udp.HEADER.size + sum(map(len, parts))
        pseudo = ipv4.pseudo_sum(source, destination, ipv4.UDP, length)
        ethernet = mac + guest.plan.server_mac + b"\x08\x00"
        whole = size or ipv4.HEADER.size + length <= guest.link.capabilities.mtu
        if guest.checksum_offload and whole:
            transport = udp.HEADER.pack(source_port, destination_port, length, pseudo % 65535 or 65535)
            header = ipv4.encode_header(source, destination, ipv4.UDP, length)
            frame = ethernet + header + transport
            sent = deliver((frame, *parts), 34, udp.CHECKSUM_OFFSET, GSO_UDP if size else 0, size, len(frame))
        else:
            transport = udp.HEADER.pack(source_port, destination_port, length, 0)
            data = b"".join(parts)
            total = pseudo + ones_sum(transport) + ones_sum(data)
            transport = udp.HEADER.pack(source_port, destination_port, length, 65535 - total % 65535)
            if whole:
                header = ipv4.encode_header(source, destination, ipv4.UDP, length)
                sent = deliver((ethernet + header + transport, data))
            else:
                sent = self._send_fragments(ethernet, source, destination, transport + data)
        if not sent:
            guest.count("udp_link_full")
        return sent

    def _send_fragments(self, ethernet: bytes, source: bytes, destination: bytes, datagram: bytes) -> bool:
        guest = self.guest
        header = ipv4.encode_header(
            source, destination, ipv4.UDP, len(datagram), identification=guest.out.identification(), flags_offset=0
        )
        sent = True
        for parts in ipv4.fragments(header, datagram, guest.link.capabilities.mtu):
            sent = guest.station.port.deliver((ethernet, *parts)) and sent
        return sent

    def close(self) -> None:
        for mapping in list(self.mappings.values()):
            self.remove(mapping)
