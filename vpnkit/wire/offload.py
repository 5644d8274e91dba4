"""What a link without offloads needs done in software to a frame that came from a link with them, and back.

A link with offloads carries TCP and UDP with partial checksums (the field holds the pseudo-header's sum, and whoever
has the hardware adds the rest) and super-frames (one header in front of up to 64 KiB, to be cut at `gso_size`): virtio
1.2 section 5.1.6.  Some guests send both over links that have no place to say so (libkrun: passt-slirp-qemu.md 4.8);
such a frame is known by a checksum field that is exactly the pseudo-header's sum, and by being too long.

802.1Q tags are passed over.  Fragments, AH and segments under way by a routing header are left as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from vpnkit.errors import WireError
from vpnkit.wire import ethernet, ipv4, ipv6, tcp, udp
from vpnkit.wire.checksum import Buffer, checksum, data_sum, fold, ones_sum, tcp_checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

# Generic segmentation offload, `gso_type` of virtio 1.2 section 5.1.6.
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5

MAX_SEGMENTS: Final = 1024  # of one super-frame, so that gso_size 1 is no way to keep us busy: 64 KiB in 64s

VLAN_TAGS: Final = frozenset({0x8100, 0x88A8})

CWR: Final = 0x80  # RFC 3168 section 6.1: the first segment tells
LAST_ONLY: Final = tcp.FIN | tcp.PSH
UNCUTTABLE: Final = tcp.SYN | tcp.RST

# ethertype | version and IHL, total length, flags and fragment offset, protocol | source, destination
_IPV4: Final = struct.Struct("!HBxHxxHxBxxII")
_FIELD: Final = struct.Struct("!H")
_PAIR: Final = struct.Struct("!HH")
_SEQUENCE: Final = struct.Struct("!I")

Outgoing: TypeAlias = tuple[Sequence[Buffer], int, int, int, int, int]
"""parts, checksum_start, checksum_offset, gso_type, gso_size, header_length: the arguments of Link.send."""


class Capabilities(Protocol):
    """What a link can do: tapdev.link.LinkCapabilities."""

    @property
    def mtu(self) -> int: ...
    @property
    def checksum(self) -> bool: ...
    @property
    def tso4(self) -> bool: ...
    @property
    def tso6(self) -> bool: ...
    @property
    def uso(self) -> bool: ...


class Transport(NamedTuple):
    """Where the TCP or UDP of a frame is."""

    network: int  # offset of the IP header
    version: int  # 4 or 6
    start: int  # offset of the transport header
    end: int  # behind the transport's last octet; what follows is padding
    protocol: int
    pseudo: int  # the pseudo-header's sum, not reduced

    @property
    def field(self) -> int:
        """Offset of the checksum from `start`."""
        return tcp.CHECKSUM_OFFSET if self.protocol == ipv4.TCP else udp.CHECKSUM_OFFSET


def locate(frame: Buffer) -> Transport | None:
    """The whole TCP or UDP of `frame`; None when there is none, it is a fragment, or its lengths are wrong."""
    if len(frame) < 14 + ipv4.HEADER.size + udp.HEADER.size:
        return None
    network = 14
    ethertype, version_ihl, total, flags_offset, protocol, source, destination = _IPV4.unpack_from(frame, 12)
    while ethertype in VLAN_TAGS and network <= 18:
        if len(frame) < network + 4 + ipv4.HEADER.size:
            return None
        network += 4
        ethertype, version_ihl, total, flags_offset, protocol, source, destination = _IPV4.unpack_from(
            frame, network - 2
        )
    if ethertype == ethernet.ETHERTYPE_IPV6:
        return _locate_ipv6(frame, network)
    start = network + (version_ihl & 15) * 4
    end = network + total
    if (
        ethertype != ethernet.ETHERTYPE_IPV4
        or not 0x45 <= version_ihl <= 0x4F
        or flags_offset & (ipv4.MF | ipv4.OFFSET_MASK)
        or end > len(frame)
    ):
        return None
    return _transport(frame, network, 4, start, end, protocol, source + destination)


def _locate_ipv6(frame: Buffer, network: int) -> Transport | None:
    start = network + ipv6.HEADER_SIZE
    if len(frame) < start or frame[network] >> 4 != 6:
        return None
    end = start + (frame[network + 4] << 8 | frame[network + 5])
    if end > len(frame):
        return None
    following = frame[network + 6]
    for _ in range(ipv6.MAX_EXTENSIONS):
        if following in (ipv4.TCP, ipv4.UDP):
            addresses = ones_sum(frame[network + 8 : network + ipv6.HEADER_SIZE])
            return _transport(frame, network, 6, start, end, following, addresses)
        if following not in ipv6.EXTENSIONS or start + 8 > end:
            return None
        if following == ipv6.ROUTING and frame[start + 3]:
            return None  # the sum is over an address that is not in the header yet
        following = frame[start]
        start += (frame[start + 1] + 1) * 8
    return None


def _transport(
    frame: Buffer, network: int, version: int, start: int, end: int, protocol: int, addresses: int
) -> Transport | None:
    if protocol == ipv4.TCP:
        if start + tcp.HEADER.size > end:
            return None
    elif protocol == ipv4.UDP:
        if start + udp.HEADER.size > end:
            return None
        length = frame[start + 4] << 8 | frame[start + 5]
        if length < udp.HEADER.size or start + length > end:
            return None
        end = start + length
    else:
        return None
    return Transport(network, version, start, end, protocol, addresses + protocol + end - start)


def _checksum_of(frame: Buffer, at: Transport) -> int:
    """What is in the checksum field."""
    offset = at.start + at.field
    return frame[offset] << 8 | frame[offset + 1]


def _is_unsummed(frame: Buffer, at: Transport) -> bool:
    """A datagram that goes without a checksum, as UDP over IPv4 may (RFC 768)."""
    return at.protocol == ipv4.UDP and at.version == 4 and not _checksum_of(frame, at)


def complete_checksum(frame: Buffer) -> bytearray | None:
    """A copy of `frame` with its TCP or UDP checksum computed, whatever the field held.

    None when there is nothing to complete: no whole TCP or UDP, or UDP that goes without.
    """
    at = locate(frame)
    return None if at is None or _is_unsummed(frame, at) else _completed(frame, at)


def _completed(frame: Buffer, at: Transport) -> bytearray:
    total = at.pseudo + data_sum(memoryview(frame)[at.start : at.end]) + 65535 - _checksum_of(frame, at)
    done = bytearray(frame)
    check = tcp_checksum(total) if at.protocol == ipv4.TCP else checksum(total)
    _FIELD.pack_into(done, at.start + at.field, check)
    return done


def partial_checksum(frame: Buffer) -> tuple[bytearray, int, int] | None:
    """A copy of `frame` with the pseudo-header's sum in its checksum field, checksum_start and checksum_offset.

    None when `complete_checksum` says None.
    """
    at = locate(frame)
    if at is None or _is_unsummed(frame, at):
        return None
    return _partial(frame, at), at.start, at.field


def _partial(frame: Buffer, at: Transport) -> bytearray:
    done = bytearray(frame)
    _FIELD.pack_into(done, at.start + at.field, fold(at.pseudo))
    return done


def is_partial(frame: Buffer, at: Transport) -> bool:
    """Whether the checksum is the pseudo-header's alone, though nobody said so, and would not pass as a whole one."""
    if _checksum_of(frame, at) % 65535 != at.pseudo % 65535:
        return False
    return (at.pseudo + data_sum(memoryview(frame)[at.start : at.end])) % 65535 != 0


