"""What we say to the guest of our own: whole frames, datagrams in fragments where they must be, and ICMP errors.

ICMP errors are never sent about what RFC 1122 section 3.2.2 forbids, and not faster than a rate.  They come from the
gateway, except where only another can say so: an address of ours that was called, or a router behind the host.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from vpnkit.wire import ethernet, icmp, ipv4

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from vpnkit.flow.error_queue import HostError
    from vpnkit.net.guest import Guest
    from vpnkit.wire.checksum import Buffer

ERRORS_PER_SECOND: Final = 1000  # RFC 1812 section 4.3.2.8; as gVisor
ERROR_BURST: Final = 50
LEAST_MTU: Final = 68  # RFC 791: every link takes this; a smaller one in an error is forged


class RateLimit:
    """A token bucket that takes none, one or two tokens, as Linux's: who counts the errors that still come learns
    nothing of those that others had (SAD DNS, CVE-2020-25705)."""

    __slots__ = ("_burst", "_random", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: int, rng: random.Random) -> None:
        self._rate = rate
        self._random = rng
        self._burst = burst
        self._tokens = float(burst)
        self._then = 0.0

    def allows(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= self._random.randrange(3)
        return True


class Output:
    """One guest's frames that belong to no flow.  What a full link does not take waits in the queue of his port."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._broadcast = guest.plan.subnet.broadcast_address.packed
        self._errors = RateLimit(ERRORS_PER_SECOND, ERROR_BURST, guest.random)
        self._identification = guest.random.randrange(65536)

    def identification(self) -> int:
        """For a datagram that may be fragmented: none of the last 65535 had it (RFC 6864 section 4.1)."""
        self._identification = (self._identification + 1) & 0xFFFF
        return self._identification

    def frame(self, parts: Sequence[Buffer]) -> None:
        """A whole frame, the concatenation of `parts`."""
        if not self._guest.station.port.deliver(parts):
            self._guest.count("link_full")

    def ip(self, source: bytes, destination: bytes, protocol: int, payload: bytes, mac: bytes) -> None:
        """`payload`, its checksum complete, in one datagram, or in fragments when it is larger than the link's MTU."""
        guest = self._guest
        header = ethernet.HEADER.pack(mac, guest.plan.server_mac, ethernet.ETHERTYPE_IPV4)
        mtu = guest.link.capabilities.mtu
        if ipv4.HEADER.size + len(payload) <= mtu:
            self.frame((header, ipv4.encode_header(source, destination, protocol, len(payload)), payload))
            return
        ip = ipv4.encode_header(
            source, destination, protocol, len(payload), identification=self.identification(), flags_offset=0
        )
        for parts in ipv4.fragments(ip, payload, mtu):
            self.frame((header, *parts))

    def icmp_error(self, about: ipv4.Ipv4Packet, kind: int, code: int, *, parameter: int = 0) -> None:
        """An ICMP error about a datagram of the guest, if the rules allow one; for `parameter` see `encode_error`."""
        if self._may_send_error(about):
            quoted = bytes(about.header) + bytes(about.payload[: icmp.QUOTE_LIMIT])
            self._icmp_error(quoted, kind, code, parameter, self._speaker(quoted[16:20], kind, code))

    def expired(self, packet: ipv4.Ipv4Packet) -> bool:
        """Whether a datagram to another than us ends here, because it may pass no router; the guest is told."""
        if packet.ttl > 1 or packet.destination in self._guest.ours:
            return False
        self._guest.count("ttl_expired")
        self.icmp_error(packet, icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED)
        return True

    def icmp_quote(self, quoted: bytes, kind: int, code: int, *, parameter: int = 0) -> None:
        """An ICMP error about `quoted`, a datagram as the guest sent it."""
        if len(quoted) >= ipv4.HEADER.size and self._may_send_error(None):
            self._icmp_error(quoted, kind, code, parameter, self._speaker(quoted[16:20], kind, code))

    def too_large(self, quoted: bytes, mtu: int) -> None:
        """The guest's datagram, which begins with `quoted`, does not fit into a link with that MTU (RFC 1191)."""
        self.icmp_quote(quoted, icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, parameter=mtu)

    def icmp_passed_on(self, error: HostError, quoted: bytes) -> None:
        """What a router or a host behind the host said about `quoted`, a datagram as the guest sent it.

        RFC 5508 REQ-4: the kind and who said it stay.
        """
        guest = self._guest
        about_mtu = error.kind == icmp.DEST_UNREACHABLE and error.code == icmp.FRAGMENTATION_NEEDED
        if about_mtu and error.info < LEAST_MTU:
            guest.count("icmp_bad_mtu")
            return
        if not self._may_send_error(None):
            return
        called = quoted[16:20]
        source = error.offender
        if error.destination is not None and source == socket.inet_aton(error.destination[0]):
            source = called
        elif self._is_hidden(source):
            source = self._speaker(called, error.kind, error.code)
        self._icmp_error(quoted, error.kind, error.code, error.info if about_mtu else 0, source)

    def _speaker(self, called: bytes, kind: int, code: int) -> bytes:
        """The address that the guest called when only its owner can say so, else the gateway's."""
        guest = self._guest
        from_owner = kind == icmp.DEST_UNREACHABLE and code == icmp.PORT_UNREACHABLE
        return called if from_owner or called in guest.ours else guest.plan.gateway_ip.packed

    def _is_hidden(self, offender: bytes) -> bool:
        """Whether the guest must not see this address: the host's own, one that means another thing to him, none."""
        guest = self._guest
        return (
            not offender
            or offender[0] in (0, 127)
            or offender[0] >= 224
            or IPv4Address(offender) in guest.plan.subnet
            or guest.host.is_local(socket.inet_ntoa(offender))
        )

    def _icmp_error(self, quoted: bytes, kind: int, code: int, parameter: int, source: bytes) -> None:
        message = icmp.encode_error(kind, code, quoted, parameter)
        self.ip(source, quoted[12:16], ipv4.ICMP, message, self._guest.mac_of(quoted[12:16]))

    def _may_send_error(self, about: ipv4.Ipv4Packet | None) -> bool:
        """Whether an error about `about` may be sent (RFC 1122 section 3.2.2), and the rate allows it."""
        if about is not None:
            if about.flags_offset & ipv4.OFFSET_MASK:
                return False
            if about.destination[0] >= 224 or about.destination == self._broadcast:
                return False
            if about.source[0] in (0, 127) or about.source[0] >= 224:
                return False
            if about.protocol == ipv4.ICMP and (len(about.payload) < 1 or about.payload[0] in icmp.ERRORS):
                return False
        if self._errors.allows(self._guest.now()):
            return True
        self._guest.count("icmp_rate_limited")
        return False
