"""What we say to the guest of our own: whole frames, datagrams in fragments where they must be, and ICMP errors.

ICMP errors are never sent about what RFC 1122 section 3.2.2 forbids, and not faster than a rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vpnkit.wire import ethernet, icmp, ipv4

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.net.guest import Guest
    from vpnkit.wire.checksum import Buffer

ERRORS_PER_SECOND: Final = 1000  # RFC 1812 section 4.3.2.8; as gVisor
ERROR_BURST: Final = 50


class RateLimit:
    """A token bucket."""

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._then = 0.0

    def allows(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Output:
    """One guest's frames that belong to no flow.  What a full link does not take is lost, as on a wire."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._errors = RateLimit(ERRORS_PER_SECOND, ERROR_BURST)

    def frame(self, parts: Sequence[Buffer]) -> None:
        """A whole frame, the concatenation of `parts`."""
        if not self._guest.link.send(parts):
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
            source, destination, protocol, len(payload), identification=guest.random.randrange(65536), flags_offset=0
        )
        for parts in ipv4.fragments(ip, payload, mtu):
            self.frame((header, *parts))

    def icmp_error(self, about: ipv4.Ipv4Packet, kind: int, code: int) -> None:
        """An ICMP error about a datagram of the guest, if the rules allow one."""
        if self._may_send_error(about):
            self._icmp_error(bytes(about.header) + bytes(about.payload[: icmp.QUOTE_LIMIT]), kind, code)

    def icmp_quote(self, quoted: bytes, kind: int, code: int) -> None:
        """An ICMP error about `quoted`, a datagram as the guest sent it."""
        if len(quoted) >= ipv4.HEADER.size and self._may_send_error(None):
            self._icmp_error(quoted, kind, code)

    def _icmp_error(self, quoted: bytes, kind: int, code: int) -> None:
        """From the address that the guest called when only its owner can say so, else from the gateway."""
        guest = self._guest
        called = quoted[16:20]
        source = called if code == icmp.PORT_UNREACHABLE or called in guest.ours else guest.plan.gateway_ip.packed
        self.ip(source, quoted[12:16], ipv4.ICMP, icmp.encode_error(kind, code, quoted), guest.mac_of(quoted[12:16]))

    def _may_send_error(self, about: ipv4.Ipv4Packet | None) -> bool:
        """Whether an error about `about` may be sent (RFC 1122 section 3.2.2), and the rate allows it."""
        if about is not None:
            if about.flags_offset & ipv4.OFFSET_MASK:
                return False
            first = about.destination[0]
            if first >= 224 or about.source[0] in (0, 127) or about.source[0] >= 224:
                return False
            if about.protocol == ipv4.ICMP and (len(about.payload) < 1 or about.payload[0] in icmp.ERRORS):
                return False
        if self._errors.allows(self._guest.now()):
            return True
        self._guest.count("icmp_rate_limited")
        return False
