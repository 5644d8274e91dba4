"""The guest's ICMP and ICMPv6: echo answered for our own addresses and carried to others, and his errors.

Echo to others is a NAT by identifier (RFC 5508), as UDP is by port; see `PingSession`.
"""

from __future__ import annotations

import errno
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.flow.host import family_of
from vpnkit.net.ping import PingSession
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.net.problems import Problem, problem_of
from vpnkit.wire import icmp, icmpv6, ipv4, ipv6
from vpnkit.wire.checksum import is_valid
from vpnkit.wire.ipv4 import Ipv4Packet

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest
    from vpnkit.net.output import IpPacket
    from vpnkit.wire.ipv6 import Ipv6Packet

MAX_SESSIONS: Final = 256  # of one guest; the longest idle one makes place
LISTENERS: Final = frozenset(
    {icmpv6.LISTENER_QUERY, icmpv6.LISTENER_REPORT, icmpv6.LISTENER_DONE, icmpv6.LISTENER_REPORT_V2}
)


class IcmpTable:
    """Every ping session of one guest, the longest idle first."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.sessions: OrderedDict[bytes, PingSession] = OrderedDict()

    def message(self, packet: Ipv4Packet, source_mac: bytes, now: float) -> None:
        """One ICMP message of the guest.  Raises WireError."""
        icmp.check(packet.payload)
        kind, code, identifier, sequence = icmp.decode_echo(packet.payload)
        if kind in icmp.ERRORS:
            parameter = int.from_bytes(packet.payload[6:8], "big")
            self._error(problem_of(4, kind, code), packet, _quoted(packet.payload[icmp.HEADER.size :]), parameter)
        elif kind != icmp.ECHO_REQUEST or code:
            self.guest.count("icmp_ignored")  # RFC 5508 REQ-11
        else:
            self._echo(packet, identifier, sequence, source_mac, now)

    def message6(self, packet: Ipv6Packet, source_mac: bytes, now: float) -> None:
        """One ICMPv6 message of the guest that is not neighbour discovery's.  Raises WireError."""
        icmpv6.check(packet)
        kind, code, identifier, sequence = icmpv6.decode_echo(packet.payload)
        if packet.destination[0] == 0xFF:
            self.guest.count("listener_ignored" if kind in LISTENERS else "icmp_ignored")
        elif kind in icmpv6.ERRORS:
            parameter = int.from_bytes(packet.payload[4:8], "big")
            about = ipv6.decode_quote(packet.payload[icmpv6.HEADER.size :])
            self._error(problem_of(6, kind, code), packet, about, parameter)
        elif kind != icmpv6.ECHO_REQUEST or code:
            self.guest.count("icmp_ignored")  # RFC 4443 section 2.4 (b)
        else:
            self._echo(packet, identifier, sequence, source_mac, now)

    def reply(self, source: bytes, destination: bytes, identifier: int, sequence: int, data: bytes, mac: bytes) -> None:
        """An echo reply to the guest's `destination`."""
        if len(source) == 4:
            message = icmp.encode(icmp.ECHO_REPLY, 0, identifier, sequence, data)
            self.guest.out.ip(source, destination, ipv4.ICMP, message, mac)
        else:
            rest = identifier << 16 | sequence
            message = icmpv6.encode(icmpv6.ECHO_REPLY, 0, source, destination, rest, data)
            self.guest.out.ip(source, destination, ipv6.ICMPV6, message, mac)

    def _echo(self, packet: IpPacket, identifier: int, sequence: int, source_mac: bytes, now: float) -> None:
        guest = self.guest
        aim = target(Protocol.ICMP, packet.destination, 0, guest.plan, nat64=guest.nat64)
        if aim is Service.ECHO:
            data = bytes(packet.payload[8:])
            self.reply(packet.destination, packet.source, identifier, sequence, data, source_mac)
        elif isinstance(aim, Host):
            if not guest.out.expired(packet):
                self._ping(packet, identifier, aim.address, source_mac, now)
        elif aim is Refuse.PROHIBITED:
            guest.out.icmp_error(packet, Problem.PROHIBITED)
        else:
            guest.count("icmp_bad_destination")

    def _error(self, problem: Problem | None, packet: IpPacket, about: IpPacket, parameter: int) -> None:
        """The guest's error about a datagram of ours, if we can have sent it (RFC 5508 REQ-3 and REQ-5)."""
        guest = self.guest
        if about.destination != packet.source:
            guest.count("icmp_error_unmatched")
        elif about.protocol == ipv4.TCP:
            guest.tcp.icmp_error(problem, about, parameter)
        elif about.protocol == ipv4.UDP and guest.udp.is_known(
            about.destination, bytes(about.payload[2:4]), about.source
        ):
            guest.count("udp_guest_error")  # and that is all: RFC 4787 REQ-12
        else:
            guest.count("icmp_error_unmatched")

    def _ping(self, packet: IpPacket, identifier: int, address: str, mac: bytes, now: float) -> None:
        guest = self.guest
        family = family_of(address)
        key = packet.source + identifier.to_bytes(2, "big")
        if family == socket.AF_INET and len(packet.source) == 16:
            key += b"\4"  # behind NAT64
        session = self.sessions.get(key)
        if session is None:
            session = self._open(key, packet, identifier, mac, family)
            if session is None:
                guest.out.icmp_error(packet, Problem.PROHIBITED)  # RFC 5508 REQ-8
                return
        session.active_at = now
        self.sessions.move_to_end(key)
        try:
            session.send(packet, address)
        except BlockingIOError:
            guest.count("icmp_host_full")
        except OSError as error:
            guest.count("icmp_send_failed")
            unreachable = Problem.NET_UNREACHABLE if error.errno == errno.ENETUNREACH else Problem.HOST_UNREACHABLE
            guest.out.icmp_error(packet, unreachable)

    def _open(
        self, key: bytes, packet: IpPacket, identifier: int, mac: bytes, family: socket.AddressFamily
    ) -> PingSession | None:
        guest = self.guest
        if len(self.sessions) >= MAX_SESSIONS or not guest.admit():
            if not self.sessions:
                return None
            guest.count("icmp_evicted")
            self.remove(next(iter(self.sessions.values())))
        try:
            made, raw = guest.host.ping_socket(family)
        except OSError as error:
            guest.warn_once(
                "ping",
                f"ping to other hosts does not work: {error.strerror}; widen net.ipv4.ping_group_range or run as root",
            )
            return None
        session = PingSession(self, guest.next_number(), key, packet, identifier, mac, made, raw=raw)
        self.sessions[key] = session
        guest.poller.register(made.fileno(), session)
        guest.update_deadline(session)
        return session

    def remove(self, session: PingSession) -> None:
        if self.sessions.get(session.key) is session:
            del self.sessions[session.key]
        session.close()

    def close(self) -> None:
        for session in list(self.sessions.values()):
            self.remove(session)


def _quoted(quoted: memoryview) -> Ipv4Packet:
    """The datagram that an ICMP error is about.  Raises WireError."""
    if len(quoted) < ipv4.HEADER.size + 8 or quoted[0] >> 4 != 4:
        raise WireError("quote in an ICMP error")
    length = (quoted[0] & 15) * 4
    if length < ipv4.HEADER.size or len(quoted) < length + 8 or not is_valid(quoted[:length]):
        raise WireError("header of the quote in an ICMP error")
    source, destination = bytes(quoted[12:16]), bytes(quoted[16:20])
    header, payload = quoted[:length], quoted[length:]
    return Ipv4Packet(header, payload, quoted[1], 0, 0, quoted[8], quoted[9], source, destination)
