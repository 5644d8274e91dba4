"""What we say to the guest of our own: whole frames, datagrams in fragments where they must be, and ICMP errors.

ICMP errors are never sent about what RFC 1122 section 3.2.2 and RFC 4443 section 2.4 forbid, and not faster than a
rate.  They come from the gateway, except where only another can say so: an address of ours that was called, or a
router behind the host.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, TypeAlias

from vpnkit.net.problems import ICMP, ICMPV6, Problem, mtu_behind_nat64, problem_of
from vpnkit.wire import ethernet, icmp, icmpv6, ipv4, ipv6
from vpnkit.wire.ipv4 import Ipv4Packet

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from vpnkit.flow.error_queue import HostError
    from vpnkit.net.guest import Guest
    from vpnkit.wire.checksum import Buffer
    from vpnkit.wire.ipv6 import Ipv6Packet

    IpPacket: TypeAlias = Ipv4Packet | Ipv6Packet

ERRORS_PER_SECOND: Final = 1000  # RFC 1812 section 4.3.2.8; as gVisor
ERROR_BURST: Final = 50
# Every link takes this, RFC 791 and RFC 8200 section 5; a smaller one in an error is forged.
LEAST_MTU: Final = {4: 68, 6: 1280}


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

    def identification6(self) -> int:
        """The same for IPv6, where it has 32 bits; not to be guessed from the last one (RFC 7739)."""
        return self._guest.random.getrandbits(32)

    def frame(self, parts: Sequence[Buffer]) -> None:
        """A whole frame, the concatenation of `parts`."""
        if not self._guest.station.port.deliver(parts):
            self._guest.count("link_full")

    def ip(self, source: bytes, destination: bytes, protocol: int, payload: bytes, mac: bytes) -> None:
        """`payload`, its checksum complete, in one datagram, or in fragments when it is larger than the link's MTU.

        The addresses have 4 or 16 octets.
        """
        guest = self._guest
        mtu = guest.link.capabilities.mtu
        if len(source) == 16:
            header = ethernet.HEADER.pack(mac, guest.plan.server_mac, ethernet.ETHERTYPE_IPV6)
            ip = ipv6.encode_header(source, destination, protocol, len(payload))
            if ipv6.HEADER_SIZE + len(payload) <= mtu:
                self.frame((header, ip, payload))
                return
            for parts in ipv6.fragments(ip, payload, mtu, self.identification6()):
                self.frame((header, *parts))
            return
        header = ethernet.HEADER.pack(mac, guest.plan.server_mac, ethernet.ETHERTYPE_IPV4)
        if ipv4.HEADER.size + len(payload) <= mtu:
            self.frame((header, ipv4.encode_header(source, destination, protocol, len(payload)), payload))
            return
        ip = ipv4.encode_header(
            source, destination, protocol, len(payload), identification=self.identification(), flags_offset=0
        )
        for parts in ipv4.fragments(ip, payload, mtu):
            self.frame((header, *parts))

    # Errors

    def icmp_error(self, about: IpPacket, problem: Problem, *, parameter: int = 0) -> None:
        """An ICMP error about a datagram of the guest, if the rules allow one; `parameter` is the MTU of TOO_LARGE."""
        if self._may_send_error(about):
            limit = icmp.QUOTE_LIMIT if isinstance(about, Ipv4Packet) else icmpv6.QUOTE_LIMIT
            quoted = bytes(about.header) + bytes(about.payload[:limit])
            if problem is Problem.PROTOCOL_UNREACHABLE and not isinstance(about, Ipv4Packet):
                parameter = about.next_header_at
            self._error(quoted, problem, parameter)

    def expired(self, packet: IpPacket) -> bool:
        """Whether a datagram to another than us ends here, because it may pass no router; the guest is told."""
        if packet.ttl > 1 or packet.destination in self._guest.ours:
            return False
        self._guest.count("ttl_expired")
        self.icmp_error(packet, Problem.EXPIRED)
        return True

    def icmp_quote(self, quoted: bytes, problem: Problem, *, parameter: int = 0) -> None:
        """An ICMP error about `quoted`, a datagram as the guest sent it; `parameter` is the MTU of TOO_LARGE."""
        if len(quoted) >= ipv4.HEADER.size and self._may_send_error(None):
            self._error(quoted, problem, parameter)

    def too_large(self, quoted: bytes, mtu: int) -> None:
        """The guest's datagram, which begins with `quoted`, does not fit into a link with that MTU (RFC 1191, 8201)."""
        self.icmp_quote(quoted, Problem.TOO_LARGE, parameter=mtu)

    def parameter_problem(self, problem: ipv6.Ipv6ParameterProblem) -> None:
        """What the decoder found wrong with an IPv6 packet of the guest's, having asked the rules."""
        if self._may_send_error(None):
            source, _, _ = addresses(problem.quoted)
            self._send(
                source,
                self._gateway_for(source),
                icmpv6.PARAMETER_PROBLEM,
                problem.code,
                problem.quoted,
                problem.pointer,
            )

    def icmp_passed_on(self, error: HostError, quoted: bytes) -> None:
        """What a router or a host behind the host said about `quoted`, a datagram as the guest sent it.

        RFC 5508 REQ-4: the kind and who said it stay; behind NAT64 they are translated (RFC 7915 section 4.2).
        """
        guest = self._guest
        source, called, version = addresses(quoted)
        problem = problem_of(error.version, error.kind, error.code)
        mtu = 0
        if problem is Problem.TOO_LARGE:
            mtu = error.info
            if mtu < LEAST_MTU[error.version]:
                guest.count("icmp_bad_mtu")
                return
            if version != error.version:
                mtu = mtu_behind_nat64(mtu)
        if not self._may_send_error(None):
            return
        if version == error.version:
            kind, code = error.kind, error.code
        elif problem is None:
            return
        else:
            kind, code = ICMPV6[problem]
        parameter = mtu
        if version == 6 and kind == icmpv6.PARAMETER_PROBLEM:
            parameter = ipv6.NEXT_HEADER_OFFSET
        offender = error.offender
        if error.destination is not None and offender == packed(error.destination[0]):
            offender = called
        elif version != error.version or self._is_hidden(offender):
            offender = self._speaker(source, called, problem)
        self._send(source, offender, kind, code, quoted, parameter)

    def _error(self, quoted: bytes, problem: Problem, parameter: int) -> None:
        source, called, version = addresses(quoted)
        kind, code = (ICMPV6 if version == 6 else ICMP)[problem]
        self._send(source, self._speaker(source, called, problem), kind, code, quoted, parameter)

    def _speaker(self, source: bytes, called: bytes, problem: Problem | None) -> bytes:
        """The address that the guest called when only its owner can say so, else the gateway's."""
        from_owner = problem is Problem.PORT_UNREACHABLE or called in self._guest.ours
        return called if from_owner else self._gateway_for(source)

    def _gateway_for(self, guest_address: bytes) -> bytes:
        """Our address that the owner of `guest_address` can be told something from."""
        plan = self._guest.plan
        if len(guest_address) == 4:
            return plan.gateway_ip.packed
        if plan.gateway6 is None or guest_address[:2] == b"\xfe\x80":
            return plan.link_local
        return plan.gateway6.packed

    def _is_hidden(self, offender: bytes) -> bool:
        """Whether the guest must not see this address: the host's own, one that means another thing to him, none."""
        guest = self._guest
        plan = guest.plan
        if len(offender) == 16:
            address = IPv6Address(offender)
            return (
                not any(offender[:15])  # :: and ::1
                or address.is_multicast
                or address.is_link_local
                or (plan.prefix6 is not None and address in plan.prefix6)
                or guest.host.is_local(str(address))
            )
        return (
            not offender
            or offender[0] in (0, 127)
            or offender[0] >= 224
            or IPv4Address(offender) in plan.subnet
            or guest.host.is_local(socket.inet_ntoa(offender))
        )

    def _send(self, to: bytes, source: bytes, kind: int, code: int, quoted: bytes, parameter: int) -> None:
        mac = self._guest.mac_of(to)
        if len(to) == 16:
            message = icmpv6.encode_error(kind, code, source, to, quoted, parameter)
            self.ip(source, to, ipv6.ICMPV6, message, mac)
        else:
            self.ip(source, to, ipv4.ICMP, icmp.encode_error(kind, code, quoted, parameter), mac)

    def _may_send_error(self, about: IpPacket | None) -> bool:
        """Whether an error about `about` may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)), and the rate
        allows it."""
        if about is not None and not (
            self._may_be_told(about) if isinstance(about, Ipv4Packet) else self._may_be_told6(about)
        ):
            return False
        if self._errors.allows(self._guest.now()):
            return True
        self._guest.count("icmp_rate_limited")
        return False

    def _may_be_told(self, about: Ipv4Packet) -> bool:
        if about.flags_offset & ipv4.OFFSET_MASK:
            return False
        if about.destination[0] >= 224 or about.destination == self._broadcast:
            return False
        if about.source[0] in (0, 127) or about.source[0] >= 224:
            return False
        return about.protocol != ipv4.ICMP or (len(about.payload) > 0 and about.payload[0] not in icmp.ERRORS)

    @staticmethod
    def _may_be_told6(about: Ipv6Packet) -> bool:
        if about.fragment is not None and about.fragment.offset:
            return False
        if about.destination[0] == 0xFF or about.source[0] == 0xFF or about.source == ipv6.UNSPECIFIED:
            return False
        if about.protocol != ipv6.ICMPV6:
            return True
        return len(about.payload) > 0 and about.payload[0] not in icmpv6.ERRORS and about.payload[0] != icmpv6.REDIRECT


def addresses(quoted: bytes) -> tuple[bytes, bytes, int]:
    """Source and destination address of a datagram, and the version of its header."""
    if quoted[0] >> 4 == 6:
        return quoted[8:24], quoted[24:40], 6
    return quoted[12:16], quoted[16:20], 4


def packed(address: str) -> bytes:
    """The octets of an address of a host socket, without its zone."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return socket.inet_aton(address)
