"""A small HTTP/1.1 server for the operator: connections are bounded in number, and each of them fails alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from portfwd.accept import Acceptor
from vpnkit.control.connection import OWNER, Connection
from vpnkit.control.listen import process_of
from vpnkit.control.message import HttpError, Stream, Takeover

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from vpnkit.control.guard import Guard
    from vpnkit.control.routes import Router

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
MAX_STREAMS: Final = 16  # answers that go on; they do not count as connections
MAX_REFUSALS: Final = 16  # connections that are being told that there are too many


async def serve_http(listener: trio.SocketListener, router: Router, guard: Guard = OWNER) -> None:
    """Answer requests until cancelled, or until the listener is closed."""
    acceptor = Acceptor(listener, "control socket")
    serving = streaming = refusing = 0

    async def serve(stream: trio.SocketStream) -> None:
        async def converse() -> None:
            nonlocal serving, streaming
            connection = Connection(stream, router, guard, process=process_of(stream))
            try:
                going_on = await connection.serve()
            finally:
                serving -= 1
            if isinstance(going_on, Takeover):
                await going_on.take(stream, connection.unread)
            elif isinstance(going_on, Stream):
                if streaming >= MAX_STREAMS:
                    await connection.reject(HttpError(503, "too_many_streams", f"at most {MAX_STREAMS} at once"))
                    return
                streaming += 1
                try:
                    await connection.stream(going_on)
                finally:
                    streaming -= 1

        await _contained(stream, converse())

    async def refuse(stream: trio.SocketStream) -> None:
        nonlocal refusing
        busy = HttpError(503, "too_many_connections", f"at most {MAX_CONNECTIONS} connections at once", close=True)
        try:
            await _contained(stream, Connection(stream, router, guard).reject(busy))
        finally:
            refusing -= 1

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await acceptor.accept()
            except trio.ClosedResourceError:
                return
            if not guard.admits(stream):
                log.warning("control socket: refused a process of another user")
                await trio.aclose_forcefully(stream)
            elif serving < MAX_CONNECTIONS:
                serving += 1
                nursery.start_soon(serve, stream)
            elif refusing < MAX_REFUSALS:
                refusing += 1
                nursery.start_soon(refuse, stream)
            else:
                await trio.aclose_forcefully(stream)


async def _contained(stream: trio.SocketStream, serving: Awaitable[None]) -> None:
    """A connection that fails ends alone."""
    try:
        await serving
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("control socket: a client went away")
    except Exception:
        log.exception("control socket: a connection failed")
    finally:
        await trio.aclose_forcefully(stream)
