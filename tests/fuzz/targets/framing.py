"""A stream of frames with their lengths before them, QEMU's or VMN3T's, in pieces."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tapdev.link import ETHERNET_HEADER, MAX_FRAME, LinkClosed
from tapdev.stream import QEMU, VMNET, StreamLink
from tests.fuzz.targets.common import timed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

SEEDS = [
    b"\0\xff" + b"\0\0\0\x0e" + bytes(14) + b"\0\0\0\x3c" + bytes(60),
    b"\1\x05" + b"\x0e\0" + bytes(14) + b"\x3c\0" + bytes(60) + b"\1\0x",
    b"\0\xff" + b"\0\0\0\0" * 5 + b"\0\1\x10\0",
    b"\0\xff" + b"\0\1\x10\1",
    b"\1\x01" + b"\x0d\0" + bytes(13) + b"\xff\xff",
]


def one(data: bytes) -> None:
    framing = VMNET if data[:1] >= b"\1" else QEMU
    piece = (data[1] if len(data) > 1 else 0) + 1
    there, here = os.pipe()
    link = StreamLink(there, os.dup(here), framing, mtu=1500)
    octets = data[2:66_000]
    try:
        for start in range(0, len(octets), piece * 16):
            os.write(here, octets[start : start + piece * 16])
            for _ in range(len(octets)):
                frame = link.receive()
                if frame is None:
                    break
                assert ETHERNET_HEADER <= len(frame) <= MAX_FRAME
                if frame[0] & 1:
                    link.hold()
            link.release()
    except LinkClosed:
        pass
    finally:
        os.close(here)
        link.close()


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(one)
