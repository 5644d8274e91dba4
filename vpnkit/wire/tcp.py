"""TCP segments, RFC 9293 section 3.1.

source port 2 | destination port 2 | sequence 4 | acknowledgement 4 |
data offset (high 4 bits) 1 | flags 1 | window 2 | checksum 2 | urgent pointer 2 | options ...
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.wire.checksum import Buffer, data_sum, ones_sum, tcp_checksum
from vpnkit.wire.ipv4 import DEFAULT_TTL, DF
from vpnkit.wire.ipv4 import HEADER as IPV4_HEADER
from vpnkit.wire.ipv4 import TCP as PROTOCOL
from vpnkit.wire.ipv6 import HEADER_SIZE as IPV6_HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEADER: Final = struct.Struct("!HHIIBBHHH")
_BLOCK: Final = struct.Struct("!II")

Block = tuple[int, int]  # of a SACK option: the first octet's sequence number, and that after the last one

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20

CHECKSUM_OFFSET: Final = 16

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_MSS: Final = 2
OPTION_WINDOW_SCALE: Final = 3
OPTION_SACK_PERMITTED: Final = 4
OPTION_SACK: Final = 5
MAX_SACK_BLOCKS: Final = 4  # 34 of 40 octets of options
MAX_WINDOW_SCALE: Final = 14  # RFC 7323 section 2.3

DEFAULT_MSS: Final = 536  # RFC 9293 MUST-15
DEFAULT_MSS6: Final = 1220  # over IPv6


@dataclass(slots=True)
class Segment:
    """What one TCP segment says; `options` and `payload` are views into its frame."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    options: memoryview
    payload: memoryview


@dataclass(slots=True)
class SynOptions:
    """The options that a SYN may carry."""

    mss: int = DEFAULT_MSS
    window_scale: int | None = None  # None: not offered
    sack_permitted: bool = False

    def encode(self) -> bytes:
        """MSS and what else is offered; a multiple of four octets."""
        encoded = struct.pack("!BBH", OPTION_MSS, 4, self.mss)
        if self.sack_permitted:
            encoded += struct.pack("!BBBB", OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2)
        if self.window_scale is not None:
            encoded += struct.pack("!BBBB", OPTION_NOP, OPTION_WINDOW_SCALE, 3, self.window_scale)
        return encoded


def decode(data: memoryview) -> Segment:
    """The segment that fills `data`.  Raises WireError."""
    if len(data) < HEADER.size:
        raise WireError(f"TCP segment of {len(data)} octets")
    source, destination, sequence, acknowledgement, offset, flags, window, _, _ = HEADER.unpack_from(data)
    length = (offset >> 4) * 4
    if length < HEADER.size or length > len(data):
        raise WireError(f"TCP header of {length} in {len(data)} octets")
    return Segment(
        source, destination, sequence, acknowledgement, flags, window, data[HEADER.size : length], data[length:]
    )


def _options(options: Buffer) -> Iterator[tuple[int, int, int]]:
    """(kind, where its value begins, length of the value) of each option; raises WireError for an illegal length."""
    i = 0
    while i < len(options):
        kind = options[i]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            i += 1
            continue
        if i + 1 >= len(options) or options[i + 1] < 2 or i + options[i + 1] > len(options):
            raise WireError(f"length of TCP option {kind}")
        yield kind, i + 2, options[i + 1] - 2
        i += options[i + 1]


def decode_syn_options(options: Buffer, default_mss: int = DEFAULT_MSS) -> SynOptions:
    """What a SYN offers; unknown options are skipped.  Raises WireError for an illegal length (MUST-7)."""
    found = SynOptions(default_mss)
    for kind, i, length in _options(options):
        if kind == OPTION_MSS and length == 2:
            found.mss = options[i] << 8 | options[i + 1]
        elif kind == OPTION_WINDOW_SCALE and length == 1:
            found.window_scale = min(options[i], MAX_WINDOW_SCALE)
        elif kind == OPTION_SACK_PERMITTED and length == 0:
            found.sack_permitted = True
    return found


def decode_sack(options: Buffer) -> tuple[Block, ...]:
    """The blocks of a SACK option, as (left edge, right edge); unknown options are skipped.  Raises WireError for an
    illegal length (MUST-7)."""
    found: tuple[Block, ...] = ()
    for kind, i, length in _options(options):
        if kind == OPTION_SACK and length and not length % _BLOCK.size:
            found = tuple(_BLOCK.unpack_from(options, i + j) for j in range(0, length, _BLOCK.size))
    return found


def encode_sack(blocks: Sequence[Block]) -> bytes:
    """A SACK option of at most MAX_SACK_BLOCKS blocks, padded in front (RFC 2018 appendix A); none for no blocks."""
    if not blocks:
        return b""
    head = struct.pack("!BBBB", OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + len(blocks) * _BLOCK.size)
    return head + b"".join(_BLOCK.pack(*block) for block in blocks)


