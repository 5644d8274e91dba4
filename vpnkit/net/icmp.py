"""The guest's ICMP: echo answered for our own addresses and carried to others, and his errors.

Echo to others is a NAT by identifier (RFC 5508), as UDP is by port; see `PingSession`.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.net.ping import PingSession
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.wire import icmp, ipv4
from vpnkit.wire.checksum import is_valid

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest
    from vpnkit.wire.ipv4 import Ipv4Packet

MAX_SESSIONS: Final = 256  # of one guest; the longest idle one makes place


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
            self._error(kind, code, packet)
            return
        if kind != icmp.ECHO_REQUEST or code:
            self.guest.count("icmp_ignored")  # RFC 5508 REQ-11
            return
        aim = target(Protocol.ICMP, packet.destination, 0, self.guest.plan)
        if aim is Service.ECHO:
            reply = icmp.encode(icmp.ECHO_REPLY, 0, identifier, sequence, bytes(packet.payload[8:]))
            self.guest.out.ip(packet.destination, packet.source, ipv4.ICMP, reply, source_mac)
        elif isinstance(aim, Host):
            if not self.guest.out.expired(packet):
                self._ping(packet, identifier, aim.address, source_mac, now)
        elif aim is Refuse.PROHIBITED:
            self.guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)
        else:
            self.guest.count("icmp_bad_destination")

    def _error(self, kind: int, code: int, packet: Ipv4Packet) -> None:
        """The guest's error about a datagram of ours, if we can have sent it (RFC 5508 REQ-3 and REQ-5)."""
        quoted = packet.payload[icmp.HEADER.size :]
        if len(quoted) < ipv4.HEADER.size + 8 or quoted[0] >> 4 != 4:
            raise WireError("quote in an ICMP error")
        length = (quoted[0] & 15) * 4
        if length < ipv4.HEADER.size or len(quoted) < length + 8 or not is_valid(quoted[:length]):
            raise WireError("header of the quote in an ICMP error")
        about = ipv4.Ipv4Packet(
            quoted[:length],
            quoted[length:],
            quoted[1],
            0,
            0,
            quoted[8],
            quoted[9],
            bytes(quoted[12:16]),
            bytes(quoted[16:20]),
        )
        guest = self.guest
        if about.destination != packet.source:
            guest.count("icmp_error_unmatched")
        elif about.protocol == ipv4.TCP:
            guest.tcp.icmp_error(kind, code, about, int.from_bytes(packet.payload[6:8], "big"))
        elif about.protocol == ipv4.UDP and guest.udp.is_known(
            about.destination, bytes(about.payload[2:4]), about.source
        ):
            guest.count("udp_guest_error")  # and that is all: RFC 4787 REQ-12
        else:
            guest.count("icmp_error_unmatched")

    def _ping(self, packet: Ipv4Packet, identifier: int, address: str, mac: bytes, now: float) -> None:
        guest = self.guest
        key = packet.source + identifier.to_bytes(2, "big")
        session = self.sessions.get(key)
        if session is None:
            session = self._open(key, packet, identifier, mac)
            if session is None:
                guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED)  # RFC 5508 REQ-8
                return
        session.active_at = now
        self.sessions.move_to_end(key)
        try:
            session.send(packet, address)
        except BlockingIOError:
            guest.count("icmp_host_full")
        except OSError as error:
            guest.count("icmp_send_failed")
            code = icmp.NET_UNREACHABLE if error.errno == errno.ENETUNREACH else icmp.HOST_UNREACHABLE
            guest.out.icmp_error(packet, icmp.DEST_UNREACHABLE, code)

    def _open(self, key: bytes, packet: Ipv4Packet, identifier: int, mac: bytes) -> PingSession | None:
        guest = self.guest
        if len(self.sessions) >= MAX_SESSIONS or not guest.admit():
            if not self.sessions:
                return None
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
