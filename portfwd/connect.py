"""Joining an accepted connection to whatever a connector opens."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from portfwd.spec import Spec

Connector: TypeAlias = "Callable[[Spec], Awaitable[trio.abc.HalfCloseableStream]]"

CHUNK: Final = 64 * 1024
RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close by RST


def relay_to(connector: Connector) -> Callable[[trio.SocketStream, Spec], Awaitable[None]]:
    """A `deliver` for ForwardTable: connect, then relay until both sides have finished.

    What the connector raises passes through, so that the table counts it.
    """

    async def deliver(stream: trio.SocketStream, spec: Spec) -> None:
        await relay(stream, await connector(spec))

    return deliver


async def relay(left: trio.abc.HalfCloseableStream, right: trio.abc.HalfCloseableStream) -> tuple[int, int]:
    """Copy both ways until both sides have finished; the octets that went to the right and to the left.

    The end of one side becomes `send_eof` on the other.  A side that breaks aborts the other, which is no error: that
    is how connections end, too.  Both are closed afterwards.
    """
    copied = {left: 0, right: 0}
    intact = False

    async def copy(source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream) -> None:
        while data := await source.receive_some(CHUNK):
            await sink.send_all(data)
            copied[sink] += len(data)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, left, right)
            nursery.start_soon(copy, right, left)
        intact = True
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        with trio.CancelScope(shield=True):  # a forceful close does not wait, but may notice that we are cancelled
            for stream in (left, right):
                if not intact:
                    abort(stream)
                await trio.aclose_forcefully(stream)
    return copied[right], copied[left]


def abort(stream: trio.abc.HalfCloseableStream) -> None:
    """End `stream` so that its peer sees a reset, where that means something.  Does not wait."""
    own = getattr(stream, "abort", None)
    if own is not None:
        own()
    elif isinstance(stream, trio.SocketStream):
        try:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            pass  # not TCP, or closed
        stream.socket.close()