class FrameTemplate:
    """The Ethernet, IPv4 and TCP headers of one direction of one connection.

    Only lengths, numbers, flags and sums change from segment to segment, so a header is two `pack_into` on a buffer
    that is kept.  The buffer is reused: the link takes its octets before the next header is made.
    """

    __slots__ = ("_fixed_sum", "_ip_sum", "_pseudo_sum", "buffer")

    SIZE: int = 14 + IPV4_HEADER.size + HEADER.size
    TRANSPORT: int = 14 + IPV4_HEADER.size  # where the TCP header starts
    GSO: int = 1  # `gso_type` of super-frames with these headers, virtio 1.2 section 5.1.6
    _IP: Final = struct.Struct("!HHHBBH")  # total length, identification, flags, TTL, protocol, header checksum
    _TCP: Final = struct.Struct("!IIBBHHH")

    def __init__(
        self, destination_mac: bytes, source_mac: bytes, source: bytes, destination: bytes, ports: bytes
    ) -> None:
        """`source` and `destination` are 4-octet addresses, `ports` the source and destination port, 4 octets."""
        ip = IPV4_HEADER.pack(0x45, 0, 0, 0, DF, DEFAULT_TTL, PROTOCOL, 0, source, destination)
        self._ip_sum = ones_sum(ip)
        self._pseudo_sum = ones_sum(source + destination) + PROTOCOL
        self._fixed_sum = self._pseudo_sum + ones_sum(ports) + 0x5000
        self.buffer = bytearray(destination_mac + source_mac + b"\x08\x00" + ip + ports + bytes(16))

    def header(self, sequence: int, acknowledgement: int, flags: int, window: int, length: int) -> bytearray:
        """The headers in front of `length` octets of payload, the TCP checksum partial for the link to complete."""
        length += 20
        self._IP.pack_into(
            self.buffer, 16, length + 20, 0, DF, DEFAULT_TTL, PROTOCOL, -(self._ip_sum + length + 20) % 65535
        )
        self._TCP.pack_into(
            self.buffer,
            38,
            sequence,
            acknowledgement,
            0x50,
            flags,
            window,
            (self._pseudo_sum + length) % 65535 or 65535,
            0,
        )
        return self.buffer

    def complete_header(
        self, sequence: int, acknowledgement: int, flags: int, window: int, payload: Buffer
    ) -> bytearray:
        """The headers in front of `payload` with the whole checksum, for a link that completes none.

        As 2**16 is 1 modulo 65535, a 32-bit number weighs as much in the sum as its two halves.  The field is
        `tcp_checksum`, without the call.
        """
        length = 20 + len(payload)
        total = self._fixed_sum + length + sequence + acknowledgement + flags + window + data_sum(payload)
        self._IP.pack_into(
            self.buffer, 16, length + 20, 0, DF, DEFAULT_TTL, PROTOCOL, -(self._ip_sum + length + 20) % 65535
        )
        self._TCP.pack_into(self.buffer, 38, sequence, acknowledgement, 0x50, flags, window, -total % 65535, 0)
        return self.buffer

    def with_options(self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes) -> bytearray:
        """A whole frame without payload, with `options` (a multiple of four octets) and a complete checksum."""
        frame = self.header(sequence, acknowledgement, flags, window, len(options)) + options
        frame[self.TRANSPORT + 12] = (20 + len(options)) << 2
        total = ones_sum(frame[self.TRANSPORT :])
        struct.pack_into("!H", frame, self.TRANSPORT + CHECKSUM_OFFSET, tcp_checksum(total))
        return frame


class FrameTemplate6(FrameTemplate):
    """The same over IPv6."""

    __slots__ = ()

    SIZE = 14 + IPV6_HEADER_SIZE + HEADER.size
    TRANSPORT = 14 + IPV6_HEADER_SIZE
    GSO = 4
    _LENGTH: Final = struct.Struct("!H")

    def __init__(
        self,
        destination_mac: bytes,
        source_mac: bytes,
        source: bytes,
        destination: bytes,
        ports: bytes,
        flow_label: int = 0,
    ) -> None:
        """`source` and `destination` are 16-octet addresses; `flow_label` has 20 bits (RFC 6437)."""
        ip = struct.pack("!IHBB", 6 << 28 | flow_label, 0, PROTOCOL, DEFAULT_TTL) + source + destination
        self._ip_sum = 0
        self._pseudo_sum = ones_sum(source + destination) + PROTOCOL
        self._fixed_sum = self._pseudo_sum + ones_sum(ports) + 0x5000
        self.buffer = bytearray(destination_mac + source_mac + b"\x86\xdd" + ip + ports + bytes(16))

    def header(self, sequence: int, acknowledgement: int, flags: int, window: int, length: int) -> bytearray:
        length += 20
        self._LENGTH.pack_into(self.buffer, 18, length)
        total = (self._pseudo_sum + length) % 65535 or 65535
        self._TCP.pack_into(self.buffer, 58, sequence, acknowledgement, 0x50, flags, window, total, 0)
        return self.buffer

    def complete_header(
        self, sequence: int, acknowledgement: int, flags: int, window: int, payload: Buffer
    ) -> bytearray:
        length = 20 + len(payload)
        total = self._fixed_sum + length + sequence + acknowledgement + flags + window + data_sum(payload)
        self._LENGTH.pack_into(self.buffer, 18, length)
        self._TCP.pack_into(self.buffer, 58, sequence, acknowledgement, 0x50, flags, window, -total % 65535, 0)
        return self.buffer
