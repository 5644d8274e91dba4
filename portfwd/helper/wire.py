"""The bits of the bind protocol, vmnetd's: vpnkit.md 5.7.  Little-endian, but the IPv6 address.

    client  Init       "VMN3T" | u32 version 22 | 40 octets           server  Init, the same
    client  Bind_ipv4  u8 6    | IPv4 address, reversed | u16 port | u8 kind            8 octets, or padded to 41
            Bind_ipv6  u8 0x86 | IPv6 address, network order | u16 port | u8 kind      20 octets
    server  u64 result, whose 0 comes with the bound socket (SCM_RIGHTS); 48 and 49 are errnos of macOS, where it began

Bind_ipv6 is ours.  vmnetd drops who sends a command that it does not know, so an old server is known by its silence
and binds nothing that was not meant.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

INIT: Final = struct.Struct("<5sI40s")
MAGIC: Final = b"VMN3T"
VERSION: Final = 22
COMMIT: Final = b"0123456789" * 4  # nobody looks at it

BIND_IPV4: Final = 6
BIND_IPV6: Final = 0x86
IPV4: Final = struct.Struct("<4sHB")
IPV6: Final = struct.Struct("<16sHB")
BODIES: Final = {BIND_IPV4: IPV4, BIND_IPV6: IPV6}
PADDED: Final = 41  # octets that the OCaml client sends for every command
KINDS: Final[tuple[Literal["tcp", "udp"], ...]] = ("tcp", "udp")  # by number

RESULT: Final = struct.Struct("<Q")
BOUND: Final = 0
# errno of macOS by ours; the first two are what vmnetd's clients know
RESULTS: Final = {
    errno.EADDRINUSE: 48,
    errno.EADDRNOTAVAIL: 49,
    errno.EAFNOSUPPORT: 47,
    errno.EACCES: 13,
    errno.EMFILE: 24,
    errno.EINVAL: 22,
}
OTHER: Final = 5  # EIO
ERRNOS: Final = {result: number for number, result in RESULTS.items()}


class HelperProtocolError(Exception):
    """What came is not this protocol."""


@dataclass(frozen=True, slots=True)
class Bind:
    """What a client wants."""

    protocol: Literal["tcp", "udp"]
    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}/{self.protocol}"


def encode_init() -> bytes:
    """49 octets, the same from both sides."""
    return INIT.pack(MAGIC, VERSION, COMMIT)


def decode_init(data: bytes) -> None:
    """From 49 octets.  Raises HelperProtocolError for another program or version."""
    if len(data) != INIT.size:
        raise HelperProtocolError(f"an Init has {INIT.size} octets, not {len(data)}")
    magic, version, _ = INIT.unpack(data)
    if magic != MAGIC:
        raise HelperProtocolError(f"the other end starts with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise HelperProtocolError(f"the other end speaks version {version}, not {VERSION}")


def encode_bind(bind: Bind) -> bytes:
    """8 octets for IPv4, 20 for IPv6."""
    kind = KINDS.index(bind.protocol)
    if isinstance(bind.address, IPv4Address):
        return bytes((BIND_IPV4,)) + IPV4.pack(bind.address.packed[::-1], bind.port, kind)
    return bytes((BIND_IPV6,)) + IPV6.pack(bind.address.packed, bind.port, kind)


def size_of(command: int) -> int:
    """Octets behind the first of a command.  Raises HelperProtocolError for one that is unknown."""
    if command not in BODIES:
        raise HelperProtocolError(f"command {command} is unknown; {BIND_IPV4} (Bind_ipv4) and {BIND_IPV6} are not")
    return BODIES[command].size


def decode_bind(data: bytes) -> Bind:
    """From the octets of one command, without padding.  Raises HelperProtocolError."""
    if not data or len(data) != 1 + size_of(data[0]):
        raise HelperProtocolError(f"{len(data)} octets are no command")
    address, port, kind = BODIES[data[0]].unpack(data[1:])
    if kind >= len(KINDS):
        raise HelperProtocolError(f"kind {kind} is neither 0 (TCP) nor 1 (UDP)")
    if port == 0:
        raise HelperProtocolError("port 0 needs no privilege")
    if data[0] == BIND_IPV4:
        return Bind(KINDS[kind], IPv4Address(address[::-1]), port)
    found = IPv6Address(address)
    if found.ipv4_mapped is not None:
        raise HelperProtocolError(f"{found} is an IPv4 address, for which there is Bind_ipv4")
    return Bind(KINDS[kind], found, port)


def encode_result(number: int) -> bytes:
    """8 octets for an errno of this system, or 0."""
    return RESULT.pack(BOUND if number == 0 else RESULTS.get(number, OTHER))


def decode_result(data: bytes) -> int:
    """An errno of this system, or 0.  The Go client looks at the first octet alone, and so do we.  Raises
    HelperProtocolError."""
    if len(data) != RESULT.size:
        raise HelperProtocolError(f"a result has {RESULT.size} octets, not {len(data)}")
    return 0 if data[0] == BOUND else ERRNOS.get(data[0], errno.EIO)
