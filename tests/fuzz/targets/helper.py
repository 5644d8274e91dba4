"""What a client says to the port helper, which has a privilege; the pieces it comes in vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portfwd.helper.server import read_request
from portfwd.helper.wire import HelperProtocolError, encode_bind
from tests.fuzz.targets.common import Words, finish, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

INIT = bytes.fromhex("564d4e335416000000") + b"0123456789" * 4
SEEDS = [
    bytes((255,)) + INIT + bytes.fromhex("06 0100007f 5000 00"),
    bytes((3,)) + INIT + bytes.fromhex("06 fa41a8c0 3500 01") + bytes(33),
    bytes((255,)) + INIT + bytes.fromhex("86 00000000000000000000000000000001 5000 00"),
    bytes((255,)) + INIT + bytes.fromhex("86 00000000000000000000ffff7f000001 5000 00"),
    bytes((255,)) + INIT + b"\x01d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5" + bytes(4),
    bytes((255,)) + b"VMNET" + bytes(44),
]


def one(data: bytes) -> None:
    words = Words(data[1:], data[0] + 1 if data else 1)
    try:
        wanted = finish(read_request(words))  # type: ignore[arg-type]
    except HelperProtocolError:
        return
    asked = encode_bind(wanted)
    assert data[1 + len(INIT) :].startswith(asked)
    assert data.endswith(asked + words._data)
    assert 1 <= wanted.port <= 65535
    assert words.said == INIT


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(one)
