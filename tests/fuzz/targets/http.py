"""HTTP requests for `/connect`, from the request line on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapdev.http_connect import looks_like_http, serve_upgrade
from tapdev.vmnet import HandshakeError
from tests.fuzz.targets.common import Words, finish, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

SEEDS = [
    b"\xffPOST /connect HTTP/1.1\r\nHost: \r\n\r\n\x0e\0frame",
    b"\x03GET /a/connect?x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    b"\xffPOST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"\xffPOST /connect HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    b"\x08GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
]


def one(data: bytes) -> None:
    looks_like_http(data[1:])
    words = Words(data[1:], data[0] + 1 if data else 1)
    try:
        left = finish(serve_upgrade(words, b""))  # type: ignore[arg-type]
    except HandshakeError:
        assert words.said == b"" or words.said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 "))
        return
    assert data.endswith(left + words._data)
    assert b"/connect" in data


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(one)
