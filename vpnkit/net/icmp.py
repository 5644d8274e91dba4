"""The guest's ICMP: echo answered for our own addresses and carried to others, and errors made and rate limited.

Others are pinged with the host's unprivileged ping sockets where the host allows them (`net.ipv4.ping_group_range`),
with one raw socket otherwise when we are root, and not at all, with one warning, where both are forbidden.
"""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.flow.poller import READABLE
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import icmp, ipv4

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest
    from vpnkit.wire.ipv4 import Ipv4Packet

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 60.0  # RFC 5508 REQ-2
MAX_SESSIONS: Final = 256  # of one guest; the longest idle one makes place
RECEIVE_BUDGET: Final = 64


class PingSession:
    """One echo identifier of the guest towards one host: a ping socket, or a share of the raw one."""

    __slots__ = (
        "_raw",
        "_socket",
        "_table",
        "active_at",
        "bytes_to_guest",
        "bytes_to_host",
        "destination",
        "identifier",
        "key",
        "mac",
        "number",
        "opened_at",
        "queued_at",
        "source",
    )

    def __init__(
        self,
        table: IcmpTable,
        number: int,
        packet: Ipv4Packet,
        identifier: int,
        mac: bytes,
        made: socket.socket,
        *,
        raw: bool,
    ) -> None:
        self._table = table
        self._socket: socket.socket | None = made
        self._raw = raw
        self.number = number
        self.source = packet.source
        self.destination = packet.destination
        self.identifier = identifier
        self.mac = mac
        self.key = packet.source + packet.destination + identifier.to_bytes(2, "big")
        self.opened_at = self.active_at = table.guest.now()
        self.queued_at = NEVER
        self.bytes_to_host = 0
        self.bytes_to_guest = 0

    def send(self, message: memoryview, address: str, ttl: int) -> None:
        host = self._socket
        if host is None:
            return
        _, _, _, sequence = icmp.decode_echo(message)
        host.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, max(ttl, 1))
        # A ping socket puts its own identifier in; a raw one sends ours, which the kernel may share with nobody.
        wire = icmp.encode(icmp.ECHO_REQUEST, 0, self._wire_identifier, sequence, bytes(message[8:]))
        host.sendto(wire, (address, 0))
        self.bytes_to_host += len(wire) - icmp.HEADER.size

    @property
    def _wire_identifier(self) -> int:
        return self.number & 0xFFFF

    def on_ready(self, events: int) -> None:
        if not events & READABLE:
            return
        host = self._socket
        for _ in range(RECEIVE_BUDGET):
            if host is None:
                return
            try:
                data, address = host.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an earlier echo; the guest's ping times out
            if self._raw:
                data = data[(data[0] & 15) * 4 :]
            self._received(data, address[0])

    def _received(self, data: bytes, address: str) -> None:
        if len(data) < icmp.HEADER.size:
            return
        kind, _, identifier, sequence = icmp.decode_echo(data)
        if kind != icmp.ECHO_REPLY or (self._raw and identifier != self._wire_identifier):
            return
        if socket.inet_aton(address) != self.destination:
            return
        reply = icmp.encode(icmp.ECHO_REPLY, 0, self.identifier, sequence, data[8:])
        self.bytes_to_guest += len(data) - icmp.HEADER.size
        self._table.guest.out.ip(self.destination, self.source, ipv4.ICMP, reply, self.mac)

    def on_failure(self, error: BaseException) -> None:
        log.error("flow %d icmp: internal error", self.number, exc_info=error)
        self._table.guest.count("internal_error")
        self._table.remove(self)

    def next_deadline(self) -> float:
        return self.active_at + IDLE_SECONDS if self._socket is not None else NEVER

    def on_deadline(self, now: float) -> None:
        self._table.remove(self)

    def close(self) -> None:
        host, self._socket = self._socket, None
        if host is not None:
            self._table.guest.poller.unregister(host.fileno())
            host.close()


class IcmpTable:
    """Every ping session of one guest, the longest idle first."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.sessions: OrderedDict[bytes, PingSession] = OrderedDict()

    def message(self, packet: Ipv4Packet, source_mac: bytes, now: float) -> None:
        """One ICMP message of the guest.  Raises WireError."""
        icmp.check(packet.payload)
        kind, code, identifier, _ = icmp.decode_echo(packet.payload)
        if kind in icmp.ERRORS:
            self._error(kind, code, packet)
            return
        if kind != icmp.ECHO_REQUEST or code:
            self.guest.count("icmp_ignored")
            return
        aim = target(Protocol.ICMP, packet.destination, 0, self.guest.plan)
        if aim is Service.ECHO:
            message = packet.payload
            _, _, identifier, sequence = icmp.decode_echo(message)
            reply = icmp.encode(icmp.ECHO_REPLY, 0, identifier, sequence, bytes(message[8:]))
            self.guest.out.ip(packet.destination, packet.source, ipv4.ICMP, reply, source_mac)
        elif isinstance(aim, Host):
            self._ping(packet, identifier, aim.address, source_mac, now)
        elif aim is Refuse.PROHIBITED:
            self.guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
        else:
            self.guest.count("icmp_bad_destination")

    def _error(self, kind: int, code: int, packet: Ipv4Packet) -> None:
        quoted = packet.payload[icmp.HEADER.size :]
        if len(quoted) < ipv4.HEADER.size + 8 or quoted[0] >> 4 != 4:
            raise WireError("quote in an ICMP error")
        header_length = (quoted[0] & 15) * 4
        if quoted[9] == ipv4.TCP and header_length >= ipv4.HEADER.size:
            about = ipv4.Ipv4Packet(
                quoted[:header_length],
                quoted[header_length:],
                0,
                0,
                0,
                0,
                ipv4.TCP,
                bytes(quoted[12:16]),
                bytes(quoted[16:20]),
            )
            if about.destination == packet.source:
                self.guest.tcp.icmp_error(kind, code, about)

    def _ping(self, packet: Ipv4Packet, identifier: int, address: str, mac: bytes, now: float) -> None:
        guest = self.guest
        key = packet.source + packet.destination + identifier.to_bytes(2, "big")
        session = self.sessions.get(key)
        if session is None:
            session = self._open(packet, identifier, mac)
            if session is None:
                guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
                return
        session.active_at = now
        self.sessions.move_to_end(key)
        try:
            session.send(packet.payload, address, packet.ttl)
        except BlockingIOError:
            guest.count("icmp_host_full")
        except OSError as error:
            guest.count("icmp_send_failed")
            code = icmp.NET_UNREACHABLE if error.errno == 101 else icmp.HOST_UNREACHABLE
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, code)

    def _open(self, packet: Ipv4Packet, identifier: int, mac: bytes) -> PingSession | None:
        guest = self.guest
        if len(self.sessions) >= MAX_SESSIONS:
            guest.count("icmp_evicted")
            self.remove(next(iter(self.sessions.values())))
        try:
            made, raw = guest.host.ping_socket()
        except OSError as error:
            guest.warn_once(
                "ping",
                f"ping to other hosts does not work: {error.strerror}; widen net.ipv4.ping_group_range or run as root",
            )
            return None
        session = PingSession(self, guest.next_number(), packet, identifier, mac, made, raw=raw)
        self.sessions[session.key] = session
        guest.poller.register(made.fileno(), session)
        guest.update_deadline(session)
        return session

    def remove(self, session: PingSession) -> None:
        self.sessions.pop(session.key, None)
        session.close()

    def close(self) -> None:
        for session in list(self.sessions.values()):
            self.remove(session)
