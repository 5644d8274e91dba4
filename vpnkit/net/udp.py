"""The guest's UDP: endpoint-independent mappings (RFC 4787), one host socket for each address and port of the guest.

Filtering is address-dependent: only hosts that the guest spoke to may answer, from any of their ports.  Where it is
"endpoint"-independent anybody may, as peer-to-peer programs behind a NAT need it from one of the two sides.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.flow.host import family_of
from vpnkit.net.output import packed
from vpnkit.net.policy import DNS_PORT, NAT64_PREFIX, Host, Protocol, Refuse, Service, target
from vpnkit.net.problems import Problem
from vpnkit.net.udp_mapping import LINUX, MAX_SUPER_FRAME, Route, UdpMapping
from vpnkit.wire import ipv4, ipv6, udp
from vpnkit.wire.checksum import ones_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.net.guest import Guest
    from vpnkit.net.output import IpPacket
    from vpnkit.net.policy import Target
    from vpnkit.wire.checksum import Buffer

MAX_MAPPINGS: Final = 1024  # of one guest; the longest idle one makes place
REFRESH_SECONDS: Final = 1.0  # how exactly "longest idle" is known

GSO_UDP: Final = 5
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class UdpTable:
    """Every UDP mapping of one guest, the longest idle first."""

    def __init__(self, guest: Guest, *, filtering: str = "address") -> None:
        self.guest = guest
        self._open_to_all = filtering == "endpoint"
        self.mappings: OrderedDict[bytes, UdpMapping] = OrderedDict()
        # source and destination address and port, 12 or 36 octets, as a frame has them -> where that goes
        self.routes: dict[bytes, Route] = {}
        self.inbound: dict[bytes, UdpMapping] = {}  # clients of forwards, by the key of their only route
        self.unfinished: list[UdpMapping] = []  # those that hold a train until the end of the burst
        self.gro = LINUX and guest.link.capabilities.uso
        # where `target` says Service.DNS: asking it costs more than the answer, for a name that is known
        self._resolvers = {ip for ip in guest.ours if self._is_resolver(ip)}

    def _is_resolver(self, ip: bytes) -> bool:
        return target(Protocol.UDP, ip, DNS_PORT, self.guest.plan) is Service.DNS

    def datagram(self, packet: IpPacket, source_mac: bytes, now: float) -> None:
        """One datagram of the guest, or a train of them.  Raises WireError."""
        guest = self.guest
        source_port, destination_port, check, payload = udp.decode(packet.payload)
        if not check and len(packet.source) == 16:
            raise WireError("UDP over IPv6 without a checksum")  # RFC 8200 section 8.1
        gso_size = guest.link.gso_size if guest.link.gso_type else 0
        ports = bytes(packet.payload[:4])
        route = self.routes.get(packet.source + packet.destination + ports)
        if route is None:
            is_dns = destination_port == DNS_PORT and packet.destination in self._resolvers
            if is_dns and source_port and payload and not gso_size:
                guest.gateway.dns_query(packet.source, source_port, source_mac, payload, packet.destination)
                return
            aim = target(Protocol.UDP, packet.destination, destination_port, guest.plan, nat64=guest.nat64)
            if not isinstance(aim, Host):
                self._not_host(aim, packet, source_port, destination_port, payload, source_mac, gso_size)
                return
            if source_port == 0:
                guest.count("udp_port_zero")
                return
            if guest.out.expired(packet):
                return
            family = family_of(aim.address)
            key = self._key(packet.source, source_port, family)
            mapping = self.mappings.get(key) or self._open(key, packet, source_port, source_mac, family)
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
        number = int.from_bytes(port, "big")
        found = (self.mappings.get(self._key(address, number, family)) for family in FAMILIES)
        return any(mapping is not None and mapping.knows(peer) for mapping in found)

    @staticmethod
    def _key(address: bytes, port: int, family: socket.AddressFamily) -> bytes:
        """One mapping for each of the guest's endpoints; behind NAT64 one for each family of hosts."""
        key = address + port.to_bytes(2, "big")
        return key + b"\4" if family == socket.AF_INET and len(address) == 16 else key

    def stranger(self, mapping: UdpMapping, address: str) -> bytes | None:
        """What the guest calls a host that he never spoke to; None when it may not send to him."""
        if not self._open_to_all:
            return None
        plan = self.guest.plan
        if ":" in address:
            if address == "::1":
                return plan.host6.packed if plan.host6 is not None else None
            found = IPv6Address(packed(address))
            return None if plan.prefix6 is None or found in plan.prefix6 or found.is_link_local else found.packed
        if address.startswith("127."):
            alias = plan.host_ip.packed if plan.host_ip is not None else None
        else:
            alias = None if IPv4Address(address) in plan.subnet else packed(address)
        return alias if alias is None or len(mapping.address) == 4 else NAT64_PREFIX.network_address.packed[:12] + alias

    def refresh(self, mapping: UdpMapping, now: float) -> None:
        """`mapping` is in use, so it is not the longest idle one."""
        if now - mapping.active_at > REFRESH_SECONDS and mapping.is_open:
            mapping.active_at = now
            if mapping.key in self.mappings:
                self.mappings.move_to_end(mapping.key)

    def flush(self) -> None:
        """End of a burst: every train leaves."""
        unfinished, self.unfinished = self.unfinished, []
        for mapping in unfinished:
            mapping.flush()

    def drop_route(self, route: Route) -> None:
        mapping = route.mapping
        destination = route.destination
        key = mapping.address + destination[:-2] + mapping.port.to_bytes(2, "big") + destination[-2:]
        self.routes.pop(key, None)

    def _not_host(
        self,
        aim: Target,
        packet: IpPacket,
        source_port: int,
        destination_port: int,
        payload: memoryview,
        source_mac: bytes,
        gso_size: int,
    ) -> None:
        guest = self.guest
        if aim in (Service.DNS, Service.NTP) and source_port:
            asked = guest.gateway.dns_query if aim is Service.DNS else guest.gateway.ntp_query
            size = gso_size or max(len(payload), 1)
            for start in range(0, min(len(payload), size * MAX_SUPER_FRAME), size):
                query = payload[start : start + size]
                asked(packet.source, source_port, source_mac, query, packet.destination)
        elif aim is Service.DHCP:
            guest.gateway.dhcp(packet.source, source_mac, payload)
        elif aim is Service.DHCPV6 and not isinstance(packet, ipv4.Ipv4Packet):
            guest.gateway.dhcpv6(packet, source_port, source_mac, payload)
        elif aim is Refuse.CLOSED:
            guest.out.icmp_error(packet, Problem.PORT_UNREACHABLE)
        elif aim is Refuse.PROHIBITED:
            guest.out.icmp_error(packet, Problem.PROHIBITED)
        else:
            guest.count("udp_bad_destination")

    def _open(
        self, key: bytes, packet: IpPacket, port: int, mac: bytes, family: socket.AddressFamily
    ) -> UdpMapping | None:
        guest = self.guest
        if len(self.mappings) >= MAX_MAPPINGS or not guest.admit():
            if not self.mappings:
                guest.out.icmp_error(packet, Problem.PROHIBITED)
                return None
            guest.count("udp_evicted")
            self.remove(next(iter(self.mappings.values())))
        try:
            made = guest.host.udp_socket(family, gro=self.gro)
        except OSError:
            guest.count("udp_socket_failed")
            guest.out.icmp_error(packet, Problem.PROHIBITED)  # RFC 5508 REQ-8
            return None
        mapping = UdpMapping(self, guest.next_number(), key, packet.source, port, mac, made)
        self.mappings[key] = mapping
        guest.poller.register(made.fileno(), mapping)
        guest.update_deadline(mapping)
        return mapping

    def remove(self, mapping: UdpMapping) -> None:
        if mapping.is_open:
            self.mappings.pop(mapping.key, None)
            for route in mapping.routes:
                self.drop_route(route)
            mapping.close()

    def emit(self, source: bytes, source_port: int, mapping: UdpMapping, train: Sequence[bytes], size: int) -> None:
        """To the guest: datagrams of `size` octets, the last may be shorter; one buffer may hold several of them."""
        several = len(train) > 1 or len(train[0]) > size
        address, port, mac = mapping.address, mapping.port, mapping.mac
        able = self.guest.link.capabilities
        header = ipv4.HEADER.size if len(source) == 4 else ipv6.HEADER_SIZE
        if several and able.uso and header + udp.HEADER.size + size <= able.mtu:
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
        pseudo = ipv6.pseudo_sum(source, destination, ipv4.UDP, length)  # that of IPv4 has the same terms
        if len(source) == 4:
            start, ethernet = 34, mac + guest.plan.server_mac + b"\x08\x00"
        else:
            start, ethernet = 54, mac + guest.plan.server_mac + b"\x86\xdd"
        whole = size or start - 14 + length <= guest.link.capabilities.mtu
        if guest.checksum_offload and whole:
            transport = udp.HEADER.pack(source_port, destination_port, length, pseudo or 65535)
            frame = ethernet + _header(source, destination, length) + transport
            sent = deliver((frame, *parts), start, udp.CHECKSUM_OFFSET, GSO_UDP if size else 0, size, len(frame))
        else:
            transport = udp.HEADER.pack(source_port, destination_port, length, 0)
            data = b"".join(parts)
            total = pseudo + ones_sum(transport) + ones_sum(data)
            transport = udp.HEADER.pack(source_port, destination_port, length, 65535 - total % 65535)
            if whole:
                sent = deliver((ethernet + _header(source, destination, length) + transport, data))
            else:
                sent = self._send_fragments(ethernet, source, destination, transport + data)
        if not sent:
            guest.count("udp_link_full")
        return sent

    def _send_fragments(self, ethernet: bytes, source: bytes, destination: bytes, datagram: bytes) -> bool:
        guest = self.guest
        mtu = guest.link.capabilities.mtu
        if len(source) == 4:
            header = ipv4.encode_header(
                source, destination, ipv4.UDP, len(datagram), identification=guest.out.identification(), flags_offset=0
            )
            made = ipv4.fragments(header, datagram, mtu)
        else:
            header = ipv6.encode_header(source, destination, ipv4.UDP, 0)
            made = ipv6.fragments(header, datagram, mtu, guest.out.identification6())
        sent = True
        for parts in made:
            sent = guest.station.port.deliver((ethernet, *parts)) and sent
        return sent

    def close(self) -> None:
        for mapping in list(self.mappings.values()):
            self.remove(mapping)
        for client in list(self.inbound.values()):
            client.close()


@lru_cache(maxsize=1024)  # datagrams of a conversation are of few lengths, and a header costs as much as the rest
def _header(source: bytes, destination: bytes, length: int) -> bytes:
    if len(source) == 4:
        return bytes(ipv4.encode_header(source, destination, ipv4.UDP, length))
    return bytes(ipv6.encode_header(source, destination, ipv4.UDP, length))
