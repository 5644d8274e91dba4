"""The guest's frames, one by one: what each is, whether this guest may send it, and who takes it.

A frame is for us when it has our MAC address, for a neighbour when it has another, and for both when it is a broadcast
or a multicast.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.net.policy import Protocol, Refuse, target
from vpnkit.net.source_filter import arp_objection
from vpnkit.proto import arp as arp_rules
from vpnkit.proto.reassembly import Reassembler
from vpnkit.wire import arp, ethernet, icmp, ipv4, udp
from vpnkit.wire.checksum import is_valid
from vpnkit.wire.tcp import ACK

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest

HOLD_LIMIT: Final = 8192  # a bigger payload is delivered at once, so that its hot buffer is used again

# Ethernet, IPv4 without options and TCP in one go: destination MAC, source MAC, ethertype | version and IHL, TOS,
# total length, identification, flags and offset, TTL, protocol, checksum | addresses and ports: the flow's key |
# sequence, acknowledgement, data offset, flags, window
PREFIX: Final = struct.Struct("!6s6sHBxHxxHxBxx12sIIBBH")
MIN_TCP_FRAME: Final = 54


class Intake:
    """What a guest's frames lead to."""

    def __init__(self, guest: Guest, *, verify_checksums: bool) -> None:
        self._guest = guest
        self._link = guest.link
        self._station = guest.station
        self._server_mac = guest.plan.server_mac
        self._verify = verify_checksums
        self._reassembler = Reassembler(guest.count, self._not_reassembled)
        self._tcp_flows = guest.tcp.flows
        self._udp_routes = guest.udp.routes

    def frame(self, frame: memoryview, now: float) -> None:
        """One frame.  Raises WireError for what cannot be understood, and LinkClosed."""
        if len(frame) >= MIN_TCP_FRAME:
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
                        if start == end and flags == ACK:
                            flow.acknowledged(sequence, acknowledgement, window, now)
                        else:
                            if flow.pending_ack is not None:
                                flow.take_pending_ack(now)
                            flow.connection.receive(sequence, acknowledgement, flags, window, frame[start:end], now)
                            if end - start > HOLD_LIMIT:
                                flow.deliver(now)
                            elif end != start:
                                self._link.hold()
                        if not flow.touched:
                            flow.touched = True
                            self._guest.touched.append(flow)
                        return
                elif protocol == 17:
                    route = self._udp_routes.get(key)
                    if route is not None and sequence >> 16 == total - 20 and 42 < end <= len(frame):
                        mapping = route.mapping
                        if flags_offset == mapping.flags and frame[22] == mapping.ttl and frame[15] == mapping.tos:
                            link = self._link
                            self._guest.udp.forward(route, frame[42:end], link.gso_size if link.gso_type else 0, now)
                            return
        elif len(frame) < ethernet.HEADER.size:
            raise WireError(f"frame of {len(frame)} octets")
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
        elif ethertype == ethernet.ETHERTYPE_ARP:
            self._arp(frame, source_mac)
        else:
            self._guest.count("ethertype_ignored")

    def _drop(self, verdict: str) -> None:
        if verdict:
            self._guest.count(verdict)

    def _is_for_us_alone(self, frame: memoryview, ethertype: int) -> bool:
        """A broadcast that only the gateway answers: a DHCP client's, and ARP for an address of ours."""
        if ethertype == ethernet.ETHERTYPE_ARP:
            return bytes(frame[38:42]) in self._guest.ours
        if ethertype == ethernet.ETHERTYPE_IPV4 and len(frame) > 42 and frame[23] == ipv4.UDP:
            start = 14 + (frame[14] & 15) * 4
            return bytes(frame[start + 2 : start + 4]) == b"\x00\x43"
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
        if verify and not self._checksum_holds(packet):
            raise WireError("transport checksum")
        if protocol == ipv4.TCP:
            guest.tcp.segment(packet, source_mac, now)
            if len(packet.payload) > 20:
                self._link.hold()
        elif protocol == ipv4.UDP:
            guest.udp.datagram(packet, source_mac, now)
        elif protocol == ipv4.ICMP:
            guest.icmp.message(packet, source_mac, now)
        elif target(Protocol.ICMP, packet.destination, 0, guest.plan) is Refuse.SILENT:
            guest.count("bad_destination")
        else:
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.PROTOCOL_UNREACHABLE)

    def _not_reassembled(self, first: bytes) -> None:
        self._guest.out.icmp_quote(first, icmp.TIME_EXCEEDED, icmp.REASSEMBLY_TIME_EXCEEDED)

    @staticmethod
    def _checksum_holds(packet: ipv4.Ipv4Packet) -> bool:
        if packet.protocol == ipv4.TCP:
            return is_valid(packet.payload, packet.pseudo_sum())
        if packet.protocol == ipv4.UDP:
            _, _, check, payload = udp.decode(packet.payload)
            data = packet.payload[: udp.HEADER.size + len(payload)]
            pseudo = ipv4.pseudo_sum(packet.source, packet.destination, ipv4.UDP, len(data))
            return check == 0 or is_valid(data, pseudo)
        return True