def is_super_frame(frame: Buffer, mtu: int) -> bool:
    """Whether `frame` is too long for a link of `mtu`, and TCP, so that it can be cut."""
    if len(frame) <= mtu + ethernet.HEADER.size:
        return False
    at = locate(frame)
    return at is not None and at.protocol == ipv4.TCP and at.end - at.network > mtu


def segments(frame: Buffer, gso_type: int, gso_size: int) -> Iterator[bytearray]:
    """The ordinary frames that a super-frame stands for, each with `gso_size` octets of payload, the last with the
    rest, and every checksum complete.

    As Linux cuts them: the headers are copied with all options, the sequence number and the IPv4 identification go
    on, FIN and PSH are on the last segment only and CWR on the first.  Raises WireError, at once, for what is no
    super-frame of that type, would be more than MAX_SEGMENTS, or has SYN or RST.
    """
    at = locate(frame)
    if at is None:
        raise WireError(f"super-frame of {len(frame)} octets without a whole TCP or UDP")
    start = _payload_start(frame, at)
    _check_super_frame(frame, at, start, gso_type, gso_size)
    return _cut(frame, at, start, gso_size)


def _gso_type(at: Transport) -> int:
    if at.protocol == ipv4.UDP:
        return GSO_UDP_L4
    return GSO_TCPV4 if at.version == 4 else GSO_TCPV6


