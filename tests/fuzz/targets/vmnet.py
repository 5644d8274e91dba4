"""What a client says first on a VMN3T socket: the handshake, or gvproxy's HTTP request; the pieces it comes in vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapdev.http_connect import serve_either
from tapdev.vmnet import HandshakeError, Refused, Registration
from tests.fuzz.targets.common import Words, finish, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

INIT = bytes.fromhex("564d4e335416000000") + b"0123456789" * 4
JOIN = b"\x01d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5" + bytes(4)
SEEDS = [
    bytes((255,)) + INIT + JOIN,
    bytes((7,)) + INIT + b"\x08" + bytes(36) + b"\xfa\x41\xa8\xc0",
    bytes((255,)) + INIT + b"\x06" + bytes(40),
    bytes((255,)) + b"VMNET" + bytes(44),
    bytes((255,)) + b"POST /connect HTTP/1.1\r\nHost: \r\n\r\nframes",
    bytes((1,)) + b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
]


def one(data: bytes) -> None:
    asked = []

    def register(uuid: object, wanted: bytes | None) -> Registration:
        asked.append((uuid, wanted))
        if wanted is not None and wanted[3] & 1:
            raise Refused("No IP addresses available.")
        return Registration(b"\2\0\0\0\0\1", wanted or bytes(4))

    words = Words(data[1:], data[0] + 1 if data else 1)
    try:
        registration, left = finish(serve_either(words, register, mtu=1500))  # type: ignore[arg-type]
    except (HandshakeError, Refused):
        return
    assert data.endswith(left + words._data)
    assert (registration is not None) == (len(asked) == 1)


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(one)
