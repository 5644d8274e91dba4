"""Which ARP packet answers which, RFC 826 and RFC 5227.

We answer for our own addresses only, never for a guest's: a probe for his own address must stay unanswered, or he
takes it for a conflict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.wire.arp import REPLY, REQUEST, ArpPacket

if TYPE_CHECKING:
    from collections.abc import Container


def answer(packet: ArpPacket, ours: Container[bytes], our_mac: bytes) -> ArpPacket | None:
    """The reply to `packet`, or None.  A request whose sender claims an address of ours is defended by the same
    reply."""
    if packet.operation != REQUEST:
        return None
    if packet.target_ip in ours:
        return ArpPacket(REPLY, our_mac, packet.target_ip, packet.sender_mac, packet.sender_ip)
    return None
