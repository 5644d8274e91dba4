"""What a guest says first on an intercepted port of TLS: in any records, and any octets at all."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from tests.fuzz.targets.common import Octets, timed
from vpnkit.errors import WireError
from vpnkit.proto.http_proxy import host_of
from vpnkit.wire import tls_hello

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

NAME = re.compile(r"[a-z0-9_.-]{1,253}")
SERVER_NAME = b"\0\0\0\x0e\0\x0c\0\0\x09a.example"
BODY = b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0" + struct.pack("!H", len(SERVER_NAME)) + SERVER_NAME
HELLO = b"\1\0" + struct.pack("!H", len(BODY)) + BODY
SEEDS = [
    b"\0" + HELLO,
    b"\7" + HELLO,
    b"\0\1\0\0\x2b" + BODY[:43],
    b"\xff\x16\3\1" + struct.pack("!H", len(HELLO)) + HELLO,
    b"\xffGET / HTTP/1.1\r\n\r\n",
]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        octets = Octets(data)
        size = octets.byte()
        said = octets.rest()
        if size != 0xFF:
            step = size or len(said) or 1
            pieces = [said[at : at + step] for at in range(0, len(said), step)]
            said = b"".join(b"\x16\3\1" + struct.pack("!H", len(piece)) + piece for piece in pieces)
        whole = decoded(said)
        if isinstance(whole, tls_hello.ClientHello) and whole.name is not None:
            assert NAME.fullmatch(whole.name)
            try:
                host_of(whole.name)
            except WireError:
                pass  # a name that could be read as an address
        half = decoded(said[: len(said) // 2])
        assert half is None or half == whole, "what is known does not change"

    return timed(one)


def decoded(data: bytes) -> tls_hello.ClientHello | str | None:
    try:
        return tls_hello.decode(data)
    except WireError:
        return "wrong"
