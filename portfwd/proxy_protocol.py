"""The PROXY protocol, sent: who the client is, in front of its first octet.

The PROXY protocol, versions 1 and 2, https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from portfwd.options import Proxy

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_2_PROXY: Final = 0x21  # the connection is made for another
TCP_OVER_IPV4: Final = 0x11
TCP_OVER_IPV6: Final = 0x21
UNIX_STREAM: Final = 0x31
UNIX_PATH: Final = 108  # octets of either path


def header_of(version: Proxy, accepted: Any) -> bytes:
    """The header for what was `accepted`, a socket of the standard library or of trio.  Raises OSError when its client
    is gone already."""
    if accepted.family == socket.AF_UNIX:
        return unix_header(version, accepted.getsockname())
    return header(version, accepted.getpeername()[:2], accepted.getsockname()[:2])


def header(version: Proxy, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """The header of a TCP connection from `source` to `destination`, addresses of one family."""
    client, server = ip_address(source[0].partition("%")[0]), ip_address(destination[0].partition("%")[0])
    ports = source[1], destination[1]
    if version == "v1":
        return f"PROXY TCP{client.version} {client} {server} {ports[0]} {ports[1]}\r\n".encode()
    family = TCP_OVER_IPV4 if client.version == 4 else TCP_OVER_IPV6
    return _version_2(family, client.packed + server.packed + struct.pack("!HH", *ports))


def unix_header(version: Proxy, path: str | bytes) -> bytes:
    """The header of a connection to the unix socket `path`, whose clients have no name."""
    if version == "v1":
        return b"PROXY UNKNOWN\r\n"
    server = path if isinstance(path, bytes) else path.encode(errors="surrogateescape")
    return _version_2(UNIX_STREAM, bytes(UNIX_PATH) + server[:UNIX_PATH].ljust(UNIX_PATH, b"\0"))


def _version_2(family: int, addresses: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", VERSION_2_PROXY, family, len(addresses)) + addresses
