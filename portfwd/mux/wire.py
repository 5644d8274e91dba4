"""The bits of the multiplexed forwarder protocol: the handshake and the five frames.

vpnkit.md 5.4; the byte vectors are those of go/test_inputs.  Everything is little-endian, but IP addresses.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

MAGIC: Final = b"https://github.com/moby/vpnkit multiplexer protocol\n"
HEADER: Final = struct.Struct("<HBI")  # octets of the header with these two, command, channel
LENGTH: Final = struct.Struct("<H")
PAYLOAD: Final = struct.Struct("<I")
SEQUENCE: Final = struct.Struct("<Q")

MAX_HEADER: Final = 4096  # octets; the longest that means something is an Open with a path
MAX_PAYLOAD: Final = 1 << 20  # octets of one Data frame; the original's sides send 64 KiB at the most
MAX_GREETING: Final = 1024  # octets after the magic, of which today's sides send none


class MuxError(Exception):
    """What came is not this protocol."""


class Command(IntEnum):
    OPEN = 1
    CLOSE = 2
    SHUTDOWN = 3
    DATA = 4
    WINDOW = 5


class Protocol(IntEnum):
    TCP = 1
    UDP = 2
    UNIX = 3


DEDICATED: Final = 1  # the rest of the connection is one channel: nobody sends this
MULTIPLEXED: Final = 2


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a channel leads, inside the guest: an address and a port, or a path."""

    protocol: Protocol
    address: IPv4Address | IPv6Address | None = None
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.address is None:
            return f"unix:{self.path}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.protocol.name.lower()}:{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Open:
    channel: int
    destination: Destination
    connection: int = MULTIPLEXED


@dataclass(frozen=True, slots=True)
class Close:
    channel: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    channel: int


@dataclass(frozen=True, slots=True)
class Data:
    """Its payload follows the header."""

    channel: int
    length: int


@dataclass(frozen=True, slots=True)
class Window:
    """So many octets, counted from the first of the channel, may be sent."""

    channel: int
    sequence: int


Frame: TypeAlias = Open | Close | Shutdown | Data | Window


def greeting(payload: bytes = b"") -> bytes:
    """What each side says first."""
    return MAGIC + LENGTH.pack(len(payload)) + payload


def greeting_length(data: bytes) -> int | None:
    """Octets of the greeting that `data` begins with, None when too few are there.  Raises MuxError."""
    start = data[: len(MAGIC)]
    if not MAGIC.startswith(start):
        raise MuxError(f"the other side begins with {start[:16]!r}, which is no forwarder's greeting")
    if len(data) < len(MAGIC) + LENGTH.size:
        return None
    length = LENGTH.unpack_from(data, len(MAGIC))[0]
    if length > MAX_GREETING:
        raise MuxError(f"a greeting of {length} octets, at most {MAX_GREETING} are taken")
    whole = len(MAGIC) + LENGTH.size + int(length)
    return whole if len(data) >= whole else None


def encode(frame: Frame) -> bytes:
    """The header of `frame`."""
    match frame:
        case Open(channel, destination, connection):
            command, extra = Command.OPEN, bytes([connection]) + _destination(destination)
        case Close(channel):
            command, extra = Command.CLOSE, b""
        case Shutdown(channel):
            command, extra = Command.SHUTDOWN, b""
        case Data(channel, length):
            command, extra = Command.DATA, PAYLOAD.pack(length)
        case Window(channel, sequence):
            command, extra = Command.WINDOW, SEQUENCE.pack(sequence)
    return HEADER.pack(HEADER.size + len(extra), command, channel) + extra


def header_length(data: bytes | bytearray | memoryview) -> int | None:
    """Octets of the header that `data` begins with, None when too few are there.  Raises MuxError."""
    if len(data) < LENGTH.size:
        return None
    length = int(LENGTH.unpack_from(data)[0])
    if not HEADER.size <= length <= MAX_HEADER:
        raise MuxError(f"a header of {length} octets")
    return length if len(data) >= length else None


def decode(header: bytes) -> Frame:
    """The frame of a whole header.  Raises MuxError.  What follows the known fields is ignored."""
    try:
        length, command, channel = HEADER.unpack_from(header)
        extra = header[HEADER.size : length]
        if command == Command.OPEN:
            return Open(channel, _decode_destination(extra[1:]), extra[0])
        if command == Command.CLOSE:
            return Close(channel)
        if command == Command.SHUTDOWN:
            return Shutdown(channel)
        if command == Command.DATA:
            [payload] = PAYLOAD.unpack_from(extra)
            if payload > MAX_PAYLOAD:
                raise MuxError(f"a data frame of {payload} octets, at most {MAX_PAYLOAD} are taken")
            return Data(channel, payload)
        if command == Command.WINDOW:
            return Window(channel, SEQUENCE.unpack_from(extra)[0])
    except (struct.error, IndexError):
        raise MuxError(f"a truncated header: {header[:64].hex()}") from None
    raise MuxError(f"command {command} is not one of 1 to 5")


def _destination(destination: Destination) -> bytes:
    if destination.address is None:
        path = os.fsencode(destination.path)
        return bytes([destination.protocol]) + LENGTH.pack(len(path)) + path
    packed = destination.address.packed
    return bytes([destination.protocol]) + LENGTH.pack(len(packed)) + packed + LENGTH.pack(destination.port)


def _decode_destination(data: bytes) -> Destination:
    kind = data[0]
    [length] = LENGTH.unpack_from(data, 1)
    value = data[3 : 3 + length]
    if len(value) != length:
        raise MuxError(f"a destination of {length} octets, of which {len(value)} are there")
    if kind == Protocol.UNIX:
        if not value or 0 in value:
            raise MuxError(f"{value!r} is no path of a unix socket")
        return Destination(Protocol.UNIX, path=os.fsdecode(value))
    if kind not in (Protocol.TCP, Protocol.UDP):
        raise MuxError(f"protocol {kind} of a destination is not one of 1 to 3")
    [port] = LENGTH.unpack_from(data, 3 + length)
    return Destination(Protocol(kind), address_of(value), port)


def address_of(packed: bytes) -> IPv4Address | IPv6Address:
    """An address of 4 or 16 octets; the host of today sends IPv4 mapped into IPv6.  Raises MuxError."""
    if len(packed) not in (4, 16):
        raise MuxError(f"an address of {len(packed)} octets")
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
