"""ARP for IPv4 over Ethernet, RFC 826.

htype 2 | ptype 2 | hlen 1 | plen 1 | op 2 | sender MAC 6 | sender IP 4 | target MAC 6 | target IP 4
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from vpnkit.wire.checksum import Buffer

PACKET: Final = struct.Struct("!HHBBH6s4s6s4s")
REQUEST: Final = 1
REPLY: Final = 2


@dataclass(slots=True)
class ArpPacket:
    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes

    def encode(self) -> bytes:
        return PACKET.pack(
            1, 0x0800, 6, 4, self.operation, self.sender_mac, self.sender_ip, self.target_mac, self.target_ip
        )


def decode(data: Buffer) -> ArpPacket:
    """The ARP packet at the start of `data`; padding after it is ignored.  Raises WireError."""
    if len(data) < PACKET.size:
        raise WireError(f"ARP packet of {len(data)} octets")
    htype, ptype, hlen, plen, operation, sender_mac, sender_ip, target_mac, target_ip = PACKET.unpack_from(data)
    if (htype, ptype, hlen, plen) != (1, 0x0800, 6, 4):
        raise WireError("ARP for something else than IPv4 over Ethernet")
    if operation not in (REQUEST, REPLY):
        raise WireError(f"ARP operation {operation}")
    return ArpPacket(operation, sender_mac, sender_ip, target_mac, target_ip)
