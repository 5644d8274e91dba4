"""Datagrams in a channel, which is a stream: each with an address, a port, a zone and lengths.  vpnkit.md 5.6."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portfwd.mux.wire import MuxError, address_of

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

LENGTH: Final = struct.Struct("<H")
MAX_ZONE: Final = 64
MAX_DATAGRAM: Final = 65527  # octets; what UDP over IPv6 can carry


@dataclass(frozen=True, slots=True)
class Datagram:
    """Today's forwarder says no address in either direction: a channel is one client's."""

    payload: bytes
    address: IPv4Address | IPv6Address | None = None
    port: int = 0
    zone: str = ""


def encode(datagram: Datagram) -> bytes:
    """Raises ValueError for a payload that is too long."""
    if len(datagram.payload) > MAX_DATAGRAM:
        raise ValueError(f"a datagram of {len(datagram.payload)} octets")
    address = datagram.address.packed if datagram.address is not None else b""
    zone = datagram.zone.encode()
    body = b"".join(
        (
            LENGTH.pack(len(address)),
            address,
            LENGTH.pack(datagram.port),
            LENGTH.pack(len(zone)),
            zone,
            LENGTH.pack(len(datagram.payload)),
            datagram.payload,
        )
    )
    return LENGTH.pack((len(body) + LENGTH.size) & 0xFFFF) + body  # it wraps, and nobody looks at it


class Datagrams:
    """Cuts what comes out of a channel into datagrams."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[Datagram]:
        """The datagrams that `data` completes.  Raises MuxError."""
        self._buffer += data
        found = []
        position = 0
        while (cut := self._one(position)) is not None:
            datagram, position = cut
            found.append(datagram)
        del self._buffer[:position]
        return found

    def _one(self, start: int) -> tuple[Datagram, int] | None:
        buffer = self._buffer
        position = start + LENGTH.size
        fields = []
        for name, limit in (("address", 16), ("zone", MAX_ZONE), ("payload", 65535)):
            if len(buffer) < position + LENGTH.size:
                return None
            [length] = LENGTH.unpack_from(buffer, position)
            if length > limit:
                raise MuxError(f"a datagram whose {name} has {length} octets")
            position += LENGTH.size
            fields.append(bytes(buffer[position : position + length]))
            position += length
            if name == "address":
                if len(buffer) < position + LENGTH.size:
                    return None
                [port] = LENGTH.unpack_from(buffer, position)
                position += LENGTH.size
        if len(buffer) < position:
            return None
        address, zone, payload = fields
        where = address_of(address) if address else None
        return Datagram(payload, where, port, zone.decode(errors="replace")), position
