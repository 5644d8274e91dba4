"""The guest's frames, one by one: what each is, whether this guest may send it, and who takes it.

A frame is for us when it has our MAC address, for a neighbour when it has another, and for both when it is a broadcast
or a multicast.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.net.policy import DHCPV6_SERVER_PORT, Protocol, Refuse, target
from vpnkit.net.problems import Problem
from vpnkit.net.source_filter import DHCPV6_SERVER, arp_objection
from vpnkit.proto import arp as arp_rules
from vpnkit.proto.reassembly import Reassembler
from vpnkit.proto.reassembly6 import Reassembler6
from vpnkit.wire import arp, ethernet, icmpv6, ipv4, ipv6, udp
from vpnkit.wire.checksum import is_valid
from vpnkit.wire.tcp import ACK

if TYPE_CHECKING:
    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.guest import Guest
    from vpnkit.net.output import IpPacket

HOLD_LIMIT: Final = 8192  # a bigger payload is delivered at once, so that its hot buffer is used again

# Ethernet, IPv4 without options and TCP in one go: destination MAC, source MAC, ethertype | version and IHL, TOS,
# total length, identification, flags and offset, TTL, protocol, checksum | addresses and ports: the flow's key |
# sequence, acknowledgement, data offset, flags, window
PREFIX: Final = struct.Struct("!6s6sHBxHxxHxBxx12sIIBBH")
MIN_TCP_FRAME: Final = 54
# The same of IPv6: destination MAC, ethertype | version, traffic class and flow label, payload length, next header, hop
# limit | addresses and ports | as above
PREFIX6: Final = struct.Struct("!6s6xHIHBB36sIIBBH")
MIN_TCP_FRAME6: Final = 74


class Intake:
    """What a guest's frames lead to."""

    def __init__(self, guest: Guest, *, verify_checksums: bool) -> None:
        self._guest = guest
        self._link = guest.link
        self._station = guest.station
        self._server_mac = guest.plan.server_mac
        self._verify = verify_checksums
        self._reassembler = Reassembler(guest.count, self._not_reassembled)
        self._reassembler6 = Reassembler6(guest.count, self._not_reassembled)
        prefix = guest.plan.prefix6
        self._prefix6 = None if prefix is None else prefix.network_address.packed[:8]
        self._tcp_flows = guest.tcp.flows
        self._udp_routes = guest.udp.routes

    def frame(self, frame: memoryview, now: float) -> None:
        """One frame.  Raises WireError for what cannot be understood, and LinkClosed."""
        length = len(frame)
        if length >= MIN_TCP_FRAME6 and frame[12] == 0x86:
            if self._is_known6(frame, now):
                return
            destination_mac, source_mac, ethertype = ethernet.HEADER.unpack_from(frame)
        elif length >= MIN_TCP_FRAME:
            (
                destination_mac,
                source_mac,
                ethertype,
                version_ihl,
                total,
                flags_offset,
                protocol,
                key,
                sequence,
                acknowledgement,
                offset,
                flags,
                window,
            ) = PREFIX.unpack_from(frame)
            if (
                ethertype == 0x0800
                and version_ihl == 0x45
                and not flags_offset & 0x3FFF
                and destination_mac == self._server_mac
                and not self._verify
            ):
                # The fast path: a segment or datagram of a flow that is there.  The rest is for the general one.
                end = 14 + total
                if protocol == 6:
                    flow = self._tcp_flows.get(key)
                    start = 34 + (offset >> 4) * 4
                    if flow is not None and flow.connection.state.synchronized and start == 54 <= end <= len(frame):
                        self._segment(flow, frame[start:end], sequence, acknowledgement, flags, window, now)
                        return
                elif protocol == 17:
                    route = self._udp_routes.get(key)
                    if route is not None and sequence >> 16 == total - 20 and 42 < end <= len(frame):
                        mapping = route.mapping
                        if flags_offset == mapping.flags and frame[22] == mapping.ttl and frame[15] == mapping.tos:
                            link = self._link
                            self._guest.udp.forward(route, frame[42:end], link.gso_size if link.gso_type else 0, now)
                            return
        elif length < ethernet.HEADER.size:
            raise WireError(f"frame of {length} octets")
        else:
            destination_mac, source_mac, ethertype = ethernet.HEADER.unpack_from(frame)
        station = self._station
        if (source_mac != station.mac or station.identity is not None) and not station.is_source(source_mac):
            self._guest.count("spoofed_mac")
            return
        if destination_mac != self._server_mac:
            if not destination_mac[0] & 1:
                self._drop(station.forward(frame, source_mac, ethertype))
                return
            if station.has_neighbours and not self._is_for_us_alone(frame, ethertype):
                verdict = station.forward(frame, source_mac, ethertype)
                if verdict:
                    self._drop(verdict)
                    return
        if ethertype == ethernet.ETHERTYPE_IPV4:
            self._ipv4(frame, source_mac, destination_mac, now)
        elif ethertype == ethernet.ETHERTYPE_IPV6 and self._prefix6 is not None:
            self._ipv6(frame, source_mac, destination_mac, now)
        elif ethertype == ethernet.ETHERTYPE_ARP:
            self._arp(frame, source_mac)
        else:
            self._guest.count("ethertype_ignored")

    def _is_known6(self, frame: memoryview, now: float) -> bool:
        """The fast path over IPv6: take a segment or datagram of a flow that is there."""
        (
            destination_mac,
            ethertype,
            first,
            length,
            protocol,
            ttl,
            key,
            sequence,
            acknowledgement,
            offset,
            flags,
            window,
        ) = PREFIX6.unpack_from(frame)
        if destination_mac != self._server_mac or ethertype != 0x86DD or self._verify:
            return False
        end = 54 + length
        if protocol == 6:
            flow = self._tcp_flows.get(key)
            start = 54 + (offset >> 4) * 4
            if flow is not None and flow.connection.state.synchronized and start == 74 <= end <= len(frame):
                self._segment(flow, frame[start:end], sequence, acknowledgement, flags, window, now)
                return True
        elif protocol == 17:
            route = self._udp_routes.get(key)
            if route is not None and sequence >> 16 == length and sequence & 0xFFFF and 62 < end <= len(frame):
                mapping = route.mapping
                if first >> 20 & 0xFF == mapping.tos and ttl == mapping.ttl and mapping.flags == ipv4.DF:
                    link = self._link
                    self._guest.udp.forward(route, frame[62:end], link.gso_size if link.gso_type else 0, now)
                    return True
        return False

    def _segment(
        self,
        flow: TcpFlow,
        payload: memoryview,
        sequence: int,
        acknowledgement: int,
        flags: int,
        window: int,
        now: float,
    ) -> None:
        """A segment without options for a connection that is there."""
        length = len(payload)
        if not length and flags == ACK:
            flow.acknowledged(sequence, acknowledgement, window, now)
        else:
            if flow.pending_ack is not None:
                flow.take_pending_ack(now)
            flow.connection.receive(sequence, acknowledgement, flags, window, payload, now)
            if length > HOLD_LIMIT:
                flow.deliver(now)
            elif length:
                self._link.hold()
        if not flow.touched:
            flow.touched = True
            self._guest.touched.append(flow)

    def _drop(self, verdict: str) -> None:
        if verdict:
            self._guest.count(verdict)

    def _is_for_us_alone(self, frame: memoryview, ethertype: int) -> bool:
        """What is for everybody and only the gateway answers: a DHCP client's, and ARP for an address of ours."""
        if ethertype == ethernet.ETHERTYPE_ARP:
            return bytes(frame[38:42]) in self._guest.ours
        if ethertype == ethernet.ETHERTYPE_IPV4 and len(frame) > 42 and frame[23] == ipv4.UDP:
            start = 14 + (frame[14] & 15) * 4
            return bytes(frame[start + 2 : start + 4]) == b"\x00\x43"
        if ethertype == ethernet.ETHERTYPE_IPV6 and len(frame) > 58 and frame[20] == ipv6.UDP:
            return bytes(frame[56:58]) == DHCPV6_SERVER
        return False

    def _arp(self, frame: memoryview, source_mac: bytes) -> None:
        """ARP for us.  A forged sender is counted; he gets the answer all the same, as our claim to our address."""
        self._drop(arp_objection(self._station, frame, source_mac))
        request = arp.decode(frame[ethernet.HEADER.size :])
        reply = arp_rules.answer(request, self._guest.ours, self._guest.plan.server_mac)
        if reply is not None:
            header = ethernet.HEADER.pack(source_mac, self._guest.plan.server_mac, ethernet.ETHERTYPE_ARP)
            self._guest.out.frame((header + reply.encode(),))

    def _ipv4(self, frame: memoryview, source_mac: bytes, destination_mac: bytes, now: float) -> None:
        guest = self._guest
        packet = ipv4.decode(frame[ethernet.HEADER.size :])
        protocol = packet.protocol
        broadcast = destination_mac[0] & 1 or packet.destination == ipv4.BROADCAST
        if broadcast:
            if protocol == ipv4.UDP and not packet.is_fragment:
                _, port, _, payload = udp.decode(packet.payload)
                if port == 67:
                    guest.gateway.dhcp(packet.source, source_mac, payload)
                    return
            guest.count("broadcast_ignored")
            return
        if not self._station.owns(packet.source, source_mac):
            known = self._station.lan.is_station_address(packet.source)
            guest.count("spoofed_ip" if known else "bad_source")
            return
        verify = self._verify and not self._link.checksum_partial
        if packet.is_fragment:
            whole = self._reassembler.add(packet, now)
            guest.update_deadline(self._reassembler)
            if whole is None:
                return
            packet = whole
            verify = True  # it tells fragments that do not belong together (RFC 4963)
        self._transport(packet, source_mac, now, verify=verify)

    def _transport(self, packet: IpPacket, source_mac: bytes, now: float, *, verify: bool) -> None:
        """A whole datagram of either version, to anybody but other guests."""
        guest = self._guest
        if verify and not self._checksum_holds(packet):
            raise WireError("transport checksum")
        protocol = packet.protocol
        if protocol == ipv4.TCP:
            guest.tcp.segment(packet, source_mac, now)
            if len(packet.payload) > 20:
                self._link.hold()
        elif protocol == ipv4.UDP:
            guest.udp.datagram(packet, source_mac, now)
        elif protocol == ipv4.ICMP and isinstance(packet, ipv4.Ipv4Packet):
            guest.icmp.message(packet, source_mac, now)
        elif protocol == ipv6.ICMPV6 and not isinstance(packet, ipv4.Ipv4Packet):
            guest.icmp.message6(packet, source_mac, now)
        elif target(Protocol.ICMP, packet.destination, 0, guest.plan, nat64=guest.nat64) is Refuse.SILENT:
            guest.count("bad_destination")
        elif protocol != ipv6.NO_NEXT_HEADER:
            guest.out.icmp_error(packet, Problem.PROTOCOL_UNREACHABLE)

    def _ipv6(self, frame: memoryview, source_mac: bytes, destination_mac: bytes, now: float) -> None:
        guest = self._guest
        try:
            packet = ipv6.decode(frame[ethernet.HEADER.size :])
            if packet.is_fragment:
                if not self._may_speak6(packet.source, source_mac):
                    return
                whole = self._reassembler6.add(packet, now)
                guest.update_deadline(self._reassembler6)
                if whole is None:
                    return
                self._to_us6(whole, source_mac, destination_mac, now, verify=True)
                return
        except ipv6.Ipv6ParameterProblem as problem:
            to_one = not destination_mac[0] & 1 or frame[38] == 0xFF  # RFC 4443 section 2.4 (e.4)
            if to_one and self._may_speak6(bytes(frame[22:38]), source_mac):
                guest.out.parameter_problem(problem)
            raise
        self._to_us6(packet, source_mac, destination_mac, now, verify=self._verify and not self._link.checksum_partial)

    def _to_us6(
        self, packet: ipv6.Ipv6Packet, source_mac: bytes, destination_mac: bytes, now: float, *, verify: bool
    ) -> None:
        guest = self._guest
        if packet.protocol == ipv6.ICMPV6:
            kind = packet.payload[0] if packet.payload else 0
            if icmpv6.ROUTER_SOLICITATION <= kind <= icmpv6.REDIRECT:
                icmpv6.check(packet)
                guest.neighbours.message(packet, source_mac, now)  # it has rules of its own on who may speak
                return
        if packet.source == ipv6.UNSPECIFIED:
            guest.count("listener_ignored" if packet.protocol == ipv6.ICMPV6 else "bad_source")
            return
        if not self._may_speak6(packet.source, source_mac):
            return
        if packet.destination[0] == 0xFF:
            self._multicast6(packet, source_mac, now, verify=verify)
        elif destination_mac[0] & 1:
            guest.count("broadcast_ignored")  # RFC 1122 section 2.4 holds here too
        else:
            self._transport(packet, source_mac, now, verify=verify)

    def _multicast6(self, packet: ipv6.Ipv6Packet, source_mac: bytes, now: float, *, verify: bool) -> None:
        guest = self._guest
        if packet.protocol == ipv6.ICMPV6:
            guest.icmp.message6(packet, source_mac, now)
        elif packet.protocol == ipv4.UDP and packet.destination == ipv6.ALL_DHCP_RELAYS_AND_SERVERS:
            if verify and not self._checksum_holds(packet):
                raise WireError("transport checksum")
            source_port, port, check, payload = udp.decode(packet.payload)
            if port == DHCPV6_SERVER_PORT and check:
                guest.gateway.dhcpv6(packet, source_port, source_mac, payload)
            else:
                guest.count("broadcast_ignored")
        else:
            guest.count("broadcast_ignored")

    def _may_speak6(self, source: bytes, mac: bytes) -> bool:
        """Whether the guest may have `source`, of ours or link-local, and speak as it; else it is counted."""
        if source[:8] != self._prefix6 and source[:2] != b"\xfe\x80":
            self._guest.count("bad_source")
        elif self._station.owns(source, mac):
            return True
        else:
            known = self._station.lan.is_station_address(source)
            self._guest.count("spoofed_ip" if known else "bad_source")
        return False

    def _not_reassembled(self, first: bytes) -> None:
        self._guest.out.icmp_quote(first, Problem.NOT_REASSEMBLED)

    @staticmethod
    def _checksum_holds(packet: IpPacket) -> bool:
        if packet.protocol == ipv4.TCP:
            return is_valid(packet.payload, packet.pseudo_sum())
        if packet.protocol == ipv4.UDP:
            _, _, check, payload = udp.decode(packet.payload)
            data = packet.payload[: udp.HEADER.size + len(payload)]
            pseudo = ipv6.pseudo_sum(packet.source, packet.destination, ipv4.UDP, len(data))  # the same terms for both
            return check == 0 or is_valid(data, pseudo)
        return True
