"""The DHCPv6 service of one LAN: octets in, octets out, and what they gave.  The caller builds UDP, 547 to 546."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpnkit.errors import WireError
from vpnkit.proto.leases import Drop
from vpnkit.wire import dhcpv6

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.proto.dhcpv6 import Dhcpv6Server


@dataclass(frozen=True)
class Dhcpv6Answer:
    """A UDP payload for the client's port 546, and the addresses, 16 octets, that he has from now on."""

    payload: bytes
    assigned: tuple[bytes, ...]


class Dhcpv6Service:
    """One server and what happened to it.  `dropped` counts by reason; the reasons are a fixed set."""

    def __init__(self, server: Dhcpv6Server, is_offered: Callable[[], bool] = lambda: True) -> None:
        """`is_offered` says whether there is IPv6 on the LAN now."""
        self.server = server
        self._is_offered = is_offered
        self.received = 0
        self.answered = 0
        self.dropped: Counter[str] = Counter()
        self.on_datagram: Callable[[], None] = lambda: None  # before an answer: what is told may have changed

    def datagram(
        self, payload: bytes | memoryview, source_mac: bytes, now: float, *, multicast: bool
    ) -> Dhcpv6Answer | None:
        """Answer a datagram to port 547, or count why not."""
        self.received += 1
        self.on_datagram()
        reason = "not offered"
        if self._is_offered():
            try:
                message = dhcpv6.decode(payload)
            except WireError:
                relayed = len(payload) > 0 and payload[0] in (dhcpv6.RELAY_FORW, dhcpv6.RELAY_REPL)
                reason = "relayed" if relayed else "malformed"
            else:
                reply = self.server.receive(message, source_mac, now, multicast=multicast)
                if not isinstance(reply, Drop):
                    self.answered += 1
                    return Dhcpv6Answer(reply.message.encode(), reply.assigned)
                reason = reply.reason
        self.dropped[reason] += 1
        return None
