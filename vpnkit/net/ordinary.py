"""A captured frame as others expect it on a wire: super-frames cut into their segments, checksums complete.

What was captured of a super-frame is mostly its beginning.  Then its later segments have headers and nothing else,
which is what a capture with a short snaplen has of any frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pcap.ring import Direction
from vpnkit.errors import WireError
from vpnkit.wire import ipv4, tcp, udp
from vpnkit.wire.offload import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, complete_checksum, is_partial, locate, segments

if TYPE_CHECKING:
    from pcap.ring import Packet

MAX_LENGTH: Final = 65549  # octets of the largest super-frame


def ordinary(packet: Packet) -> list[Packet]:
    """The frames that `packet` stands for; itself where it cannot be told."""
    if packet.gso_size and packet.length <= MAX_LENGTH:
        cut = _cut(packet)
        if cut:
            return cut
    return [completed(packet)]


def completed(packet: Packet) -> Packet:
    """`packet` with its checksum, where it was captured whole and is no super-frame."""
    if packet.gso_size or len(packet.data) != packet.length:
        return packet
    if packet.checksum_partial or _is_silently_partial(packet):
        done = complete_checksum(packet.data)
        if done is not None:
            return packet._replace(data=bytes(done), checksum_partial=False)
    return packet


def _is_silently_partial(packet: Packet) -> bool:
    """Some guests leave checksums to us on links that have no word for it: see wire/offload.py."""
    if packet.direction != Direction.IN:
        return False
    at = locate(packet.data)
    return at is not None and is_partial(packet.data, at)


def _cut(packet: Packet) -> list[Packet]:
    captured = len(packet.data)
    frame = packet.data + bytes(packet.length - captured)
    at = locate(frame)
    if at is None:
        return []
    if at.protocol == ipv4.TCP:
        kind, start = GSO_TCPV4 if at.version == 4 else GSO_TCPV6, at.start + (frame[at.start + 12] >> 4) * 4
        least = at.start + tcp.HEADER.size
    else:
        kind, start = GSO_UDP_L4, at.start + udp.HEADER.size
        least = start
    if captured < max(start, least):
        return []
    try:
        several = segments(frame, kind, packet.gso_size)
        return [
            packet._replace(
                length=len(segment),
                data=bytes(segment[: max(captured - number * packet.gso_size, start)]),
                gso_size=0,
                checksum_partial=False,
            )
            for number, segment in enumerate(several)
        ]
    except WireError:
        return []
