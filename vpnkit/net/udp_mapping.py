"""One address and port of the guest, and the host socket that stands for it.

Datagrams of one burst that go to the same place leave in one system call, as a train that the host's kernel cuts
(UDP_SEGMENT); datagrams that came from one place go to the guest in one super-frame where the link can cut it (USO).
Either way each stays a datagram of its own.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.flow import error_queue
from vpnkit.flow.host import text
from vpnkit.flow.marks import Marks
from vpnkit.flow.poller import HANGUP, READABLE
from vpnkit.net.problems import EXPIRIES, Problem, mtu_behind_nat64, problem_of
from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import icmpv6, ipv4, ipv6, udp

if TYPE_CHECKING:
    from vpnkit.flow.error_queue import HostError
    from vpnkit.flow.host import Address
    from vpnkit.net.output import IpPacket
    from vpnkit.net.udp import UdpTable

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 300.0  # RFC 4787 REQ-5c
MAX_PEERS: Final = 512  # of one mapping; the oldest is forgotten
RECEIVE_BUDGET: Final = 64  # reads of one socket per turn of the loop
MAX_DATAGRAM: Final = 65535
MAX_TRAIN: Final = 64  # datagrams: UDP_MAX_SEGMENTS of older kernels
MAX_TRAIN_OCTETS: Final = 65000
MAX_SUPER_FRAME: Final = 128  # datagrams: UDP_MAX_SEGMENTS; a guest's kernel makes no longer train

UDP_SEGMENT: Final = 103  # linux/udp.h, level IPPROTO_UDP
LINUX: Final = sys.platform == "linux"

_UNREACHABLE: Final = {
    errno.ENETUNREACH: Problem.NET_UNREACHABLE,
    errno.EHOSTUNREACH: Problem.HOST_UNREACHABLE,
    errno.EACCES: Problem.PROHIBITED,
    errno.EPERM: Problem.PROHIBITED,
    errno.ECONNREFUSED: Problem.PORT_UNREACHABLE,
}


class Route:
    """What the guest calls one destination, and where that is on the host."""

    __slots__ = ("address", "destination", "mapping")

    def __init__(self, mapping: UdpMapping, destination: bytes, address: Address) -> None:
        self.mapping = mapping
        self.destination = destination  # address and port, 6 or 18 octets
        self.address = address


class UdpMapping:
    """An endpoint-independent mapping: one host port for whatever the guest's address and port sends."""

    __slots__ = (
        "_marks",
        "_peers",
        "_ports",
        "_socket",
        "_table",
        "_train",
        "_train_octets",
        "_train_route",
        "active_at",
        "address",
        "addressed",
        "bytes_to_guest",
        "bytes_to_host",
        "flags",
        "key",
        "mac",
        "number",
        "opened_at",
        "port",
        "queued_at",
        "remote",
        "routes",
        "tos",
        "touched",
        "ttl",
    )

    def __init__(
        self,
        table: UdpTable,
        number: int,
        key: bytes,
        address: bytes,
        port: int,
        mac: bytes,
        made: socket.socket | None,
    ) -> None:
        self._table = table
        self.key = key
        self._socket = made
        self.number = number
        self.address = address
        self.port = port
        self.mac = mac
        self.opened_at = self.active_at = table.guest.now()
        self.queued_at = NEVER
        self.touched = False
        self.bytes_to_host = 0
        self.bytes_to_guest = 0
        self.addressed = self.remote = ""  # what the guest called last, and where that was, for people
        self.routes: list[Route] = []  # the oldest first
        # a host address that may answer -> the address that the guest knows it by
        self._peers: dict[str, bytes] = {}
        # of what a port of the gateway leads to: address and port, and under which port of the gateway it is known
        self._ports: dict[Address, bytes] = {}
        # the header of the guest's last datagram, as it came: while it stays the same there is nothing to set
        self.ttl = self.tos = self.flags = -1
        self._marks = Marks()
        self._train: list[memoryview] = []
        self._train_route: Route | None = None
        self._train_octets = 0

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    # To the host

    def mark(self, packet: IpPacket) -> None:
        """The datagrams that follow have the header of `packet`."""
        if (packet.ttl, packet.tos, packet.flags_offset) == (self.ttl, self.tos, self.flags):
            return
        self.flush()
        self.ttl, self.tos, self.flags = packet.ttl, packet.tos, packet.flags_offset
        if self._socket is not None:
            self._marks.put(self._socket, ttl=packet.ttl, tos=packet.tos, dont_fragment=packet.dont_fragment)

    def add_route(self, destination: bytes, address: Address) -> Route:
        """The guest speaks to `destination` (address and port), which is `address` on the host."""
        if len(self.routes) >= MAX_PEERS:
            self._table.drop_route(self.routes.pop(0))
        route = Route(self, destination, address)
        self.routes.append(route)
        self.addressed = text((str(ip_address(destination[:-2])), address[1]))
        self.remote = text(address)
        if destination[:-2] == self._table.guest.plan.gateway_ip.packed:
            if len(self._ports) >= MAX_PEERS:
                del self._ports[next(iter(self._ports))]
            self._ports[address] = destination
            return route
        self._peers.pop(address[0], None)  # the last one called is the last one forgotten
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[address[0]] = destination[:-2]
        return route

    def send(self, route: Route, payload: memoryview, gso_size: int) -> bool:
        """One datagram, or with `gso_size` a train that the guest made.  True when `payload` must be held until
        `flush`."""
        train = self._train
        if train and (
            route is not self._train_route
            or len(payload) > len(train[0])
            or len(train[-1]) != len(train[0])  # a shorter one ends a train
            or len(train) >= MAX_TRAIN
            or self._train_octets + len(payload) > MAX_TRAIN_OCTETS
            or gso_size
        ):
            self.flush()
            train = self._train
        if gso_size or not LINUX or not payload:
            if len(payload) > gso_size * MAX_SUPER_FRAME and gso_size:  # or one frame is a system call for each octet
                self._table.guest.count("udp_super_frame")
                return False
            self._send([payload], route, gso_size if len(payload) > gso_size else 0)
            return False
        train.append(payload)
        self._train_octets += len(payload)
        self._train_route = route
        if len(train) == 1:
            self._table.unfinished.append(self)
        return True

    def flush(self) -> None:
        """End of the burst: what was gathered leaves."""
        train, route = self._train, self._train_route
        if train and route is not None:
            self._train = []
            self._train_octets = 0
            self._send(train, route, len(train[0]) if len(train) > 1 else 0)

    def _send(self, parts: list[memoryview], route: Route, size: int) -> None:
        """`parts`, the datagrams of a train, or with `size` one buffer of them as well."""
        host = self._socket
        if host is None:
            return
        for _ in range(2):  # the first try may hand us the error of an earlier datagram
            try:
                if size:
                    segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))
                    self.bytes_to_host += host.sendmsg(parts, [segment], 0, route.address)
                else:
                    self.bytes_to_host += host.sendto(parts[0], route.address)
            except BlockingIOError:
                self._table.guest.count("udp_host_full")  # as a full queue on a router: the datagrams are lost
                return
            except OSError as error:
                errors = self._read_errors()
                mtu = error_queue.too_large_for(errors)
                if mtu is not None and not size:
                    self._table.guest.count("udp_send_emsgsize")
                    if len(self.address) == 16 and host.family == socket.AF_INET:
                        mtu = mtu_behind_nat64(mtu)
                    quoted = self._quote(route.destination, bytes(parts[0][: icmpv6.QUOTE_LIMIT]), len(parts[0]))
                    self._table.guest.out.icmp_quote(quoted, Problem.TOO_LARGE, parameter=mtu)
                    return
                if errors:
                    continue
                if size and error.errno in (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT):
                    self._send_singly(parts, route, size)  # the way out cannot cut trains
                else:
                    self._send_failed(error, route, parts[0])
                return
            else:
                return

    def _send_singly(self, parts: list[memoryview], route: Route, size: int) -> None:
        for part in parts:
            for start in range(0, len(part), size):
                self._send([part[start : start + size]], route, 0)

    def _send_failed(self, error: OSError, route: Route, payload: memoryview) -> None:
        number = error.errno or 0
        self._table.guest.count(f"udp_send_{errno.errorcode.get(number, 'error').lower()}")
        problem = _UNREACHABLE.get(number)
        if problem is not None:
            quoted = self._quote(route.destination, bytes(payload[: icmpv6.QUOTE_LIMIT]), len(payload))
            self._table.guest.out.icmp_quote(quoted, problem)

    # From the host

    def knows(self, address: bytes) -> bool:
        """Whether the guest calls a peer by `address`."""
        return address in self._peers.values() or any(known[:-2] == address for known in self._ports.values())

    def on_ready(self, events: int) -> None:
        if events & HANGUP:
            self._read_errors()
        if events & READABLE:
            self._table.guest.touch_datagrams(self)

    def on_failure(self, error: BaseException) -> None:
        log.error("flow %d udp: internal error", self.number, exc_info=error)
        self._table.guest.count("internal_error")
        self._table.remove(self)

    def receive(self, now: float) -> None:
        """Read what the host has for the guest, up to the budget."""
        host = self._socket
        if host is None:
            return
        table = self._table
        train: list[bytes] = []
        octets = 0
        sender: Address | None = None
        more = True
        for _ in range(RECEIVE_BUDGET):
            try:
                if table.gro:
                    data, ancillary, _, source = host.recvmsg(MAX_DATAGRAM, 64)
                    size = struct.unpack_from("=i", ancillary[0][2])[0] if ancillary else 0
                else:
                    data, source = host.recvfrom(MAX_DATAGRAM)
                    size = 0
            except BlockingIOError:
                more = False
                break
            except OSError:
                if not self._read_errors():
                    more = False
                    break
                continue
            length = len(data)
            if train and (
                source != sender
                or size
                or length > len(train[0])
                or len(train[-1]) != len(train[0])
                or octets + length > MAX_TRAIN_OCTETS
            ):
                self._emit(sender, train, len(train[0]), now)
                train = []
                octets = 0
            if size and length > size:
                self._emit(source, [data], size, now)
                continue
            sender = source
            train.append(data)
            octets += length
        if train:
            self._emit(sender, train, len(train[0]), now)
        if more:
            table.guest.touch_datagrams(self)

    def _emit(self, source: Address | None, train: list[bytes], size: int, now: float) -> None:
        known_as = None
        port = 0
        if source is not None and (found := self._ports and self._ports.get(source)):
            known_as, port = found[:-2], int.from_bytes(found[-2:], "big")
        elif source is not None:
            port = source[1]
            known_as = self._peers.get(source[0]) or self._table.stranger(self, source[0])
        if source is None or known_as is None:
            self._table.guest.count("udp_filtered")  # and refreshes nothing (RFC 7857 section 7)
            return
        self._table.refresh(self, now)
        for data in train:
            self.bytes_to_guest += len(data)
        self._table.emit(known_as, port, self, train, size)

    def _read_errors(self) -> list[HostError]:
        """Empty the socket's error queue, and tell the guest what the network said."""
        return error_queue.tell(self._socket, self._network_error)

    def _network_error(self, error: HostError) -> None:
        """An ICMP error of the network about a datagram of ours.  It ends no mapping (RFC 4787 REQ-12)."""
        guest = self._table.guest
        destination = self._known(error.destination) if error.destination else None
        if destination is None:
            guest.count("udp_icmp_ignored")
            return
        problem = problem_of(error.version, error.kind, error.code)
        if problem is None or (problem is Problem.TOO_LARGE and not self._marks.dont_fragment):
            guest.count("udp_icmp_ignored")
            return
        name = "time_exceeded" if problem in EXPIRIES else errno.errorcode.get(error.number, "error")
        guest.count(f"udp_{name.lower()}")
        guest.out.icmp_passed_on(error, self._quote(destination, error.data, len(error.data)))

    def _known(self, address: Address) -> bytes | None:
        """The address and port by which the guest knows a place of the host's network."""
        known_as = self._peers.get(address[0])
        return self._ports.get(address) or (None if known_as is None else known_as + address[1].to_bytes(2, "big"))

    def _quote(self, destination: bytes, data: bytes, length: int) -> bytes:
        """A datagram of `length` octets to `destination` (address and port), as the guest sent it; `data` begins it."""
        length += udp.HEADER.size
        header = udp.HEADER.pack(self.port, int.from_bytes(destination[-2:], "big"), length, 0)
        ttl = max(self.ttl, 1)
        if len(destination) == 18:
            return bytes(ipv6.encode_header(self.address, destination[:16], ipv4.UDP, length, ttl=ttl)) + header + data
        flags = ipv4.DF if self._marks.dont_fragment else 0
        ip = ipv4.encode_header(self.address, destination[:4], ipv4.UDP, length, ttl=ttl, flags_offset=flags)
        return bytes(ip) + header + data

    # Time

    def next_deadline(self) -> float:
        return self.active_at + IDLE_SECONDS if self._socket is not None else NEVER

    def on_deadline(self, now: float) -> None:
        self._table.guest.count("udp_expired")
        self._table.remove(self)

    def close(self) -> None:
        host, self._socket = self._socket, None
        self._train = []
        if host is not None:
            self._table.guest.poller.unregister(host.fileno())
            host.close()
