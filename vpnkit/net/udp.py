"""The guest's UDP: endpoint-independent mappings (RFC 4787), one host socket for each address and port of the guest.

Filtering is address-dependent: only hosts that the guest spoke to may answer, from any of their ports.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vpnkit.flow.poller import HANGUP, READABLE
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import icmp, ipv4, udp
from vpnkit.wire.checksum import ones_sum

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest
    from vpnkit.net.policy import Target
    from vpnkit.wire.ipv4 import Ipv4Packet

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 300.0  # RFC 4787 REQ-5c
MAX_MAPPINGS: Final = 1024  # of one guest; the longest idle one makes place
MAX_PEERS: Final = 512  # of one mapping; the oldest is forgotten
RECEIVE_BUDGET: Final = 64  # datagrams of one socket per turn of the loop
MAX_DATAGRAM: Final = 65507

GSO_UDP: Final = 5
UDP_SEGMENT: Final = 103  # linux/udp.h, level IPPROTO_UDP
UDP_GRO: Final = 104
IP_RECVERR: Final = 11  # linux/in.h
MSG_ERRQUEUE: Final = 0x2000
# linux/errqueue.h struct sock_extended_err: errno 4 | origin 1 | type 1 | code 1 | pad 1 | info 4 | data 4
EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
ORIGIN_ICMP: Final = 2
_LINUX: Final = sys.platform == "linux"


class UdpMapping:
    """One address and port of the guest, and its host socket."""

    __slots__ = (
        "_peers",
        "_routes",
        "_socket",
        "_table",
        "active_at",
        "address",
        "addressed",
        "bytes_to_guest",
        "bytes_to_host",
        "mac",
        "number",
        "opened_at",
        "port",
        "queued_at",
        "remote",
        "touched",
    )

    def __init__(
        self, table: UdpTable, number: int, address: bytes, port: int, mac: bytes, made: socket.socket
    ) -> None:
        self._table = table
        self._socket: socket.socket | None = made
        self.number = number
        self.address = address
        self.port = port
        self.mac = mac
        self.opened_at = self.active_at = table.guest.now()
        self.queued_at = NEVER
        self.touched = False
        self.bytes_to_host = 0
        self.bytes_to_guest = 0
        self.addressed = self.remote = ""  # what the guest called last, and where that went, for people
        # what the guest addressed (address and port, 6 octets) -> where it goes on the host
        self._routes: dict[bytes, tuple[str, int]] = {}
        # a host address that may answer -> the address that the guest knows it by
        self._peers: dict[str, bytes] = {}

    # To the host

    def send(self, destination: bytes, address: tuple[str, int], payload: memoryview, gso_size: int) -> None:
        """One datagram, or with `gso_size` a train of them, to `address`, which the guest calls `destination`."""
        host = self._socket
        if host is None:
            return
        if destination not in self._routes:
            if len(self._routes) >= MAX_PEERS:
                del self._routes[next(iter(self._routes))]
            self._routes[destination] = address
            if address[0] not in self._peers and len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]
            self._peers[address[0]] = destination[:4]
            self.addressed = f"{socket.inet_ntoa(destination[:4])}:{address[1]}"
            self.remote = f"{address[0]}:{address[1]}"
        for _ in range(2):  # the first try may hand us the error of an earlier datagram
            try:
                if gso_size:
                    self._send_train(host, address, payload, gso_size)
                else:
                    host.sendto(payload, address)
            except BlockingIOError:
                self._table.guest.count("udp_host_full")  # as a full queue on a router: the datagram is lost
                return
            except OSError as error:
                if not self._read_errors():
                    self._send_failed(error, destination, payload)
                    return
            else:
                self.bytes_to_host += len(payload)
                return

    @staticmethod
    def _send_train(host: socket.socket, address: tuple[str, int], payload: memoryview, gso_size: int) -> None:
        if _LINUX and len(payload) > gso_size:
            try:
                host.sendmsg([payload], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", gso_size))], 0, address)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EIO, errno.EMSGSIZE):
                    raise
            else:
                return
        for start in range(0, len(payload), gso_size):
            host.sendto(payload[start : start + gso_size], address)

    def route(self, destination: bytes) -> tuple[str, int] | None:
        return self._routes.get(destination)

    def _send_failed(self, error: OSError, destination: bytes, payload: memoryview) -> None:
        guest = self._table.guest
        guest.count(f"udp_send_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
        code = {
            errno.ENETUNREACH: icmp.NET_UNREACHABLE,
            errno.EHOSTUNREACH: icmp.HOST_UNREACHABLE,
            errno.EACCES: icmp.ADMIN_PROHIBITED,
            errno.EPERM: icmp.ADMIN_PROHIBITED,
            errno.ECONNREFUSED: icmp.PORT_UNREACHABLE,
        }.get(error.errno or 0)
        if code is not None:
            self._report(destination, code, bytes(payload[:64]), len(payload))

    # From the host

    def on_ready(self, events: int) -> None:
        if events & HANGUP:
            self._read_errors()
        if events & READABLE:
            self._table.guest.touch_datagrams(self)

    def on_failure(self, error: BaseException) -> None:
        log.error("flow %d udp: internal error", self.number, exc_info=error)
        self._table.remove(self)

    def receive(self, now: float) -> None:
        """Read what the host has for the guest, up to the budget."""
        table = self._table
        guest = table.guest
        host = self._socket
        if host is None:
            return
        self.active_at = now
        for _ in range(RECEIVE_BUDGET):
            try:
                if table.gro:
                    data, ancillary, _, source = host.recvmsg(MAX_DATAGRAM, 64)
                    size = struct.unpack_from("=i", ancillary[0][2])[0] if ancillary else 0
                else:
                    data, source = host.recvfrom(MAX_DATAGRAM)
                    size = 0
            except BlockingIOError:
                return
            except OSError:
                if not self._read_errors():
                    return
                continue
            known_as = self._peers.get(source[0])
            if known_as is None:
                guest.count("udp_filtered")
                continue
            self.bytes_to_guest += len(data)
            table.emit(known_as, source[1], self, data, size)
        guest.touch_datagrams(self)

    def _read_errors(self) -> bool:
        """Tell the guest what the error queue of the socket holds.  False when it was empty."""
        host = self._socket
        if host is None or not _LINUX:
            return False
        found = False
        while True:
            try:
                data, ancillary, _, destination = host.recvmsg(512, 512, MSG_ERRQUEUE)
            except OSError:
                return found
            found = True
            for level, kind, value in ancillary:
                if level != socket.IPPROTO_IP or kind != IP_RECVERR or len(value) < EXTENDED_ERROR.size:
                    continue
                number, origin, icmp_type, code, _, _ = EXTENDED_ERROR.unpack_from(value)
                known_as = self._peers.get(destination[0]) if destination else None
                if origin == ORIGIN_ICMP and icmp_type == icmp.DEST_UNREACHABLE and known_as is not None:
                    if code == icmp.FRAGMENTATION_NEEDED:
                        continue
                    self._table.guest.count(f"udp_{errno.errorcode.get(number, 'error').lower()}")
                    self._report(known_as + destination[1].to_bytes(2, "big"), code, data, len(data))

    def _report(self, destination: bytes, code: int, data: bytes, length: int) -> None:
        """An ICMP error about a datagram that the guest sent to `destination` (address and port)."""
        header = udp.HEADER.pack(self.port, int.from_bytes(destination[4:], "big"), udp.HEADER.size + length, 0)
        quoted = ipv4.encode_header(self.address, destination[:4], ipv4.UDP, udp.HEADER.size + length)
        self._table.guest.send_icmp_quote(bytes(quoted) + header + data, icmp.DEST_UNREACHABLE, code)

    # Time

    def next_deadline(self) -> float:
        return self.active_at + IDLE_SECONDS if self._socket is not None else NEVER

    def on_deadline(self, now: float) -> None:
        self._table.guest.count("udp_expired")
        self._table.remove(self)

    def close(self) -> None:
        host, self._socket = self._socket, None
        if host is not None:
            self._table.guest.poller.unregister(host.fileno())
            host.close()


class UdpTable:
    """Every UDP mapping of one guest, the longest idle first."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.mappings: OrderedDict[bytes, UdpMapping] = OrderedDict()
        self.gro = _LINUX and guest.link.capabilities.uso
        self._identification = guest.random.randrange(65536)

    def datagram(self, packet: Ipv4Packet, source_mac: bytes, now: float, gso_size: int = 0) -> None:
        """One datagram of the guest, or a train of them.  Raises WireError."""
        guest = self.guest
        source_port, destination_port, _, payload = udp.decode(packet.payload)
        destination = packet.destination + packet.payload[2:4]
        key = packet.source + packet.payload[0:2]
        mapping = self.mappings.get(key)
        address = mapping.route(destination) if mapping is not None else None
        if address is None:
            aim = target(Protocol.UDP, packet.destination, destination_port, guest.plan)
            if not isinstance(aim, Host):
                self._not_host(aim, packet, source_port, destination_port, payload, source_mac, gso_size)
                return
            if source_port == 0:
                guest.count("udp_port_zero")
                return
            address = (aim.address, aim.port)
            if mapping is None:
                mapping = self._open(key, packet, source_port, source_mac)
                if mapping is None:
                    return
        assert mapping is not None
        mapping.active_at = now
        self.mappings.move_to_end(key)
        mapping.send(destination, address, payload, gso_size)

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
            for start in range(0, len(payload), size):
                guest.dns_query(packet.source, source_port, source_mac, payload[start : start + size])
        elif aim is Service.DHCP:
            guest.dhcp(packet.source, source_mac, payload)
        elif aim is Refuse.CLOSED:
            guest.send_icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE)
        elif aim is Refuse.PROHIBITED:
            guest.send_icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
        else:
            guest.count("udp_bad_destination")

    def _open(self, key: bytes, packet: Ipv4Packet, port: int, mac: bytes) -> UdpMapping | None:
        guest = self.guest
        if len(self.mappings) >= MAX_MAPPINGS or not guest.admit():
            if not self.mappings:
                guest.send_icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
                return None
            guest.count("udp_evicted")
            self.remove(next(iter(self.mappings.values())))
        try:
            made = guest.host.udp_socket(gro=self.gro)
        except OSError:
            guest.count("udp_socket_failed")
            guest.send_icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)  # RFC 5508 REQ-8
            return None
        mapping = UdpMapping(self, guest.next_number(), packet.source, port, mac, made)
        self.mappings[key] = mapping
        guest.poller.register(made.fileno(), mapping)
        guest.update_deadline(mapping)
        return mapping

    def remove(self, mapping: UdpMapping) -> None:
        self.mappings.pop(mapping.address + mapping.port.to_bytes(2, "big"), None)
        mapping.close()

    def emit(self, source: bytes, source_port: int, mapping: UdpMapping, data: bytes, size: int) -> None:
        """`data` to the guest; with `size` it is a train of datagrams of that size, the last may be shorter."""
        if size and len(data) > size:
            if self.guest.link.capabilities.uso and self._send(source, source_port, mapping, data, size):
                return
            for start in range(0, len(data), size):
                self._send(source, source_port, mapping, data[start : start + size], 0)
        else:
            self._send(source, source_port, mapping, data, 0)

    def _send(self, source: bytes, source_port: int, mapping: UdpMapping, data: bytes, size: int) -> bool:
        return self.send(source, source_port, mapping.address, mapping.port, mapping.mac, data, size)

    def send(
        self,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        mac: bytes,
        data: bytes,
        size: int = 0,
    ) -> bool:
        """A datagram to the guest, in fragments when the link's MTU asks for it.  False when the link is full."""
        guest = self.guest
        length = udp.HEADER.size + len(data)
        pseudo = ipv4.pseudo_sum(source, destination, ipv4.UDP, length)
        ethernet = mac + guest.plan.server_mac + b"\x08\x00"
        whole = size or ipv4.HEADER.size + length <= guest.link.capabilities.mtu
        if guest.checksum_offload and whole:
            transport = udp.HEADER.pack(source_port, destination_port, length, pseudo % 65535 or 65535)
            header = ipv4.encode_header(source, destination, ipv4.UDP, length)
            frame = ethernet + header + transport
            sent = guest.link.send((frame, data), 34, udp.CHECKSUM_OFFSET, GSO_UDP if size else 0, size, len(frame))
        else:
            transport = udp.HEADER.pack(source_port, destination_port, length, 0)
            total = pseudo + ones_sum(transport) + ones_sum(data)
            transport = udp.HEADER.pack(source_port, destination_port, length, 65535 - total % 65535)
            if whole:
                header = ipv4.encode_header(source, destination, ipv4.UDP, length)
                sent = guest.link.send((ethernet + header + transport, data))
            else:
                sent = self._send_fragments(ethernet, source, destination, transport + data)
        if not sent:
            guest.count("udp_link_full")
        return sent

    def _send_fragments(self, ethernet: bytes, source: bytes, destination: bytes, datagram: bytes) -> bool:
        guest = self.guest
        self._identification = (self._identification + 1) & 0xFFFF
        header = ipv4.encode_header(
            source, destination, ipv4.UDP, len(datagram), identification=self._identification, flags_offset=0
        )
        sent = True
        for parts in ipv4.fragments(header, datagram, guest.link.capabilities.mtu):
            sent = guest.link.send((ethernet, *parts)) and sent
        return sent

    def close(self) -> None:
        for mapping in list(self.mappings.values()):
            self.remove(mapping)