def _payload_start(frame: Buffer, at: Transport) -> int:
    """The length of all headers.  Raises WireError."""
    if at.protocol == ipv4.UDP:
        return at.start + udp.HEADER.size
    length = (frame[at.start + 12] >> 4) * 4
    if length < tcp.HEADER.size or at.start + length > at.end:
        raise WireError(f"TCP header of {length} in {at.end - at.start} octets")
    return at.start + length


def _check_super_frame(frame: Buffer, at: Transport, start: int, gso_type: int, gso_size: int) -> None:
    """Raises WireError for what must not be cut so."""
    length = at.end - start
    if gso_type != _gso_type(at):
        raise WireError(f"gso_type {gso_type} on IPv{at.version} protocol {at.protocol}")
    if gso_size < 1 or length > gso_size * MAX_SEGMENTS:
        raise WireError(f"super-frame with {length} octets of payload in segments of {gso_size}")
    if at.protocol == ipv4.TCP and length > gso_size and frame[at.start + 13] & UNCUTTABLE:
        raise WireError(f"super-frame with TCP flags {frame[at.start + 13]:#04x}")


def _cut(frame: Buffer, at: Transport, start: int, size: int) -> Iterator[bytearray]:
    header = bytearray(frame[:start])
    payload = memoryview(frame)[start : at.end]
    network = _NetworkHeader(header, at)
    transport = _TcpHeader(header, at) if at.protocol == ipv4.TCP else _UdpHeader(header, at)
    headers = start - at.start
    for number, offset in enumerate(range(0, max(len(payload), 1), size)):
        part = payload[offset : offset + size]
        network.set(number, headers + len(part))
        transport.set(offset, part, offset + size >= len(payload))
        yield header + part


class _NetworkHeader:
    """The IP header of one super-frame's segments, one after the other in the same buffer."""

    __slots__ = ("_header", "_identification", "_length", "_network", "_sum", "_version")

    def __init__(self, header: bytearray, at: Transport) -> None:
        self._header = header
        self._version = at.version
        self._network = network = at.network
        self._length = at.start - network
        self._identification = self._sum = 0
        if at.version == 4:
            self._identification = _FIELD.unpack_from(header, network + 4)[0]
            _PAIR.pack_into(header, network + 2, 0, 0)
            _FIELD.pack_into(header, network + 10, 0)
            self._sum = ones_sum(header[network : at.start])

    def set(self, number: int, length: int) -> None:
        """Make it that of segment `number`, with `length` octets of transport."""
        header, network = self._header, self._network
        total = self._length + length
        if self._version == 6:
            _FIELD.pack_into(header, network + 4, total - ipv6.HEADER_SIZE)
            return
        identification = (self._identification + number) & 0xFFFF
        _PAIR.pack_into(header, network + 2, total, identification)
        _FIELD.pack_into(header, network + 10, checksum(self._sum + total + identification))


class _TcpHeader:
    """The TCP header likewise."""

    __slots__ = ("_flags", "_header", "_length", "_sequence", "_start", "_sum", "_urgent")

    def __init__(self, header: bytearray, at: Transport) -> None:
        self._header = header
        self._start = start = at.start
        self._length = len(header) - start
        self._sequence = _SEQUENCE.unpack_from(header, start + 4)[0]
        self._flags = header[start + 13]
        self._urgent = _FIELD.unpack_from(header, start + 18)[0] if self._flags & tcp.URG else 0
        _SEQUENCE.pack_into(header, start + 4, 0)
        header[start + 13] = 0
        _PAIR.pack_into(header, start + 16, 0, 0)
        self._sum = at.pseudo - (at.end - start) + self._length + ones_sum(header[start:])

    def set(self, offset: int, part: memoryview, last: bool) -> None:
        """Make it that of `part`, which starts `offset` octets behind the first."""
        header, start = self._header, self._start
        sequence = (self._sequence + offset) & 0xFFFFFFFF
        flags = self._flags
        if not last:
            flags &= ~LAST_ONLY
        if offset:
            flags &= ~CWR
        urgent = self._urgent - offset  # it counts from the segment's own sequence number
        if urgent <= 0:
            flags &= ~tcp.URG
            urgent = 0
        _SEQUENCE.pack_into(header, start + 4, sequence)
        header[start + 13] = flags
        total = self._sum + sequence + flags + urgent + len(part) + data_sum(part)
        _PAIR.pack_into(header, start + 16, tcp_checksum(total), urgent)


