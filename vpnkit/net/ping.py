"""One echo identifier of the guest, and the host socket that stands for it, whatever hosts it asks (RFC 5508 REQ-1).

Others are pinged with the host's unprivileged ping sockets where the host allows them (`net.ipv4.ping_group_range`),
with a raw socket otherwise when we are root, and not at all, with one warning, where both are forbidden.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

from vpnkit.flow import error_queue
from vpnkit.flow.error_queue import HostError
from vpnkit.flow.marks import Marks
from vpnkit.flow.poller import HANGUP, READABLE
from vpnkit.net.problems import EXPIRIES, Problem, mtu_behind_nat64, problem_of
from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import icmp, icmpv6, ipv4, ipv6
from vpnkit.wire.checksum import checksum, ones_sum

if TYPE_CHECKING:
    from vpnkit.net.icmp import IcmpTable
    from vpnkit.net.output import IpPacket

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 60.0  # RFC 5508 REQ-2
MAX_PEERS: Final = 512  # of one identifier; the oldest is forgotten
RECEIVE_BUDGET: Final = 64  # reads of one socket per turn of the loop


class PingSession:
    """An endpoint-independent mapping of an identifier: a ping socket, or a share of what raw sockets hear."""

    __slots__ = (
        "_host6",
        "_marks",
        "_peers",
        "_raw",
        "_socket",
        "_table",
        "_ttl",
        "_wire_identifier",
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
        "remote",
        "source",
        "touched",
    )

    def __init__(
        self,
        table: IcmpTable,
        number: int,
        key: bytes,
        packet: IpPacket,
        identifier: int,
        mac: bytes,
        made: socket.socket,
        *,
        raw: bool,
    ) -> None:
        self._table = table
        self._socket: socket.socket | None = made
        self._raw = raw
        self._host6 = made.family == socket.AF_INET6
        # The kernel gives a ping socket an identifier of its own, and hands everybody's to a raw one.
        self._wire_identifier = table.guest.random.randrange(1, 65536) if raw else 0
        self._marks = Marks()
        self._ttl = ipv4.DEFAULT_TTL
        self._peers: dict[str, bytes] = {}  # hosts that may answer, and what the guest calls them
        self.number = number
        self.source = packet.source
        self.destination = packet.destination  # the last one, and what it is on the host, for people
        self.remote = ""
        self.identifier = identifier
        self.mac = mac
        self.key = key
        self.opened_at = self.active_at = table.guest.now()
        self.queued_at = NEVER
        self.touched = False
        self.bytes_to_host = 0
        self.bytes_to_guest = 0

    # To the host

    def send(self, packet: IpPacket, address: str) -> None:
        """The guest's echo request, to `address`.  Raises OSError."""
        host = self._socket
        if host is None:
            return
        self.destination, self.remote = packet.destination, address
        self._peers.pop(address, None)  # the last one called is the last one forgotten
        if len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[address] = packet.destination
        self._ttl = packet.ttl
        self._marks.put(host, ttl=packet.ttl, tos=packet.tos, dont_fragment=packet.dont_fragment)
        _, _, _, sequence = icmp.decode_echo(packet.payload)
        data = bytes(packet.payload[8:])
        if self._host6:  # the kernel fills in the checksum, over addresses that only it knows
            wire = icmpv6.ECHO.pack(icmpv6.ECHO_REQUEST, 0, 0, self._wire_identifier, sequence) + data
        else:
            wire = icmp.encode(icmp.ECHO_REQUEST, 0, self._wire_identifier, sequence, data)
        for attempt in range(2):  # the first try may hand us the error of an earlier request
            try:
                host.sendto(wire, (address, 0))
            except BlockingIOError:
                raise
            except OSError:
                errors = self._read_errors()
                mtu = error_queue.too_large_for(errors)
                if mtu is not None:
                    if len(self.source) == 16 and not self._host6:
                        mtu = mtu_behind_nat64(mtu)
                    self._table.guest.out.icmp_error(packet, Problem.TOO_LARGE, parameter=mtu)
                    return
                if not errors or attempt:
                    raise
            else:
                self.bytes_to_host += len(wire) - icmp.HEADER.size
                return

    # From the host

    def on_ready(self, events: int) -> None:
        if events & HANGUP:
            self._read_errors()
        if events & READABLE:
            self._table.guest.touch_datagrams(self)

    def receive(self, now: float) -> None:
        """Read what came, up to the budget; the edge is behind us, so come again if that was not all."""
        host = self._socket
        if host is None:
            return
        for _ in range(RECEIVE_BUDGET):
            try:
                data, address = host.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                if not self._read_errors():
                    return
                continue
            if self._raw and not self._host6:
                data = data[(data[0] & 15) * 4 :]
            self._received(data, address[0])
        self._table.guest.touch_datagrams(self)

    def _received(self, data: bytes, address: str) -> None:
        if len(data) < icmp.HEADER.size:
            return
        kind, _, identifier, sequence = icmp.decode_echo(data)
        if self._raw and not error_queue.LINUX and not self._host6 and kind in icmp.ERRORS:
            self._heard_error(data, address)
            return
        expected = icmpv6.ECHO_REPLY if self._host6 else icmp.ECHO_REPLY
        if kind != expected or (self._raw and identifier != self._wire_identifier):
            return
        known_as = self._peers.get(address)
        if known_as is None:
            self._table.guest.count("icmp_filtered")
            return
        self.bytes_to_guest += len(data) - icmp.HEADER.size
        self._table.reply(known_as, self.source, self.identifier, sequence, data[8:], self.mac)

    def _heard_error(self, data: bytes, address: str) -> None:
        """An ICMP error among the messages, where there is no error queue."""
        kind, code, _, mtu = icmp.decode_echo(data)
        quoted = data[icmp.HEADER.size :]
        if len(quoted) < ipv4.HEADER.size or quoted[9] != ipv4.ICMP:
            return
        destination = (socket.inet_ntoa(quoted[16:20]), 0)
        message = quoted[(quoted[0] & 15) * 4 :][: icmp.QUOTE_LIMIT]
        offender = socket.inet_aton(address)
        self._network_error(HostError(0, error_queue.ORIGIN_ICMP, kind, code, mtu, offender, destination, message))

    def _read_errors(self) -> list[HostError]:
        """Empty the socket's error queue, and tell the guest what the network said."""
        return error_queue.tell(self._socket, self._network_error)

    def _network_error(self, error: HostError) -> None:
        """An ICMP error of the network: RFC 5508 REQ-4 and REQ-6, it neither ends the session nor refreshes it."""
        guest = self._table.guest
        known_as = self._peers.get(error.destination[0]) if error.destination else None
        if len(error.data) < icmp.HEADER.size or known_as is None:
            return
        kind, code, identifier, sequence = icmp.decode_echo(error.data)
        expected = icmpv6.ECHO_REQUEST if self._host6 else icmp.ECHO_REQUEST
        if kind != expected or code or (self._raw and identifier != self._wire_identifier):
            return  # a raw socket hears of everybody's
        problem = problem_of(error.version, error.kind, error.code)
        if problem is None:
            guest.count("icmp_error_ignored")
            return
        guest.count("icmp_time_exceeded" if problem in EXPIRIES else "icmp_unreachable")
        guest.out.icmp_passed_on(error, self._quote(known_as, sequence, identifier, error.data))

    def _quote(self, known_as: bytes, sequence: int, identifier: int, sent: bytes) -> bytes:
        """The guest's request, of which we sent `sent` with `identifier`, as far as it was quoted.

        Only the identifier differed, and so the checksum (RFC 1624), which covers more than was quoted; between the
        families also the type and the addresses.
        """
        check = 65535 - int.from_bytes(sent[2:4], "big") - identifier + self.identifier
        ttl = max(self._ttl, 1)
        if len(self.source) == 4:
            flags = ipv4.DF if self._marks.dont_fragment else 0
            ip = ipv4.encode_header(self.source, known_as, ipv4.ICMP, len(sent), ttl=ttl, flags_offset=flags)
            head = icmp.HEADER.pack(icmp.ECHO_REQUEST, 0, checksum(check), self.identifier, sequence)
            return bytes(ip) + head + sent[icmp.HEADER.size :]
        ip = ipv6.encode_header(self.source, known_as, ipv6.ICMPV6, len(sent), ttl=ttl)
        head = icmpv6.ECHO.pack(icmpv6.ECHO_REQUEST, 0, 0, self.identifier, sequence)
        total = ipv6.pseudo_sum(self.source, known_as, ipv6.ICMPV6, len(sent)) + ones_sum(head + sent[8:])
        head = icmpv6.ECHO.pack(icmpv6.ECHO_REQUEST, 0, checksum(total), self.identifier, sequence)
        return bytes(ip) + head + sent[icmp.HEADER.size :]

    def on_failure(self, error: BaseException) -> None:
        log.error("flow %d icmp: internal error", self.number, exc_info=error)
        self._table.guest.count("internal_error")
        self._table.remove(self)

    # Time

    def next_deadline(self) -> float:
        return self.active_at + IDLE_SECONDS if self._socket is not None else NEVER

    def on_deadline(self, now: float) -> None:
        self._table.guest.count("icmp_expired")
        self._table.remove(self)

    def close(self) -> None:
        host, self._socket = self._socket, None
        if host is not None:
            self._table.guest.poller.unregister(host.fileno())
            host.close()
