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
from typing import TYPE_CHECKING, Final

from vpnkit.flow.host import IP_RECVERR
from vpnkit.flow.poller import HANGUP, READABLE
from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import icmp, ipv4, udp

if TYPE_CHECKING:
    from vpnkit.flow.host import Address
    from vpnkit.net.udp import UdpTable

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 300.0  # RFC 4787 REQ-5c
MAX_PEERS: Final = 512  # of one mapping; the oldest is forgotten
RECEIVE_BUDGET: Final = 64  # reads of one socket per turn of the loop
MAX_DATAGRAM: Final = 65507
MAX_TRAIN: Final = 64  # datagrams: UDP_MAX_SEGMENTS of older kernels
MAX_TRAIN_OCTETS: Final = 65000

UDP_SEGMENT: Final = 103  # linux/udp.h, level IPPROTO_UDP
MSG_ERRQUEUE: Final = 0x2000
# linux/errqueue.h struct sock_extended_err: errno 4 | origin 1 | type 1 | code 1 | pad 1 | info 4 | data 4
EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
ORIGIN_ICMP: Final = 2
LINUX: Final = sys.platform == "linux"

_UNREACHABLE: Final = {
    errno.ENETUNREACH: icmp.NET_UNREACHABLE,
    errno.EHOSTUNREACH: icmp.HOST_UNREACHABLE,
    errno.EACCES: icmp.ADMIN_PROHIBITED,
    errno.EPERM: icmp.ADMIN_PROHIBITED,
    errno.ECONNREFUSED: icmp.PORT_UNREACHABLE,
}


class Route:
    """What the guest calls one destination, and where that is on the host."""

    __slots__ = ("address", "destination", "mapping")

    def __init__(self, mapping: UdpMapping, destination: bytes, address: Address) -> None:
        self.mapping = mapping
        self.destination = destination  # address and port, 6 octets
        self.address = address


class UdpMapping:
    """An endpoint-independent mapping: one host port for whatever the guest's address and port sends."""

    __slots__ = (
        "_peers",
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
        "mac",
        "number",
        "opened_at",
        "port",
        "queued_at",
        "remote",
        "routes",
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
        self.addressed = self.remote = ""  # what the guest called last, and where that was, for people
        self.routes: list[Route] = []  # the oldest first
        # a host address that may answer -> the address that the guest knows it by
        self._peers: dict[str, bytes] = {}
        self._train: list[memoryview] = []
        self._train_route: Route | None = None
        self._train_octets = 0

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    # To the host

    def add_route(self, destination: bytes, address: Address) -> Route:
        """The guest speaks to `destination` (address and port), which is `address` on the host."""
        if len(self.routes) >= MAX_PEERS:
            self._table.drop_route(self.routes.pop(0))
        route = Route(self, destination, address)
        self.routes.append(route)
        self._peers.pop(address[0], None)  # the last one called is the last one forgotten
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[address[0]] = destination[:4]
        self.addressed = f"{socket.inet_ntoa(destination[:4])}:{address[1]}"
        self.remote = f"{address[0]}:{address[1]}"
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
                if self._read_errors():
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
        code = _UNREACHABLE.get(number)
        if code is not None:
            self._report(route.destination, code, bytes(payload[: icmp.QUOTE_LIMIT]), len(payload))

    # From the host

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
        known_as = self._peers.get(source[0]) if source is not None else None
        if source is None or known_as is None:
            self._table.guest.count("udp_filtered")  # and refreshes nothing (RFC 7857 section 7)
            return
        self._table.refresh(self, now)
        for data in train:
            self.bytes_to_guest += len(data)
        self._table.emit(known_as, source[1], self, train, size)

    def _read_errors(self) -> bool:
        """Tell the guest what the error queue of the socket holds.  False when it was empty."""
        host = self._socket
        if host is None or not LINUX:
            return False
        found = False
        while True:
            try:
                data, ancillary, _, destination = host.recvmsg(icmp.QUOTE_LIMIT, 512, MSG_ERRQUEUE)
            except OSError:
                return found
            found = True
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR and len(value) >= EXTENDED_ERROR.size:
                    self._host_error(value, destination, data)

    def _host_error(self, value: bytes, destination: Address | None, data: bytes) -> None:
        number, origin, icmp_type, code, _, _ = EXTENDED_ERROR.unpack_from(value)
        known_as = self._peers.get(destination[0]) if destination else None
        if (
            origin == ORIGIN_ICMP
            and icmp_type == icmp.DEST_UNREACHABLE
            and code != icmp.FRAGMENTATION_NEEDED
            and known_as is not None
            and destination
        ):
            self._table.guest.count(f"udp_{errno.errorcode.get(number, 'error').lower()}")
            self._report(known_as + destination[1].to_bytes(2, "big"), code, data, len(data))

    def _report(self, destination: bytes, code: int, data: bytes, length: int) -> None:
        """An ICMP error about a datagram that the guest sent to `destination` (address and port)."""
        header = udp.HEADER.pack(self.port, int.from_bytes(destination[4:], "big"), udp.HEADER.size + length, 0)
        quoted = ipv4.encode_header(self.address, destination[:4], ipv4.UDP, udp.HEADER.size + length)
        self._table.guest.out.icmp_quote(bytes(quoted) + header + data, icmp.DEST_UNREACHABLE, code)

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
