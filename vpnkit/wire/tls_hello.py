"""The server's name in a TLS ClientHello, RFC 8446 section 4.1.2 and RFC 6066 section 3.

records: type 22, version 2, length 2, fragment ...; the fragments together: type 1, length 3, and then
version 2 | random 32 | session id 1+ | cipher suites 2+ | compression methods 1+ | extensions 2+ (type 2, length 2 ...)
server_name, 0: list 2+ of (type 1, host_name 0; length 2, name)
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from vpnkit.errors import WireError

MAX_HELLO: Final = 64 * 1024  # octets that are looked at
MAX_RECORD: Final = 1 << 14
HANDSHAKE: Final = 22
CLIENT_HELLO: Final = 1
SERVER_NAME: Final = 0
HOST_NAME: Final = 0

_NAME: Final = re.compile(rb"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class ClientHello(NamedTuple):
    """What is of interest: the name, in lower case, or None when the client says none."""

    name: str | None


class _Reader:
    """Octets from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise WireError("cut ClientHello")
        self._at += count
        return taken

    def number(self, octets: int) -> int:
        return int.from_bytes(self.take(octets), "big")

    def vector(self, octets: int) -> bytes:
        return self.take(self.number(octets))


def decode(data: bytes | bytearray) -> ClientHello | None:
    """What the client says first, or None while more of it has to come.  Raises WireError when it is no ClientHello."""
    message = bytearray()
    at = 0
    while True:
        head = data[at : at + 5]
        for octet, expected in zip(head, (HANDSHAKE, 3), strict=False):
            if octet != expected:
                raise WireError("no TLS handshake")
        if len(head) < 5:
            break
        length = int.from_bytes(head[3:5], "big")
        if not 0 < length <= MAX_RECORD:
            raise WireError(f"TLS record of {length} octets")
        message += data[at + 5 : at + 5 + length]
        if message and message[0] != CLIENT_HELLO:
            raise WireError("no ClientHello")
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > MAX_HELLO:
                raise WireError(f"ClientHello of {whole} octets")
            if len(message) >= whole:
                return ClientHello(_name(bytes(message[4:whole])))
        at += 5 + length
        if at > len(data):
            break
    if len(data) > 2 * MAX_HELLO:
        raise WireError("endless ClientHello")
    return None


def _name(body: bytes) -> str | None:
    reader = _Reader(body)
    reader.take(34)
    reader.vector(1)
    reader.vector(2)
    reader.vector(1)
    if not reader:
        return None
    extensions = _Reader(reader.vector(2))
    while extensions:
        kind, value = extensions.number(2), extensions.vector(2)
        if kind != SERVER_NAME:
            continue
        names = _Reader(_Reader(value).vector(2))
        while names:
            name_kind, name = names.number(1), names.vector(2)
            if name_kind == HOST_NAME:
                if not _NAME.fullmatch(name):
                    raise WireError("server name")
                return name.decode("ascii").lower()
    return None