class _UdpHeader:
    """The UDP header likewise."""

    __slots__ = ("_header", "_start", "_sum", "_summed")

    def __init__(self, header: bytearray, at: Transport) -> None:
        self._header = header
        self._start = start = at.start
        self._summed = not _is_unsummed(header, at)
        _PAIR.pack_into(header, start + 4, 0, 0)
        self._sum = at.pseudo - (at.end - start) + ones_sum(header[start:])

    def set(self, offset: int, part: memoryview, last: bool) -> None:
        length = udp.HEADER.size + len(part)
        total = self._sum + 2 * length + data_sum(part)  # the length is in the pseudo-header too
        _PAIR.pack_into(self._header, self._start + 4, length, checksum(total) if self._summed else 0)


def adapt(
    frame: Buffer,
    gso_type: int,
    gso_size: int,
    checksum_partial: bool,
    source: Capabilities,
    destination: Capabilities,
) -> Sequence[Outgoing]:
    """What to send on a link with the capabilities of `destination` for a frame that a link with those of `source`
    received with this metadata.  The parts may be views of `frame`.

    Handed on as it is, with metadata, where the destination can take it so; otherwise completed and cut.  Nothing
    for a frame that is too long for the destination and cannot be cut, or is malformed.
    """
    mtu = destination.mtu
    if source.checksum and not gso_type and not checksum_partial and len(frame) <= mtu + ethernet.HEADER.size:
        return (((frame,), 0, 0, 0, 0, 0),)
    at = locate(frame)
    if not gso_type and _fits(frame, mtu):
        if at is None or not (checksum_partial or is_partial(frame, at)) or _is_unsummed(frame, at):
            return (((frame,), 0, 0, 0, 0, 0),)
        if destination.checksum:
            return (((frame,), at.start, at.field, 0, 0, 0),)
        return (((_completed(frame, at),), 0, 0, 0, 0, 0),)
    if at is None or not (gso_type or at.protocol == ipv4.TCP):
        return ()
    try:
        return _adapt_super_frame(frame, at, gso_type or _gso_type(at), gso_size if gso_type else mtu, destination)
    except WireError:
        return ()


def _adapt_super_frame(
    frame: Buffer, at: Transport, gso_type: int, gso_size: int, destination: Capabilities
) -> Sequence[Outgoing]:
    start = _payload_start(frame, at)
    room = destination.mtu - (start - at.network)
    if gso_size > room:
        if at.protocol == ipv4.UDP and at.end - start > room:
            return ()  # a datagram has the size that it has
        gso_size = room
    _check_super_frame(frame, at, start, gso_type, gso_size)
    if not (destination.checksum and _can_send(gso_type, destination)):
        return [((segment,), 0, 0, 0, 0, 0) for segment in _cut(frame, at, start, gso_size)]
    if _checksum_of(frame, at) % 65535 != at.pseudo % 65535:
        frame = _partial(frame, at)
    parts = (memoryview(frame)[: at.end],)
    if at.end - start <= gso_size:
        return ((parts, at.start, at.field, 0, 0, 0),)
    return ((parts, at.start, at.field, gso_type, gso_size, start),)


def _can_send(gso_type: int, destination: Capabilities) -> bool:
    if gso_type == GSO_TCPV4:
        return destination.tso4
    return destination.tso6 if gso_type == GSO_TCPV6 else destination.uso


def _fits(frame: Buffer, mtu: int) -> bool:
    """As an ordinary frame; a tag does not count."""
    excess = len(frame) - mtu - ethernet.HEADER.size
    return excess <= 0 or (excess <= 4 and (frame[12] << 8 | frame[13]) in VLAN_TAGS)
