"""Joining an accepted connection to whatever a connector opens."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from portfwd.proxy_protocol import header_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from portfwd.spec import Spec

# Opens a stream to a guest's end of the forward.  What it raises ends the client's connection with a reset.
Connector: TypeAlias = "Callable[[Spec], Awaitable[trio.abc.HalfCloseableStream]]"
# Takes an accepted connection to the guest's end, and returns when both are closed.
Deliver: TypeAlias = "Callable[[trio.SocketStream, Spec], Awaitable[None]]"

CHUNK: Final = 64 * 1024
RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close by RST


def relay_to(connector: Connector) -> Deliver:
    """A `deliver` for ForwardTable: connect, then relay until both sides have finished.

    What the connector raises passes through, so that the table counts it.
    """

    async def deliver(stream: trio.SocketStream, spec: Spec) -> None:
        options = spec.options
        first = header_of(options.proxy, stream.socket) if options.proxy else b""
        await relay(stream, await connector(spec), first=first, idle=options.idle)

    return deliver


async def relay(
    left: trio.abc.HalfCloseableStream,
    right: trio.abc.HalfCloseableStream,
    *,
    first: bytes = b"",
    idle: float | None = None,
) -> tuple[int, int]:
    """Copy both ways until both sides have finished; the octets that went to the right and to the left.

    The end of one side becomes `send_eof` on the other.  A side that breaks aborts the other, which is no error: that
    is how connections end, too.  Both are closed afterwards.  `first` goes to the right before anything else; `idle`
    seconds without an octet either way abort both.
    """
    copied = {left: 0, right: 0}
    finished = 0
    active_at = trio.current_time()

    async def copy(source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream, head: bytes) -> None:
        nonlocal active_at, finished
        if head:
            await sink.send_all(head)
        while data := await source.receive_some(CHUNK):
            active_at = trio.current_time()
            await sink.send_all(data)
            copied[sink] += len(data)
        await sink.send_eof()
        finished += 1
        if finished == 2:
            nursery.cancel_scope.cancel()  # nobody waits for silence any more

    async def end_when_idle(limit: float) -> None:
        while True:
            left_over = active_at + limit - trio.current_time()
            if left_over <= 0:
                nursery.cancel_scope.cancel()
            await trio.sleep(max(left_over, 0))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, left, right, first)
            nursery.start_soon(copy, right, left, b"")
            if idle is not None:
                nursery.start_soon(end_when_idle, idle)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        with trio.CancelScope(shield=True):  # a forceful close does not wait, but may notice that we are cancelled
            for stream in (left, right):
                if finished < 2:
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
