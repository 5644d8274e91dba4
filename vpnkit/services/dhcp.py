"""The DHCP service of one LAN: octets in, octets and a destination out.  The caller builds UDP, 67 to 68, and IP.

Checksums of requests were not verified on the way here (the VMN3T client sends zeros), so nothing is believed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.proto.leases import Drop
from vpnkit.wire import dhcp

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.proto.dhcp import DhcpServer
    from vpnkit.wire.dhcp import Buffer

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68


@dataclass(frozen=True)
class DhcpAnswer:
    """A UDP payload for CLIENT_PORT, to be sent on the link that asked and on no other."""

    payload: bytes
    destination_mac: bytes
    destination_ip: bytes
    client_mac: bytes
    assigned: bytes | None  # what the client has from now on, when this is an ACK that gave it
    offered: bytes | None = None  # what an OFFER names, when the client did not have it before


class DhcpService:
    """One server and what happened to it.  `dropped` counts by reason; the reasons are a fixed set."""

    def __init__(self, server: DhcpServer) -> None:
        self.server = server
        self.received = 0
        self.answered = 0
        self.dropped: Counter[str] = Counter()
        self.on_datagram: Callable[[], None] = lambda: None  # before an answer: what is told may have changed

    def datagram(
        self,
        payload: Buffer,
        source_mac: bytes,
        source_ip: bytes,
        now: float,
        *,
        mtu: int | None = None,
        may_speak_for: Callable[[bytes], bool] = lambda mac: True,
    ) -> DhcpAnswer | None:
        """Answer a datagram to SERVER_PORT, or count why not.

        A client gives up an address only in his own name: the frame's source must be the client of the message.
        `mtu`, in octets, is that of the client's link; None tells everybody the configured one.
        """
        self.received += 1
        self.on_datagram()
        try:
            message = dhcp.decode(payload)
        except WireError:
            self.dropped["malformed"] += 1
            return None
        kind = message.kind
        if kind in (dhcp.RELEASE, dhcp.DECLINE) and message.chaddr != source_mac:
            self.dropped["not the owner"] += 1
            return None
        if message.chaddr != source_mac and not may_speak_for(message.chaddr):
            self.dropped["not the owner"] += 1
            return None
        if kind == dhcp.INFORM and message.ciaddr == dhcp.ANY:
            message.ciaddr = source_ip  # some clients forget it; the server checks that it is one of the LAN
        reply = self.server.receive(message, now)
        if isinstance(reply, Drop):
            self.dropped[reply.reason] += 1
            return None
        self.answered += 1
        told = reply.message
        if mtu is not None and dhcp.INTERFACE_MTU in told.options:
            told.options[dhcp.INTERFACE_MTU] = mtu.to_bytes(2, "big")
        assigned = told.yiaddr if told.kind == dhcp.ACK and told.yiaddr != dhcp.ANY else None
        offered = told.yiaddr if reply.fresh else None
        return DhcpAnswer(told.encode(), reply.destination_mac, reply.destination_ip, told.chaddr, assigned, offered)
